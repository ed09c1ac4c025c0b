"""YOLOv1: equation 3 by a slow loop and by hand, cells and who gets them, decoding, and darknet's weights."""

import re
from pathlib import Path

import pytest
import torch
from darknet_files import write_darknet
from pytorch_lightning import Trainer
from scenes import make_image, make_target
from torch import Tensor

from zoo.detector import Recipe
from zoo.errors import InputError
from zoo.models.retinanet import RetinaNet
from zoo.models.yolov1 import (
    Outputs,
    YOLOv1,
    assign_cells,
    class_scores,
    count_lost_objects,
    decode_boxes,
    encode_boxes,
    yolo_losses,
)
from zoo.nn.darknet import darknet_rows
from zoo.nn.frame import FrameConfig
from zoo.types import Losses, RawBatch
from zoo.weights import load_weights

SQUARE = FrameConfig(128, 128, stretch=True)


def small(**arguments: object) -> YOLOv1:
    torch.manual_seed(0)
    defaults = {"trunk": "darknet6", "neck": (8,), "head_widths": (16,), "grid": 2, "frame": SQUARE}
    return YOLOv1(3, **(defaults | arguments))


def values(losses: Losses) -> dict[str, float]:
    return {name: float(loss) for name, loss in losses.items()}


# ------------------------------------------------------------------------------------------------------- equation 3


def test_five_numbers_by_hand() -> None:
    """S = 2, K = 2, C = 2; one object of w 0.64 and h 0.36 with its centre at (0.6, 0.3): cell 1, x 0.2, y 0.6."""
    outputs = Outputs(
        classes=torch.tensor([[[0.5, 0.5], [0.7, 0.1], [0.5, 0.5], [0.5, 0.5]]]),
        confidences=torch.tensor([[[0.0, 0.0], [0.2, 0.9], [0.0, 0.0], [0.4, -0.2]]]),
        boxes=torch.zeros(1, 4, 2, 4),
    )
    outputs.boxes[0, 1] = torch.tensor(
        [
            [0.2, 0.6, 0.8, 0.3],  # w 0.64, h 0.09: inside of the object, IoU 0.09 / 0.36 = 0.25
            [0.2, 0.7, 0.8, 0.4],  # w 0.64, h 0.16, 0.05 further down: inside as well, IoU 0.16 / 0.36 = 4 / 9
        ]
    )
    box, label = torch.tensor([[[0.28, 0.12, 0.92, 0.48]]]), torch.tensor([[0]])
    owners, _ = assign_cells(box, torch.tensor([[True]]), grid=2)
    assert owners.tolist() == [[-1, 0, -1, -1]]
    losses = yolo_losses(outputs, box, label, owners, 2, coord_weight=5.0, no_object_weight=0.5)
    assert values(losses) == pytest.approx(
        {
            "xy": 5 * 0.1**2,  # 0.05
            "wh": 5 * (0.6 - 0.4) ** 2,  # 0.2
            "object": (0.9 - 4 / 9) ** 2,  # 0.20753
            "no_object": 0.5 * (0.2**2 + 0.4**2 + 0.2**2),  # 0.12
            "class": 0.3**2 + 0.1**2,  # 0.1
        },
        rel=1e-5,
    )


def slow_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_equation_3(outputs: Outputs, boxes: Tensor, labels: Tensor, mask: Tensor, grid: int) -> dict[str, float]:
    """The paper's sums over cells i and boxes j; no cell has two objects."""
    losses = dict.fromkeys(["xy", "wh", "object", "no_object", "class"], 0.0)
    num_images, _, num_boxes = outputs.confidences.shape
    for image in range(num_images):
        for i in range(grid * grid):
            row, column = divmod(i, grid)
            here = None
            for m in range(mask.shape[1]):
                x, y = ((boxes[image, m, k] + boxes[image, m, k + 2]) / 2 * grid for k in (0, 1))
                if mask[image, m] and column <= x < column + 1 and row <= y < row + 1:
                    here = m
            ious = []
            for j in range(num_boxes):
                x, y, root_w, root_h = outputs.boxes[image, i, j].tolist()
                x, y, w, h = (column + x) / grid, (row + y) / grid, root_w**2, root_h**2
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                ious.append(-1.0 if here is None else slow_iou(box, boxes[image, here].tolist()))
            for j in range(num_boxes):
                confidence = float(outputs.confidences[image, i, j])
                if here is None or j != ious.index(max(ious)):
                    losses["no_object"] += 0.5 * confidence**2
                    continue
                x1, y1, x2, y2 = boxes[image, here].tolist()
                x, y, root_w, root_h = outputs.boxes[image, i, j].tolist()
                losses["xy"] += 5 * (((x1 + x2) / 2 * grid - column - x) ** 2 + ((y1 + y2) / 2 * grid - row - y) ** 2)
                losses["wh"] += 5 * (((x2 - x1) ** 0.5 - root_w) ** 2 + ((y2 - y1) ** 0.5 - root_h) ** 2)
                losses["object"] += (confidence - ious[j]) ** 2
            for c in range(outputs.classes.shape[2] if here is not None else 0):
                target = 1.0 if c == labels[image, here] else 0.0
                losses["class"] += (float(outputs.classes[image, i, c]) - target) ** 2
    return {name: loss / num_images for name, loss in losses.items()}


@pytest.mark.parametrize("num_objects", [6, 0])
def test_every_term_equals_a_slow_loop(num_objects: int) -> None:
    """Three images: crowded, with masked objects, and empty; outputs anywhere, negative roots among them."""
    grid, num_boxes, num_classes = 4, 3, 5
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    cells = torch.stack([torch.randperm(grid * grid, generator=generator)[:num_objects] for _ in range(3)])
    centres = (torch.stack([cells % grid, cells // grid], dim=-1) + rand(3, num_objects, 2)) / grid
    halves = 0.02 + 0.3 * rand(3, num_objects, 2)
    boxes = torch.cat([centres - halves, centres + halves], dim=-1)
    labels = torch.randint(num_classes, (3, num_objects), generator=generator)
    mask = torch.ones(3, num_objects, dtype=torch.bool)
    mask[1, ::2] = mask[2] = False
    outputs = Outputs(
        classes=2 * rand(3, 16, num_classes) - 0.5,
        confidences=2 * rand(3, 16, num_boxes) - 0.5,
        boxes=2 * rand(3, 16, num_boxes, 4) - 0.7,
    )
    owners, lost = assign_cells(boxes, mask, grid)
    assert not lost.any()
    losses = yolo_losses(outputs, boxes, labels, owners, grid, coord_weight=5.0, no_object_weight=0.5)
    assert values(losses) == pytest.approx(slow_equation_3(outputs, boxes, labels, mask, grid))
    assert (float(losses["xy"]) > 0) == (num_objects > 0)


def test_the_detectors_losses_are_equation_3_of_its_outputs() -> None:
    """From raw images: the frame is stretched, crowds are left out."""
    detector = small(boxes_per_cell=3).eval().double()
    targets = [make_target([[5, 5, 80, 40], [90, 50, 120, 90], [60, 10, 90, 20]], [2, 1, 0]), make_target([], [])]
    targets[0]["iscrowd"][2] = True
    images = [make_image(96, 128, targets[0]), make_image(50, 70, targets[1])]
    batch = detector.frame(images, targets)
    with torch.no_grad():
        losses = detector.compute_raw_losses((images, targets))
        slow = slow_equation_3(detector.encode(batch), batch.boxes / 128, batch.labels, batch.mask, 2)
    assert values(losses) == pytest.approx(slow)


def test_no_gradient_flows_through_the_confidences_target() -> None:
    outputs = Outputs(torch.rand(1, 4, 2), torch.rand(1, 4, 2), torch.rand(1, 4, 2, 4))
    outputs.boxes.requires_grad_()
    outputs.confidences.requires_grad_()
    box = torch.tensor([[[0.1, 0.1, 0.4, 0.3]]])
    owners, _ = assign_cells(box, torch.tensor([[True]]), grid=2)
    losses = yolo_losses(outputs, box, torch.tensor([[1]]), owners, 2, coord_weight=5.0, no_object_weight=0.5)
    losses["object"].backward()
    assert outputs.boxes.grad is None
    assert outputs.confidences.grad is not None
    assert outputs.confidences.grad.count_nonzero() == 1


def test_where_nothing_overlaps_the_first_box_is_responsible() -> None:
    outputs = Outputs(torch.zeros(1, 1, 1), torch.ones(1, 1, 2), torch.zeros(1, 1, 2, 4))  # boxes without area
    box = torch.tensor([[[0.4, 0.4, 0.6, 0.6]]])
    outputs.boxes[0, 0, 0, :2] = 0.3
    losses = yolo_losses(outputs, box, torch.tensor([[0]]), torch.tensor([[0]]), 1, 5.0, 0.5)
    assert float(losses["xy"]) == pytest.approx(5 * 2 * 0.2**2)


# ------------------------------------------------------------------------------------------------------------ cells


def test_of_two_objects_in_one_cell_the_larger_wins_and_the_other_is_counted() -> None:
    boxes = torch.tensor(
        [
            [[0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.4, 0.4], [0.6, 0.1, 0.7, 0.2], [0.6, 0.1, 0.7, 0.2]],
            [[0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.4, 0.4], [0.9, 0.9, 1.0, 1.0], [0.8, 0.8, 1.2, 1.2]],
        ]
    )
    mask = torch.tensor([[True, True, True, True], [True, False, False, True]])
    owners, lost = assign_cells(boxes, mask, grid=2)
    # equal ones: the first; masked ones take no part; a centre on the frame's last edge is in the last cell
    assert owners.tolist() == [[1, 2, -1, -1], [0, -1, -1, 3]]
    assert lost.tolist() == [[True, False, False, True], [False] * 4]
    # the order of the objects decides nothing else
    owners, lost = assign_cells(boxes.flip(1), mask.flip(1), grid=2)
    assert owners.tolist() == [[2, 0, -1, -1], [3, -1, -1, 0]]
    assert lost.tolist() == [[False, True, False, True], [False] * 4]


def crowded_batch() -> RawBatch:
    """128x64 and 64x64 pixels; at a grid of 2 three objects lose their cells: two to one, one to another."""
    targets = [
        make_target([[0, 0, 60, 30], [2, 2, 20, 20], [5, 5, 9, 9], [70, 40, 80, 60]], [0, 1, 2, 0]),
        make_target([[0, 0, 20, 20], [0, 0, 10, 10], [0, 0, 30, 30]], [0, 1, 2]),
    ]
    targets[1]["difficult"][2] = True
    return [make_image(64, 128, targets[0]), make_image(64, 64, targets[1])], targets


def test_lost_objects_of_raw_images_are_counted() -> None:
    assert count_lost_objects(crowded_batch(), grid=2).item() == 3
    assert count_lost_objects(crowded_batch(), grid=8).item() == 0


def test_the_count_of_an_epoch_is_logged() -> None:
    detector = small(recipe=Recipe("adamw", lr=1e-4, warmup_steps=0))
    loader = torch.utils.data.DataLoader([crowded_batch()] * 2, batch_size=None, collate_fn=lambda batch: batch)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(detector, loader)
    assert trainer.callback_metrics["train/lost_objects"].item() == 6  # of the last epoch: two batches


# --------------------------------------------------------------------------------------------------------- decoding


def test_boxes_round_trip() -> None:
    grid = 3
    centres = (torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], dim=-1) + torch.rand(1, 9, 2)) / grid
    halves = torch.rand(1, 9, 2) / 2
    boxes = torch.cat([centres - halves, centres + halves], dim=-1)
    encoded = encode_boxes(boxes, grid)
    assert ((encoded >= 0) & (encoded <= 1)).all()
    torch.testing.assert_close(decode_boxes(encoded[:, :, None], grid)[:, :, 0], boxes)
    negative_roots = encoded * torch.tensor([1.0, 1, -1, -1])
    torch.testing.assert_close(decode_boxes(negative_roots[:, :, None], grid)[:, :, 0], boxes)


def test_scores_are_class_times_confidence_within_0_and_1() -> None:
    scores = class_scores(torch.tensor([[[0.5, 1.5, -0.5]]]), torch.tensor([[[0.8, -0.4]]]))
    torch.testing.assert_close(scores, torch.tensor([[[[0.4, 0.8, 0.0], [0.0, 0.0, 0.0]]]]))


def test_predictions_of_known_outputs() -> None:
    """Two boxes of one class over each other, of which NMS leaves the surer; one of another class stays."""
    detector = small(head="conv", head_widths=(), score_threshold=0.05)
    outputs = Outputs(torch.zeros(1, 4, 3), torch.zeros(1, 4, 2), torch.zeros(1, 4, 2, 4))
    outputs.classes[0, 3] = torch.tensor([1.0, 0.0, 0.5])  # the cell at the lower right
    outputs.confidences[0, 3] = torch.tensor([0.6, 0.9])
    outputs.boxes[0, 3] = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.6]])
    batch = detector.frame([torch.zeros(3, 64, 256, dtype=torch.uint8)])
    predictions = detector.compute_predictions(outputs, batch)
    assert predictions[0]["labels"].tolist() == [0, 2]
    assert predictions[0]["scores"].tolist() == pytest.approx([0.9, 0.45])
    # centre (0.75, 0.75), w 0.25, h 0.36 of 128 pixels, then of the image's own 256 x 64
    torch.testing.assert_close(predictions[0]["boxes"][0], torch.tensor([0.625, 0.57, 0.875, 0.93]) * 128)
    unframed = detector.frame.unframe(predictions, batch)[0]["boxes"][1]
    torch.testing.assert_close(unframed, torch.tensor([160, 36.48, 224, 59.52]))


def test_boxes_are_clipped_after_nms() -> None:
    """As in darknet: two boxes that differ only outside the image both stay."""
    detector = small(head="conv", head_widths=(), nms_threshold=0.6)
    outputs = Outputs(torch.zeros(1, 4, 3), torch.zeros(1, 4, 2), torch.zeros(1, 4, 2, 4))
    outputs.classes[0, 0, 0] = 1.0
    outputs.confidences[0, 0] = torch.tensor([0.9, 0.6])
    outputs.boxes[0, 0] = torch.tensor([[0.0, 0.5, 0.5, 0.5], [-0.25, 0.5, 0.5**0.5, 0.5]])  # IoU 1/2, clipped 1
    batch = detector.frame([torch.zeros(3, 128, 128, dtype=torch.uint8)])
    (found,) = detector.frame.unframe(detector.compute_predictions(outputs, batch), batch)
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 16, 16, 48]] * 2))


# ---------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": FrameConfig(128, 128)}, "set frame.stretch to true"),
        ({"grid": 3}, "128 pixels is not a multiple of grid 3"),
        ({"frame": FrameConfig(100, 100, stretch=True)}, "not a multiple of grid 2 and of frame.divisor 32"),
        ({"grid": 4}, "cells of 32 pixels (frame / grid) are not a multiple of the trunk's stride 64"),
        ({"grid": 1, "neck": ()}, "a cell is 2 times the trunk's last stride"),
        ({"trunk": "resnet10t", "grid": 128}, "has no features at stride 1"),
    ],
)
def test_frames_grids_and_trunks_that_do_not_go_together(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        small(**arguments)


@pytest.mark.parametrize(
    ("trunk", "grid", "side"), [("darknet20", 7, 448), ("resnet10t", 7, 448), ("resnet10t", 14, 448), ("vgg11", 8, 64)]
)
def test_any_trunk_ends_in_a_cell_a_place(trunk: str, grid: int, side: int) -> None:
    detector = small(trunk=trunk, grid=grid, neck=(8, 8), head="conv", frame=FrameConfig(side, side, stretch=True))
    outputs = detector.eval().encode(detector.frame([torch.zeros(3, 20, 30, dtype=torch.uint8)]))
    assert outputs.boxes.shape == (1, grid * grid, 2, 4)


def test_the_papers_network_has_24_convolutions_and_two_fully_connected_layers() -> None:
    with torch.device("meta"):
        full, fast = YOLOv1(20), YOLOv1(20, trunk="darknet6", neck=(1024,) * 3)
    for detector, num_convs in ((full, 24), (fast, 9)):
        layers = list(detector.modules())
        assert sum(isinstance(layer, torch.nn.Conv2d) for layer in layers) == num_convs
        connected = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        assert [layer.out_features for layer in connected] == [4096, 7 * 7 * 30]
        assert connected[0].in_features == 7 * 7 * 1024
    assert [unit.conv.stride[0] for unit in full.neck] == [1, 2, 1, 1]
    assert [unit.conv.stride[0] for unit in fast.neck] == [1, 1, 1]


@pytest.mark.parametrize("head", ["fc", "conv"])
def test_a_fresh_network_says_the_same_of_each_cell(head: str) -> None:
    """Boxes in the middle of their cells, one smaller and one larger: each can become responsible."""
    detector = small(head=head).eval()
    outputs = detector.encode(detector.frame([torch.zeros(3, 64, 64, dtype=torch.uint8)]))
    expected = torch.tensor([[0.5, 0.5, (1 / 3) ** 0.5, (1 / 3) ** 0.5], [0.5, 0.5, (2 / 3) ** 0.5, (2 / 3) ** 0.5]])
    torch.testing.assert_close(outputs.boxes, expected.expand(1, 4, 2, 4), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs.classes, torch.full((1, 4, 3), 1 / 3), atol=0.02, rtol=0)


# ---------------------------------------------------------------------------------------------------------- darknet


@pytest.mark.parametrize("head", ["fc", "local"])
def test_predictions_of_a_file_of_darknets_come_out_right(tmp_path: Path, head: str) -> None:
    """Output by output: all class probabilities of all cells first, then the confidences, then the boxes."""
    num_cells, num_boxes, num_classes = 4, 2, 3
    bias = torch.zeros(num_cells * (num_classes + 5 * num_boxes))
    cell, box, label = 2, 1, 1  # the cell at the lower left
    bias[cell * num_classes + label] = 0.8
    bias[num_cells * num_classes + cell * num_boxes + box] = 0.5
    first = num_cells * (num_classes + num_boxes) + (cell * num_boxes + box) * 4
    bias[first : first + 4] = torch.tensor([0.5, 0.25, 0.6, 0.5])
    detector = small(head=head)
    weight = torch.zeros_like(detector.head.output.weight)
    write_darknet(tmp_path / "yolo.weights", detector, {"head.output.bias": bias, "head.output.weight": weight})

    load_weights(detector, tmp_path / "yolo.weights", layout="darknet")
    found = detector.eval()([torch.zeros(3, 100, 200, dtype=torch.uint8)])[0]
    assert found["labels"].tolist() == [label]
    assert found["scores"].tolist() == pytest.approx([0.4])
    # centre (0.25, 0.625), w 0.36, h 0.25
    expected = torch.tensor([[0.07 * 200, 0.5 * 100, 0.43 * 200, 0.75 * 100]])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-3, rtol=0)


def test_every_parameter_of_a_file_is_loaded(tmp_path: Path) -> None:
    source, target = small(), small()
    for parameter in source.state_dict().values():
        if parameter.is_floating_point():
            parameter.uniform_(0.1, 1)
    write_darknet(tmp_path / "yolo.weights", source, dict(source.state_dict()))
    load_weights(target, tmp_path / "yolo.weights", layout="darknet")
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name


def test_the_released_files_are_of_a_form_that_loads() -> None:
    """As many numbers as yolov1.weights and tiny-yolov1.weights have, with headers of 20 bytes."""
    with torch.device("meta"):
        full = YOLOv1(20, head="local", head_widths=(256,), boxes_per_cell=3)
        tiny = YOLOv1(20, trunk="darknet6", neck=(1024, 256), head_widths=())
    sizes = [20 + 4 * sum(torch.Size(shape).numel() for _, shape in darknet_rows(form)) for form in (full, tiny)]
    assert sizes == [789_312_992, 108_399_820]


def test_files_and_detectors_that_do_not_go_together(tmp_path: Path) -> None:
    file = tmp_path / "yolo.weights"
    write_darknet(file, small(), {})
    before = {name: value.clone() for name, value in small(boxes_per_cell=3).state_dict().items()}
    other = small(boxes_per_cell=3)
    with pytest.raises(InputError, match=r"yolo\.weights: holds [\d,]+ values after its header, but the network has"):
        load_weights(other, file, layout="darknet")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(InputError, match="no convolutional head"):
        load_weights(small(head="conv"), file, layout="darknet")
    with pytest.raises(InputError, match=r"need a YOLOv1 or YOLOv3 with a trunk of darknet \(darknet20, darknet6"):
        load_weights(small(trunk="resnet10t"), file, layout="darknet")
    with pytest.raises(InputError, match="darknet weights need a YOLOv1 or YOLOv3"):
        load_weights(RetinaNet(3, trunk="resnet10t", channels=32), file, layout="darknet")
    with pytest.raises(InputError, match="a state dict cannot have layout darknet"):
        load_weights(small(), {}, layout="darknet")
