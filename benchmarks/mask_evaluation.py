"""Time of COCO's metrics of masks: ours, and hotcoco called directly on the same arrays.

    python benchmarks/mask_evaluation.py --out benchmarks/results/mask_evaluation.md

5,000 images with 100 detections each and as many objects as COCO's; the masks are the ellipses in random boxes, as
compressed run lengths. Both sides start with the same arrays and list of texts: hotcoco's side makes the dicts that it
reads and calls it, ours is `evaluate` of packed columns. The area of a detection decides its size range: pycocotools
takes that of the mask, hotcoco that of the box unless it is told. So hotcoco has two rows: with the areas of masks,
which give the same metrics as ours, and as it comes. The time to
read a predictions file of that size is printed, too.
"""

import argparse
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import hotcoco
import numpy as np
from _common import Report, spread, time_in_turn
from bootstrap import make_set
from evaluation import HEIGHT, NUM_CLASSES, WIDTH

from zoo.data.masks import Masks, encode_stack
from zoo.evaluation import GroundTruth, Predictions, evaluate, read_coco_results, write_coco_results
from zoo.evaluation.ground_truth import ObjectMasks
from zoo.evaluation.predictions import to_xywh

ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH] + 0.5


def ellipses(boxes: np.ndarray) -> list[bytes]:
    """Compressed run lengths of the ellipses in boxes [N, 4]."""
    found = []
    for start in range(0, len(boxes), 100):
        masks = np.zeros((len(boxes[start : start + 100]), HEIGHT, WIDTH), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes[start : start + 100], strict=True):
            cut = np.s_[int(max(y1, 0)) : int(y2) + 1, int(max(x1, 0)) : int(x2) + 1]
            across, down = (COLUMNS[cut] - (x1 + x2) / 2) / (x2 - x1), (ROWS[cut] - (y1 + y2) / 2) / (y2 - y1)
            mask[cut] = across**2 + down**2 <= 0.25
        found += encode_stack(masks)
    return found


def with_sizes(texts: list[bytes]) -> ObjectMasks:
    """The masks of images of one size."""
    return ObjectMasks(Masks.pack(texts), np.full(len(texts), HEIGHT), np.full(len(texts), WIDTH))


def hotcoco_alone(
    truth: GroundTruth, found: Predictions, truth_texts: list[bytes], texts: list[bytes], with_areas: bool
) -> float:
    """AP by hotcoco, called as its documentation does; with the areas of masks, or of boxes, which it takes itself."""
    size = [HEIGHT, WIDTH]
    known = hotcoco.COCO.from_arrays(
        images=[{"id": index} for index in range(len(truth.image_ids))],
        categories=[{"id": label, "name": name} for label, name in enumerate(truth.classes)],
        image_ids=truth.image_index,
        category_ids=truth.labels,
        boxes=to_xywh(truth.boxes),
        area=truth.areas,
        iscrowd=truth.iscrowd,
        segmentation=[{"size": size, "counts": text} for text in truth_texts],
    )
    columns = [np.searchsorted(truth.image_ids, found.image_ids), to_xywh(found.boxes), found.scores, found.labels]
    detected = known.load_res(np.column_stack(columns), segmentation=[{"size": size, "counts": text} for text in texts])
    run = hotcoco.COCOeval(known, detected, "segm")
    run.evaluate()
    run.accumulate()
    assert run.eval is not None
    precision = run.eval["precision"][:, :, :, 0, 2]
    return float(precision[precision > -1].mean())


def main() -> None:
    """Time both sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    truth, found = make_set(options.images, seed=0)
    texts, truth_texts = ellipses(found.boxes), ellipses(truth.boxes)
    found, truth = replace(found, masks=with_sizes(texts)), replace(truth, masks=with_sizes(truth_texts))
    values: dict[str, float] = {}

    def ours() -> None:
        values["ours"] = evaluate(truth, found, ["coco"], by_masks=True).metrics["AP"]

    report = Report(
        "Evaluation of masks",
        shlex.join(["python", *sys.argv]),
        ("images", "detections", "objects", "hotcoco", "ours, s", "hotcoco, s", "hotcoco / ours"),
    )
    sizes = [f"{number:,}" for number in (options.images, len(texts), len(truth_texts))]
    for with_areas, name in ((True, "with areas of masks"), (False, "as it comes")):

        def peer(with_areas: bool = with_areas) -> None:
            values["peer"] = hotcoco_alone(truth, found, truth_texts, texts, with_areas)

        timing = time_in_turn(ours, peer, options.rounds, "cpu")
        assert abs(values["ours"] - values["peer"]) < 1e-12
        report.row([*sizes, name, spread(timing.ours), spread(timing.peer), f"{timing.ratio:.2f}"])
        case = f"masks, {options.images} images, {name}"
        report.case(case, median(timing.ours), median(timing.peer), f"hotcoco {hotcoco.__version__}", "s", timing.ratio)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "predictions.json")
        write_coco_results(found, file, range(NUM_CLASSES))
        start = time.perf_counter()
        read_coco_results(file, truth.image_ids, range(NUM_CLASSES))
        took = time.perf_counter() - start
        report.line(f"\nReading a predictions file of them ({file.stat().st_size / 1e6:.0f} MB): {took:.1f} s.")
    report.finish(options.out)


if __name__ == "__main__":
    main()
