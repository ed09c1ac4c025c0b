"""COCO's and VOC's metrics compared with pycocotools, a slow loop over VOC's rules, and hand-computed cases."""

import contextlib
import io

import hypothesis.strategies as st
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from hypothesis import given, settings
from paths import COCOAPI

from zoo.data.formats.coco import read_coco
from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate, format_scores, read_predictions
from zoo.evaluation.coco import KEYS, coco_tables
from zoo.evaluation.scores import check_protocols, describe_detection_limit
from zoo.evaluation.voc import average_precisions

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "num_images": st.integers(1, 12),
        "num_classes": st.integers(1, 5),
        "max_objects": st.sampled_from([0, 1, 5, 12]),
        "max_detections": st.sampled_from([0, 3, 30, 150, 300]),
        "grid": st.booleans(),
    }
)
reproducible = settings(max_examples=60, deadline=None, derandomize=True)


def pycocotools_stats(ground_truth: GroundTruth, predictions: Predictions) -> np.ndarray:
    """The twelve metrics by pycocotools' own interface: its dicts, its loadRes, its summary."""
    boxes = ground_truth.boxes
    annotations = [
        {
            "id": i + 1,
            "image_id": int(ground_truth.image_ids[ground_truth.image_index[i]]),
            "category_id": int(ground_truth.labels[i]) * 7 + 3,
            "bbox": [*boxes[i, :2].tolist(), *(boxes[i, 2:] - boxes[i, :2]).tolist()],
            "area": float(ground_truth.areas[i]),
            "iscrowd": int(ground_truth.iscrowd[i]),
        }
        for i in range(len(boxes))
    ]
    found = predictions.boxes.astype(np.float64)
    results = [
        {
            "image_id": int(predictions.image_ids[i]),
            "category_id": int(predictions.labels[i]) * 7 + 3,
            "bbox": [*found[i, :2].tolist(), *(found[i, 2:] - found[i, :2]).tolist()],
            "score": float(predictions.scores[i]),
        }
        for i in range(len(found))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycocotools.coco.COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": int(i)} for i in ground_truth.image_ids],
            "categories": [{"id": c * 7 + 3} for c in range(len(ground_truth.classes))],
            "annotations": annotations,
        }
        truth.createIndex()
        if results:
            detections = truth.loadRes(results)
        else:  # loadRes cannot read an empty list
            detections = pycocotools.coco.COCO()
            detections.dataset = truth.dataset | {"annotations": []}
            detections.createIndex()
        run = pycocotools.cocoeval.COCOeval(truth, detections, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@given(arguments=arguments, engine=st.sampled_from(["hotcoco", "hotcoco", "pycocotools"]))
@reproducible
def test_coco_metrics_equal_pycocotools(make_case, arguments, engine):
    case = make_case(**arguments)
    scores = evaluate(case.ground_truth, case.predictions, ["coco"], engine)
    ours = np.array([scores.metrics[key] for key in KEYS])
    np.testing.assert_allclose(ours, pycocotools_stats(case.ground_truth, case.predictions), rtol=0, atol=1e-12)


@given(arguments=arguments)
@settings(reproducible, max_examples=20)
def test_engines_give_equal_ap_by_class(make_case, arguments):
    case = make_case(**arguments)
    ours, reference = (
        evaluate(case.ground_truth, case.predictions, ["coco"], engine) for engine in ("hotcoco", "pycocotools")
    )
    for name, values in reference.per_class.items():
        assert ours.per_class[name] == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("at_once", [1, 40])
def test_classes_evaluated_in_parts_give_the_same_metrics(make_case, at_once, engine, monkeypatch):
    case = make_case(seed=5, num_images=12, num_classes=9, max_objects=3, max_detections=20, grid=False)
    kept = case.predictions.labels != 4  # a class without detections
    columns = (case.predictions.image_ids, case.predictions.boxes, case.predictions.scores, case.predictions.labels)
    case.predictions = Predictions(*(column[kept] for column in columns))
    whole = evaluate(case.ground_truth, case.predictions, engine=engine)
    calls = []
    monkeypatch.setattr("zoo.evaluation.scores._AT_ONCE", at_once)
    monkeypatch.setattr("zoo.evaluation.scores.coco_tables", lambda *parts: calls.append(1) or coco_tables(*parts))
    assert evaluate(case.ground_truth, case.predictions, engine=engine) == whole
    assert len(calls) > 1
    assert evaluate(case.ground_truth, case.predictions, ["voc07"]).metrics == {"VOC07": whole.metrics["VOC07"]}


def test_mean_of_class_ap_is_ap(case):
    scores = evaluate(case.ground_truth, case.predictions)
    for key in ("AP", "AP50", "VOC07", "VOC10"):
        measured = [values[key] for values in scores.per_class.values() if values[key] >= 0]
        assert scores.metrics[key] == pytest.approx(np.mean(measured), abs=1e-12)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_published_result_of_cocoapi(engine):
    if not COCOAPI.exists():
        pytest.skip("cocoapi's example files are missing: ../shared/data/cocoapi")
    table = read_coco(COCOAPI / "instances_val2014_100.json")
    found = read_predictions(COCOAPI / "instances_val2014_fakebbox100_results.json", table).predictions
    scores = evaluate(GroundTruth.from_table(table), found, ["coco"], engine)
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    assert [round(scores.metrics[key], 3) for key in KEYS] == published


# ---- VOC ----


def slow_voc(case, voc07: bool) -> dict[str, float]:
    """AP by class by the devkit's rules, one detection at a time (VOCevaldet.m); -1 for a class without positives."""
    truth, found = case.ground_truth, case.predictions
    result = {}
    for label, name in enumerate(truth.classes):
        objects = {}
        for i in np.flatnonzero(truth.labels == label):
            image_id = int(truth.image_ids[truth.image_index[i]])
            counts = not (truth.difficult[i] or truth.iscrowd[i])
            objects.setdefault(image_id, []).append({"box": truth.boxes[i], "counts": counts, "taken": False})
        num_positive = sum(item["counts"] for items in objects.values() for item in items)
        detections = [
            (float(found.scores[i]), int(found.image_ids[i]), found.boxes[i].astype(float))
            for i in np.flatnonzero(found.labels == label)
        ]
        detections.sort(key=lambda item: item[1])  # equal scores: by image, then as given
        detections.sort(key=lambda item: -item[0])
        true_positives, false_positives = [], []
        for _, image_id, (x1, y1, x2, y2) in detections:
            best, most = None, -np.inf
            for item in objects.get(image_id, []):
                a1, b1, a2, b2 = item["box"]
                width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
                if width > 0 and height > 0:
                    overlap = width * height
                    iou = overlap / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap)
                    if iou > most:
                        best, most = item, iou
            correct = wrong = 0
            if best is not None and most >= 0.5:
                if best["counts"]:
                    correct, wrong = (0, 1) if best["taken"] else (1, 0)
                    best["taken"] = True
            else:
                wrong = 1
            true_positives.append(correct)
            false_positives.append(wrong)
        if num_positive == 0:
            result[name] = -1.0
            continue
        num_true, num_false = np.cumsum(true_positives), np.cumsum(false_positives)
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(num_true / (num_true + num_false))
        recall = num_true / num_positive
        if voc07:
            result[name] = sum(max(precision[recall >= k / 10], default=0) for k in range(11)) / 11
        else:
            recall = np.concatenate([[0], recall, [1]])
            precision = np.concatenate([[0], precision, [0]])
            for i in range(len(precision) - 2, -1, -1):
                precision[i] = max(precision[i], precision[i + 1])
            result[name] = sum((recall[1:] - recall[:-1]) * precision[1:])
    return result


@given(arguments=arguments)
@reproducible
def test_voc_equals_a_slow_loop(make_case, arguments):
    case = make_case(**arguments)
    scores = evaluate(case.ground_truth, case.predictions, ["voc07", "voc10"])
    for key, voc07 in (("VOC07", True), ("VOC10", False)):
        expected = slow_voc(case, voc07)
        assert {name: values[key] for name, values in scores.per_class.items()} == pytest.approx(expected, abs=1e-12)
        measured = [value for value in expected.values() if value >= 0]
        assert scores.metrics[key] == pytest.approx(np.mean(measured) if measured else -1, abs=1e-12)


def one_class(objects, detections) -> tuple[GroundTruth, Predictions]:
    """One class in images 1 to 7; objects are (image, box, difficult), detections (image, box, score)."""
    objects = sorted(objects, key=lambda item: item[0])
    boxes = np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    ground_truth = GroundTruth.from_counts(
        classes=["thing"],
        image_ids=np.arange(1, 8),
        counts=np.array([sum(image == i for image, _, _ in objects) for i in range(1, 8)]),
        boxes=boxes,
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        labels=np.zeros(len(objects), dtype=np.int64),
        iscrowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([difficult for _, _, difficult in objects], dtype=bool),
    )
    predictions = Predictions(
        image_ids=np.array([image for image, _, _ in detections], dtype=np.int64),
        boxes=np.array([box for _, box, _ in detections], dtype=np.float32).reshape(-1, 4),
        scores=np.array([score for _, _, score in detections], dtype=np.float32),
        labels=np.zeros(len(detections), dtype=np.int64),
    )
    return ground_truth, predictions


def voc(objects, detections) -> tuple[float, float]:
    metrics = evaluate(*one_class(objects, detections), ["voc07", "voc10"]).metrics
    return metrics["VOC07"], metrics["VOC10"]


A, B, NEAR_A, ELSEWHERE = (0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 8), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("objects", "detections", "voc07", "voc10"),
    [
        pytest.param([(1, A, False)], [(1, A, 0.9)], 1, 1, id="found"),
        pytest.param([(1, A, False)], [], 0, 0, id="no detections"),
        pytest.param([(1, A, False)], [(2, A, 0.9)], 0, 0, id="correct box in the wrong image"),
        pytest.param([(1, A, False)], [(1, (0, 0, 10, 5), 0.9)], 1, 1, id="an IoU of 0.5 is a match"),
        pytest.param([(1, A, False)], [(1, (0, 0, 10, 4.9), 0.9)], 0, 0, id="an IoU below 0.5 is not"),
        pytest.param([(1, A, True)], [(1, A, 0.9)], -1, -1, id="only a difficult object: undefined"),
        # precision 1/2 at recall 1
        pytest.param([(1, A, False)], [(1, ELSEWHERE, 0.9), (1, A, 0.8)], 0.5, 0.5, id="false positive first"),
        pytest.param(
            [(1, A, False)], [(1, A, 0.8), (1, ELSEWHERE, 0.7)], 1, 1, id="false positive last does not count"
        ),
        # correct, wrong (second on A), correct: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1;
        # 07: 1 at six recalls (0 to .5) and 2/3 at five; 10: 1/2 * 1 + 1/2 * 2/3
        pytest.param(
            [(1, A, False), (1, B, False)],
            [(1, A, 0.9), (1, NEAR_A, 0.8), (1, B, 0.7)],
            (6 + 5 * 2 / 3) / 11,
            5 / 6,
            id="second detection of an object is a false positive",
        ),
        # the difficult object's detections do not count: only the third is left
        pytest.param(
            [(1, A, True), (1, B, False)],
            [(1, A, 0.9), (1, NEAR_A, 0.8), (1, B, 0.7)],
            1,
            1,
            id="detections of a difficult object do not count",
        ),
        # The second detection overlaps the first object most, which is taken; it is not matched to the second object.
        pytest.param(
            [(1, (0, 0, 10, 10), False), (1, (0, 4, 10, 14), False)],
            [(1, (0, 0, 10, 10), 0.9), (1, (0, 1, 10, 11), 0.8)],
            6 / 11,
            0.5,
            id="a detection is matched to its best object only, taken or not",
        ),
        # one of two found: recall .5 is reached: six of eleven recalls
        pytest.param([(1, A, False), (2, B, False)], [(1, A, 0.9)], 6 / 11, 0.5, id="half found"),
        # equal scores: image 1 before image 2, so the false positive comes first
        pytest.param([(2, A, False)], [(2, A, 0.5), (1, A, 0.5)], 0.5, 0.5, id="ties are ordered by image"),
    ],
)
def test_voc_by_hand(objects, detections, voc07, voc10):
    assert voc(objects, detections) == pytest.approx((voc07, voc10), abs=1e-12)


OBJECTS_OF_THE_REVIEW = """
    1 25 16 38 56    1 129 123 41 62    2 123 11 43 55    2 38 132 59 45    3 16 14 35 48    3 123 30 49 44
    3 99 139 47 47    4 53 42 40 52    4 154 43 31 34    5 59 31 44 51    5 48 128 34 52    6 36 89 52 76
    6 62 58 44 67    7 28 31 55 63    7 58 67 50 58
"""  # image, then x, y, w, h
DETECTIONS_OF_THE_REVIEW = """
    1 .88 5 67 31 48    1 .70 119 111 40 67    1 .80 124 9 49 67    2 .71 64 111 64 58    2 .54 26 140 60 47
    2 .74 19 18 43 35    3 .18 109 15 77 39    3 .67 86 63 46 45    3 .38 160 62 36 53    3 .91 105 131 47 47
    3 .44 18 148 40 44    4 .35 83 28 28 26    4 .78 28 68 42 67    4 .45 87 89 25 39    4 .14 10 155 60 26
    5 .62 50 38 28 46    5 .44 95 11 53 28    5 .95 29 131 72 29    5 .23 29 163 72 29    6 .45 43 48 74 38
    6 .84 17 155 29 35    6 .43 95 110 25 42    7 .48 16 20 101 88    7 .95 33 116 37 49
"""  # image, score, then x, y, w, h


def test_voc_of_a_published_example():
    """The example and results of rafaelpadilla/review_object_detection_metrics (tests/test_eval_pascal.py), IoU 0.5."""

    def edges(x, y, w, h):
        return (x, y, x + w, y + h)

    objects = np.array(OBJECTS_OF_THE_REVIEW.split(), dtype=np.float64).reshape(-1, 5)
    detections = np.array(DETECTIONS_OF_THE_REVIEW.split(), dtype=np.float64).reshape(-1, 6)
    voc07, voc10 = voc(
        [(int(image), edges(*box), False) for image, *box in objects],
        [(int(image), edges(*box), score) for image, score, *box in detections],
    )
    assert (len(objects), len(detections)) == (15, 24)
    assert voc07 == pytest.approx(0.0303030303, abs=1e-10)
    assert voc10 == pytest.approx(0.0222222222, abs=1e-10)


def test_voc07_recall_of_0_3_is_reached_by_three_of_ten_objects():
    # 0, .1, .2 and .3: four of eleven recalls (0.1 * 3 > 3 / 10 in floating point)
    assert average_precisions(np.array([1, 2, 3]), 10) == pytest.approx((4 / 11, 0.3), abs=1e-15)


def test_iou_of_edges_equals_voc_iou_of_inclusive_coordinates():
    # VOC's 1..10 (ten pixels wide) and 1..20: 10 / 20 with its + 1; as edges 0..10 and 0..20
    assert voc([(1, (0, 0, 20, 10), False)], [(1, (0, 0, 10, 10), 0.5)]) == (1, 1)


# ---- evaluate ----


def test_order_of_images_does_not_matter(make_case):
    case = make_case(seed=5, num_images=12, num_classes=3, max_objects=8, max_detections=40, grid=True)
    expected = evaluate(case.ground_truth, case.predictions)
    shuffled = np.random.default_rng(0).permutation(np.unique(case.predictions.image_ids))
    rows = np.concatenate([np.flatnonzero(case.predictions.image_ids == image_id) for image_id in shuffled])
    found = case.predictions
    again = Predictions(found.image_ids[rows], found.boxes[rows], found.scores[rows], found.labels[rows])
    assert evaluate(case.ground_truth, again) == expected


def test_only_the_requested_protocols_are_evaluated(case):
    scores = evaluate(case.ground_truth, case.predictions, ["voc07"])
    assert list(scores.metrics) == ["VOC07"]
    assert all(list(values) == ["VOC07"] for values in scores.per_class.values())


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_metrics_without_ground_truth_are_minus_one(engine):
    ground_truth, predictions = one_class([], [(1, A, 0.5)])
    assert set(evaluate(ground_truth, predictions, engine=engine).metrics.values()) == {-1.0}
    empty = GroundTruth.from_targets([], classes=["thing"])
    assert set(evaluate(empty, Predictions.from_lists([], []), engine=engine).metrics.values()) == {-1.0}


def test_unknown_images_and_labels_and_nan_scores_are_input_errors(case):
    found = case.predictions
    other = Predictions(found.image_ids + 5000, found.boxes, found.scores, found.labels)
    with pytest.raises(InputError, match=r"image \d+: has predictions but no ground truth"):
        evaluate(case.ground_truth, other)
    with pytest.raises(InputError, match="label 4, but there are 4 classes"):
        evaluate(case.ground_truth, Predictions(found.image_ids, found.boxes, found.scores, found.labels * 0 + 4))
    with pytest.raises(InputError, match="NaN"):
        evaluate(case.ground_truth, Predictions(found.image_ids, found.boxes, found.scores * np.nan, found.labels))


def test_unknown_protocols_and_engines_are_input_errors():
    with pytest.raises(InputError, match="unknown protocol 'voc12'; choose from coco, voc07, voc10"):
        check_protocols(["voc12"], "hotcoco")
    with pytest.raises(InputError, match="unknown engine 'coldcoco'"):
        check_protocols(["coco"], "coldcoco")


def test_formatted_scores_name_classes_and_metrics(case):
    text = format_scores(evaluate(case.ground_truth, case.predictions))
    assert all(name in text for name in ("class0", "class3", "VOC07", "AR100"))


def test_limit_of_detections_is_described(case):
    assert describe_detection_limit(case.ground_truth) == ""
    boxes = np.stack([np.arange(101.0), np.zeros(101), np.arange(101.0) + 1, np.ones(101)], axis=1)
    columns = {"areas": np.ones(101), "labels": np.zeros(101, np.int64)}
    flags = {"iscrowd": np.zeros(101, bool), "difficult": np.zeros(101, bool)}
    crowded = GroundTruth.from_counts(("a",), np.array([1]), np.array([101]), boxes, **columns, **flags)
    assert describe_detection_limit(crowded).startswith("an image has 101 objects of one class, but COCO's metrics")
