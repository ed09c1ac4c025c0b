"""YOLOv3: loss, assignment and decoding against yolo_layer.c as a slow loop, anchors and levels, darknet's weights."""

import math
from pathlib import Path

import pytest
import torch
from darknet_files import write_darknet
from scenes import make_image, make_target
from torch import Tensor

from zoo.errors import InputError
from zoo.models.yolov3 import Outputs, YOLOv3, assign, decode_boxes, yolo_losses
from zoo.nn.darknet import darknet_rows
from zoo.nn.frame import FrameConfig
from zoo.types import Batch, FramedObjects
from zoo.weights import load_weights
from zoo.weights.published import YOLOV3_FULL, YOLOV3_TINY, recognise_darknet

SQUARE = FrameConfig(64, 64, letterbox=True)
TINY: dict[str, object] = {
    "trunk": "darknet7",
    "strides": (16, 32),
    "widths": (128, 256),
    "depths": (0, 1),
    "anchors": ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0)),
    "level_anchors": ((1, 2, 3), (3, 4, 5)),
}


def small(num_classes: int = 3, **arguments: object) -> YOLOv3:
    torch.manual_seed(0)
    defaults = {"trunk": "resnet10t", "widths": (8, 8, 8), "depths": (1, 1, 1), "frame": SQUARE}
    return YOLOv3(num_classes, **(defaults | arguments))


# ------------------------------------------------------------------------------------------------ yolo_layer.c by hand


def box_iou(a: list[float], b: list[float]) -> float:
    """Of boxes x, y, w, h."""
    shared = 1.0
    for axis in (0, 1):
        left = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
        right = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
        shared *= max(right - left, 0.0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class SlowYoloLayer:
    """One image at one level of darknet's layer: `delta` is the negative gradient with respect to its input.

    Args:
        values: [rows, columns, A, 5 + C] before any activation.
        truths: x, y, w, h relative to the frame, and the class.
        anchors: of all levels, in pixels.
        mask: of this level.
        side: of the frame.
        ignore: threshold.
    """

    def __init__(
        self,
        values: Tensor,
        truths: list[tuple[list[float], int]],
        anchors: list[tuple[float, float]],
        mask: list[int],
        side: int,
        ignore: float,
    ) -> None:
        self.rows, self.columns = values.shape[:2]
        self.values, self.anchors, self.mask, self.side = values.tolist(), anchors, mask, side
        self.delta = torch.zeros_like(values).tolist()
        for j in range(self.rows):
            for i in range(self.columns):
                for n in range(len(mask)):
                    box = self.box(i, j, n)
                    best = max((box_iou(box, truth) for truth, _ in truths), default=0.0)
                    if best <= ignore:
                        self.delta[j][i][n][4] = 0 - sigmoid(self.values[j][i][n][4])
        for truth, label in truths:
            ious = [box_iou([0, 0, w / side, h / side], [0, 0, *truth[2:]]) for w, h in anchors]
            best_anchor = ious.index(max(ious))
            if best_anchor in mask:
                self.learn(truth, label, mask.index(best_anchor))

    def box(self, i: int, j: int, n: int) -> list[float]:
        x, y, w, h = self.values[j][i][n][:4]
        anchor = self.anchors[self.mask[n]]
        across, down = (i + sigmoid(x)) / self.columns, (j + sigmoid(y)) / self.rows
        return [across, down, math.exp(w) * anchor[0] / self.side, math.exp(h) * anchor[1] / self.side]

    def learn(self, truth: list[float], label: int, n: int) -> None:
        i, j = int(truth[0] * self.columns), int(truth[1] * self.rows)
        output, delta, anchor = self.values[j][i][n], self.delta[j][i][n], self.anchors[self.mask[n]]
        scale = 2 - truth[2] * truth[3]
        delta[0] = scale * (truth[0] * self.columns - i - sigmoid(output[0]))
        delta[1] = scale * (truth[1] * self.rows - j - sigmoid(output[1]))
        delta[2] = scale * (math.log(truth[2] * self.side / anchor[0]) - output[2])
        delta[3] = scale * (math.log(truth[3] * self.side / anchor[1]) - output[3])
        delta[4] = 1 - sigmoid(output[4])
        if delta[5]:  # another object had this prediction before
            delta[5 + label] = 1 - sigmoid(output[5 + label])
            return
        for c in range(len(output) - 5):
            delta[5 + c] = (c == label) - sigmoid(output[5 + c])


ANCHORS = [(8.0, 9.0), (14.0, 30.0), (22.0, 12.0), (40.0, 44.0), (60.0, 20.0)]
LEVELS = [[0, 1, 2], [2, 3, 4]]  # anchor 2 belongs to both levels, as anchor 3 of tiny YOLOv3 does
GRIDS = [(8, 8), (4, 4)]
SIDE, CLASSES = 64, 4


def cells(grids: list[tuple[int, int]], levels: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    rows_of_table = [
        ([column * SIDE / columns, row * SIDE / rows], [SIDE / columns], ANCHORS[index])
        for (rows, columns), indices in zip(grids, levels, strict=True)
        for row in range(rows)
        for column in range(columns)
        for index in indices
    ]
    corners, strides, anchors = (torch.tensor(part).double() for part in zip(*rows_of_table, strict=True))
    return corners, strides, anchors


def scene(num_objects: int, levels: list[list[int]]) -> tuple[Tensor, Outputs, Batch]:
    """Three images, of which the second has some and the third only objects that do not count."""
    generator = torch.Generator().manual_seed(1)
    count = sum(rows * columns * len(level) for (rows, columns), level in zip(GRIDS, levels, strict=True))
    values = torch.randn(3, count, 5 + CLASSES, generator=generator, dtype=torch.float64)
    values[..., 2:4] *= 0.4
    values.requires_grad_()
    centres = torch.rand(3, num_objects, 2, generator=generator).double() * 56 + 4
    sides = torch.rand(3, num_objects, 2, generator=generator).double() * 40 + 6
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=2)
    if num_objects > 5:
        boxes[0, 4] = boxes[0, 1] + 0.3  # the same anchor and cell, another class
        boxes[0, 5] = boxes[0, 1] + 0.2
    labels = torch.randint(CLASSES, (3, num_objects), generator=generator)
    labels[:, ::2] = 3
    mask = torch.ones(3, num_objects, dtype=torch.bool)
    mask[1, ::2] = mask[2] = False
    size = torch.tensor([[SIDE, SIDE]] * 3).double()
    images = torch.zeros(3, 3, SIDE, SIDE)
    batch = Batch(images, size, size / SIDE, 0 * size, size, boxes, labels, mask, torch.arange(3))
    outputs = Outputs(values[..., :4], values[..., 4], values[..., 5:], *cells(GRIDS, levels), GRIDS)
    return values, outputs, batch


def find_slots(batch: Batch, levels: list[list[int]]) -> Tensor:
    return assign(batch.boxes, batch.mask, torch.tensor(ANCHORS).double(), levels, GRIDS, [8, 16])


@pytest.mark.parametrize("levels", [LEVELS, [[1, 2], [3, 4]]], ids=["one anchor in two levels", "anchor 0 in none"])
@pytest.mark.parametrize(("num_objects", "ignore"), [(12, 0.5), (12, 0.7), (0, 0.5)])
def test_gradients_equal_darknets_layer_term_by_term(levels: list[list[int]], num_objects: int, ignore: float) -> None:
    values, outputs, batch = scene(num_objects, levels)
    losses = yolo_losses(outputs, find_slots(batch, levels), batch, ignore)
    expected, start = torch.zeros_like(values), 0
    for (rows, columns), mask in zip(GRIDS, levels, strict=True):
        end = start + rows * columns * len(mask)
        for image in range(3):
            truths = []
            for box, label, counts in zip(batch.boxes[image], batch.labels[image], batch.mask[image], strict=True):
                x1, y1, x2, y2 = (box / SIDE).tolist()
                if counts:
                    truths.append(([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], int(label)))
            level = values[image, start:end].detach().view(rows, columns, len(mask), -1)
            layer = SlowYoloLayer(level, truths, ANCHORS, mask, SIDE, ignore)
            expected[image, start:end] = torch.tensor(layer.delta).double().view(end - start, -1)
        start = end
    parts = {
        "xy": expected[..., :2],
        "wh": expected[..., 2:4],
        "object": expected[..., 4].clamp(min=0),
        "no_object": expected[..., 4].clamp(max=0),
        "class": expected[..., 5:],
    }
    where = {"xy": slice(0, 2), "wh": slice(2, 4), "object": 4, "no_object": 4, "class": slice(5, None)}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, values, retain_graph=True)
        torch.testing.assert_close(-3 * gradient[..., where[name]], parts[name], rtol=1e-6, atol=1e-9)
        gradient[..., where[name]] = 0
        assert not gradient.any(), f"{name} depends on other outputs"
    assert list(losses) == list(parts)
    assert (parts["object"].count_nonzero() > 0) == (num_objects > 0)


def test_losses_by_hand() -> None:
    """One object of 16 x 24 in a frame of 64, its centre at (0.25, 0.5) of the cell in column 2 and row 1."""
    values, outputs, batch = scene(1, LEVELS)
    batch.boxes = torch.tensor([[[10.0, 0, 26, 24]]]).double().repeat(3, 1, 1)
    batch.mask[:], batch.labels[:] = torch.tensor([[True], [False], [False]]), 2
    # Centre (18, 12): column 2 and row 1 of cells of 8 pixels. IoU of 16 x 24 with 14 x 30: 336 / 468, the highest.
    slots = find_slots(batch, LEVELS)
    assert slots[0].tolist() == [(1 * 8 + 2) * 3 + 1, 240]
    with torch.no_grad():
        values.fill_(-100.0)
        values[0, slots[0, 0]] = torch.tensor([0, 0, 0, 0, math.log(3), -100, 100, math.log(3), -100]).double()
    losses = yolo_losses(outputs, slots, batch, 0.5)
    weight = 2 - 16 * 24 / 64**2
    expected = {
        "xy": weight * (math.log(2) + math.log(2)),  # the entropy for 0.5; for 0.25 half of ln 2 for either side
        "wh": weight * (math.log(16 / 14) ** 2 + math.log(24 / 30) ** 2) / 2,
        "object": math.log(4 / 3),
        "no_object": 0.0,
        "class": 100 + math.log(4 / 3),
    }
    assert {name: float(loss) * 3 for name, loss in losses.items()} == pytest.approx(expected)


def test_boxes_are_decoded_as_in_the_paper() -> None:
    values, outputs, _ = scene(1, LEVELS)
    boxes = decode_boxes(outputs)
    level = values[0, 8 * 8 * 3 :].detach().view(4, 4, 3, -1)
    layer = SlowYoloLayer(level, [], ANCHORS, LEVELS[1], SIDE, 0.5)
    for number, box in enumerate(boxes[0, 8 * 8 * 3 :].tolist()):
        row, column, anchor = number // 12, number // 3 % 4, number % 3
        x, y, w, h = (SIDE * part for part in layer.box(column, row, anchor))
        assert box == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    with torch.no_grad():
        values[..., 2:4] = 200.0
    assert decode_boxes(outputs).isfinite().all()


# ----------------------------------------------------------------------------------------------------------- levels


def test_predictions_of_cells_and_anchors_are_where_their_object_is() -> None:
    """Each level's outputs, rows, columns and anchors: setting one cell's numbers moves that box alone."""
    detector = small(frame=FrameConfig(64, 96)).eval()
    batch = detector.frame([make_image(64, 96, make_target([], []))])
    outputs = detector.encode(batch)
    assert outputs.grids == [(8, 12), (4, 6), (2, 3)]
    assert outputs.objectness.shape == (1, 3 * (96 + 24 + 6))
    detector.branches[1].output.register_forward_hook(mark_cell)  # of the middle level
    moved = (detector.encode(batch).logits - outputs.logits).abs().sum(dim=2)[0].nonzero()[:, 0]
    assert moved.tolist() == [96 * 3 + (2 * 6 + 5) * 3 + 1]
    assert outputs.corners[moved[0]].tolist() == [80, 32]
    assert outputs.strides[moved[0]].item() == 16
    assert outputs.anchors[moved[0]].tolist() == [62, 45]


def mark_cell(module: object, inputs: object, output: Tensor) -> Tensor:
    output = output.clone()
    output[0, 8 + 5 : 8 + 8, 2, 5] += 1  # the classes of the second of three anchors with 8 numbers each
    return output


def test_objectness_starts_low_and_boxes_start_as_their_anchors() -> None:
    detector = small().eval()
    outputs = detector.encode(detector.frame([make_image(64, 64, make_target([], []))]))
    torch.testing.assert_close(outputs.objectness.sigmoid(), torch.full((1, 252), 0.01), atol=3e-3, rtol=0)
    sides = decode_boxes(outputs)[0]
    torch.testing.assert_close(sides[:, 2:] - sides[:, :2], outputs.anchors, rtol=0.3, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (1, 1)}, "must be equally many"),
        ({"level_anchors": ((0,), (1,), (9,))}, r"level_anchors \(9,\): give indices of the 9 anchors"),
        ({"level_anchors": ((0,), (1,), ())}, r"level_anchors \(\)"),
        ({"frame": FrameConfig(64, 64, divisor=16)}, "frame.divisor 16 is not a multiple of the coarsest stride 32"),
        ({**TINY, "strides": (12, 32)}, r"'darknet7' has features at strides \[1, 2, 4, 8, 16, 32\], not at all of"),
    ],
)
def test_arguments_that_do_not_fit_raise(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**arguments)


def test_limits_are_the_objects_that_are_not_assigned() -> None:
    detector = small(**TINY, frame=FrameConfig(416, 416, letterbox=True))
    objects = make_target([[100, 100, 110, 114], [200, 200, 224, 228], [201, 201, 224, 228], [5, 5, 300, 300]], [0] * 4)
    batch = detector.frame([make_image(416, 416, objects)], [objects])
    with torch.no_grad():
        outputs = detector.encode(batch)
    no_level, shared = detector.find_limits(outputs, FramedObjects(batch.boxes[0], batch.labels[0], batch.sizes[0]))
    assert no_level.is_lost.tolist() == [True, False, False, False], "10 x 14 is anchor 0, which has no level"
    assert shared.is_lost.tolist() == [False, True, False, False]


# ---------------------------------------------------------------------------------------------------------- darknet


def test_the_released_files_are_of_a_form_that_loads() -> None:
    """As many numbers as yolov3.weights and yolov3-tiny.weights have, with headers of 20 bytes."""
    sizes = []
    for form in (YOLOV3_FULL, YOLOV3_TINY):
        with torch.device("meta"):
            sizes.append(20 + 4 * sum(torch.Size(shape).numel() for _, shape in darknet_rows(form.build())))
    assert sizes == [248_007_048, 35_434_956]


def test_the_papers_network_has_the_convolutions_of_its_cfg() -> None:
    """In file order: 52 of the trunk, then of each level 1x1 and 3x3 in turn, the output, and the 1x1 to the next."""
    with torch.device("meta"):
        full, tiny = YOLOV3_FULL.build(), YOLOV3_TINY.build()
    found = [
        [tuple(shape) for name, shape in darknet_rows(detector) if len(shape) == 4 and not name.startswith("trunk")]
        for detector in (full, tiny)
    ]

    def level(width: int, first: int) -> list[tuple[int, int, int, int]]:
        pairs = [[(width, channels, 1, 1), (2 * width, width, 3, 3)] for channels in (first, 2 * width, 2 * width)]
        return [*pairs[0], *pairs[1], *pairs[2], (255, 2 * width, 1, 1)]

    assert found[0] == [
        *level(512, 1024),
        (256, 512, 1, 1),
        *level(256, 256 + 512),
        (128, 256, 1, 1),
        *level(128, 128 + 256),
    ]
    assert found[1] == [
        *((256, 1024, 1, 1), (512, 256, 3, 3), (255, 512, 1, 1)),
        *((128, 256, 1, 1), (256, 128 + 256, 3, 3), (255, 256, 1, 1)),
    ]


def test_every_number_of_a_file_is_loaded_at_its_place(tmp_path: Path) -> None:
    """A file of numbers 0, 1, 2, ... gives each tensor a run of them, one after the other without a gap."""
    file, detector = tmp_path / "yolov3-tiny.weights", YOLOV3_TINY.build()
    start, numbers, places = 0, {}, {}
    for name, shape in darknet_rows(detector):
        count = torch.Size(shape).numel()
        numbers[name] = torch.arange(start, start + count).view(shape)
        places[name] = (start, count)
        start += count
    write_darknet(file, detector, numbers)
    assert file.stat().st_size == 35_434_956
    assert recognise_darknet(file) is YOLOV3_TINY
    load_weights(detector, file, layout="darknet")
    state = detector.state_dict()
    loaded = torch.cat([state[name].flatten() for name in places])
    assert torch.equal(loaded, torch.arange(8_858_734).float())
    missing = {name for name in state if name not in places}
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    assert places["branches.0.output.bias"][0] + 255 == places["branches.0.output.weight"][0]


def test_detections_of_a_file_of_darknets_come_out_right(tmp_path: Path) -> None:
    """The second anchor of the finer level has the same box, objectness and class in every cell."""
    detector = small(**TINY, nms_threshold=1.0, score_threshold=0.3)
    bias = torch.full((3, 8), -20.0)
    bias[1] = torch.tensor([0, math.log(3), math.log(2), 0, 20, -20, math.log(4), -20])
    numbers = {}
    for number, width in ((0, 512), (1, 256)):
        numbers[f"branches.{number}.output.weight"] = torch.zeros(24, width, 1, 1)
        numbers[f"branches.{number}.output.bias"] = bias.flatten() if number else torch.full((24,), -20.0)
    write_darknet(tmp_path / "tiny.weights", detector, numbers)
    load_weights(detector, tmp_path / "tiny.weights", layout="darknet")
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    (found,) = detector.eval()([image])
    assert found["labels"].tolist() == [1] * 16
    assert found["scores"].tolist() == pytest.approx([0.8] * 16)
    # Centre (0.5, 0.75) of each cell of 16 pixels, twice as wide as 37 x 58, 16 rows of grey above; clipped.
    centres = [(16 * column + 8, 16 * row + 12 - 16) for row in range(4) for column in range(4)]
    expected = [[max(x - 37, 0), max(y - 29, 0), min(x + 37, 64), min(y + 29, 32)] for x, y in centres]
    torch.testing.assert_close(torch.tensor(sorted(found["boxes"].tolist())), torch.tensor(sorted(expected)).float())


def test_darknets_files_need_darknets_trunks(tmp_path: Path) -> None:
    write_darknet(tmp_path / "tiny.weights", small(**TINY), {})
    with pytest.raises(InputError, match=r"need a YOLOv1 or YOLOv3 with a trunk of darknet \(darknet20"):
        load_weights(small(), tmp_path / "tiny.weights", layout="darknet")
    with pytest.raises(InputError, match=r"holds [\d,]+ values after its header; yolov1.weights 197,328,243"):
        recognise_darknet(tmp_path / "tiny.weights")
