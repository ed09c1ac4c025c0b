"""Predictions with masks, made of the objects of a table."""

import numpy as np

from zoo.data.masks import Masks, encode_runs
from zoo.data.table import AnnotationTable
from zoo.evaluation import Predictions
from zoo.evaluation.ground_truth import ObjectMasks


def shaken(table: AnnotationTable, seed: int) -> Predictions:
    """Detections made of the objects: masks shifted by some pixels, some of another class, in mixed order of images."""
    assert table.masks is not None
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, int, bytes, int, int]] = []
    for index in range(len(table)):
        height, width = int(table.heights[index]), int(table.widths[index])
        for row in range(table.rows(index).start, table.rows(index).stop):
            for _ in range(int(random.integers(0, 3))):
                pixels = np.roll(table.masks.decode(row, height, width), random.integers(-6, 7, 2), axis=(0, 1))
                label = int(table.labels[row]) if random.random() < 0.85 else int(random.integers(table.num_classes))
                rows.append((int(table.image_ids[index]), label, row, encode_runs(pixels), height, width))
    random.shuffle(rows)
    boxes = np.array([table.boxes[row] for _, _, row, *_ in rows])
    masks = Masks.pack(text for *_, text, _, _ in rows)
    sizes = (np.array([row[side] for row in rows]) for side in (4, 5))
    return Predictions(
        image_ids=np.array([row[0] for row in rows]),
        boxes=boxes,
        scores=random.random(len(rows)).round(2),
        labels=np.array([row[1] for row in rows]),
        masks=ObjectMasks(masks, *sizes),
    )
