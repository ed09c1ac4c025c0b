"""Time of bootstrap intervals for a pair of detectors, ours and hotcoco's `compare`, including matching.

    python benchmarks/bootstrap.py                     # COCO val2017's size: 5,000 images; hotcoco takes minutes
    python benchmarks/bootstrap.py --images 500        # a tenth, for a quick look
    python benchmarks/bootstrap.py --out benchmarks/results/bootstrap.md

Both sides get the same predictions, 80 classes and 100 detections per image (see benchmarks/evaluation.py), and the
same number of resamples. The second detector's boxes and scores are the first one's with noise. hotcoco resamples
twelve metrics; ours are six and the AP of each class. Correctness is tested in tests/evaluation/test_matches.py; here
the difference of AP and its interval are printed for both sides, which draw different resamples.

A second case has the size of a report: seven configurations with three seeds each on 300 images, which hotcoco's
`compare` does not support.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import hotcoco
import numpy as np
from _common import Report, spread, time_in_turn
from evaluation import NUM_CLASSES, make_batches

from zoo.evaluation import GroundTruth, Predictions
from zoo.evaluation.bootstrap import Difference, bootstrap
from zoo.evaluation.coco import load_hotcoco, pack_detections
from zoo.evaluation.matches import collect_matches
from zoo.evaluation.scores import order_detections

GOAL_SECONDS = 60.0  # 1,000 resamples of a pair at COCO val2017's size on two cores


def make_set(num_images: int, seed: int) -> tuple[GroundTruth, Predictions]:
    batches = make_batches(num_images, seed)
    targets = [target for _, batch in batches for target in batch]
    predictions = [prediction for batch, _ in batches for prediction in batch]
    truth = GroundTruth.from_targets(targets, [f"class{c}" for c in range(NUM_CLASSES)])
    return truth, Predictions.from_lists([int(target["image_id"]) for target in targets], predictions)


def add_noise(predictions: Predictions, seed: int) -> Predictions:
    """The predictions with noise of 4% of the box size on box edges, and of 0.05 on scores (standard deviations)."""
    rng = np.random.default_rng(seed)
    boxes, scores = predictions.boxes, predictions.scores
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + 0.04 * size * rng.standard_normal(boxes.shape, dtype=np.float32)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    noisy_scores = scores + 0.05 * rng.standard_normal(len(scores), dtype=np.float32)
    return Predictions(predictions.image_ids, moved, noisy_scores, predictions.labels)


def run_ours(truth: GroundTruth, pair: list[Predictions], resamples: int) -> Difference:
    groups = {str(i): [collect_matches(truth, predictions)] for i, predictions in enumerate(pair)}
    return bootstrap(groups, resamples).difference("0", "1", "AP")


def run_hotcoco(truth: GroundTruth, pair: list[Predictions], resamples: int) -> dict:
    runs = [load_hotcoco(truth, pack_detections(*order_detections(truth, predictions))) for predictions in pair]
    for run in runs:
        run.evaluate()
    return hotcoco.compare(runs[1], runs[0], n_bootstrap=resamples)  # its delta is second minus first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds, after one untimed call of each side")
    parser.add_argument("--out", type=Path, help="also write the output to this file")
    options = parser.parse_args()

    report = Report(
        f"Intervals of a pair of detectors: {options.images} images, {NUM_CLASSES} classes, "
        f"{options.resamples} resamples",
        f"python benchmarks/{Path(sys.argv[0]).name} --images {options.images} --resamples {options.resamples} "
        f"--rounds {options.rounds}",
        ["case", "ours, s", "hotcoco compare, s", "ratio", "goal"],
    )
    truth, first = make_set(options.images, seed=0)
    pair = [first, add_noise(first, seed=1)]
    results: dict = {}

    def ours() -> None:
        results["ours"] = run_ours(truth, pair, options.resamples)

    def peer() -> None:
        results["peer"] = run_hotcoco(truth, pair, options.resamples)

    timing = time_in_turn(ours, peer, options.rounds, "cpu")
    case = f"bootstrap/{options.images}_images/pair/{options.resamples}_resamples"
    goal = f"under {GOAL_SECONDS:.0f} s" if options.images == 5000 and options.resamples == 1000 else ""
    report.row([case, spread(timing.ours), spread(timing.peer), f"{timing.ratio:.2f}", goal])
    report.case(case, median(timing.ours), median(timing.peer), f"hotcoco {hotcoco.__version__}", "s", timing.ratio)

    truth, first = make_set(300, seed=0)
    groups = {
        f"config{c}": [collect_matches(truth, add_noise(first, seed=3 * c + s)) for s in range(3)] for c in range(7)
    }
    start = time.perf_counter()
    bootstrap(groups, options.resamples)
    took = time.perf_counter() - start
    report.line(
        f"\n7 configurations of 3 seeds on 300 images, {options.resamples} resamples: {took:.1f} s after matching.\n"
    )
    ci, mine = results["peer"]["ci"]["AP"], results["ours"]
    theirs = f"hotcoco {results['peer']['deltas']['AP']:.5f} ({ci['lower']:.5f} to {ci['upper']:.5f})"
    report.line(f"Difference of AP: ours {mine.value:.5f} ({mine.low:.5f} to {mine.high:.5f}), {theirs}.")
    report.finish(options.out)


if __name__ == "__main__":
    main()
