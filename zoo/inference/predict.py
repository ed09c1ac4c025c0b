"""Image files in, detections and annotated images out; no data configuration, no training."""

import json
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage
from torch import distributed

from zoo.data.module import DetectionDataModule
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation.predictions import Predictions, write_coco_results
from zoo.io.files import write_atomically
from zoo.models import load
from zoo.ops.distributed import is_distributed
from zoo.report.pictures.draw import draw_boxes
from zoo.training.trainer import make_inference_trainer, together
from zoo.types import Prediction


def predict(
    checkpoint: Path,
    paths: Sequence[str],
    out: Path,
    score: float,
    batch_size: int,
    accelerator: str = "auto",
    precision: str = "32-true",
    devices: int = 1,
) -> int:
    """Detect objects in images, and write down and draw what was found.

    Writes `predictions.json` (COCO results: image ids count from 0, category ids from 1), `images.json` (what those
    ids mean, in COCO's form) and `annotated/<name>.jpg`. Nothing is written before all images have been read.

    Args:
        checkpoint: of `zoo fit` or `zoo compare`.
        paths: image files, and folders that are searched at any depth.
        out: a folder; made if it is not there.
        score: detections below it are left out.
        batch_size: images at once.
        accelerator: of Lightning's Trainer.
        precision: of Lightning's Trainer.
        devices: that share the images; the first one's process writes.

    Returns:
        Number of images; 0 on processes but the first.

    Raises:
        InputError: a checkpoint or image that cannot be used, or an `out` that is no folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError("is a file; give --out a folder", file=out)
    detector = load(checkpoint)
    data = DetectionDataModule(predict=list(paths), eval_batch_size=batch_size)
    table = data.table("predict")
    trainer = make_inference_trainer(accelerator, precision, progress=True, devices=min(devices, len(table)))
    with together(trainer):
        batches = trainer.predict(detector, datamodule=data) or []
    predictions = in_order([_above(prediction, score) for batch in batches for prediction in batch])
    if predictions is None:
        return 0

    annotated = out / "annotated"
    annotated.mkdir(parents=True, exist_ok=True)
    names = unique_names([Path(table.file_name(index)).stem for index in range(len(table))])
    for index, (name, prediction) in enumerate(zip(names, predictions, strict=True)):
        image = data.sources["predict"].load_image(table, index)
        drawn = draw_boxes(image, prediction["boxes"], prediction["labels"], detector.class_names, prediction["scores"])
        partial = annotated / f".{name}.partial.jpg"
        PillowImage.fromarray(drawn.permute(1, 2, 0).contiguous().numpy()).save(partial, quality=92)
        os.replace(partial, annotated / f"{name}.jpg")
    packed = Predictions.from_lists(table.image_ids.tolist(), predictions)
    category_ids = list(range(1, detector.num_classes + 1))
    write_atomically(out / "images.json", _explain_ids(table, detector.class_names))
    write_coco_results(packed, out / "predictions.json", category_ids)
    return len(table)


def in_order(own: list[Prediction]) -> list[Prediction] | None:
    """Predictions of all processes in the order of the images, on the first; None on others.

    Args:
        own: of this process: images rank, rank + N, rank + 2 N, ... of N processes.
    """
    if not is_distributed():
        return own
    shares: list[Any] | None = None
    if distributed.get_rank() == 0:
        shares = [None] * distributed.get_world_size()
    distributed.gather_object(own, shares)
    if shares is None:
        return None
    rounds = zip_longest(*shares)
    return [prediction for one_round in rounds for prediction in one_round if prediction is not None]


def unique_names(names: Sequence[str]) -> list[str]:
    """Names for files in one folder: those given, with a number behind each that is taken."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _above(prediction: Prediction, score: float) -> Prediction:
    keep = prediction["scores"] >= score
    return Prediction(
        boxes=prediction["boxes"][keep].cpu(),
        scores=prediction["scores"][keep].cpu(),
        labels=prediction["labels"][keep].cpu(),
    )


def _explain_ids(table: AnnotationTable, class_names: Sequence[str]) -> str:
    images = [
        {
            "id": int(table.image_ids[index]),
            "file_name": str(table.path(index)),
            "width": int(table.widths[index]),
            "height": int(table.heights[index]),
        }
        for index in range(len(table))
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    return json.dumps({"images": images, "categories": categories}, indent=2) + "\n"
