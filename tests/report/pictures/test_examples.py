import io
import json

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from zoo.errors import InputError
from zoo.report.pictures.examples import (
    Detections,
    Objects,
    best_f1_score,
    choose_examples,
    make_example,
    match_detections,
    read_examples,
    write_examples,
)


def test_examples_round_trip(examples, tmp_path):
    write_examples(tmp_path / "examples.json", examples)
    assert read_examples(tmp_path / "examples.json") == examples


def test_large_images_and_their_boxes_are_scaled_down(make_target, make_prediction):
    image = torch.zeros(3, 600, 1280, dtype=torch.uint8)
    image[:, 100:300, 200:400] = 255
    box = [[200.0, 100.0, 400.0, 300.0]]
    example = make_example("x", image, make_target(box, [0]), {"run": make_prediction(box, [0], [0.9])})
    assert (example.width, example.height) == (480, 225)
    assert example.truth.boxes == example.predictions["run"].boxes == [(75.0, 37.5, 150.0, 112.5)]
    kept = np.array(PillowImage.open(io.BytesIO(example.jpeg)))
    assert kept.shape == (225, 480, 3)
    assert kept[42:108, 80:145].min() > 240
    assert kept[120:].max() < 15


def test_only_the_highest_scoring_detections_are_kept(make_target, make_prediction):
    count = 150
    prediction = make_prediction([[0.0, 0.0, 1.0, 1.0]] * count, [0] * count, [1 - at / count for at in range(count)])
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    example = make_example("x", image, make_target([], []), {"many": prediction})
    assert len(example.predictions["many"].boxes) == 100
    assert example.predictions["many"].scores[-1] == 0.34


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda content: content[1].pop("name"), "examples[1]"),
        (lambda content: content[0]["truth"]["labels"].append(0), "examples[0].truth"),
        (lambda content: content[0]["predictions"]["retinanet_tiny_seed0"]["scores"].pop(), "retinanet_tiny_seed0"),
    ],
)
def test_malformed_examples_name_file_and_place(examples, tmp_path, change, place: str):
    path = tmp_path / "examples.json"
    write_examples(path, examples)
    content = json.loads(path.read_text())
    change(content["examples"])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert str(path) in str(caught.value)
    assert place in str(caught.value)


def test_chosen_examples_are_stratified_by_number_of_objects():
    numbers = [5, 0, 40, 1, 12, 3, 90, 2]
    chosen = [numbers[index] for index in choose_examples(numbers, 4, seed=0)]
    for number, part in zip(chosen, [(0, 1), (2, 3), (5, 12), (40, 90)], strict=True):
        assert number in part
    assert choose_examples(numbers, 4, seed=0) == choose_examples(numbers, 4, seed=0)
    assert len({tuple(choose_examples(numbers, 4, seed=seed)) for seed in range(20)}) > 1
    assert sorted(choose_examples(numbers, 20, seed=0)) == list(range(8))
    assert choose_examples([], 4, seed=0) == []


# Two objects of class 0, one of class 1, one ignored of class 0.
GROUND_TRUTH = Objects(
    boxes=[(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0), (60.0, 0.0, 70.0, 10.0)],
    labels=[0, 0, 1, 0],
    ignored=[False, False, False, True],
)


@pytest.mark.parametrize(
    ("box", "label", "verdict"),
    [
        ((0.0, 0.0, 10.0, 10.0), 0, "right"),
        ((0.0, 0.0, 10.0, 5.0), 0, "right"),  # IoU .5
        ((0.0, 0.0, 10.0, 4.9), 0, "false"),
        ((0.0, 0.0, 10.0, 10.0), 1, "false"),  # another class
        ((60.0, 0.0, 70.0, 10.0), 0, "ignored"),
        ((80.0, 0.0, 90.0, 10.0), 0, "false"),
    ],
)
def test_verdict_of_one_detection(box, label: int, verdict: str):
    matching = match_detections(Detections([box], [label], [0.9]), GROUND_TRUTH, 0.5)
    assert matching.verdicts == [verdict]
    assert matching.found == [verdict == "right", False, False, False]


def test_object_is_matched_once_and_low_scores_are_left_out():
    detections = Detections(
        [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)], [0, 0, 0], [0.9, 0.8, 0.3]
    )
    matching = match_detections(detections, GROUND_TRUTH, 0.5)
    assert matching.verdicts == ["right", "false"]
    assert matching.found == [True, False, False, False]


def test_best_f1_score(make_target, make_prediction):
    # Sorted by score: right .9, right .7, false .6, right .4, false .3 of 4 objects.
    # F1 from .9: 2/5, .7: 4/6, .6: 4/7, .4: 6/8, .3: 6/9
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]]
    boxes = [[float(edge) for edge in box] for box in boxes]
    targets = [make_target(boxes[:3], [0, 0, 0]), make_target(boxes[:1], [1])]
    predictions = [
        make_prediction([boxes[0], boxes[1], boxes[3]], [0, 0, 0], [0.9, 0.7, 0.6]),
        make_prediction([boxes[0], boxes[4]], [1, 1], [0.4, 0.3]),
    ]
    assert best_f1_score(predictions, targets) == 0.4


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.5, -3.0], 0.5),
        ([87.65432, 3.0], 87.65),
        ([0.00098765, 0.00001], 0.0009876),
        ([-2.00004, -5.0], -2.001),
        ([0.0, -1.0], 0.0),
    ],
)
def test_best_f1_score_of_any_range_of_scores(make_target, make_prediction, scores, best):
    """The first detection is correct, the second is not; the threshold keeps the first, stored to four digits."""
    box, other = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
    prediction, target = make_prediction([box, other], [0, 0], scores), make_target([box], [0])
    found = best_f1_score([prediction], [target])
    assert found == best
    example = make_example("x", torch.zeros(3, 50, 50, dtype=torch.uint8), target, {"run": prediction})
    assert match_detections(example.predictions["run"], example.truth, found).verdicts == ["right"]


def test_best_f1_score_without_correct_detections(make_target, make_prediction):
    box = [0.0, 0.0, 10.0, 10.0]
    assert best_f1_score([make_prediction([], [], [])], [make_target([], [])]) is None
    assert best_f1_score([make_prediction([box], [0], [0.9])], [make_target([], [])]) is None
