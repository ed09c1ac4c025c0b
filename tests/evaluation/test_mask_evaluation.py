"""Evaluation of masks: COCO's metrics by both engines and by pycocotools itself, matches, TIDE, and files of masks."""

import contextlib
import gc
import io
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from paths import SHARED_DATA
from shaken import shaken

from zoo.data.formats.coco import read_coco
from zoo.data.formats.shapes import Shapes
from zoo.data.masks import RUNS, Masks, encode_runs, expand_runs
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.bootstrap import bootstrap
from zoo.evaluation.coco import KEYS, load_hotcoco, pack_detections, run_tables
from zoo.evaluation.errors import tide_errors
from zoo.evaluation.ground_truth import ObjectMasks
from zoo.evaluation.identity import read_predictions, write_predictions
from zoo.evaluation.matches import collect_matches
from zoo.evaluation.reweighting import average_precisions
from zoo.evaluation.scores import evaluate_boxes_and_masks, order_detections, order_masks

FILE = SHARED_DATA / "coco_mini/annotations/instances_val2017.json"


def coco_mini() -> AnnotationTable:
    if not FILE.exists():
        pytest.skip("needs COCO's images at ../shared/data")
    return read_coco(FILE, with_masks=True)


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
    table = coco_mini()
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
    boxes = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in table.boxes.tolist()]
    crowd = {name: getattr(table, name) for name in table.__dataclass_fields__} | {
        "masks": Masks.pack(text or box for text, box in zip(kept, boxes, strict=True)),
        "iscrowd": np.array([text is None for text in kept]),
    }
    results = []
    for columns in (half, crowd):
        truth = GroundTruth.from_table(AnnotationTable(**columns))
        results.append(
            [evaluate(truth, predictions, ["coco"], engine, True).metrics for engine in ("hotcoco", "pycocotools")]
        )
    assert results[0][0] == pytest.approx(results[0][1], abs=1e-12)
    assert results[0] == results[1]
    assert results[0][0]["AP"] > 0.1


def test_a_detection_of_an_object_without_a_mask_is_neither_right_nor_wrong() -> None:
    table = Shapes(2, seed=0).read(with_masks=True)
    assert table.masks is not None
    masks = ObjectMasks.of_table(table)
    image_ids = np.repeat(table.image_ids, np.diff(table.offsets))
    scores = np.linspace(1, 0.5, len(image_ids))
    perfect = Predictions(image_ids, table.boxes, scores, table.labels, masks)
    kept = [None if row == 0 else table.masks.runs(row, 1, 1) for row in range(table.num_objects)]
    truth = GroundTruth.from_table(replace(table, masks=Masks.pack(kept)))
    assert evaluate(truth, perfect, ["coco"], by_masks=True).metrics["AP"] == pytest.approx(1)
    assert tide_errors(truth, perfect, by_masks=True)["Bkg"] == 0


def test_sizes_are_those_of_masks_where_the_data_has_no_areas_of_its_own() -> None:
    table = Shapes(12, seed=0).read(with_masks=True)
    masks = ObjectMasks.of_table(table)
    truth = GroundTruth.from_table(table).for_masks()
    assert truth.areas.tolist() == masks.areas().tolist()
    assert (truth.areas < GroundTruth.from_table(table).areas).all()
    segments = GroundTruth.from_table(replace(table, areas=table.areas * 0.7))  # as COCO's json has them
    assert segments.for_masks().areas.tolist() == segments.areas.tolist()


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


def test_matches_by_masks_are_those_of_the_engine_in_every_size_range() -> None:
    table = coco_mini()
    predictions = shaken(table, 2)
    truth = GroundTruth.from_table(table).for_masks()
    detections = pack_detections(*order_detections(truth, predictions))
    precision, _ = run_tables(load_hotcoco(truth, detections, masks=order_masks(truth, predictions)))
    ap = precision[:, :, :, :, 2].mean(axis=1).transpose(1, 2, 0)
    matches = collect_matches(GroundTruth.from_table(table), predictions, by_masks=True)
    found = average_precisions(matches, np.ones((1, len(table)), np.int64))[0]
    np.testing.assert_allclose(found, np.where(ap < 0, np.nan, ap), rtol=0, atol=1e-9)
    assert np.nanmean(found[:, 1]) != np.nanmean(found[:, 3])


def test_bootstrap_of_masks_has_the_values_of_evaluate_and_an_interval_around_them() -> None:
    table = Shapes(20, seed=0).read(with_masks=True)
    truth = GroundTruth.from_table(table)
    runs = {name: shaken(table, seed) for name, seed in (("first", 4), ("second", 5))}
    drawn = bootstrap({name: [collect_matches(truth, found, by_masks=True)] for name, found in runs.items()}, 50)
    for name, found in runs.items():
        metrics = evaluate_boxes_and_masks(truth, found).metrics
        interval = drawn.interval(name, "AP")
        assert interval.value == pytest.approx(metrics["mask_AP"], abs=1e-9) != metrics["AP"]
        assert interval.low < interval.value < interval.high


def test_boxes_and_masks_have_their_metrics_side_by_side_where_both_sides_have_masks() -> None:
    table = Shapes(8, seed=0).read(with_masks=True)
    found = shaken(table, 1)
    truth = GroundTruth.from_table(table)
    both = evaluate_boxes_and_masks(truth, found)
    boxes, masks = evaluate(truth, found), evaluate(truth, found, ["coco"], by_masks=True)
    assert both.metrics == boxes.metrics | {f"mask_{key}": value for key, value in masks.metrics.items()}
    name = table.classes[0]
    assert both.per_class[name] == boxes.per_class[name] | {
        f"mask_{key}": value for key, value in masks.per_class[name].items()
    }
    assert evaluate_boxes_and_masks(replace(truth, masks=None), found) == boxes
    assert evaluate_boxes_and_masks(truth, replace(found, masks=None)) == boxes


def tidecv_mask_errors(tidecv: ModuleType, truth: GroundTruth, found: Predictions) -> dict[str, float]:
    assert truth.masks is not None
    assert found.masks is not None
    known, detected = tidecv.Data("truth"), tidecv.Data("found")
    for label, name in enumerate(truth.classes):
        known.add_class(label, name)
    for image_id in truth.image_ids.tolist():
        known.add_image(image_id, str(image_id))
    of_objects = zip(truth.image_index, truth.labels, truth.masks.run_lengths(), truth.iscrowd, strict=True)
    for image, label, mask, crowd in of_objects:
        (known.add_ignore_region if crowd else known.add_ground_truth)(
            int(truth.image_ids[image]), int(label), None, mask
        )
    columns = (found.image_ids.tolist(), found.labels.tolist(), found.scores.tolist(), found.masks.run_lengths())
    for image_id, label, score, mask in zip(*columns, strict=True):
        detected.add_detection(image_id, label, score, None, mask)
    run = tidecv.TIDERun(known, detected, pos_thresh=0.5, bg_thresh=0.1, mode=tidecv.TIDE.MASK, max_dets=100)
    names = {"FalsePos": "FP", "FalseNeg": "FN"}
    errors = run.fix_main_errors() | run.fix_special_errors()
    return {names.get(kind.short_name, kind.short_name): value / 100 for kind, value in errors.items()}


def test_errors_by_masks_equal_tidecv(tidecv: ModuleType) -> None:
    table = coco_mini()
    truth = GroundTruth.from_table(table)
    for seed in (0, 1):
        found = shaken(table, seed)
        ours = tide_errors(truth, found, by_masks=True)
        assert ours == pytest.approx(tidecv_mask_errors(tidecv, truth.for_masks(), found), abs=1e-6)
        assert ours != tide_errors(truth, found)


def one_mask(rows: slice) -> tuple[AnnotationTable, Predictions]:
    """One object on the upper half of an image of 8 x 8, and a detection with its box and a mask of some rows."""
    table = Shapes(1, seed=0).read(with_masks=True)
    size = np.array([8])
    truth, pixels = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    truth[:4], pixels[rows] = True, True
    box = np.array([[0.0, 0, 8, 4]])
    columns = {name: getattr(table, name) for name in table.__dataclass_fields__} | {
        "widths": size.astype(np.int32),
        "heights": size.astype(np.int32),
        "offsets": np.array([0, 1]),
        "boxes": box,
        "areas": np.array([32.0]),
        "labels": np.array([0]),
        "iscrowd": np.array([False]),
        "difficult": np.array([False]),
        "masks": Masks.pack([encode_runs(truth)]),
    }
    found = ObjectMasks(Masks.pack([encode_runs(pixels)]), size, size)
    return AnnotationTable(**columns), Predictions(table.image_ids[:1], box, np.ones(1), np.zeros(1, np.int64), found)


def test_a_mask_that_is_off_in_a_right_box_is_an_error_of_location_by_hand() -> None:
    table, found = one_mask(slice(2, 6))  # IoU of masks 2 / 6
    truth = GroundTruth.from_table(table)
    assert tide_errors(truth, found)["Loc"] == 0
    assert tide_errors(truth, found, by_masks=True)["Loc"] == 1
    assert evaluate_boxes_and_masks(truth, found).metrics["mask_AP50"] == 0
    table, found = one_mask(slice(1, 5))  # 3 / 5: right at .5, .55 and .6 of ten thresholds
    metrics = evaluate_boxes_and_masks(GroundTruth.from_table(table), found).metrics
    assert [metrics["mask_AP50"], metrics["mask_AP"]] == pytest.approx([1, 0.3])


# ------------------------------------------------------------------------------------------------------------ files


def test_files_keep_masks_exactly_and_those_of_other_programs_need_no_box(tmp_path: Path) -> None:
    table = Shapes(6, seed=0).read(with_masks=True)
    found = shaken(table, 1)
    assert found.masks is not None
    file = tmp_path / "predictions.json"
    write_predictions(found, file, table)
    read = read_predictions(file, table).predictions
    assert read.masks is not None
    assert read.masks.run_lengths() == found.masks.run_lengths()
    assert np.array_equal(read.boxes, found.boxes)
    truth = GroundTruth.from_table(table)
    assert evaluate_boxes_and_masks(truth, read) == evaluate_boxes_and_masks(truth, found)

    entries = json.loads(file.read_text())
    for number, entry in enumerate(entries):
        del entry["bbox"]
        if number % 2:  # run lengths that are not compressed
            entry["segmentation"]["counts"] = expand_runs(entry["segmentation"]["counts"].encode()).tolist()
    file.write_text(json.dumps(entries))
    read = read_predictions(file, table).predictions
    assert read.masks is not None
    assert (read.masks.masks.kinds == RUNS).all()
    assert read.masks.run_lengths() == found.masks.run_lengths()
    pixels = found.masks.masks.decode(3, int(found.masks.heights[3]), int(found.masks.widths[3]))
    rows, columns = np.nonzero(pixels)
    assert read.boxes[3].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"segmentation": {"size": [8, 9], "counts": "0"}}, "entry 0: the counts .* 9 x 8", id="counts"),
        pytest.param({"segmentation": {"size": [8, 8], "counts": "\u00e9"}}, "entry 0: the counts", id="characters"),
        pytest.param({"segmentation": {"size": [8, 8], "counts": [60, -2, 6]}}, "entry 0: the counts", id="negative"),
        pytest.param({"segmentation": {"size": [8, 8], "counts": [2**70]}}, "entry 0", id="huge"),
        pytest.param({"segmentation": {"size": [2**70, 1], "counts": "0"}}, "entry 0", id="huge size"),
        pytest.param({"segmentation": {"size": [-2, -2], "counts": "4"}}, "entry 0", id="negative size"),
        pytest.param({"segmentation": [[0, 0, 4, 0, 4, 4]]}, "entry 0: has no run lengths", id="polygon"),
        pytest.param({"segmentation": {"size": [1, 64], "counts": [64]}}, "entry 0: its mask has 64 x 1", id="size"),
        pytest.param({"segmentation": []}, "entry 0: has no run lengths as `segmentation`, but entry 1 has", id="none"),
    ],
)
def test_bad_masks_in_files_are_named(tmp_path: Path, change: dict, message: str) -> None:
    table, found = one_mask(slice(1, 5))
    file = tmp_path / "predictions.json"
    write_predictions(found, file, table)
    (entry,) = json.loads(file.read_text())
    file.write_text(json.dumps([entry | change, entry]))
    with pytest.raises(InputError, match=message) as caught:
        read_predictions(file, table)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_an_entry_needs_a_box_or_a_mask(tmp_path: Path) -> None:
    table, _ = one_mask(slice(1, 5))
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 0.5}]))
    with pytest.raises(InputError, match="entry 0: has neither `bbox` nor run lengths"):
        read_predictions(file, table)


def test_polygons_of_boxes_that_pycocotools_adds_to_results_are_ignored(tmp_path: Path) -> None:
    table, found = one_mask(slice(1, 5))
    file = tmp_path / "predictions.json"
    write_predictions(replace(found, masks=None), file, table)
    (entry,) = json.loads(file.read_text())
    file.write_text(json.dumps([entry | {"segmentation": [[0, 0, 0, 4, 8, 4, 8, 0]]}]))
    read = read_predictions(file, table).predictions
    assert read.masks is None
    assert np.array_equal(read.boxes, found.boxes)


@pytest.mark.parametrize("enabled", [True, False])
def test_evaluation_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    table = Shapes(2, seed=0).read(with_masks=True)
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        evaluate(GroundTruth.from_table(table), shaken(table, 0), ["coco"], by_masks=True)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
