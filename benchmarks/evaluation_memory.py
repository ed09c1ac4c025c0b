"""Peak memory of evaluation at COCO train2017's size: the metric from a stream of batches, and a pair's intervals.

    python benchmarks/evaluation_memory.py --images 118287 --resamples 100

The images are those of `evaluation.py`, 100 detections each, made a thousand at a time. Each part runs in a process of
its own; what it had before the first image (the libraries) is stated apart.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from _common import Report
from evaluation import NUM_CLASSES, Batches, make_batches

from zoo.evaluation import DetectionMAP, GroundTruth, Predictions
from zoo.evaluation.bootstrap import bootstrap
from zoo.evaluation.matches import collect_matches

AT_ONCE = 1000  # images made at a time
GOAL_MB = 2048.0
CLASSES = tuple(f"class{c}" for c in range(NUM_CLASSES))


def stream(num_images: int, seed: int) -> Iterator[Batches]:
    """Batches of all images, with ascending ids."""
    for start in range(0, num_images, AT_ONCE):
        batches = make_batches(min(AT_ONCE, num_images - start), seed + start)
        for _, targets in batches:
            for target in targets:
                target["image_id"] += start
        yield batches


def run_metric(num_images: int, resamples: int) -> float:
    """AP from a stream."""
    metric = DetectionMAP(CLASSES)
    for batches in stream(num_images, seed=0):
        for predictions, targets in batches:
            metric.update(predictions, targets)
    return float(metric.compute()["AP"])


def run_intervals(num_images: int, resamples: int) -> float:
    """Width of the interval of the difference of two detectors, of which the second has noisier scores."""
    parts: list[Predictions] = []
    targets = []
    for batches in stream(num_images, seed=0):
        found = [prediction for predictions, _ in batches for prediction in predictions]
        chunk = [{**target} for _, batch in batches for target in batch]
        targets += chunk
        parts.append(Predictions.from_lists([int(target["image_id"]) for target in chunk], found))
    truth = GroundTruth.from_targets(targets, list(CLASSES))
    del targets
    columns = ("image_ids", "boxes", "scores", "labels")
    first = Predictions(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))
    del parts
    noise = 0.05 * np.random.default_rng(1).standard_normal(len(first), dtype=np.float32)
    second = Predictions(first.image_ids, first.boxes, first.scores + noise, first.labels)
    groups = {"first": [collect_matches(truth, first)], "second": [collect_matches(truth, second)]}
    del first, second
    difference = bootstrap(groups, resamples).difference("first", "second", "AP")
    return difference.high - difference.low


def measure(part: Callable[[int, int], float], num_images: int, resamples: int, pipe: Connection) -> None:
    """Value, seconds, MB before and MB at most, sent through the pipe."""
    before, start = peak_mb(), time.perf_counter()
    value = part(num_images, resamples)
    pipe.send((value, time.perf_counter() - start, before, peak_mb()))


def peak_mb() -> float:
    """Most memory that this process has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118287)
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--out", type=Path, help="also write the output to this file")
    args = parser.parse_args()
    command = f"python benchmarks/{Path(sys.argv[0]).name} --images {args.images} --resamples {args.resamples}"
    columns = ("part", "value", "seconds, images made included", "MB before", "MB at most", "goal")
    report = Report(f"Memory of evaluation: {args.images} images, 100 detections each", command, columns)
    context = multiprocessing.get_context("spawn")
    for name, part in (("DetectionMAP from a stream", run_metric), ("pair of detectors, bootstrap", run_intervals)):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(part, args.images, args.resamples, theirs))
        process.start()
        theirs.close()  # so that the end of the process is noticed
        value, seconds, before, most = ours.recv()
        process.join()
        report.row((name, f"{value:.4f}", f"{seconds:.0f}", f"{before:.0f}", f"{most:.0f}", f"{GOAL_MB:.0f}"))
        report.case(f"evaluation_memory/{name}", most, GOAL_MB, "goal", "MB", GOAL_MB / most)
    report.finish(args.out)


if __name__ == "__main__":
    main()
