"""What the representation of each detector cannot give on a data set, found without training.

Each detector's own parts are asked: its frame, its anchors and windows, its assignment of objects to cells, its search
for proposals. A detector with random weights will do. Objects that evaluation does not count (crowds, and what VOC
calls difficult) are left out.

What the shares mean differs. Corners that fall together are lost for good. An object that no anchor, window or proposal
overlaps well has little to learn from, but box regression can still reach it from one that overlaps it less: there a
detector can do better than its ceiling, and the sentence that comes with the share says so.

Legend: M counted objects of an image, N anchors or windows.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.dataset import DetectionDataset
from zoo.data.source import Source
from zoo.data.table import AnnotationTable
from zoo.detector import Detector
from zoo.experiment.recall import recall_of
from zoo.models import faster_rcnn, retinanet
from zoo.models.cornernet import STRIDE, CornerNet, corner_cells
from zoo.models.fast_rcnn import FastRCNN
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.rcnn import RCNN
from zoo.models.retinanet import RetinaNet
from zoo.models.sliding_window import SlidingWindow, is_inside
from zoo.models.yolov1 import YOLOv1, assign_cells
from zoo.ops.boxes import box_area, pairwise_iou
from zoo.ops.matching import match
from zoo.proposals import ProposalCache
from zoo.report.results import Ceiling

IOU = 0.5  # from which a window or a proposal covers an object
IMAGES_AT_ONCE = 64  # whose objects are put into YOLO's cells together

Watch = Callable[[Any], Iterable[Any]]


@dataclass
class Framed:
    """The counted objects of one image, as the detector's network would see them."""

    boxes: Float[Tensor, "M 4"]  # framed pixels
    labels: Int64[Tensor, "M"]
    size: Float[Tensor, "2"]  # (width, height) of the framed image


def ceilings(
    detector: Detector, table: AnnotationTable, source: Source, num_workers: int = 0, watch: Watch = iter
) -> list[Ceiling]:
    """What this detector's representation cannot give of these objects.

    Args:
        detector: any of the zoo's; others have no ceilings that are known here.
        table: the objects.
        source: reads the images of the table; only selective search looks at them.
        num_workers: processes that search for proposals; 0: this one.
        watch: goes through the images, for a progress bar.

    Returns:
        Shares of the counted objects, NaN where there are none.

    Raises:
        InputError: an image cannot be read.
    """
    if isinstance(detector, RetinaNet):
        limits = (retinanet.BACKGROUND_IOU, retinanet.FOREGROUND_IOU)
        return anchor_ceilings(detector, table, *limits, "the object", watch)
    if isinstance(detector, FasterRCNN):
        limits = (faster_rcnn.RPN_BACKGROUND_IOU, faster_rcnn.RPN_FOREGROUND_IOU)
        return anchor_ceilings(detector, table, *limits, "a proposal", watch)
    if isinstance(detector, (RCNN, FastRCNN)):
        return proposal_ceilings(detector, table, source, num_workers, watch)
    if isinstance(detector, SlidingWindow):
        return window_ceilings(detector, table, watch)
    if isinstance(detector, YOLOv1):
        return cell_ceilings(detector, table, watch)
    if isinstance(detector, CornerNet):
        return corner_ceilings(detector, table, watch)
    return []


# ---------------------------------------------------------------------------------------------------------- anchors


def anchor_ceilings(
    detector: RetinaNet | FasterRCNN, table: AnnotationTable, low: float, high: float, what: str, watch: Watch = iter
) -> list[Ceiling]:
    """Objects that no anchor overlaps enough, and those that no anchor answers for even so."""
    overlaps, answered = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for outputs, images in _by_frame(detector, table, watch):
        anchors = torch.cat(outputs.anchors)
        for image in images:
            overlap, has_anchor = match_anchors(image.boxes, anchors, low, high)
            overlaps.append(overlap)
            answered.append(has_anchor)
    return [
        _ceiling(
            torch.cat(overlaps) < high,
            f"no anchor from IoU {high}",
            f"No anchor overlaps it by IoU {high}: only its best one learns it, and has further to move the box.",
        ),
        _ceiling(
            ~torch.cat(answered),
            "no anchor answers for it",
            f"Each anchor that could overlaps another object more: no anchor learns {what} there.",
        ),
    ]


def match_anchors(
    boxes: Float[Tensor, "M 4"], anchors: Float[Tensor, "N 4"], low: float, high: float
) -> tuple[Float[Tensor, "M"], Bool[Tensor, "M"]]:
    """The highest IoU of each object with an anchor, and whether some anchor answers for it.

    The same as `match` of all anchors, which are 200,000 on a frame of 1333x800, but few of them are looked at. An
    anchor that does not hold an object's centre covers less than half of the object. So anchors of IoU 0.5 and more
    hold the centre; and the best one does, if it is better than half the object in the smallest anchor.

    Args:
        boxes: objects in framed pixels.
        anchors: all of the frame.
        low: below this an anchor is background.
        high: from this on an anchor answers for an object; at least 0.5.
    """
    if not len(boxes):
        return boxes.new_zeros(0), torch.zeros(0, dtype=torch.bool)
    assert high >= 0.5
    x, y = (((boxes[:, axis] + boxes[:, axis + 2]) / 2)[:, None] for axis in (0, 1))
    x1, y1, x2, y2 = anchors.unbind(-1)
    looked_at = ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).any(dim=0)
    best = _best_overlap(boxes, anchors[looked_at])
    areas = box_area(boxes)
    elsewhere = areas / 2 / areas.maximum(box_area(anchors).min())  # what an anchor without the centre stays below
    unsure = boxes[best < elsewhere]
    if len(unsure):
        iou = pairwise_iou(unsure, anchors)
        looked_at |= (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
    iou = pairwise_iou(boxes, anchors[looked_at])
    everyone = torch.ones(1, len(boxes), dtype=torch.bool)
    matched = match(iou[None], everyone, low, high, keep_best_of_each_object=True)[0]
    return iou.amax(dim=1), torch.bincount(matched[matched >= 0], minlength=len(boxes)) > 0


# ------------------------------------------------------------------------------------------------ windows, proposals


def window_ceilings(detector: SlidingWindow, table: AnnotationTable, watch: Watch = iter) -> list[Ceiling]:
    """Objects that no window with its middle on the image covers."""
    overlaps = [torch.zeros(0)]
    for outputs, images in _by_frame(detector, table, watch):
        for image in images:
            windows = outputs.boxes[is_inside(outputs.boxes, image.size[None])[0]]
            overlaps.append(_best_overlap(image.boxes, windows))
    return [
        _ceiling(
            torch.cat(overlaps) < IOU,
            f"no window from IoU {IOU}",
            f"No window overlaps it by IoU {IOU}: only "
            + ("a regressor that moves the box further" if detector.network.regressor is not None else "luck")
            + " can still find it.",
        )
    ]


def proposal_ceilings(
    detector: RCNN | FastRCNN, table: AnnotationTable, source: Source, num_workers: int = 0, watch: Watch = iter
) -> list[Ceiling]:
    """Objects that selective search misses."""
    assert detector.proposals is not None
    cache = detector.proposal_cache or ProposalCache()
    images = DetectionDataset(table, source, propose=partial(cache.get, search=detector.proposals))
    recall = recall_of(images, num_workers, watch)
    count = recall.num_objects["all"]
    share = 1 - recall.found[IOU, "all"]
    meaning = f"No proposal overlaps it by IoU {IOU}: only box regression can still reach it from a worse one."
    return [Ceiling("selective search misses it", share, round(share * count) if count else 0, meaning)]


def _best_overlap(boxes: Float[Tensor, "M 4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, "M"]:
    return pairwise_iou(boxes, others).amax(dim=1) if len(others) else boxes.new_zeros(len(boxes))


# ------------------------------------------------------------------------------------------------------------- cells


def cell_ceilings(detector: YOLOv1, table: AnnotationTable, watch: Watch = iter) -> list[Ceiling]:
    """Objects whose cell answers for a larger one."""
    lost = [torch.zeros(0, dtype=torch.bool)]
    images = (_frame(detector, table, index) for index in watch(range(len(table))))
    while group := list(islice(images, IMAGES_AT_ONCE)):
        boxes = pad_sequence([image.boxes / image.size.repeat(2) for image in group], batch_first=True)
        mask = pad_sequence([torch.ones(len(image.boxes), dtype=torch.bool) for image in group], batch_first=True)
        lost.append(assign_cells(boxes, mask, detector.grid)[1][mask])
    grid = detector.grid
    return [
        _ceiling(
            torch.cat(lost),
            "a larger object has its cell",
            f"A cell of the {grid} x {grid} answers for one object, and a larger one has its centre in the same cell.",
        )
    ]


def corner_ceilings(detector: CornerNet, table: AnnotationTable, watch: Watch = iter) -> list[Ceiling]:
    """Objects whose two corners cannot be told from those of another of their class."""
    same, near = ([torch.zeros(0, dtype=torch.bool)] for _ in range(2))
    for outputs, images in _by_frame(detector, table, watch):
        height, width = outputs.corners[0].heat.shape[-2:]
        for image in images:
            cells = torch.cat(corner_cells(image.boxes[None] / STRIDE, (height, width)), dim=2)[0]
            distance = (cells[:, None] - cells).abs().amax(dim=2)
            is_other = image.labels[:, None] != image.labels
            same.append(hidden_objects((distance == 0) & ~is_other))
            near.append(hidden_objects((distance <= 1) & ~is_other))
    return [
        _ceiling(
            torch.cat(same),
            "both corners in another's cells",
            "Another object of its class has both corners in the same cells: two corners make one box.",
        ),
        _ceiling(
            torch.cat(near),
            "both corners beside another's",
            "Another object of its class has both corners in the same or neighbouring cells, of which the choice of "
            "3x3 maxima leaves one: a box for both.",
        ),
    ]


def hidden_objects(is_one: Bool[Tensor, "M M"]) -> Bool[Tensor, "M"]:
    """Objects that cannot be told from an earlier one that is given itself.

    Args:
        is_one: which two objects come out as one; symmetric.
    """
    hidden = torch.zeros(len(is_one), dtype=torch.bool)
    for index in is_one.triu(diagonal=1).any(dim=0).nonzero()[:, 0].tolist():
        hidden[index] = (is_one[index, :index] & ~hidden[:index]).any()
    return hidden


# ----------------------------------------------------------------------------------------------------------- framing


def _by_frame(detector: Detector, table: AnnotationTable, watch: Watch) -> Iterator[tuple[Any, Iterator[Framed]]]:
    """The images of a table by the size of their frames, and what the network gives for a frame of that size.

    The network runs on tensors without content: what it says of objects is of no matter, and where its anchors, windows
    and maps lie hangs on sizes alone.
    """
    skeleton = copy.deepcopy(detector).to("meta")
    for name, buffer in detector.named_buffers(recurse=False):  # anchors and windows, which are wanted
        skeleton.register_buffer(name, buffer.cpu(), persistent=False)
    by_frame: dict[tuple[int, int], list[int]] = defaultdict(list)
    frame = detector.frame.config
    for index, size in enumerate(zip(table.heights.tolist(), table.widths.tolist(), strict=True)):
        by_frame[frame.padded_size(*frame.framed_size(*size))].append(index)
    seen = iter(watch(range(len(table))))
    for indices in by_frame.values():
        height, width = int(table.heights[indices[0]]), int(table.widths[indices[0]])
        with torch.no_grad():
            batch = skeleton.frame([torch.empty(3, height, width, dtype=torch.uint8, device="meta")])
            outputs = skeleton.encode(batch)
        yield outputs, (_frame(detector, table, index) for index, _ in zip(indices, seen, strict=False))


def _frame(detector: Detector, table: AnnotationTable, index: int) -> Framed:
    """Boxes as `zoo.nn.frame.Frame` has them, without its pixels."""
    target = table.target(index)
    counts = ~(target["iscrowd"] | target["difficult"])
    given = int(table.heights[index]), int(table.widths[index])
    size = torch.tensor(detector.frame.config.framed_size(*given)[::-1], dtype=torch.float32)
    scale = size / torch.tensor(given[::-1], dtype=torch.float32)
    return Framed(target["boxes"][counts] * scale.repeat(2), target["labels"][counts], size)


def _ceiling(lost: Bool[Tensor, "T"], limit: str, meaning: str) -> Ceiling:
    return Ceiling(limit, float(lost.double().mean()), int(lost.sum()), meaning)
