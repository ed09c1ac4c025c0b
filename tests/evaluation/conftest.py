"""Random sets of ground truth and predictions with all the cases that an evaluation has to handle."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest

from zoo.evaluation import GroundTruth, Predictions


@dataclass
class Case:
    """Ground truth of a data set, and predictions for it."""

    ground_truth: GroundTruth
    predictions: Predictions


def random_case(
    seed: int, num_images: int, num_classes: int, max_objects: int, max_detections: int, grid: bool
) -> Case:
    """Random case: images without objects, without detections, crowds, difficult objects, ties, areas below the box's.

    Args:
        seed: of the random generator.
        num_images: N; ids have gaps and are not in order.
        num_classes: C; some may have no object.
        max_objects: of an image; some images have none.
        max_detections: of an image; some images have none.
        grid: integer boxes on a coarse grid and scores rounded to tenths, so that IoUs and scores tie.
    """
    rng = np.random.default_rng(seed)

    def random_boxes(count: int) -> np.ndarray:
        corners = rng.uniform(0, 200, (count, 2))
        sizes = np.exp(rng.uniform(np.log(4), np.log(150), (count, 2)))
        if grid:
            corners, sizes = corners // 20 * 20, sizes // 20 * 20 + 20
        return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32).astype(np.float64)

    image_ids = rng.choice(1000, num_images, replace=False)
    counts = rng.integers(0, max_objects + 1, num_images) * (rng.random(num_images) > 0.2)
    num_objects = int(counts.sum())
    boxes = random_boxes(num_objects)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    ground_truth = GroundTruth.from_counts(
        classes=[f"class{c}" for c in range(num_classes)],
        image_ids=image_ids,
        counts=counts,
        boxes=boxes,
        areas=np.where(rng.random(num_objects) < 0.5, box_areas, box_areas * rng.uniform(0.1, 1, num_objects)),
        labels=rng.integers(0, num_classes, num_objects),
        iscrowd=rng.random(num_objects) < 0.15,
        difficult=rng.random(num_objects) < 0.15,
    )
    detections = rng.integers(0, max_detections + 1, num_images) * (rng.random(num_images) > 0.2)
    ids, boxes_by_image, labels_by_image = [], [], []
    for image_id, count in zip(image_ids, detections, strict=True):
        of_image = ground_truth.image_ids[ground_truth.image_index] == image_id
        gt_boxes, gt_labels = ground_truth.boxes[of_image], ground_truth.labels[of_image]
        pred_boxes, pred_labels = random_boxes(count), rng.integers(0, num_classes, count)
        if len(gt_boxes):  # most detections are at an object, shifted or not
            near = rng.random(count) < 0.7
            which = rng.integers(0, len(gt_boxes), count)
            shift = rng.integers(-1, 2, (count, 4)) * 20 if grid else rng.normal(0, 6, (count, 4))
            moved = gt_boxes[which] + shift * (rng.random((count, 1)) < 0.8)
            moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 2)
            pred_boxes = np.where(near[:, None], moved, pred_boxes)
            pred_labels = np.where(near & (rng.random(count) < 0.9), gt_labels[which], pred_labels)
        ids.append(np.full(count, image_id))
        boxes_by_image.append(pred_boxes)
        labels_by_image.append(pred_labels)
    scores = rng.random(sum(map(len, ids)))
    if grid:
        scores = scores.round(1)
    predictions = Predictions(
        image_ids=np.concatenate(ids),
        boxes=np.concatenate(boxes_by_image).astype(np.float32),
        scores=scores.astype(np.float32),
        labels=np.concatenate(labels_by_image),
    )
    return Case(ground_truth, predictions)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """`random_case` as a fixture, since test files cannot import this file."""
    return random_case


@pytest.fixture(scope="session")
def case() -> Case:
    """One case of medium size."""
    return random_case(seed=0, num_images=40, num_classes=4, max_objects=8, max_detections=40, grid=False)


@pytest.fixture(scope="session")
def tidecv() -> ModuleType:
    """The package of TIDE's authors, with empty modules for imports that only its plots use."""
    if importlib.util.find_spec("tidecv") is None:
        # its opencv-python would overwrite the opencv-contrib-python-headless that selective search needs
        pytest.skip("tidecv is not installed: pip install matplotlib appdirs && pip install --no-deps tidecv==1.0.1")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pandas", "seaborn"):
            if importlib.util.find_spec(name) is None:
                patch.setitem(sys.modules, name, ModuleType(name))
        return importlib.import_module("tidecv")
