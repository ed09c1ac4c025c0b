"""Ceilings of every detector against scenes counted by hand and against slow loops."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import FORMS
from tiny_detector import TinyDetector
from torch import Tensor

from zoo.data.formats.shapes import Shapes
from zoo.data.masks import Masks, encode_runs
from zoo.data.table import AnnotationTable
from zoo.detector import Detector
from zoo.experiment.ceilings import compute_ceilings
from zoo.models import MODELS, FastRCNN
from zoo.nn.frame import FrameConfig
from zoo.ops.boxes import pairwise_iou
from zoo.ops.matching import match
from zoo.proposals import ProposalCache, propose
from zoo.report.results import Ceiling
from zoo.types import FramedObjects, Limit

FRAME = FrameConfig(min_size=64, max_size=128)


def build(form: str, **changes: object) -> Detector:
    torch.manual_seed(0)
    name, arguments = FORMS[form]
    return MODELS[name](num_classes=3, **{"frame": FRAME, **arguments, **changes})


def make_table(
    images: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[int] | None = None,
    size: tuple[int, int] = (128, 64),
    crowds: Sequence[int] = (),
    difficult: Sequence[int] = (),
) -> AnnotationTable:
    """A table of images of the same size (width, height), given the boxes of each image."""
    boxes = [box for image in images for box in image]
    index = [number for number, image in enumerate(images) for _ in image]
    flags = {"iscrowd": crowds, "difficult": difficult}
    return AnnotationTable.from_rows(
        classes=("a", "b", "c"),
        image_ids=np.arange(len(images)),
        widths=np.full(len(images), size[0]),
        heights=np.full(len(images), size[1]),
        file_names=[f"{number}.png" for number in range(len(images))],
        image_index=np.array(index, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels if labels is not None else [0] * len(boxes), np.int64),
        **{name: np.isin(np.arange(len(boxes)), rows) for name, rows in flags.items()},
    )


SOURCE = Shapes(1, seed=0)  # only selective search reads its images


def objects_of(detector: Detector, table: AnnotationTable) -> list[int]:
    return [ceiling.objects for ceiling in compute_ceilings(detector, table, SOURCE)]


# ------------------------------------------------------------------------------------------------------ all detectors


@pytest.mark.parametrize("name", MODELS)
def test_shares_are_nan_without_counted_objects(name: str) -> None:
    nothing = make_table([[], [[4, 4, 40, 40]]], crowds=[0])
    source = Shapes(2, seed=0)
    table = nothing if name not in ("rcnn", "fast_rcnn") else source.read().select([])
    found = compute_ceilings(build(name), table, source)
    assert found
    assert all(math.isnan(ceiling.share) and ceiling.objects == 0 for ceiling in found)


def test_yolov3_loses_objects_with_one_anchor_and_cell_and_those_of_anchors_without_a_level() -> None:
    """Frames of 128 with the image in the middle: a row of cells would be another one without the 32 rows of grey."""
    alike, apart = [[10, 10, 20, 20], [10.5, 10.5, 20.5, 20.5]], [[10, 10, 20, 20], [13, 10, 23, 20]]
    assert objects_of(build("yolov3"), make_table([alike, apart])) == [0, 1]
    # In cells of 16 pixels from 32 on: the middle of the first is in row 3, that of the second in row 4.
    across = [[8, 26, 33, 37], [8, 27.5, 33, 38.5]]
    assert objects_of(build("yolov3 of darknet's weights"), make_table([alike, across])) == [2, 0]


def test_other_detectors_have_no_ceilings() -> None:
    assert compute_ceilings(TinyDetector(num_classes=3), make_table([[[4, 4, 40, 40]]]), SOURCE) == []


def test_a_detector_may_have_limits_beside_those_of_its_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_limits(self: Detector, outputs: object, objects: FramedObjects) -> list[Limit]:
        return [Limit("half", "Every second one.", torch.arange(len(objects.boxes)) % 2 == 1)]

    source = Shapes(2, seed=0)
    monkeypatch.setattr(FastRCNN, "find_limits", find_limits)
    found = compute_ceilings(build("fast_rcnn"), source.read(), source)
    assert [ceiling.limit for ceiling in found] == ["half", "selective search misses it"]


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn", "sliding_window", "yolov1", "cornernet"])
def test_computing_ceilings_does_not_modify_the_detector(name: str) -> None:
    detector = build(name)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    seen: list[int] = []
    table = make_table([[[4, 4, 40, 40]], [], [[1, 2, 60, 50], [30, 30, 34, 35]]])
    found = compute_ceilings(detector, table, SOURCE, progress=lambda images: (seen.append(i) or i for i in images))
    assert len(seen) == 3
    assert all(isinstance(ceiling, Ceiling) and 0 <= ceiling.share <= 1 for ceiling in found)
    assert detector.training
    assert {value.device.type for value in (*detector.parameters(), *detector.buffers())} == {"cpu"}
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ anchors


def all_anchors(detector: Detector, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Anchors of a blank image by the network itself, and the scale of its frame."""
    batch = detector.frame([torch.zeros(3, height, width, dtype=torch.uint8)])
    with torch.no_grad():
        return torch.cat(detector.encode(batch).anchors), batch.scales[0].repeat(2)


def iou_of(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(width, 0) * max(height, 0)
    return inside / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - inside)


@pytest.mark.parametrize(("name", "threshold"), [("retinanet", 0.5), ("faster_rcnn", 0.7)])
def test_anchors_against_a_slow_loop(name: str, threshold: float) -> None:
    """Images of two sizes, one of which is resized by framing."""
    detector = build(name).eval()
    generator = np.random.default_rng(3)
    shares: list[float] = []
    for size in ((128, 64), (100, 150)):
        start = generator.uniform(0, 20, (8, 2))
        boxes = np.concatenate([start, start + generator.uniform(4, 44, (8, 2))], axis=1)
        table = make_table([boxes[:5].tolist(), boxes[5:].tolist()], size=size, crowds=[1], difficult=[6])
        anchors, scale = all_anchors(detector, *size)
        lost, unmatched = 0, 0
        for rows in ([0, 2, 3, 4], [5, 7]):
            framed = [(torch.tensor(boxes[row]).float() * scale).tolist() for row in rows]
            overlaps = [[iou_of(box, anchor) for anchor in anchors.tolist()] for box in framed]
            lost += sum(max(overlap) < threshold for overlap in overlaps)
            matched = match(
                pairwise_iou(torch.tensor(framed)[None], anchors), torch.ones(1, len(rows)) > 0, 0.3, threshold, True
            )
            unmatched += sum(number not in matched[0].tolist() for number in range(len(rows)))
        assert lost > 0
        assert objects_of(detector, table) == [lost, unmatched]
        shares.append(compute_ceilings(detector, table, SOURCE)[0].share)
        assert shares[-1] == pytest.approx(lost / 6)
    assert min(shares) < 1


def test_an_object_equal_to_an_anchor_and_a_tiny_one() -> None:
    detector = build("retinanet").eval()
    anchors, _ = all_anchors(detector, 128, 64)
    inside = anchors[((anchors[:, :2] >= 0).all(1)) & (anchors[:, 2] <= 128) & (anchors[:, 3] <= 64)]
    assert objects_of(detector, make_table([[inside[7].tolist()]])) == [0, 0]
    assert objects_of(detector, make_table([[[50, 30, 52, 32]]])) == [1, 0]  # its best anchor is matched
    duplicates = [[50.0, 30.0, 52.0, 32.0]] * 2
    assert objects_of(detector, make_table([duplicates])) == [2, 1]  # the anchors of both are matched to the first
    assert objects_of(detector, make_table([duplicates[:1], duplicates[:1]])) == [2, 0]


# ------------------------------------------------------------------------------------------------ windows, proposals


def test_windows_by_hand() -> None:
    """Square windows of 40 pixels every 8 pixels, in a frame of the image's size."""
    detector = build(
        "sliding_window", window_side=40, window_shapes=((40.0, 40.0),), frame=FrameConfig(64, 128, divisor=8)
    ).eval()
    batch = detector.frame([torch.zeros(3, 64, 128, dtype=torch.uint8)])
    with torch.no_grad():
        windows = detector.encode(batch).boxes.tolist()
    on_image = [w for w in windows if (w[0] + w[2]) / 2 < 128 and (w[1] + w[3]) / 2 < 64]
    window = next(w for w in on_image if min(w) >= 0 and w[2] <= 128 and w[3] <= 64)
    x1, y1, _, _ = window
    assert objects_of(detector, make_table([[window]])) == [0]
    assert objects_of(detector, make_table([[[x1, y1, x1 + 40, y1 + 20.5]]])) == [0]  # IoU just above a half
    assert objects_of(detector, make_table([[[x1, y1, x1 + 40, y1 + 19.5]]])) == [1]
    many = [[float(x), 5.0, x + side, 5 + side] for x, side in ((0, 12), (3, 31), (70, 55), (90, 38), (20, 26))]
    missed = sum(max(iou_of(box, window) for window in on_image) < 0.5 for box in many)
    assert 0 < missed < 5
    assert objects_of(detector, make_table([many])) == [missed]


def test_windows_on_padding_do_not_count() -> None:
    """The frame of an image of 128 x 64 is padded to 128 x 96: windows below the image are not evaluated."""
    arguments = {"window_side": 28, "window_shapes": ((28.0, 28.0),)}
    padded = build("sliding_window", **arguments, frame=FrameConfig(64, 128, divisor=96)).eval()
    plain = build("sliding_window", **arguments, frame=FrameConfig(64, 128, divisor=8)).eval()
    table = make_table([[[x, y, x + 20.0, y + 20.0] for x in (0, 33, 107) for y in (0, 21, 44)]])
    assert objects_of(padded, table) == objects_of(plain, table)


def test_selective_search_against_a_slow_loop(tmp_path: Path) -> None:
    source = Shapes(6, seed=5)
    table = source.read()
    detector = build("fast_rcnn")
    detector.proposal_cache = ProposalCache(tmp_path)
    assert detector.proposals is not None
    missed = 0
    for index in range(len(table)):
        proposals = propose(source.load_image(table, index), detector.proposals).tolist()
        for box in table.target(index)["boxes"].tolist():
            missed += max(iou_of(box, proposal) for proposal in proposals) < 0.5
    (found,) = compute_ceilings(detector, table, source)
    assert (found.objects, found.share) == (missed, pytest.approx(missed / table.num_objects))
    assert any(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- cells


def test_yolo_cells_by_hand() -> None:
    """8 x 8 cells over images of 128x64, so that a cell is 16 pixels wide and 8 high."""
    detector = build("yolov1")
    first = [
        [0, 0, 15, 7],  # centre in cell (0, 0)
        [1, 1, 5, 5],  # a smaller one in the same: lost
        [0, 8, 15, 15],  # the cell below
        [2, 2, 4, 4],  # a third one in (0, 0): lost
    ]
    second = [[0, 0, 15, 7]]  # of another image
    third = [[40, 20, 60, 30], [40, 20, 60, 30], [40, 20, 60, 30]]  # equal: the first gets the cell
    found = compute_ceilings(detector, make_table([first, second, [], third]), SOURCE)
    assert [ceiling.objects for ceiling in found] == [4]
    assert found[0].share == pytest.approx(4 / 8)
    assert objects_of(detector, make_table([first], crowds=[0])) == [1]  # the next largest gets the cell


def test_corners_by_hand() -> None:
    """Cells are 4 pixels; frames have the size of the images."""
    detector = build("cornernet")
    one = [8.5, 8.5, 30, 30]  # cells (2, 2) and (7, 7)
    cases: list[tuple[list[float], int, list[int]]] = [
        ([11.0, 9.0, 31.0, 32.0], 0, [1, 1]),  # the same cells: 32 is the end of cell 7
        ([11.0, 9.0, 31.0, 32.0], 1, [0, 0]),  # of another class
        ([11.0, 9.0, 31.0, 33.0], 0, [0, 1]),  # cells (2, 2) and (7, 8)
        ([12.0, 12.0, 33.0, 33.0], 0, [0, 1]),  # (3, 3) and (8, 8)
        ([11.0, 9.0, 37.0, 33.0], 0, [0, 0]),  # the bottom-right corner two cells away
        ([4.0, 4.0, 27.0, 40.0], 0, [0, 0]),
    ]
    for other, label, expected in cases:
        table = make_table([[one, other]], labels=[0, label])
        assert objects_of(detector, table) == expected, other
    apart = make_table([[one], [one]])
    assert objects_of(detector, apart) == [0, 0]


def test_corners_are_of_framed_images() -> None:
    """An image of 256x128 is framed to half its size: boxes 8 pixels apart are one cell of 4 pixels apart."""
    detector = build("cornernet")
    boxes = [[16.5, 16.5, 60.0, 60.0], [22.0, 18.0, 62.0, 62.0]]
    assert objects_of(detector, make_table([boxes], size=(256, 128))) == [1, 1]
    assert objects_of(detector, make_table([boxes], size=(128, 64))) == [0, 1]


@pytest.mark.parametrize("name", ["retinanet", "cornernet", "yolov1"])
def test_boxes_are_framed_as_by_the_detector(name: str) -> None:
    from zoo.experiment.ceilings import _frame

    detector = build(name)
    table = make_table([[[3, 4, 50, 61.5], [20, 8, 97, 110]]], size=(97, 113))
    framed = detector.frame([torch.zeros(3, 113, 97, dtype=torch.uint8)], [table.target(0)])
    ours = _frame(detector, table, 0)
    assert torch.equal(ours.boxes, framed.boxes[0])
    assert torch.equal(ours.size, framed.sizes[0])


def test_a_detector_in_training_mode_has_the_same_ceilings() -> None:
    """As after a training. Its frame of 32 pixels gives batch norm a single value, on which it cannot train."""
    detector = build("retinanet", frame=FrameConfig(min_size=32, max_size=32))
    table = make_table([[[2, 2, 30, 40]]], size=(32, 32))
    expected = compute_ceilings(detector.eval(), table, SOURCE)
    assert expected
    assert compute_ceilings(detector.train(), table, SOURCE) == expected
    assert detector.training


def test_masks_that_few_cells_cannot_draw() -> None:
    """A disc is drawn well by 28 x 28 cells of its box; a comb of one-pixel teeth, finer than the cells, is not."""
    rows, columns = np.mgrid[:200, :200]
    disc = np.hypot(rows - 100, columns - 100) < 80
    comb = (rows >= 20) & (rows < 180) & (columns >= 20) & (columns < 180) & (columns % 4 == 0)
    table = make_table([[[20, 20, 180, 180], [20, 20, 180, 180]], [[20, 20, 180, 180]]])
    masks = Masks.pack([encode_runs(disc), encode_runs(comb), None])
    table = replace(table, masks=masks, widths=np.full(2, 200, np.int32), heights=np.full(2, 200, np.int32))
    *_, found = compute_ceilings(build("mask_rcnn"), table, SOURCE)
    assert (found.limit, found.objects, found.share) == ("coarse mask of 28 x 28", 1, 0.5)
    without = compute_ceilings(build("mask_rcnn"), replace(table, masks=None), SOURCE)
    assert all("mask" not in ceiling.limit for ceiling in without)
