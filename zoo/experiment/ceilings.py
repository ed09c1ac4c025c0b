"""Ceilings: share of the objects of a data set that a detector's representation cannot represent, without training.

Each detector states its own limits (`Detector.find_limits`) with the parts it is made of: its frame, its anchors and
windows, its assignment of objects to cells; the limits of region proposals and of masks of few cells are stated here
for all detectors that have them. Random weights suffice. Objects that evaluation ignores (crowds, and VOC's difficult
ones) are left out.

The shares do not all bound recall in the same way. Objects whose corners coincide cannot be detected at all. An object
that no anchor, window or proposal overlaps well has few training samples, but box regression can still reach it from
one with a lower IoU. In these cases a detector can exceed the ceiling; the sentence stored with the share states it.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.dataset import DetectionDataset
from zoo.data.masks import NONE
from zoo.data.source import Source
from zoo.data.table import AnnotationTable
from zoo.detector import Detector
from zoo.experiment.recall import dataset_recall
from zoo.nn.mask_head import mask_targets
from zoo.ops.paste import paste_masks
from zoo.proposals import ProposalCache
from zoo.report.results import Ceiling
from zoo.types import FramedObjects

IOU = 0.5  # an object with a lower IoU with every proposal counts as missed
MASK_IOU = 0.9  # of the masks that a perfect detection would have

ProgressBar = Callable[[Any], Iterable[Any]]


def compute_ceilings(
    detector: Detector, table: AnnotationTable, source: Source, num_workers: int = 0, progress: ProgressBar = iter
) -> list[Ceiling]:
    """Share and number of the objects that the detector's representation cannot represent, by reason.

    Args:
        detector: states its limits, or takes region proposals; otherwise the list is empty.
        table: the objects.
        source: reads the images of the table; only selective search needs them.
        num_workers: processes that search for proposals; 0: this one.
        progress: wraps the iteration over images, for a progress bar.

    Returns:
        Shares of the counted objects; NaN where there are none.

    Raises:
        InputError: an image cannot be read.
    """
    proposals = (
        [] if detector.proposals is None else [_proposal_ceiling(detector, table, source, num_workers, progress)]
    )
    of_masks = [_mask_ceiling(detector.mask_side, table)] if detector.mask_side and table.has_masks else []
    if type(detector).find_limits is Detector.find_limits:
        return proposals + of_masks
    masks: dict[tuple[str, str], list[Tensor]] = defaultdict(list)  # (limit, meaning) -> masks of the images
    for outputs, images in _by_frame(detector, table, progress):
        for objects in images:
            for limit in detector.find_limits(outputs, objects):
                masks[limit.name, limit.meaning].append(limit.is_lost)
    return [_ceiling(*sentences, torch.cat(lost)) for sentences, lost in masks.items()] + proposals + of_masks


def _ceiling(limit: str, meaning: str, lost: Tensor) -> Ceiling:
    return Ceiling(limit, float(lost.double().mean()), int(lost.sum()), meaning)


def _proposal_ceiling(
    detector: Detector, table: AnnotationTable, source: Source, num_workers: int, progress: ProgressBar
) -> Ceiling:
    """Objects that no selective search proposal overlaps by IoU 0.5."""
    assert detector.proposals is not None
    cache = detector.proposal_cache or ProposalCache()
    images = DetectionDataset(table, source, propose=partial(cache.get, search=detector.proposals))
    recall = dataset_recall(images, num_workers, progress)
    count = recall.num_objects["all"]
    share = 1 - recall.found[IOU, "all"]
    meaning = f"No proposal overlaps it by IoU {IOU}: only box regression can still reach it from a worse one."
    return Ceiling("selective search misses it", share, round(share * count) if count else 0, meaning)


def _mask_ceiling(side: int, table: AnnotationTable) -> Ceiling:
    """Objects whose mask, in the cells of a detection with the object's own box, is pasted back with an IoU below 0.9.

    Cells are the shares of the mask that mask detectors are trained on (`zoo.nn.mask_head.mask_targets`).
    """
    assert table.masks is not None
    lost = []
    for index in range(len(table)):
        target, rows = table.target(index), table.rows(index)
        height, width = int(table.heights[index]), int(table.widths[index])
        counts = ~(target["iscrowd"] | target["difficult"]).numpy() & (table.masks.kinds[rows] != NONE)
        for row in np.flatnonzero(counts):
            mask = torch.from_numpy(table.masks.decode(rows.start + int(row), height, width))
            box = target["boxes"][None, row : row + 1]
            cells = mask_targets(mask[None, None], torch.zeros(1, 1, dtype=torch.int64), box, side)[0]
            pasted, whole = paste_masks(cells, box[0], height, width)[0], mask.bool()
            lost.append(bool((pasted & whole).sum() < MASK_IOU * (pasted | whole).sum()))
    meaning = f"In {side} x {side} cells of its own box, its mask has an IoU below {MASK_IOU} with the mask itself."
    return _ceiling(f"coarse mask of {side} x {side}", meaning, torch.tensor(lost, dtype=torch.bool))


def _by_frame(
    detector: Detector, table: AnnotationTable, progress: ProgressBar
) -> Iterator[tuple[Any, Iterator[FramedObjects]]]:
    """For each framed image size: the network's outputs, and the objects of the images of that size.

    The network runs on meta tensors, since anchors, windows and the sizes of output maps depend on the size alone.
    """
    meta_detector = copy.deepcopy(detector).to("meta").eval()  # batch norm cannot train on one value
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
    frame = detector.frame.config
    framed = frame.framed_size(*given)
    size = torch.tensor(framed[::-1], dtype=torch.float32)
    scale = size / torch.tensor(given[::-1], dtype=torch.float32)
    offset = torch.tensor(frame.place(*framed)[::-1], dtype=torch.float32)
    boxes = target["boxes"][counts] * scale.repeat(2) + offset.repeat(2)
    if frame.letterbox:
        size = torch.full_like(size, frame.min_size)
    return FramedObjects(boxes, target["labels"][counts], size)
