"""COCO's metrics of masks: both engines alike, against pycocotools' own reading of the files, and by hand."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from paths import SHARED_DATA

from zoo.data.formats.coco import read_coco
from zoo.data.formats.shapes import Shapes
from zoo.data.masks import Masks, encode_runs
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.coco import KEYS
from zoo.evaluation.ground_truth import ObjectMasks

FILE = SHARED_DATA / "coco_mini/annotations/instances_val2017.json"


def shaken(table: AnnotationTable, seed: int) -> Predictions:
    """Detections made of the objects: masks shifted by some pixels, some of another class, in mixed order of images."""
    assert table.masks is not None
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, int, bytes, int, int]] = []
    for index in range(len(table)):
        height, width = int(table.heights[index]), int(table.widths[index])
        for row in range(table.rows(index).start, table.rows(index).stop):
            for _ in range(int(random.integers(0, 3))):
                pixels = np.roll(table.masks.decode(row, height, width), random.integers(-6, 7, 2), axis=(0, 1))
                label = int(table.labels[row]) if random.random() < 0.85 else int(random.integers(table.num_classes))
                rows.append((int(table.image_ids[index]), label, row, encode_runs(pixels), height, width))
    random.shuffle(rows)
    boxes = np.array([table.boxes[row] for _, _, row, *_ in rows])
    masks = Masks.pack(text for *_, text, _, _ in rows)
    sizes = (np.array([row[side] for row in rows]) for side in (4, 5))
    return Predictions(
        image_ids=np.array([row[0] for row in rows]),
        boxes=boxes,
        scores=random.random(len(rows)).round(2),
        labels=np.array([row[1] for row in rows]),
        masks=ObjectMasks(masks, *sizes),
    )


def pycocotools_metrics(file: Path, table: AnnotationTable, predictions: Predictions) -> list[float]:
    """As a user of pycocotools gets them: from the annotation file and a list of results without boxes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert predictions.masks is not None
    results = [
        {
            "image_id": int(image_id),
            "category_id": int(table.class_ids[label]),
            "score": float(score),
            "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
        }
        for image_id, label, score, mask in zip(
            predictions.image_ids,
            predictions.labels,
            predictions.scores,
            predictions.masks.run_lengths(),
            strict=True,
        )
    ]
    # pycocotools keeps the order of the results among equal scores of an image, as we do
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        run = COCOeval(truth, truth.loadRes(results), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_are_those_of_pycocotools_with_crowds(seed: int) -> None:
    if not FILE.exists():
        pytest.skip("needs COCO's images at ../shared/data")
    table = read_coco(FILE, with_masks=True)
    assert table.iscrowd.any()
    predictions = shaken(table, seed)
    ground_truth = GroundTruth.from_table(table)
    expected = pycocotools_metrics(FILE, table, predictions)
    for engine in ("hotcoco", "pycocotools"):
        found = evaluate(ground_truth, predictions, ["coco"], engine, by_masks=True).metrics
        assert [found[key] for key in KEYS] == pytest.approx(expected, abs=1e-12)
    assert 0.2 < found["AP"] < 0.9
    boxes = evaluate(ground_truth, predictions, ["coco"]).metrics
    assert abs(boxes["AP"] - found["AP"]) > 0.01


def test_objects_without_a_mask_do_not_count(tmp_path: Path) -> None:
    table = Shapes(12, seed=0).read(with_masks=True)
    assert table.masks is not None
    predictions = shaken(table, 3)
    kept = [table.masks.runs(row, 1, 1) if row % 2 else None for row in range(table.num_objects)]
    half = {name: getattr(table, name) for name in table.__dataclass_fields__} | {"masks": Masks.pack(kept)}
    crowd = {name: getattr(table, name) for name in table.__dataclass_fields__} | {
        "masks": Masks.pack(text or b"0" for text in kept),
        "iscrowd": np.array([text is None for text in kept]),
    }
    crowd["masks"] = ObjectMasks.of_table(AnnotationTable(**half)).masks
    results = []
    for columns in (half, crowd):
        truth = GroundTruth.from_table(AnnotationTable(**columns))
        results.append(
            [evaluate(truth, predictions, ["coco"], engine, True).metrics for engine in ("hotcoco", "pycocotools")]
        )
    assert results[0][0] == pytest.approx(results[0][1], abs=1e-12)
    assert results[0] == results[1]
    assert results[0][0]["AP"] > 0.1


def test_perfect_masks_and_shifted_ones() -> None:
    """The mask of each object has AP 1 whatever its box; the size of a detection is that of its mask."""
    table = Shapes(12, seed=0).read(with_masks=True)
    masks = ObjectMasks.of_table(table)
    image_ids = np.repeat(table.image_ids, np.diff(table.offsets))
    perfect = Predictions(image_ids, table.boxes + 50, np.ones(len(image_ids)), table.labels, masks)
    truth = GroundTruth.from_table(table)
    metrics = evaluate(truth, perfect, ["coco"], by_masks=True).metrics
    assert metrics["AP"] == metrics["APs"] == 1
    assert evaluate(truth, perfect, ["coco"]).metrics["AP"] < 0.1
    areas = masks.areas()
    assert areas[0] == masks.masks.decode(0, int(masks.heights[0]), int(masks.widths[0])).sum()


def test_missing_masks_are_named() -> None:
    with_masks, without = Shapes(3, seed=0).read(with_masks=True), Shapes(3, seed=0).read()
    found = shaken(with_masks, 0)
    plain = Predictions(found.image_ids, found.boxes, found.scores, found.labels)
    with pytest.raises(InputError, match="the predictions have no masks"):
        evaluate(GroundTruth.from_table(with_masks), plain, ["coco"], by_masks=True)
    with pytest.raises(InputError, match="the ground truth has no masks"):
        evaluate(GroundTruth.from_table(without), found, ["coco"], by_masks=True)
    with pytest.raises(InputError, match="by COCO's protocol only"):
        evaluate(GroundTruth.from_table(with_masks), found, by_masks=True)
