"""Trainings in several processes: every detector, images without objects, uneven numbers of images."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import FORMS, FRAME, NARROW
from processes import run_group
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from tiny_data import NUM_IMAGES, write_split
from tiny_detector import TinyDetector
from torch.utils.data import DataLoader, IterableDataset

from zoo.callbacks import MeanAveragePrecision
from zoo.data.dataset import collate
from zoo.data.formats.coco import Coco
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector, Recipe
from zoo.errors import InputError, SharedInputError
from zoo.models import MODELS
from zoo.training.trainer import find_callback, make_trainer
from zoo.types import Sample

RECIPE = Recipe("adamw", lr=1e-3, warmup_steps=0, schedule="constant")


def make_data(folder: Path) -> DetectionDataModule:
    """8 training, 3 validation and 4 test images; the last one of each split has no objects."""
    sources = {split: Coco(str(folder / f"{split}.json"), str(folder / split)) for split in NUM_IMAGES}
    return DetectionDataModule(
        **sources, batch_size=1, num_workers=0, proposal_cache=str(folder / "proposals"), predict=[str(folder / "test")]
    )


def make_detector(form: str, data: DetectionDataModule) -> Detector:
    key, arguments = FORMS[form]
    arguments = {"frame": FRAME, "recipe": RECIPE} | arguments | NARROW.get(form, {})
    seed_everything(0, verbose=False)
    return MODELS[key](data.num_classes, data.class_names, **arguments)


def make_group_trainer(data: DetectionDataModule, folder: Path, world_size: int, **arguments: Any) -> Any:
    plain = {"accelerator": "cpu", "enable_progress_bar": False, "use_distributed_sampler": False, "logger": False}
    group = {"devices": world_size, "strategy": "ddp" if world_size > 1 else "auto"}
    return make_trainer({**plain, **group, "max_epochs": 2, **arguments}, data, folder, "run")


def train_and_evaluate(rank: int, form: str, folder: Path, world_size: int) -> dict[str, Any]:
    data = make_data(folder)
    detector = make_detector(form, data)
    trainer = make_group_trainer(data, folder / "run", world_size)
    trainer.fit(detector, data)
    steps = trainer.global_step
    trainer.validate(detector, data, verbose=False)
    validated = find_callback(trainer, MeanAveragePrecision).scores("val")
    trainer.test(detector, data, verbose=False)
    map_callback = find_callback(trainer, MeanAveragePrecision)
    predicted = trainer.predict(detector, data)
    tested, found = map_callback.scores("test"), map_callback.predictions("test")
    assert validated is not None
    assert tested is not None
    return {
        "steps": steps,
        "weights": {key: value.clone() for key, value in detector.state_dict().items()},
        "val": validated.metrics,
        "test": tested.metrics,
        "num_found": None if found is None else len(found.scores),
        "num_predicted": sum(len(batch) for batch in predicted),
    }


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", MODELS)
def test_processes_have_equal_weights_and_metrics_of_one_process(form: str, world_size: int, tmp_path: Path) -> None:
    for split, num_images in NUM_IMAGES.items():
        write_split(tmp_path, split, num_images)
    results = run_group(train_and_evaluate, world_size, tmp_path, form, tmp_path, world_size)
    first = results[0]
    assert [result["steps"] for result in results] == [2 * math.ceil(NUM_IMAGES["train"] / world_size)] * world_size
    for result in results[1:]:
        assert all(torch.equal(first["weights"][key], value) for key, value in result["weights"].items())
        assert same_metrics(result["val"], first["val"])
        assert same_metrics(result["test"], first["test"])
    assert sum(result["num_predicted"] for result in results) == NUM_IMAGES["test"]

    data = make_data(tmp_path)
    detector = make_detector(form, data)
    detector.load_state_dict(first["weights"])
    trainer = make_group_trainer(data, tmp_path / "single", 1, enable_checkpointing=False)
    trainer.test(detector, data, verbose=False)
    map_callback = find_callback(trainer, MeanAveragePrecision)
    scores, found = map_callback.scores("test"), map_callback.predictions("test")
    assert scores is not None
    assert found is not None
    assert same_metrics(scores.metrics, first["test"])
    assert first["num_found"] == len(found.scores)
    assert [result["num_found"] for result in results[1:]] == [None] * (world_size - 1)


def same_metrics(one: dict[str, float], other: dict[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        one[key] == other[key] or (math.isnan(one[key]) and math.isnan(other[key])) for key in one
    )


def train_until_non_finite(rank: int, folder: Path) -> tuple[str, str]:
    data = make_data(folder)
    detector = TinyDetector(data.num_classes, fails="diverges" if rank == 1 else "never", fails_at=3)
    trainer = make_group_trainer(data, folder / "run", 2)
    try:
        trainer.fit(detector, data)
    except InputError as error:
        return type(error).__name__, str(error)
    return "done", ""


def test_non_finite_loss_on_one_process_stops_all(tmp_path: Path) -> None:
    for split, num_images in NUM_IMAGES.items():
        write_split(tmp_path, split, num_images)
    (kind, message), (other_kind, other_message) = run_group(train_until_non_finite, 2, tmp_path, tmp_path)
    assert (kind, other_kind) == (InputError.__name__, SharedInputError.__name__)
    assert message == other_message
    assert "nan (class) at step 4" in message
    assert ".png" in message


class Stream(IterableDataset):
    """Every `world_size`-th image for each process, without a length."""

    def __init__(self, data: DetectionDataModule, rank: int, world_size: int) -> None:
        self.images = data.dataset("test")
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Sample]:
        return (self.images[index] for index in range(self.rank, len(self.images), self.world_size))


class StreamModule(LightningDataModule):
    def __init__(self, loader: DataLoader, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.loader = loader
        self.class_names = class_names

    def test_dataloader(self) -> DataLoader:
        return self.loader


def evaluate_stream(rank: int, folder: Path, world_size: int) -> dict[str, float]:
    data = make_data(folder)
    torch.manual_seed(0)
    detector = TinyDetector(data.num_classes)
    loader = DataLoader(Stream(data, rank, world_size), batch_size=1, collate_fn=collate)
    trainer = make_group_trainer(data, folder / f"stream{world_size}", world_size, enable_checkpointing=False)
    trainer.test(detector, StreamModule(loader, data.class_names), verbose=False)
    scores = find_callback(trainer, MeanAveragePrecision).scores("test")
    assert scores is not None
    return scores.metrics


def test_metrics_of_uneven_streams_are_exact(tmp_path: Path) -> None:
    """Four images for three processes: one has two of them."""
    for split, num_images in NUM_IMAGES.items():
        write_split(tmp_path, split, num_images)
    (alone,) = run_group(evaluate_stream, 1, tmp_path, tmp_path, 1)
    for found in run_group(evaluate_stream, 3, tmp_path, tmp_path, 3):
        assert same_metrics(found, alone)


def count_broadcasts(rank: int, folder: Path) -> list[int]:
    """Number of broadcasts before each step, from the second to the fourth."""
    data = make_data(folder)
    counts: list[int] = []
    calls: list[object] = []
    broadcast = torch.distributed.broadcast
    torch.distributed.broadcast = lambda *args, **kwargs: (calls.append(args), broadcast(*args, **kwargs))[1]

    class Count(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            counts.append(len(calls))

    trainer = make_group_trainer(data, folder / "run", 2, callbacks=[Count()], max_epochs=1)
    trainer.fit(TinyDetector(data.num_classes), data)
    return counts[1:4]


def test_no_broadcast_at_each_step(tmp_path: Path) -> None:
    for split, num_images in NUM_IMAGES.items():
        write_split(tmp_path, split, num_images)
    for counts in run_group(count_broadcasts, 2, tmp_path, tmp_path):
        assert len(set(counts)) == 1


def evaluate_too_few_images(rank: int, folder: Path) -> tuple[str, str]:
    data = make_data(folder)
    trainer = make_group_trainer(data, folder / "run", 5, enable_checkpointing=False)
    try:
        trainer.test(TinyDetector(data.num_classes), data, verbose=False)
    except InputError as error:
        return type(error).__name__, str(error)
    return "done", ""


@pytest.mark.slow
def test_fewer_images_than_processes_raise_on_all(tmp_path: Path) -> None:
    """Four images for five processes; without the error, processes would wait for a batch of the fifth."""
    for split, num_images in NUM_IMAGES.items():
        write_split(tmp_path, split, num_images)
    results = run_group(evaluate_too_few_images, 5, tmp_path, tmp_path)
    assert [kind for kind, _ in results] == [InputError.__name__] + [SharedInputError.__name__] * 4
    assert results[0][1] == "4 test images for 5 processes; evaluate and predict with fewer devices"
