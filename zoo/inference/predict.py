"""`zoo predict`: detections in image files and videos, and annotated copies, without a data configuration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PillowImage
from pytorch_lightning import Trainer
from torch import Tensor, distributed

from zoo.data.images import find_unreadable, list_inputs
from zoo.data.module import DetectionDataModule
from zoo.data.table import AnnotationTable
from zoo.detector import Detector, above_score
from zoo.errors import InputError
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.results_file import write_coco_results
from zoo.inference.videos import is_video, predict_video, require_reader
from zoo.io.files import atomic_path, write_atomically
from zoo.ops.distributed import is_distributed
from zoo.report.pictures.draw import draw_prediction
from zoo.report.thresholds import read_thresholds
from zoo.training.trainer import make_inference_trainer, terminate_children_on_error
from zoo.types import Prediction
from zoo.weights import load


@dataclass
class Predicted:
    """What `predict_images` did: number of images, frames of each video, and why other inputs were left out."""

    images: int = 0
    videos: dict[Path, int] = field(default_factory=dict)  # annotated video -> number of its frames
    skipped: list[InputError] = field(default_factory=list)


def predict_images(
    checkpoint: Path,
    paths: Sequence[str],
    out: Path,
    score: float | Path,
    batch_size: int,
    accelerator: str = "auto",
    precision: str = "32-true",
    devices: int = 1,
) -> Predicted | None:
    """Detect objects in images and videos, and write the predictions and annotated images and videos.

    Writes `predictions.json` (COCO results: image ids count from 0, category ids from 1), `images.json` (images and
    categories of those ids, in COCO format) and `annotated/<name>.jpg`; for a video `annotated/<name>.mp4`, and
    `annotated/<name>.json` with the detections of each frame. Inputs that cannot be read are left out.

    Args:
        checkpoint: written by `zoo fit` or `zoo compare`.
        paths: image files, videos, and folders that are searched recursively for images.
        out: output folder, created if missing.
        score: minimum score of the detections that are kept, or a run or file with one for each class
            (`read_thresholds`).
        batch_size: images a batch.
        accelerator: of Lightning's Trainer.
        precision: of Lightning's Trainer.
        devices: number of devices that share the images; the process of the first one writes, and processes videos.

    Returns:
        What was done; None on processes other than the first.

    Raises:
        InputError: the checkpoint or all inputs cannot be used, or `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError("is a file; give --out a folder", file=out)
    detector = load(checkpoint)
    minimum: float | Tensor = (
        torch.tensor(read_thresholds(score, detector.class_names)) if isinstance(score, Path) else float(score)
    )
    videos = [path for path in paths if is_video(path)]
    for path in videos:
        require_reader(path)
    stills = [path for path in paths if path not in videos]
    done: Predicted | None = Predicted()
    trainer = make_inference_trainer(accelerator, precision, progress=True, devices=1)
    if stills or not videos:
        files = list_inputs(stills)
        unreadable = find_unreadable(files)
        if len(unreadable) == len(files) and not videos:
            raise next(iter(unreadable.values()))
        readable = [str(file) for file in files if file not in unreadable]
        if readable:
            trainer = make_inference_trainer(accelerator, precision, progress=True, devices=min(devices, len(readable)))
            done = _predict_stills(detector, readable, out, minimum, batch_size, trainer)
        if done is not None:
            done.skipped += unreadable.values()
    if done is not None:
        detector.to(trainer.strategy.root_device).eval()
        for name, path in zip(unique_names([Path(path).stem for path in videos]), videos, strict=True):
            target = out / "annotated" / name
            context = trainer.precision_plugin.forward_context
            try:
                frames = predict_video(detector, Path(path), target, minimum, batch_size, context)
                done.videos[target.with_name(f"{name}.mp4")] = frames
            except InputError as error:
                done.skipped.append(error)
        if not done.images and not done.videos:
            raise done.skipped[0]
    return done


def _predict_stills(
    detector: Detector, files: list[str], out: Path, minimum: float | Tensor, batch_size: int, trainer: Trainer
) -> Predicted | None:
    data = DetectionDataModule(predict=files, eval_batch_size=batch_size)
    table = data.table("predict")
    with terminate_children_on_error(trainer):
        batches = trainer.predict(detector, datamodule=data) or []
    own = [above_score(prediction, minimum) for batch in batches for prediction in batch]
    predictions = gather_in_image_order(own)
    if predictions is None:
        return None

    annotated = out / "annotated"
    names = unique_names([Path(table.file_name(index)).stem for index in range(len(table))])
    for index, (name, prediction) in enumerate(zip(names, predictions, strict=True)):
        image = data.sources["predict"].load_image(table, index)
        drawn = draw_prediction(image, prediction, detector.class_names)
        picture = PillowImage.fromarray(drawn.permute(1, 2, 0).contiguous().numpy())
        with atomic_path(annotated / f"{name}.jpg") as temporary:
            picture.save(temporary, format="JPEG", quality=92)
    sizes = list(zip(table.heights.tolist(), table.widths.tolist(), strict=True))
    packed = Predictions.from_lists(table.image_ids.tolist(), predictions, sizes)
    category_ids = list(range(1, detector.num_classes + 1))
    write_atomically(out / "images.json", _images_json(table, detector.class_names))
    file_names = {image_id: str(table.path(index)) for index, image_id in enumerate(table.image_ids.tolist())}
    write_coco_results(packed, out / "predictions.json", category_ids, file_names, detector.class_names)
    return Predicted(images=len(table))


def gather_in_image_order(own: list[Prediction]) -> list[Prediction] | None:
    """Predictions of all processes in the order of the images, on the first process; None on others.

    Args:
        own: predictions of this process, for the images rank, rank + N, rank + 2 N, ... of N processes.
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
    """Unique file names: names that occurred before get a number as suffix."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _images_json(table: AnnotationTable, class_names: Sequence[str]) -> str:
    """Images and categories in COCO format."""
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
