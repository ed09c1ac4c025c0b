"""SSD: default boxes by hand, matching and losses by slow loops, the reduced VGG, and parity with torchvision."""

import math
from pathlib import Path

import pytest
import torch
import torchvision.models.detection as tv
from scenes import make_target
from torch import Tensor, nn

import zoo
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.io.class_names import COCO_CLASSES
from zoo.models.ssd import SSD, Outputs, cell_boxes, hard_negatives, level_scales, match_default_boxes, multibox_losses
from zoo.nn import ssd_levels
from zoo.nn.frame import FrameConfig
from zoo.nn.ssd_levels import AtrousHead, ScaledNorm
from zoo.ops.boxes import pairwise_iou
from zoo.types import Batch
from zoo.weights import load_weights
from zoo.weights.torchvision import COCO_IDS

EVERY = 10**6


def square(side: int, mean: float = 0.5, std: float = 0.5) -> FrameConfig:
    return FrameConfig(side, side, stretch=True, divisor=1, mean=(mean,) * 3, std=(std,) * 3)


# ---------------------------------------------------------------------------------------------------- default boxes


def test_scales_of_equation_4() -> None:
    """The original code's five levels after conv4_3 (ssd_pascal.py rounds the steps of .175 down to .17)."""
    assert level_scales(5, 0.2, 0.9) == pytest.approx([0.2, 0.375, 0.55, 0.725, 0.9])
    assert level_scales(1, 0.2, 0.9) == [0.2]


def test_the_boxes_of_a_cell() -> None:
    sides = cell_boxes(0.2, 0.45, (2.0, 3.0))
    expected = [(0.2, 0.2), (0.3, 0.3)]
    expected += [(0.2 * math.sqrt(2), 0.2 / math.sqrt(2)), (0.2 / math.sqrt(2), 0.2 * math.sqrt(2))]
    expected += [(0.2 * math.sqrt(3), 0.2 / math.sqrt(3)), (0.2 / math.sqrt(3), 0.2 * math.sqrt(3))]
    torch.testing.assert_close(sides, torch.tensor(expected))
    assert float(cell_boxes(0.9, 1.05, (2.0,)).max()) == 1  # not wider than the image


@pytest.mark.parametrize(
    ("arguments", "cells", "number"),
    [
        ({"extra_levels": "ssd300", "frame": square(300)}, [38, 19, 10, 5, 3, 1], 8732),
        ({"extra_levels": "ssd512", "frame": square(512)}, [64, 32, 16, 8, 4, 2, 1], 24564),
    ],
)
def test_as_many_default_boxes_as_in_the_paper(arguments: dict[str, object], cells: list[int], number: int) -> None:
    """Section 3: 8732 default boxes for 300x300 inputs, 24564 for 512x512."""
    with torch.device("meta"):
        detector = SSD(20, **arguments)  # type: ignore[arg-type]
        batch = empty_batch(detector.frame.config.min_size)
        outputs = detector.encode(batch)
    counts = [len(detector.get_buffer(f"cell_boxes_{level}")) for level in range(len(cells))]
    assert sum(count * side**2 for count, side in zip(counts, cells, strict=True)) == number
    assert outputs.logits.shape == (1, number, 21)
    assert outputs.boxes.shape == (number, 4)


def empty_batch(side: int) -> Batch:
    nothing = torch.zeros(1, 0)
    size = torch.full((1, 2), float(side))
    images, labels = torch.zeros(1, 3, side, side), nothing.long()
    return Batch(
        images, size, size / side, 0 * size, size, nothing.view(1, 0, 4), labels, nothing.bool(), torch.zeros(1).long()
    )


def test_default_boxes_lie_on_the_middles_of_their_cells() -> None:
    """Of the second level of SSD300: cells of 16 pixels, the first square 0.2 of the frame."""
    detector = SSD(1, trunk="vgg11_bn", frame=square(300), steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0))
    outputs = detector.encode(empty_batch(300))
    first = 38 * 38 * 4
    row, column = 3, 5
    box = outputs.boxes[first + (row * 19 + column) * 6]
    scale = level_scales(6, 0.2, 0.9)[1] * 300
    middle = torch.tensor([16 * (column + 0.5), 16 * (row + 0.5)])
    torch.testing.assert_close(box, torch.cat([middle - scale / 2, middle + scale / 2]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": FrameConfig(300, 500)}, "needs frames of one size"),
        ({"scales": (0.1, 0.2)}, "ssd300 has 6 levels: give as many steps, and one scale more"),
        ({"steps": (8.0, 16.0)}, "ssd300 has 6 levels"),
        ({"frame": square(200)}, "a frame of 200 pixels is too small for level 6, on a map of 2 x 2"),
        ({"trunk": "resnet10t", "strides": (8, 16, 32)}, r"ssd300 has 6 levels: strides \(8, 16, 32\) do not fit"),
        (
            {"trunk": "resnet10t", "strides": (8, 16, 32), "extra_levels": "separable", "frame": square(128)},
            "a frame of 128 pixels is too small for level 6, on a map of 1 x 1",
        ),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SSD(1, **arguments)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ matching and losses


def slow_match(iou: Tensor) -> list[int]:
    """Section 2.2, box by box: an overlap of 0.5 matches, then each object takes its best box from others."""
    num_objects, num_boxes = iou.shape
    matched = []
    for box in range(num_boxes):
        best = max(range(num_objects), key=lambda index: float(iou[index, box]))
        matched.append(best if iou[best, box] >= 0.5 else -1)
    taken: dict[int, float] = {}
    for index in range(num_objects):
        box = int(iou[index].argmax())
        value = float(iou[index, box])
        if value > 0 and value > taken.get(box, 0):
            matched[box], taken[box] = index, value
    return matched


@pytest.mark.parametrize("seed", range(5))
def test_matching_by_a_slow_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 40, 2, generator=generator) * 60
    boxes = torch.cat([corners[0], corners[0] + 5 + corners[1] / 2], dim=1)
    objects = torch.cat([boxes[:4] + 2, boxes[:2] + 3, torch.tensor([[500.0, 500, 510, 510]])])  # the last is alone
    iou = pairwise_iou(objects, boxes)
    mask = torch.ones(1, len(objects), dtype=torch.bool)
    assert match_default_boxes(iou[None], mask)[0].tolist() == slow_match(iou)
    hidden = mask.clone()
    hidden[0, 0] = False
    kept = [label if label < 0 else label + 1 for label in slow_match(iou[1:])]
    assert match_default_boxes(iou[None], hidden)[0].tolist() == kept
    assert match_default_boxes(iou[None, :0], mask[:, :0])[0].tolist() == [-1] * 40


def test_the_best_box_of_two_objects_goes_to_the_one_with_the_higher_iou() -> None:
    iou = torch.tensor([[[0.6, 0.1, 0.0], [0.7, 0.2, 0.0], [0.0, 0.3, 0.2]]])
    assert match_default_boxes(iou, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[1, 2, -1]]


def test_three_hard_negatives_for_each_positive() -> None:
    losses = torch.tensor([[9.0, 1, 5, 4, 3, 2, 8], [1, 2, 3, 4, 5, 6, 7]])
    positive = torch.zeros(2, 7, dtype=torch.bool)
    positive[0, 0] = True
    chosen = hard_negatives(losses, positive)
    assert chosen[0].nonzero()[:, 0].tolist() == [2, 3, 6]
    assert not chosen[1].any()  # an image without positives has no negatives


def test_losses_by_a_slow_loop() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0, 20, 20], [10, 10, 40, 40], [50, 50, 90, 90], [0, 60, 30, 90], [60, 0, 90, 30]])
    targets = [make_target([[1, 1, 22, 20], [48, 52, 90, 91]], [2, 0], 0), make_target([], [], 1)]
    batch = empty_batch(96)
    batch.images = torch.zeros(2, 3, 96, 96)
    batch.boxes = torch.stack([targets[0]["boxes"], torch.zeros(2, 4)])
    batch.labels = torch.tensor([[2, 0], [0, 0]])
    batch.mask = torch.tensor([[True, True], [False, False]])
    logits, deltas = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    matched = match_default_boxes(pairwise_iou(batch.boxes, boxes), batch.mask)
    found = multibox_losses(Outputs(logits, deltas, boxes), matched, batch)

    assert matched.tolist() == [[0, -1, 1, -1, -1], [-1] * 5]
    probabilities = logits[0].softmax(dim=1)
    positives = [(0, 0, 2), (2, 1, 0)]  # default box, object, label
    class_loss = sum(-math.log(probabilities[box, 1 + label]) for box, _, label in positives)
    negatives = sorted((-math.log(probabilities[box, 0]) for box in (1, 3, 4)), reverse=True)
    class_loss += sum(negatives[: 3 * len(positives)])
    box_loss = 0.0
    for box, index, _ in positives:
        x1, y1, x2, y2 = boxes[box].tolist()
        g1, h1, g2, h2 = batch.boxes[0, index].tolist()
        width, height = x2 - x1, y2 - y1
        wanted = [
            ((g1 + g2) / 2 - (x1 + x2) / 2) / width / 0.1,
            ((h1 + h2) / 2 - (y1 + y2) / 2) / height / 0.1,
            math.log((g2 - g1) / width) / 0.2,
            math.log((h2 - h1) / height) / 0.2,
        ]
        for value, target in zip(deltas[0, box].tolist(), wanted, strict=True):
            error = abs(value - target)
            box_loss += 0.5 * error**2 if error < 1 else error - 0.5
    assert float(found["class"]) == pytest.approx(class_loss / 2, rel=1e-5)
    assert float(found["box"]) == pytest.approx(box_loss / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------------------- reduced VGG


def test_conv4_3_has_a_length_of_20() -> None:
    features = torch.randn(2, 512, 3, 3)
    lengths = ScaledNorm(512)(features).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 20.0))


def test_fc6_and_fc7_are_every_fourth_channel_and_third_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """fc6 4096 x 512 x 7 x 7 becomes 1024 x 512 x 3 x 3; here a fourth of 16."""
    fc6, fc7 = torch.randn(16, 7, 7, 5), torch.randn(16, 1, 1, 16)
    layers = [(fc6, torch.arange(16.0)), (fc7, torch.arange(16.0) * 2)]
    monkeypatch.setattr(ssd_levels, "FC_CHANNELS", 4)
    monkeypatch.setattr(ssd_levels, "hidden_layers", lambda trunk, pretrained: layers)
    head = AtrousHead(5, "vgg16", True)
    for out in range(4):
        assert float(head[1].bias[out]) == 4 * out
        assert float(head[3].bias[out]) == 8 * out
        for channel in range(5):
            for row in range(3):
                for column in range(3):
                    assert head[1].weight[out, channel, row, column] == fc6[4 * out, 3 * row, 3 * column, channel]
        for channel in range(4):
            assert head[3].weight[out, channel, 0, 0] == fc7[4 * out, 0, 0, 4 * channel]
    assert head[1].dilation == (6, 6)


# ---------------------------------------------------------------------------------------------------- torchvision

PAIRS = {
    "ssd300_vgg16": {
        "scales": (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        "steps": (8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
        "frame": FrameConfig(300, 300, True, divisor=1, mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3),
    },
    "ssdlite320_mobilenet_v3_large": {
        "trunk": "ssdlite_mobilenet_v3_large",
        "extra_levels": "separable",
        "scales": (*level_scales(6, 0.2, 0.95), 1.0),
        "nms_threshold": 0.55,
        "candidates_per_class": 300,
        "frame": square(320),
    },
}


SLOW_PAIRS = [pytest.param("ssd300_vgg16", marks=pytest.mark.slow), "ssdlite320_mobilenet_v3_large"]


def make_images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in ((240, 320), (400, 300))
    ]


def build_pair(name: str) -> tuple[nn.Module, Detector]:
    """Both detectors with weights that give many different scores, in float64."""
    torch.manual_seed(0)
    theirs = getattr(tv, name)(weights=None, weights_backbone=None)
    theirs.score_thresh, theirs.detections_per_img = 0.05, EVERY
    frames, _ = theirs.transform([image / 255 for image in make_images()])
    with torch.no_grad():
        for layer in theirs.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.9
        for _ in range(3):
            theirs.head(list(theirs.backbone(frames.tensors).values()))
        found = theirs.eval().head(list(theirs.backbone(frames.tensors).values()))
        spreads = (
            (theirs.head.classification_head, "cls_logits", 1.5),
            (theirs.head.regression_head, "bbox_regression", 0.7),
        )
        for head, key, spread in spreads:
            for predictor in head.module_list:
                last = predictor if isinstance(predictor, nn.Conv2d) else predictor[-1]
                last.weight.mul_(spread / found[key].std())
    theirs = theirs.double()
    ours = SSD(90, score_threshold=0.05, detections_per_image=EVERY, **PAIRS[name])  # type: ignore[arg-type]
    norm_eps = 1e-3 if name.startswith("ssdlite") else 1e-5
    load_weights(ours, theirs.state_dict(), layout="torchvision", norm_eps=norm_eps)
    return theirs, ours.double()


@pytest.mark.parametrize("name", SLOW_PAIRS)
def test_the_same_as_torchvision(name: str) -> None:
    theirs, ours = build_pair(name)
    images = make_images()
    with torch.no_grad():
        expected = theirs.eval()([image.double() / 255 for image in images])
        found = ours.eval()(images)
    for theirs_one, ours_one in zip(expected, found, strict=True):
        keep = (theirs_one["boxes"][:, 2:] - theirs_one["boxes"][:, :2] > 1e-3).all(dim=1)
        assert keep.sum() > 1000
        torch.testing.assert_close(ours_one["scores"].double(), theirs_one["scores"][keep], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours_one["boxes"].double(), theirs_one["boxes"][keep], atol=1e-4, rtol=0)
        assert torch.equal(ours_one["labels"], theirs_one["labels"][keep] - 1)

    boxes = [[[10, 20, 120, 200], [100, 50, 300, 220]], [[30, 20, 90, 100], [100, 150, 280, 390], [5, 5, 60, 300]]]
    labels = [[2, 6], [0, 79, 4]]
    targets = [make_target(*values, index) for index, values in enumerate(zip(boxes, labels, strict=True))]
    given = [{"boxes": target["boxes"].double(), "labels": target["labels"] + 1} for target in targets]
    theirs.train()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    with torch.no_grad():
        their_losses = theirs([image.double() / 255 for image in images], given)
        our_losses = ours.compute_raw_losses((images, targets))
    for key, value in {"class": "classification", "box": "bbox_regression"}.items():
        torch.testing.assert_close(our_losses[key].double(), their_losses[value], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SLOW_PAIRS)
def test_published_files_are_recognised(name: str, tmp_path: Path) -> None:
    """Of 91 slots, COCO's 80 classes; the other arguments are those of the published model."""
    torch.manual_seed(0)
    theirs = getattr(tv, name)(weights=None, weights_backbone=None)
    file = tmp_path / f"{name}_coco.pth"
    torch.save(theirs.state_dict(), file)
    detector = zoo.load(file)
    assert isinstance(detector, SSD)
    assert detector.class_names == COCO_CLASSES
    frames, _ = theirs.transform([make_images()[0] / 255])
    levels = list(theirs.eval().backbone(frames.tensors).values())
    (their_boxes,) = theirs.anchor_generator(frames, levels)
    with torch.no_grad():
        batch = detector.frame_batch(make_images()[:1])
        outputs = detector.encode(batch)
        logits = theirs.head(levels)["cls_logits"]
    torch.testing.assert_close(batch.images, frames.tensors, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(outputs.boxes, their_boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(outputs.logits, logits[..., [0, *COCO_IDS]], atol=1e-3, rtol=1e-3)
    for ours, published in (("nms_threshold", "nms_thresh"), ("candidates_per_class", "topk_candidates")):
        assert getattr(detector, ours) == getattr(theirs, published)
