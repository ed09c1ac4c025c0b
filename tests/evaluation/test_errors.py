"""TIDE errors compared with the authors' package and with hand-computed cases."""

from types import ModuleType

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from paths import COCOAPI

from zoo.data.formats.coco import read_coco
from zoo.evaluation import GroundTruth, Predictions, read_coco_results
from zoo.evaluation.errors import tide_errors
from zoo.evaluation.predictions import to_xywh

NAMES = {"FalsePos": "FP", "FalseNeg": "FN"}

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "num_images": st.integers(1, 12),
        "num_classes": st.integers(1, 5),
        "max_objects": st.sampled_from([1, 5, 12]),
        "max_detections": st.sampled_from([3, 30, 150, 300]),
        "grid": st.booleans(),
    }
)


def tidecv_errors(tidecv: ModuleType, ground_truth: GroundTruth, predictions: Predictions) -> dict[str, float]:
    truth, found = tidecv.Data("truth"), tidecv.Data("found")
    for c, name in enumerate(ground_truth.classes):
        truth.add_class(c, name)
    for image_id in ground_truth.image_ids.tolist():
        truth.add_image(image_id, str(image_id))
    objects = zip(
        ground_truth.image_ids[ground_truth.image_index].tolist(),
        ground_truth.labels.tolist(),
        to_xywh(ground_truth.boxes).tolist(),
        ground_truth.iscrowd.tolist(),
        strict=True,
    )
    for image_id, label, box, crowd in objects:
        (truth.add_ignore_region if crowd else truth.add_ground_truth)(image_id, label, box)
    columns = (predictions.image_ids, predictions.labels, predictions.scores, to_xywh(predictions.boxes))
    for image_id, label, score, box in zip(*(column.tolist() for column in columns), strict=True):
        found.add_detection(image_id, label, score, box)
    run = tidecv.TIDERun(truth, found, pos_thresh=0.5, bg_thresh=0.1, mode=tidecv.TIDE.BOX, max_dets=100)
    errors = run.fix_main_errors() | run.fix_special_errors()
    return {NAMES.get(kind.short_name, kind.short_name): value / 100 for kind, value in errors.items()}


def make_truth(classes: str, *objects: tuple[int, str, tuple[float, float, float, float], bool]) -> GroundTruth:
    """Ground truth of images 0, 1 and 2 from objects (image, class, box, crowd)."""
    image_ids = np.array([image for image, _, _, _ in objects], np.int64)
    boxes = np.array([box for _, _, box, _ in objects], np.float64).reshape(-1, 4)
    return GroundTruth.from_counts(
        classes=list(classes),
        image_ids=np.arange(3),
        counts=np.bincount(image_ids, minlength=3),
        boxes=boxes,
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        labels=np.array([classes.index(name) for _, name, _, _ in objects], np.int64),
        iscrowd=np.array([crowd for _, _, _, crowd in objects], bool),
        difficult=np.zeros(len(objects), bool),
    )


def make_predictions(
    classes: str, *detections: tuple[int, str, tuple[float, float, float, float], float]
) -> Predictions:
    return Predictions(
        image_ids=np.array([image for image, _, _, _ in detections], np.int64),
        boxes=np.array([box for _, _, box, _ in detections], np.float64).reshape(-1, 4),
        scores=np.array([score for _, _, _, score in detections], np.float64),
        labels=np.array([classes.index(name) for _, name, _, _ in detections], np.int64),
    )


@given(arguments=arguments)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_equal_to_tidecv(make_case, tidecv, arguments):
    case = make_case(**arguments)
    if case.ground_truth.iscrowd.all() or len(case.predictions) == 0:
        return  # tidecv divides by zero; these cases are tested below
    ours = tide_errors(case.ground_truth, case.predictions)
    assert ours == pytest.approx(tidecv_errors(tidecv, case.ground_truth, case.predictions), abs=1e-6)


def test_equal_to_tidecv_on_coco(tidecv):
    if not COCOAPI.exists():
        pytest.skip("cocoapi's example files are missing: ../shared/data/cocoapi")
    table = read_coco(COCOAPI / "instances_val2014_100.json")
    predictions = read_coco_results(
        COCOAPI / "instances_val2014_fakebbox100_results.json", table.image_ids, table.class_ids
    )
    truth = GroundTruth.from_table(table)
    assert truth.iscrowd.any()
    ours = tide_errors(truth, predictions)
    assert ours == pytest.approx(tidecv_errors(tidecv, truth, predictions), abs=1e-6)
    assert min(ours[name] for name in ("Loc", "Miss", "FP", "FN")) > 0.001


# ---- computed by hand ----

HERE, THERE = (0.0, 0.0, 10.0, 10.0), (100.0, 100.0, 110.0, 110.0)
NEAR = (0.0, 0.0, 10.0, 30.0)  # IoU 1/3 with HERE
NO_LOSS = dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN"), 0.0)
HALF = 51 / 101  # AP of the first of two objects found, at recalls 0, .01 .. .5


def test_inaccurate_box_is_loc():
    truth = make_truth("ab", (0, "a", HERE, False), (1, "a", HERE, False))
    predictions = make_predictions("ab", (0, "a", HERE, 0.9), (1, "a", NEAR, 0.8))
    # Loc fixed: it finds the second object. FP: it is ranked last already. FN: one object left, which is found.
    expected = NO_LOSS | {"Loc": 1 - HALF, "FN": 1 - HALF}
    assert tide_errors(truth, predictions) == pytest.approx(expected)


def test_wrong_class_is_cls_and_fixed_in_the_correct_class():
    truth = make_truth("ab", (0, "a", HERE, False), (1, "b", HERE, False))
    predictions = make_predictions("ab", (0, "a", HERE, 0.9), (1, "a", HERE, 0.8))
    # AP of b: 0 -> 1; for FN b has neither object nor detection and is left out
    assert tide_errors(truth, predictions) == pytest.approx(NO_LOSS | {"Cls": 0.5, "FN": 0.5})


def test_only_the_highest_scoring_detection_of_a_target_is_fixed():
    truth = make_truth("ab", (0, "a", HERE, False))
    predictions = make_predictions("ab", (0, "b", HERE, 0.9), (0, "a", NEAR, 0.8), (0, "a", NEAR, 0.7))
    # Base: mean of a 0 and b 0 (a detection without an object). Cls fixed: a is found first: 1, b is left out.
    # Loc fixed: both are removed, since the Cls detection has the same target: a 0. The object is not a Miss.
    # FN: a has no object left and AP 0.
    assert tide_errors(truth, predictions) == pytest.approx(NO_LOSS | {"Cls": 1.0})


def test_second_detection_of_an_object_is_dupe():
    truth = make_truth("a", (0, "a", HERE, False), (1, "a", HERE, False))
    predictions = make_predictions("a", (0, "a", HERE, 0.9), (0, "a", HERE, 0.8), (1, "a", HERE, 0.7))
    # correct, wrong, correct: precision 1 up to recall .5, then 2/3
    lost = 1 - (51 + 50 * 2 / 3) / 101
    assert tide_errors(truth, predictions) == pytest.approx(NO_LOSS | {"Dupe": lost, "FP": lost})


@pytest.mark.parametrize(
    ("label", "box", "error"),
    [
        ("a", THERE, "Bkg"),
        ("b", (0.0, 0.0, 10.0, 200.0), "Bkg"),  # IoU .05 with an object of another class
        ("b", (0.0, 0.0, 10.0, 100.0), "Bkg"),  # exactly .1
        ("b", NEAR, "Both"),
        ("b", (0.0, 0.0, 10.0, 20.0), "Cls"),  # exactly .5
    ],
)
def test_error_type_of_an_unmatched_detection(label, box, error):
    truth = make_truth("ab", (0, "a", HERE, False), (1, label, HERE, False))
    predictions = make_predictions("ab", (0, label, box, 0.9), (0, "a", HERE, 0.8), (1, label, HERE, 0.7))
    errors = tide_errors(truth, predictions)
    lost = errors["FP"]
    assert lost > 0.2
    assert errors == pytest.approx(NO_LOSS | {error: lost, "FP": lost})


def test_object_without_an_overlapping_detection_is_miss():
    truth = make_truth("a", (0, "a", HERE, False), (1, "a", HERE, False))
    predictions = make_predictions("a", (0, "a", HERE, 0.9))
    assert tide_errors(truth, predictions) == pytest.approx(NO_LOSS | {"Miss": 1 - HALF, "FN": 1 - HALF})


def test_detection_in_a_crowd_of_its_class_does_not_count():
    truth = make_truth("ab", (0, "a", HERE, False), (0, "a", (90.0, 90.0, 200.0, 200.0), True))
    assert tide_errors(truth, make_predictions("ab", (0, "a", THERE, 0.9), (0, "a", HERE, 0.8))) == NO_LOSS
    other = tide_errors(truth, make_predictions("ab", (0, "b", THERE, 0.9), (0, "a", HERE, 0.8)))
    assert other == pytest.approx(NO_LOSS | {"Bkg": 0.5, "FP": 0.0})  # b has no objects, so its AP is 0


def test_only_a_hundred_detections_of_an_image_count():
    truth = make_truth("ab", (0, "a", HERE, False))
    predictions = make_predictions("ab", *[(0, "b", THERE, 0.9)] * 100, (0, "a", HERE, 0.1))
    assert tide_errors(truth, predictions)["Miss"] == 0.0  # a then has neither object nor detection, b has AP 0
    assert tide_errors(truth, predictions)["Bkg"] == 0.0  # the 101st is not used instead


def test_without_detections_all_objects_are_missed():
    truth = make_truth("ab", (0, "a", HERE, False), (1, "b", HERE, False))
    assert tide_errors(truth, make_predictions("ab")) == NO_LOSS | {"Miss": 1.0, "FN": 1.0}


def test_without_objects_there_are_no_errors():
    predictions = make_predictions("a", (0, "a", HERE, 0.9))
    assert tide_errors(make_truth("a"), predictions) == {}
    assert tide_errors(make_truth("a", (0, "a", HERE, True)), predictions) == {}
