"""Ceilings: share of the objects of a data set that a detector's representation cannot represent, without training.

Computed with each detector's own parts: its frame, its anchors and windows, its assignment of objects to cells, its
proposal search. Random weights suffice. Objects that evaluation ignores (crowds, and VOC's difficult ones) are left
out.

The shares do not all bound recall in the same way. Objects whose corners coincide cannot be detected at all. An object
that no anchor, window or proposal overlaps well has few training samples, but box regression can still reach it from
one with a lower IoU. In these cases a detector can exceed the ceiling; the sentence stored with the share states it.

Legend: M counted objects of an image, T of all images, N anchors or windows.
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
from zoo.experiment.recall import dataset_recall
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

IOU = 0.5  # an object with a lower IoU with every window or proposal counts as missed
CELL_BATCH_SIZE = 64  # images whose objects are assigned to YOLO's cells in one call

ProgressBar = Callable[[Any], Iterable[Any]]


@dataclass
class FramedObjects:
    """The counted objects of one image, in pixels of the framed image that the network receives."""

    boxes: Float[Tensor, "M 4"]  # framed pixels
    labels: Int64[Tensor, " M"]
    size: Float[Tensor, "2"]  # (width, height) of the framed image


def compute_ceilings(
    detector: Detector, table: AnnotationTable, source: Source, num_workers: int = 0, progress: ProgressBar = iter
) -> list[Ceiling]:
    """Share and number of the objects that the detector's representation cannot represent, by reason.

    Args:
        detector: one of `zoo.models`; any other detector gets an empty list.
        table: the objects.
        source: reads the images of the table; only selective search needs them.
        num_workers: processes that search for proposals; 0: this one.
        progress: wraps the iteration over images, for a progress bar.

    Returns:
        Shares of the counted objects; NaN where there are none.

    Raises:
        InputError: an image cannot be read.
    """
    if isinstance(detector, RetinaNet):
        limits = (retinanet.BACKGROUND_IOU, retinanet.FOREGROUND_IOU)
        return anchor_ceilings(detector, table, *limits, "the object", progress)
    if isinstance(detector, FasterRCNN):
        limits = (faster_rcnn.RPN_BACKGROUND_IOU, faster_rcnn.RPN_FOREGROUND_IOU)
        return anchor_ceilings(detector, table, *limits, "a proposal", progress)
    if isinstance(detector, (RCNN, FastRCNN)):
        return proposal_ceilings(detector, table, source, num_workers, progress)
    if isinstance(detector, SlidingWindow):
        return window_ceilings(detector, table, progress)
    if isinstance(detector, YOLOv1):
        return cell_ceilings(detector, table, progress)
    if isinstance(detector, CornerNet):
        return corner_ceilings(detector, table, progress)
    return []


# ---------------------------------------------------------------------------------------------------------- anchors


def anchor_ceilings(
    detector: RetinaNet | FasterRCNN,
    table: AnnotationTable,
    low: float,
    high: float,
    what: str,
    progress: ProgressBar = iter,
) -> list[Ceiling]:
    """Objects that no anchor overlaps by IoU `high`, and objects that no anchor is matched to.

    Args:
        detector: has the anchors.
        table: the objects.
        low: anchors with a lower IoU are background.
        high: anchors with at least this IoU are foreground.
        what: what a foreground anchor is trained to predict, for the sentence of the report.
        progress: wraps the iteration over images.
    """
    overlaps, matched = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for outputs, images in _by_frame(detector, table, progress):
        anchors = torch.cat(outputs.anchors)
        for image in images:
            overlap, is_matched = match_anchors(image.boxes, anchors, low, high)
            overlaps.append(overlap)
            matched.append(is_matched)
    return [
        _ceiling(
            torch.cat(overlaps) < high,
            f"no anchor reaches IoU {high}",
            f"No anchor overlaps it by IoU {high}: only its best anchor is trained on it, with larger box deltas.",
        ),
        _ceiling(
            ~torch.cat(matched),
            "no anchor is matched to it",
            f"Each candidate anchor overlaps another object more: no anchor is trained to predict {what} there.",
        ),
    ]


def match_anchors(
    boxes: Float[Tensor, "M 4"], anchors: Float[Tensor, "N 4"], low: float, high: float
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Highest IoU of each object with any anchor, and whether any anchor is matched to the object.

    Equal to `match` over all anchors (200,000 on a frame of 1333x800), but evaluates few of them. An anchor that does
    not contain an object's centre covers less than half of the object, so its IoU is below 0.5, and below
    area / 2 / max(area, area of the smallest anchor). Only objects whose best anchor around the centre is below that
    bound are compared with all anchors.

    Args:
        boxes: objects in framed pixels.
        anchors: all anchors of the frame.
        low: anchors with a lower IoU are background.
        high: anchors with at least this IoU are foreground; at least 0.5.
    """
    if not len(boxes):
        return boxes.new_zeros(0), torch.zeros(0, dtype=torch.bool)
    assert high >= 0.5
    x, y = (((boxes[:, axis] + boxes[:, axis + 2]) / 2)[:, None] for axis in (0, 1))
    x1, y1, x2, y2 = anchors.unbind(-1)
    is_candidate = ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).any(dim=0)
    best = _best_overlap(boxes, anchors[is_candidate])
    areas = box_area(boxes)
    bound = areas / 2 / areas.maximum(box_area(anchors).min())  # above the IoU of any anchor without the centre
    undecided = boxes[best < bound]
    if len(undecided):
        iou = pairwise_iou(undecided, anchors)
        is_candidate |= (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
    iou = pairwise_iou(boxes, anchors[is_candidate])
    mask = torch.ones(1, len(boxes), dtype=torch.bool)
    matched = match(iou[None], mask, low, high, keep_best_of_each_object=True)[0]
    return iou.amax(dim=1), torch.bincount(matched[matched >= 0], minlength=len(boxes)) > 0


# ------------------------------------------------------------------------------------------------ windows, proposals


def window_ceilings(detector: SlidingWindow, table: AnnotationTable, progress: ProgressBar = iter) -> list[Ceiling]:
    """Objects that no window centred inside the image overlaps by IoU 0.5."""
    overlaps = [torch.zeros(0)]
    for outputs, images in _by_frame(detector, table, progress):
        for image in images:
            windows = outputs.boxes[is_inside(outputs.boxes, image.size[None])[0]]
            overlaps.append(_best_overlap(image.boxes, windows))
    return [
        _ceiling(
            torch.cat(overlaps) < IOU,
            f"no window reaches IoU {IOU}",
            f"No window overlaps it by IoU {IOU}"
            + (
                ": only box regression can still reach it from a worse one."
                if detector.network.regressor is not None
                else ", and there is no box regression to reach it from a worse one."
            ),
        )
    ]


def proposal_ceilings(
    detector: RCNN | FastRCNN,
    table: AnnotationTable,
    source: Source,
    num_workers: int = 0,
    progress: ProgressBar = iter,
) -> list[Ceiling]:
    """Objects that no selective search proposal overlaps by IoU 0.5."""
    assert detector.proposals is not None
    cache = detector.proposal_cache or ProposalCache()
    images = DetectionDataset(table, source, propose=partial(cache.get, search=detector.proposals))
    recall = dataset_recall(images, num_workers, progress)
    count = recall.num_objects["all"]
    share = 1 - recall.found[IOU, "all"]
    meaning = f"No proposal overlaps it by IoU {IOU}: only box regression can still reach it from a worse one."
    return [Ceiling("selective search misses it", share, round(share * count) if count else 0, meaning)]


def _best_overlap(boxes: Float[Tensor, "M 4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, " M"]:
    return pairwise_iou(boxes, others).amax(dim=1) if len(others) else boxes.new_zeros(len(boxes))


# ------------------------------------------------------------------------------------------------------------- cells


def cell_ceilings(detector: YOLOv1, table: AnnotationTable, progress: ProgressBar = iter) -> list[Ceiling]:
    """Objects whose grid cell is assigned to a larger object."""
    lost = [torch.zeros(0, dtype=torch.bool)]
    images = (_frame(detector, table, index) for index in progress(range(len(table))))
    while group := list(islice(images, CELL_BATCH_SIZE)):
        boxes = pad_sequence([image.boxes / image.size.repeat(2) for image in group], batch_first=True)
        mask = pad_sequence([torch.ones(len(image.boxes), dtype=torch.bool) for image in group], batch_first=True)
        lost.append(assign_cells(boxes, mask, detector.grid)[1][mask])
    grid = detector.grid
    return [
        _ceiling(
            torch.cat(lost),
            "its cell is assigned to a larger object",
            f"Each of the {grid} x {grid} cells is assigned one object, and a larger one is centred in the same cell.",
        )
    ]


def corner_ceilings(detector: CornerNet, table: AnnotationTable, progress: ProgressBar = iter) -> list[Ceiling]:
    """Objects whose two corners share or neighbour the heatmap cells of another object of their class."""
    same, near = ([torch.zeros(0, dtype=torch.bool)] for _ in range(2))
    for outputs, images in _by_frame(detector, table, progress):
        height, width = outputs.corners[0].heat.shape[-2:]
        for image in images:
            cells = torch.cat(corner_cells(image.boxes[None] / STRIDE, (height, width)), dim=2)[0]
            distance = (cells[:, None] - cells).abs().amax(dim=2)
            is_other = image.labels[:, None] != image.labels
            same.append(merged_objects((distance == 0) & ~is_other))
            near.append(merged_objects((distance <= 1) & ~is_other))
    return [
        _ceiling(
            torch.cat(same),
            "both corners in the cells of another object",
            "Another object of its class has both corners in the same cells: the two corners give one box.",
        ),
        _ceiling(
            torch.cat(near),
            "both corners beside those of another object",
            "Another object of its class has both corners in the same or neighbouring cells, of which 3x3 peak "
            "selection keeps one: one box for both.",
        ),
    ]


def merged_objects(is_same: Bool[Tensor, "M M"]) -> Bool[Tensor, " M"]:
    """Objects that are indistinguishable from an earlier object which is not itself merged into another.

    Args:
        is_same: which pairs of objects give one detection; symmetric.
    """
    is_merged = torch.zeros(len(is_same), dtype=torch.bool)
    for index in is_same.triu(diagonal=1).any(dim=0).nonzero()[:, 0].tolist():
        is_merged[index] = (is_same[index, :index] & ~is_merged[:index]).any()
    return is_merged


# ----------------------------------------------------------------------------------------------------------- framing


def _by_frame(
    detector: Detector, table: AnnotationTable, progress: ProgressBar
) -> Iterator[tuple[Any, Iterator[FramedObjects]]]:
    """For each framed image size: the network's outputs, and the objects of the images of that size.

    The network runs on meta tensors, since anchors, windows and the sizes of output maps depend on the size alone.
    """
    meta_detector = copy.deepcopy(detector).to("meta")
    for name, buffer in detector.named_buffers(recurse=False):  # anchors and windows: their values are needed
        meta_detector.register_buffer(name, buffer.cpu(), persistent=False)
    by_frame: dict[tuple[int, int], list[int]] = defaultdict(list)
    frame = detector.frame.config
    for index, size in enumerate(zip(table.heights.tolist(), table.widths.tolist(), strict=True)):
        by_frame[frame.padded_size(*frame.framed_size(*size))].append(index)
    seen = iter(progress(range(len(table))))
    for indices in by_frame.values():
        height, width = int(table.heights[indices[0]]), int(table.widths[indices[0]])
        with torch.no_grad():
            batch = meta_detector.frame([torch.empty(3, height, width, dtype=torch.uint8, device="meta")])
            outputs = meta_detector.encode(batch)
        yield outputs, (_frame(detector, table, index) for index, _ in zip(indices, seen, strict=False))


def _frame(detector: Detector, table: AnnotationTable, index: int) -> FramedObjects:
    """Counted boxes of an image as `zoo.nn.frame.Frame` scales them, without reading its pixels."""
    target = table.target(index)
    counts = ~(target["iscrowd"] | target["difficult"])
    given = int(table.heights[index]), int(table.widths[index])
    size = torch.tensor(detector.frame.config.framed_size(*given)[::-1], dtype=torch.float32)
    scale = size / torch.tensor(given[::-1], dtype=torch.float32)
    return FramedObjects(target["boxes"][counts] * scale.repeat(2), target["labels"][counts], size)


def _ceiling(lost: Bool[Tensor, " T"], limit: str, meaning: str) -> Ceiling:
    return Ceiling(limit, float(lost.double().mean()), int(lost.sum()), meaning)
