"""Predictions as columns, reading and writing of COCO-results json, ground truth from targets."""

import json

import numpy as np
import pytest
import torch

from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate, read_coco_results, write_coco_results
from zoo.types import Prediction, Target

CLASS_IDS = [90, 1, 17]  # neither in order nor without gaps
GOOD = {"image_id": 7, "category_id": 17, "bbox": [1.5, 2, 3, 4], "score": 0.5}


def prediction(*rows: tuple[list[float], float, int]) -> Prediction:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
    return Prediction(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def test_of_image_sorts_detections_by_score():
    rows = ([0, 0, 1, 1], 0.2, 1), ([0, 0, 2, 2], 0.9, 0), ([0, 0, 3, 3], 0.2, 0)
    found = Predictions.from_lists([7], [prediction(*rows)]).of_image(7)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.2, 0.2])
    assert found["boxes"][:, 2].tolist() == [2, 1, 3]  # equal scores keep their order
    assert found["labels"].tolist() == [0, 1, 0]


def test_from_lists():
    packed = Predictions.from_lists(
        [5, 9, 2], [prediction(([0, 0, 1, 1], 0.5, 1)), prediction(), prediction(([0, 0, 2, 2], 0.25, 0))]
    )
    assert packed.image_ids.tolist() == [5, 2]
    assert packed.of_image(2)["boxes"].tolist() == [[0, 0, 2, 2]]
    assert packed.of_image(9)["scores"].shape == (0,)
    assert len(Predictions.from_lists([1], [prediction()])) == 0
    with pytest.raises(ValueError, match="2 image ids for 1 predictions"):
        Predictions.from_lists([1, 2], [prediction()])


def test_round_trip_through_json_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    # widths from 1e-6 to 1e4 and corners down to 1e-12: includes sums that are not exact in f64
    corners = 10 ** rng.uniform(-12, 4, (5000, 2))
    boxes = np.concatenate([corners, corners + 10 ** rng.uniform(-6, 4, (5000, 2))], axis=1).astype(np.float32)
    written = Predictions(
        image_ids=rng.integers(0, 50, 5000),
        boxes=boxes,
        scores=rng.random(5000).astype(np.float32),
        labels=rng.integers(0, 3, 5000),
    )
    write_coco_results(written, tmp_path / "p.json", CLASS_IDS)
    read = read_coco_results(tmp_path / "p.json", np.arange(50), CLASS_IDS)
    for column in ("image_ids", "boxes", "scores", "labels"):
        assert np.array_equal(getattr(read, column), getattr(written, column)), column
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    write_coco_results(read, tmp_path / "again.json", CLASS_IDS)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "p.json").read_bytes()


def test_json_has_the_format_of_coco_results(tmp_path):
    write_coco_results(Predictions.from_lists([7], [prediction(([1.5, 2, 4.5, 6], 0.5, 2))]), tmp_path / "p", CLASS_IDS)
    assert json.loads((tmp_path / "p").read_text()) == [GOOD]
    write_coco_results(Predictions.from_lists([], []), tmp_path / "none", CLASS_IDS)
    assert json.loads((tmp_path / "none").read_text()) == []
    assert len(read_coco_results(tmp_path / "none", np.array([7]), CLASS_IDS)) == 0


def test_metrics_of_a_file_equal_those_of_the_predictions(case, tmp_path):
    write_coco_results(case.predictions, tmp_path / "p.json", range(1, 5))
    read = read_coco_results(tmp_path / "p.json", case.ground_truth.image_ids, range(1, 5))
    assert evaluate(case.ground_truth, read) == evaluate(case.ground_truth, case.predictions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[\n{", "line 2 column 2: is not json", id="truncated"),
        pytest.param('[{"x": ' + "[" * 100_000, "is nested too deeply", id="nested"),
        pytest.param("{}", "object missing required field `annotations`", id="not a list"),
        pytest.param([GOOD, GOOD | {"image_id": 8}], "entry 1: image_id 8 is not in the data set", id="image"),
        pytest.param([GOOD, GOOD | {"category_id": 2}], "entry 1: category_id 2 is not in the data set", id="category"),
        pytest.param([GOOD, {**GOOD, "score": float("nan")}], "entry 1: score is not a finite number", id="NaN score"),
        pytest.param([{**GOOD, "bbox": [0, 0, 1, float("inf")]}], "entry 0: bbox is not a finite", id="infinite box"),
        pytest.param([GOOD, {"image_id": 7}], "entry 1: object missing required field `category_id`", id="missing key"),
        pytest.param([{**GOOD, "score": "high"}], "entry 0: expected `float`, got `str` at", id="score is text"),
        pytest.param([{**GOOD, "bbox": [1, 2, 3]}], "entry 0: expected `array` of length 4", id="three numbers"),
        pytest.param([{**GOOD, "bbox": [1, 2, -3, 4]}], "entry 0: bbox .* has a negative width", id="negative"),
        pytest.param([{**GOOD, "bbox": [1, 2, 1e30, 4]}], "entry 0: bbox .* is not a box in pixels", id="huge"),
    ],
)
def test_invalid_files_are_reported_with_file_and_entry(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(InputError, match=f"^{path}: .*{message}") as caught:
        read_coco_results(path, np.array([7]), CLASS_IDS)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read: No such file"):
        read_coco_results(tmp_path / "nowhere.json", np.array([7]), CLASS_IDS)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written: "):
        write_coco_results(Predictions.from_lists([], []), tmp_path / "file" / "p.json", CLASS_IDS)
    write_coco_results(Predictions.from_lists([], []), tmp_path / "new" / "p.json", CLASS_IDS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.json"]


def test_label_without_category_is_an_input_error_and_no_file_is_written(tmp_path):
    with pytest.raises(InputError, match="image 7: a detection has label 3, but there are 3 category ids"):
        write_coco_results(Predictions.from_lists([7], [prediction(([0, 0, 1, 1], 1, 3))]), tmp_path / "p", CLASS_IDS)
    assert list(tmp_path.iterdir()) == []


def target(image_id: int, boxes: list[list[float]], labels: list[int]) -> Target:
    count = len(labels)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        image_id=torch.tensor(image_id),
        iscrowd=torch.zeros(count, dtype=torch.bool),
        difficult=torch.ones(count, dtype=torch.bool),
        area=torch.full((count,), 5.0),
    )


def test_ground_truth_from_targets_is_sorted_and_without_repeated_images():
    first = target(9, [[0, 0, 2, 2], [1, 1, 3, 3]], [1, 0])
    truth = GroundTruth.from_targets([first, target(4, [], []), target(2, [[5, 5, 6, 6]], [2]), first])
    assert truth.classes == ("0", "1", "2")
    assert truth.image_ids.tolist() == [2, 4, 9]
    assert truth.image_index.tolist() == [0, 2, 2]
    assert truth.boxes.tolist() == [[5, 5, 6, 6], [0, 0, 2, 2], [1, 1, 3, 3]]
    assert truth.labels.tolist() == [2, 1, 0]
    assert truth.difficult.all()
    assert truth.areas.tolist() == [5, 5, 5]
    some = truth.of_images(np.array([9, 4]))
    assert some.image_ids.tolist() == [4, 9]
    assert some.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="image 3: is not in the ground truth"):
        truth.of_images(np.array([3]))
    with pytest.raises(InputError, match="image 9: an object has label 1, but there are 1 classes"):
        GroundTruth.from_targets([first], classes=["only"])
