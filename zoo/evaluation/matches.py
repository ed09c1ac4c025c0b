"""Which detection finds which object by COCO's rules, matched once and kept as columns that can be weighted by image.

The matching is that of `COCOeval.evaluateImg` (github.com/cocodataset/cocoapi, pycocotools/cocoeval.py): image by
image and class by class, surest detection first, each takes the object that it overlaps most of those still free, at
each of ten IoU thresholds and in each of four ranges of area. What a detection finds in its image does not hang on
any other image, so it holds for every set in which the image occurs, however often.

Average precision needs precision only where a detection is right. So a class, range and threshold (a curve) keeps its
true positives, and each of them knows how many detections have counted up to it: those whose area is in the range,
which are the same at all thresholds and are kept once, corrected by a few exceptions.

Legend:
    N  images      T  objects      D  detections      C  classes      K  detections that overlap an object
    P  pairs of such a detection and an object
    parts    C x 4: class by class, range by range
    curves   C x 4 x 10: part by part, threshold by threshold
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int8, Int64

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.evaluation.scores import order_detections

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2  # all, s, m, l: pixels^2, ends included
MOST_DETECTIONS = 100  # of one class in one image
_MISSED, _FOUND, _IGNORED = 0, 1, 2  # what a detection is: it has no object, has one, has one that is not looked for


@dataclass(frozen=True, eq=False)
class Matches:
    """One run's detections after matching; `collect_matches` makes it.

    The `*_offsets` say where each part or curve begins in its columns, with the end of the last one behind.
    Within one, detections are by falling score, equal ones in canonical order (see `zoo.evaluation.scores`).
    """

    classes: tuple[str, ...]
    image_ids: Int64[np.ndarray, "N"]
    object_images: Int64[np.ndarray, "objects"]  # what is to be found, part by part: no crowds, area in the range
    object_offsets: Int64[np.ndarray, "part_offsets"]
    inside_images: Int64[np.ndarray, "inside"]  # detections whose area is in the range, part by part
    inside_offsets: Int64[np.ndarray, "part_offsets"]
    odd_images: Int64[np.ndarray, "odd"]  # exceptions, curve by curve ...
    odd_signs: Int64[np.ndarray, "odd"]  # ... 1: counts, though not in the range; -1: does not count, though in it
    odd_offsets: Int64[np.ndarray, "curve_offsets"]
    hit_images: Int64[np.ndarray, "hits"]  # true positives, curve by curve ...
    hit_curves: Int64[np.ndarray, "hits"]  # ... which curve each is on
    hit_inside: Int64[np.ndarray, "hits"]  # ... how much of the column `inside_images` lies before the next detection
    hit_odd: Int64[np.ndarray, "hits"]  # ... and how much of `odd_images`
    hit_offsets: Int64[np.ndarray, "curve_offsets"]


def collect_matches(ground_truth: GroundTruth, predictions: Predictions) -> Matches:
    """Matches one run's detections to the objects.

    Args:
        ground_truth: what is true; crowd regions are neither found nor missed, and who lies in one does not count.
        predictions: what a detector said of these images; of each class the 100 surest of an image take part.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    image_index, boxes, scores, labels = order_detections(ground_truth, predictions)
    groups = image_index * len(ground_truth.classes) + labels
    order = np.lexsort((-scores, groups))
    order = order[_place_in_group(groups[order]) < MOST_DETECTIONS]
    xywh = to_xywh(boxes[order])
    detection, state = _match(ground_truth, groups[order], xywh)

    by_score = np.lexsort((-scores[order], labels[order]))
    new_place = np.empty_like(by_score)
    new_place[by_score] = np.arange(len(by_score))
    return _pack(
        ground_truth,
        image_index=image_index[order][by_score],
        labels=labels[order][by_score],
        inside=_in_ranges(xywh[by_score, 2] * xywh[by_score, 3]),
        detection=new_place[detection],
        state=state,
    )


def _match(
    ground_truth: GroundTruth, groups: Int64[np.ndarray, "D"], boxes: Float[np.ndarray, "D 4"]
) -> tuple[Int64[np.ndarray, "K"], Int8[np.ndarray, "K 4 10"]]:
    """Gives objects to detections, at all thresholds and in all ranges at once.

    All groups go together, first the surest detection of each, then the next: they have no object in common.

    Args:
        ground_truth: the objects.
        groups: image and class of each detection as one number, never descending; the surest of each first.
        boxes: x, y, w, h.

    Returns:
        the places of the detections that overlap any object, and what each is.
    """
    pair_detection, pair_object, iou = _overlapping_pairs(ground_truth, groups, boxes)
    detection, starts, counts = np.unique(pair_detection, return_index=True, return_counts=True)
    ignored = _is_ignored(ground_truth)
    state = np.full((len(detection), len(AREA_RANGES), len(IOU_THRESHOLDS)), _MISSED, np.int8)
    taken = np.zeros((len(ground_truth.boxes), len(AREA_RANGES), len(IOU_THRESHOLDS)), bool)
    turn = _place_in_group(groups[detection])
    for now in range(int(turn.max(initial=-1)) + 1):
        players = np.flatnonzero(turn == now)
        # an object that is not looked for is taken only where no other is left
        for kind in (_FOUND, _IGNORED):
            for choice in range(counts[players].max()):
                choosers = players[counts[players] > choice]
                pair = starts[choosers] + choice
                target = pair_object[pair]
                free = ~(taken[target] & ~ground_truth.iscrowd[target, None, None])
                fits = (iou[pair, None, None] >= IOU_THRESHOLDS) & (ignored[target] == (kind == _IGNORED))[:, :, None]
                takes = (state[choosers] == _MISSED) & free & fits
                state[choosers] += kind * takes
                taken[target] |= takes
    return detection, state


def _overlapping_pairs(
    ground_truth: GroundTruth, groups: Int64[np.ndarray, "D"], boxes: Float[np.ndarray, "D 4"]
) -> tuple[Int64[np.ndarray, "P"], Int64[np.ndarray, "P"], Float[np.ndarray, "P"]]:
    """Finds the pairs of one image and class whose IoU reaches the least threshold.

    Returns:
        detection, object and IoU; detection by detection, the largest IoU first, of equal ones the last object.
    """
    object_groups = ground_truth.image_index * len(ground_truth.classes) + ground_truth.labels
    by_group = np.argsort(object_groups, kind="stable")
    first = np.searchsorted(object_groups[by_group], groups, side="left")
    counts = np.searchsorted(object_groups[by_group], groups, side="right") - first
    pair_detection = np.repeat(np.arange(len(groups)), counts)
    place = np.arange(len(pair_detection)) - np.repeat(np.cumsum(counts) - counts, counts)
    pair_object = by_group[first[pair_detection] + place]
    iou = _iou(boxes[pair_detection], to_xywh(ground_truth.boxes)[pair_object], ground_truth.iscrowd[pair_object])
    near = np.flatnonzero(iou >= IOU_THRESHOLDS[0])
    near = near[np.lexsort((-pair_object[near], -iou[near], pair_detection[near]))]
    return pair_detection[near], pair_object[near], iou[near]


def _iou(
    boxes: Float[np.ndarray, "P 4"], others: Float[np.ndarray, "P 4"], iscrowd: Bool[np.ndarray, "P"]
) -> Float[np.ndarray, "P"]:
    """IoU of x, y, w, h in pycocotools' order of sums, to its last bit; over the box's own area where iscrowd."""
    ax, ay, aw, ah = boxes.T
    bx, by, bw, bh = others.T
    width = np.minimum(ax + aw, bx + bw) - np.maximum(ax, bx)
    height = np.minimum(ay + ah, by + bh) - np.maximum(ay, by)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    union = np.where(iscrowd, aw * ah, aw * ah + bw * bh - overlap)
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _pack(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, "D"],
    labels: Int64[np.ndarray, "D"],
    inside: Bool[np.ndarray, "D 4"],
    detection: Int64[np.ndarray, "K"],
    state: Int8[np.ndarray, "K 4 10"],
) -> Matches:
    """Sorts everything by part and curve; the detections come class by class, by falling score."""
    num_detections, num_objects = len(labels), len(ground_truth.labels)
    num_parts = len(ground_truth.classes) * len(AREA_RANGES)
    num_curves = num_parts * len(IOU_THRESHOLDS)

    def curve_keys(marked: Bool[np.ndarray, "K 4 10"]) -> Int64[np.ndarray, "marked"]:
        k, ranges, thresholds = np.nonzero(marked)
        curves = (labels[detection[k]] * len(AREA_RANGES) + ranges) * len(IOU_THRESHOLDS) + thresholds
        return np.sort(curves * num_detections + detection[k])

    # Each entry of a column is one number, part or curve first, and sorts, splits and is searched by it.
    objects, ranges = np.nonzero(~_is_ignored(ground_truth))
    object_keys = np.sort((ground_truth.labels[objects] * len(AREA_RANGES) + ranges) * num_objects + objects)
    rows, ranges = np.nonzero(inside)
    inside_keys = np.sort((labels[rows] * len(AREA_RANGES) + ranges) * num_detections + rows)
    counts_anyway = inside[detection][:, :, None]
    odd_keys = curve_keys(np.where(counts_anyway, state == _IGNORED, state == _FOUND))
    hit_keys = curve_keys(state == _FOUND)
    hit_curves, hit_rows = np.divmod(hit_keys, max(num_detections, 1))
    odd_curves, odd_rows = np.divmod(odd_keys, max(num_detections, 1))
    hit_parts = hit_curves // len(IOU_THRESHOLDS)
    odd_ranges = odd_curves // len(IOU_THRESHOLDS) % len(AREA_RANGES)
    return Matches(
        classes=ground_truth.classes,
        image_ids=ground_truth.image_ids,
        object_images=ground_truth.image_index[object_keys % max(num_objects, 1)],
        object_offsets=_offsets(object_keys, num_parts, num_objects),
        inside_images=image_index[inside_keys % max(num_detections, 1)],
        inside_offsets=_offsets(inside_keys, num_parts, num_detections),
        odd_images=image_index[odd_rows],
        odd_signs=np.where(inside[odd_rows, odd_ranges], -1, 1),
        odd_offsets=_offsets(odd_keys, num_curves, num_detections),
        hit_images=image_index[hit_rows],
        hit_curves=hit_curves,
        hit_inside=np.searchsorted(inside_keys, hit_parts * num_detections + hit_rows, side="right"),
        hit_odd=np.searchsorted(odd_keys, hit_keys, side="right"),
        hit_offsets=_offsets(hit_keys, num_curves, num_detections),
    )


def _offsets(keys: Int64[np.ndarray, "rows"], groups: int, size: int) -> Int64[np.ndarray, "offsets"]:
    """Where each group begins among ascending keys `group * size + member`, and the end."""
    return np.searchsorted(keys, np.arange(groups + 1) * size)


def _is_ignored(ground_truth: GroundTruth) -> Bool[np.ndarray, "T 4"]:
    return ground_truth.iscrowd[:, None] | ~_in_ranges(ground_truth.areas)


def _in_ranges(areas: Float[np.ndarray, "rows"]) -> Bool[np.ndarray, "rows 4"]:
    return (areas[:, None] >= AREA_RANGES[:, 0]) & (areas[:, None] <= AREA_RANGES[:, 1])


def _place_in_group(groups: Int64[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
    """Number of earlier rows of the same group; groups lie together, in ascending order."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)
