"""Match detections to ground truth by COCO's rules, once, as columns that can be weighted by image afterwards.

The matching is that of `COCOeval.evaluateImg` (github.com/cocodataset/cocoapi, pycocotools/cocoeval.py): in each image
and class, in order of falling score, each detection takes the unmatched object that it overlaps most, at each of ten
IoU thresholds and in each of four area ranges. The matches of an image do not depend on other images, so they are valid
for every set that contains the image, any number of times.

Average precision needs precision at true positives only. So for each class, range and threshold (a curve) the true
positives are stored, each with the number of counted detections up to it: those whose area is in the range, which are
the same at all thresholds and stored once, corrected by a few exceptions.

Legend:
    N  images      T  objects      D  detections      C  classes      K  detections that overlap an object
    P  pairs of such a detection and an object
    parts    C x 4: by class, then area range
    curves   C x 4 x 10: by part, then IoU threshold
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hotcoco.primitives import mask_iou
from jaxtyping import Bool, Float, Int8, Int64

from zoo.evaluation.ground_truth import GroundTruth, ObjectMasks
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.evaluation.scores import order_detections, order_masks

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2  # all, s, m, l: pixels^2, ends included
MAX_DETECTIONS = 100  # of one class in one image
_UNMATCHED, _MATCHED, _IGNORED = 0, 1, 2  # state of a detection; ignored: matched to a crowd or out-of-range object


@dataclass(frozen=True, eq=False)
class Matches:
    """One run's detections matched to ground truth; the result of `collect_matches`.

    The `*_offsets` are the start of each part or curve in its columns, followed by the end of the last one.
    Within a part or curve, detections are sorted by falling score, equal scores in canonical order (see
    `zoo.evaluation.scores`).
    """

    classes: tuple[str, ...]
    image_ids: Int64[np.ndarray, " N"]
    object_images: Int64[np.ndarray, " objects"]  # image of each positive (not crowd, area in the range), by part
    object_offsets: Int64[np.ndarray, " part_offsets"]
    inside_images: Int64[np.ndarray, " inside"]  # image of each detection whose area is in the range, by part
    inside_offsets: Int64[np.ndarray, " part_offsets"]
    exception_images: Int64[np.ndarray, " exceptions"]  # image of each exception, by curve ...
    # ... 1: counts, though not in the range; -1: does not count, though in it
    exception_signs: Int64[np.ndarray, " exceptions"]
    exception_offsets: Int64[np.ndarray, " curve_offsets"]
    hit_images: Int64[np.ndarray, " hits"]  # image of each true positive, by curve ...
    hit_curves: Int64[np.ndarray, " hits"]  # ... its curve
    hit_inside: Int64[np.ndarray, " hits"]  # ... number of entries of `inside_images` up to and including it
    hit_exceptions: Int64[np.ndarray, " hits"]  # ... and of `exception_images`
    hit_offsets: Int64[np.ndarray, " curve_offsets"]


def collect_matches(ground_truth: GroundTruth, predictions: Predictions, by_masks: bool = False) -> Matches:
    """Match one run's detections to ground truth.

    Args:
        ground_truth: crowd regions are no positives, and unmatched detections in them do not count.
        predictions: of the images of `ground_truth`; the 100 highest-scoring of each image and class are matched.
        by_masks: compare masks instead of boxes.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    if by_masks:
        ground_truth = ground_truth.for_masks()
    strongest = strongest_detections(ground_truth, predictions, by_masks)
    detection, state = _match(ground_truth, strongest)

    by_score = np.lexsort((-strongest.scores, strongest.labels))
    new_index = np.empty_like(by_score)
    new_index[by_score] = np.arange(len(by_score))
    return _pack(
        ground_truth,
        image_index=strongest.image_index[by_score],
        labels=strongest.labels[by_score],
        inside=_in_ranges(strongest.areas()[by_score]),
        detection=new_index[detection],
        state=state,
    )


@dataclass(frozen=True, eq=False)
class Strongest:
    """The 100 highest-scoring detections of each image and class, by image, class and falling score."""

    image_index: Int64[np.ndarray, " D"]
    labels: Int64[np.ndarray, " D"]
    groups: Int64[np.ndarray, " D"]  # image and class as one number
    scores: Float[np.ndarray, " D"]
    xywh: Float[np.ndarray, "D 4"]
    masks: ObjectMasks | None = None  # compared instead of the boxes

    def areas(self) -> Float[np.ndarray, " D"]:
        """Area of each in pixels^2, which decides its size range."""
        return self.xywh[:, 2] * self.xywh[:, 3] if self.masks is None else self.masks.areas().astype(np.float64)


def strongest_detections(ground_truth: GroundTruth, predictions: Predictions, with_masks: bool = False) -> Strongest:
    """The detections that COCO's metrics use.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    image_index, boxes, scores, labels = order_detections(ground_truth, predictions)
    groups = image_index * len(ground_truth.classes) + labels
    order = np.lexsort((-scores, groups))
    order = order[_index_in_group(groups[order]) < MAX_DETECTIONS]
    masks = order_masks(ground_truth, predictions).select(order) if with_masks else None
    return Strongest(image_index[order], labels[order], groups[order], scores[order], to_xywh(boxes[order]), masks)


def _match(
    ground_truth: GroundTruth, detections: Strongest
) -> tuple[Int64[np.ndarray, " K"], Int8[np.ndarray, "K 4 10"]]:
    """Match detections to objects at all thresholds and in all ranges together.

    All groups are processed in parallel, first the highest-scoring detection of each, then the next: groups have no
    object in common.

    Args:
        ground_truth: the objects.
        detections: to match.

    Returns:
        Indices of the detections that overlap any object, and their states.
    """
    pair_detection, pair_object, iou = overlapping_pairs(ground_truth, detections)
    detection, starts, counts = np.unique(pair_detection, return_index=True, return_counts=True)
    ignored = _is_ignored(ground_truth)
    state = np.full((len(detection), len(AREA_RANGES), len(IOU_THRESHOLDS)), _UNMATCHED, np.int8)
    taken = np.zeros((len(ground_truth.boxes), len(AREA_RANGES), len(IOU_THRESHOLDS)), bool)
    rank = _index_in_group(detections.groups[detection])
    for current in range(int(rank.max(initial=-1)) + 1):
        active = np.flatnonzero(rank == current)
        # an ignored object is matched only where no other one is left
        for kind in (_MATCHED, _IGNORED):
            for choice in range(counts[active].max()):
                rows = active[counts[active] > choice]
                pair = starts[rows] + choice
                target = pair_object[pair]
                free = ~(taken[target] & ~ground_truth.iscrowd[target, None, None])
                fits = (iou[pair, None, None] >= IOU_THRESHOLDS) & (ignored[target] == (kind == _IGNORED))[:, :, None]
                takes = (state[rows] == _UNMATCHED) & free & fits
                state[rows] += kind * takes
                taken[target] |= takes
    return detection, state


def overlapping_pairs(
    ground_truth: GroundTruth, detections: Strongest
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Pairs of a detection and an object of the same image and class whose IoU reaches the lowest threshold.

    Returns:
        Detection, object and IoU; sorted by detection, then largest IoU first, of equal ones the last object first.
    """
    groups = detections.groups
    object_groups = ground_truth.image_index * len(ground_truth.classes) + ground_truth.labels
    by_group = np.argsort(object_groups, kind="stable")
    first = np.searchsorted(object_groups[by_group], groups, side="left")
    counts = np.searchsorted(object_groups[by_group], groups, side="right") - first
    pair_detection = np.repeat(np.arange(len(groups)), counts)
    index = np.arange(len(pair_detection)) - np.repeat(np.cumsum(counts) - counts, counts)
    pair_object = by_group[first[pair_detection] + index]
    crowd = ground_truth.iscrowd[pair_object]
    if detections.masks is None:
        iou = _iou(detections.xywh[pair_detection], to_xywh(ground_truth.boxes)[pair_object], crowd)
    else:
        iou = _mask_iou(detections.masks, ground_truth, pair_detection, pair_object, groups)
    near = np.flatnonzero(iou >= IOU_THRESHOLDS[0])
    near = near[np.lexsort((-pair_object[near], -iou[near], pair_detection[near]))]
    return pair_detection[near], pair_object[near], iou[near]


def _iou(
    boxes: Float[np.ndarray, "P 4"], others: Float[np.ndarray, "P 4"], iscrowd: Bool[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """IoU of paired x, y, w, h boxes, bit-equal to pycocotools; where iscrowd, intersection over the box's own area."""
    ax, ay, aw, ah = boxes.T
    bx, by, bw, bh = others.T
    width = np.minimum(ax + aw, bx + bw) - np.maximum(ax, bx)
    height = np.minimum(ay + ah, by + bh) - np.maximum(ay, by)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    union = np.where(iscrowd, aw * ah, aw * ah + bw * bh - overlap)
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _mask_iou(
    masks: ObjectMasks,
    ground_truth: GroundTruth,
    pair_detection: Int64[np.ndarray, " P"],
    pair_object: Int64[np.ndarray, " P"],
    groups: Int64[np.ndarray, " D"],
) -> Float[np.ndarray, " P"]:
    """IoU of the masks of pairs, which are all pairs of each group in turn, by detection."""
    assert ground_truth.masks is not None
    found, objects = masks.run_lengths(), ground_truth.masks.run_lengths()
    limits = [*np.flatnonzero(np.diff(groups[pair_detection], prepend=-1)), len(pair_detection)]
    iou = [np.zeros(0)]
    for start, end in pairwise(limits):
        rows, columns = np.unique(pair_detection[start:end]), np.unique(pair_object[start:end])
        crowd = ground_truth.iscrowd[columns]
        iou.append(mask_iou([found[row] for row in rows], [objects[column] for column in columns], crowd).reshape(-1))
    return np.concatenate(iou)


def _pack(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
    inside: Bool[np.ndarray, "D 4"],
    detection: Int64[np.ndarray, " K"],
    state: Int8[np.ndarray, "K 4 10"],
) -> Matches:
    """Sort all columns by part and curve; detections are given by class and falling score."""
    num_detections, num_objects = len(labels), len(ground_truth.labels)
    num_parts = len(ground_truth.classes) * len(AREA_RANGES)
    num_curves = num_parts * len(IOU_THRESHOLDS)

    def curve_keys(marked: Bool[np.ndarray, "K 4 10"]) -> Int64[np.ndarray, " marked"]:
        k, ranges, thresholds = np.nonzero(marked)
        curves = (labels[detection[k]] * len(AREA_RANGES) + ranges) * len(IOU_THRESHOLDS) + thresholds
        return np.sort(curves * num_detections + detection[k])

    # Each entry is encoded as one key, part or curve first, by which columns are sorted, split and searched.
    objects, ranges = np.nonzero(~_is_ignored(ground_truth))
    object_keys = np.sort((ground_truth.labels[objects] * len(AREA_RANGES) + ranges) * num_objects + objects)
    rows, ranges = np.nonzero(inside)
    inside_keys = np.sort((labels[rows] * len(AREA_RANGES) + ranges) * num_detections + rows)
    is_inside = inside[detection][:, :, None]
    exception_keys = curve_keys(np.where(is_inside, state == _IGNORED, state == _MATCHED))
    hit_keys = curve_keys(state == _MATCHED)
    hit_curves, hit_rows = np.divmod(hit_keys, max(num_detections, 1))
    exception_curves, exception_rows = np.divmod(exception_keys, max(num_detections, 1))
    hit_parts = hit_curves // len(IOU_THRESHOLDS)
    exception_ranges = exception_curves // len(IOU_THRESHOLDS) % len(AREA_RANGES)
    return Matches(
        classes=ground_truth.classes,
        image_ids=ground_truth.image_ids,
        object_images=ground_truth.image_index[object_keys % max(num_objects, 1)],
        object_offsets=_offsets(object_keys, num_parts, num_objects),
        inside_images=image_index[inside_keys % max(num_detections, 1)],
        inside_offsets=_offsets(inside_keys, num_parts, num_detections),
        exception_images=image_index[exception_rows],
        exception_signs=np.where(inside[exception_rows, exception_ranges], -1, 1),
        exception_offsets=_offsets(exception_keys, num_curves, num_detections),
        hit_images=image_index[hit_rows],
        hit_curves=hit_curves,
        hit_inside=np.searchsorted(inside_keys, hit_parts * num_detections + hit_rows, side="right"),
        hit_exceptions=np.searchsorted(exception_keys, hit_keys, side="right"),
        hit_offsets=_offsets(hit_keys, num_curves, num_detections),
    )


def _offsets(keys: Int64[np.ndarray, " rows"], groups: int, size: int) -> Int64[np.ndarray, " offsets"]:
    """Start of each group among ascending keys `group * size + member`, and the end of the last one."""
    return np.searchsorted(keys, np.arange(groups + 1) * size)


def _is_ignored(ground_truth: GroundTruth) -> Bool[np.ndarray, "T 4"]:
    return ground_truth.iscrowd[:, None] | ~_in_ranges(ground_truth.areas)


def _in_ranges(areas: Float[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows 4"]:
    return (areas[:, None] >= AREA_RANGES[:, 0]) & (areas[:, None] <= AREA_RANGES[:, 1])


def _index_in_group(groups: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """Index of each row within its group; groups are ascending."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)
