"""A training that was ended at any moment goes on to the very weights of one that was left alone."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import FORMS, FRAME
from processes import run_group
from pytorch_lightning import seed_everything
from torch.multiprocessing import ProcessExitedException

import zoo.training.checkpoints
from zoo.callbacks import MovingAverage
from zoo.callbacks.resumption import describe
from zoo.data.augment import Augment
from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector, Recipe
from zoo.errors import Preempted
from zoo.models import MODELS
from zoo.training.trainer import make_trainer
from zoo.types import RawBatch

BATCHES, EPOCHS = 3, 3
RECIPE = Recipe("adamw", lr=1e-3, warmup_steps=4, schedule="cosine")
NARROW: dict[str, dict[str, object]] = {  # checkpoints are written often here
    "faster_rcnn": {"channels": 32, "head_width": 32},
    "fast_rcnn": {"channels": 32, "head_width": 32},
    "retinanet": {"channels": 32},
}


def train(
    rank: int, form: str, folder: Path, ended: str = "", world_size: int = 1, num_images: int = 2 * BATCHES
) -> dict[str, Any]:
    """Train, or go on; `ended` says what happens to the last process on the way.

    Returns:
        Where it began and ended, and ids of the images that this process saw in each epoch.
    """
    key, arguments = FORMS[form]
    arguments = {"frame": FRAME, "recipe": RECIPE} | arguments | NARROW.get(form, {})
    data = DetectionDataModule(
        train=Shapes(num_images, seed=0),
        val=Shapes(2, seed=1),
        batch_size=2,
        num_workers=1,
        augment=Augment(iou_crop=True),
        proposal_cache=str(folder / "proposals"),
    )
    seed_everything(7, verbose=False)
    detector = MODELS[key](data.num_classes, data.class_names, **arguments)
    trainer = make_trainer(
        {
            "accelerator": "cpu",
            "devices": world_size,
            "strategy": "ddp" if world_size > 1 else "auto",
            "max_epochs": EPOCHS,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "callbacks": [MovingAverage(0.5)],
            "enable_progress_bar": False,
        },
        data,
        folder / "run",
        "run",
    )
    if rank == world_size - 1:
        end(detector, ended)
    last = folder / "run/checkpoints/last.ckpt"
    steps: list[int] = []
    seen: dict[int, list[int]] = {}
    start = detector.on_train_batch_start

    def on_train_batch_start(batch: RawBatch, batch_idx: int) -> None:
        steps.append(trainer.global_step)
        seen.setdefault(trainer.current_epoch, []).extend(int(target["image_id"]) for target in batch[1])
        start(batch, batch_idx)

    detector.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    preempted = False
    try:
        trainer.fit(detector, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except Preempted:
        preempted = True
    return {"first": steps[0], "steps": trainer.global_step, "preempted": preempted, "seen": seen}


def end(detector: Detector, how: str) -> None:
    """Have the process ended at step 5, the second of the second epoch, or at what follows that epoch."""

    def at_step_5() -> bool:
        return detector.training and detector.trainer.global_step == 4

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    losses = detector.compute_losses

    def compute_losses(outputs: Any, batch: Any) -> Any:
        if how == "killed in a step" and at_step_5():
            kill()
        if how == "terminated" and at_step_5():
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "killed in validation" and not detector.training and detector.trainer.global_step == 2 * BATCHES:
            kill()
        return losses(outputs, batch)

    def save(checkpoint: dict[str, Any], file: Any) -> None:
        if how == "killed while a checkpoint is written" and detector.trainer.global_step == 2 * BATCHES:
            file.write(b"half")
            file.flush()
            kill()
        torch.save(checkpoint, file)

    detector.compute_losses = compute_losses  # type: ignore[method-assign]
    zoo.training.checkpoints.torch = type("Torch", (), {"save": staticmethod(save)})  # this process is forked for it


def read_last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Every tensor and every number, to the bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place}/{index}")
    else:
        assert one == other, place


def assert_same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert_same(one[part], other[part], part)
    assert one["global_step"] == other["global_step"] == BATCHES * EPOCHS


WAYS = ["killed in a step", "killed in validation", "killed while a checkpoint is written", "terminated"]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("form", "how"),
    [("faster_rcnn", how) for how in WAYS]
    + [("rcnn", "terminated"), ("sliding_window", "terminated")]
    + [
        pytest.param(form, how, marks=SLOW)
        for form in ("rcnn", "fast_rcnn", "yolov1 of the paper", "retinanet", "cornernet", "sliding_window")
        for how in WAYS
        if (form, how) not in [("rcnn", "terminated"), ("sliding_window", "terminated")]
    ],
)
def test_it_ends_with_the_same_weights(form: str, how: str, tmp_path: Path) -> None:
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    alone.mkdir()
    ended.mkdir()
    run_group(train, 1, alone, form, alone)
    if how == "terminated":
        (stopped,) = run_group(train, 1, ended, form, ended, how)
        assert (stopped["first"], stopped["steps"], stopped["preempted"]) == (0, 5, True)
    else:
        with pytest.raises(ProcessExitedException) as caught:
            run_group(train, 1, ended, form, ended, how)
        assert caught.value.signal_name == "SIGKILL"
    (went_on,) = run_group(train, 1, ended, form, ended)
    first = 5 if how == "terminated" else BATCHES
    assert (went_on["first"], went_on["steps"], went_on["preempted"]) == (first, BATCHES * EPOCHS, False)
    assert_same_training(read_last(alone), read_last(ended))
    if form == "rcnn":
        assert read_last(ended)["state_dict"]["linear_heads.fitted"]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    alone.mkdir()
    ended.mkdir()
    two = {"world_size": 2, "num_images": 4 * BATCHES}
    run_group(train, 2, alone, "sliding_window", alone, "", *two.values())
    for stopped in run_group(train, 2, ended, "sliding_window", ended, "terminated", *two.values()):
        assert (stopped["steps"], stopped["preempted"]) == (5, True)
    for went_on in run_group(train, 2, ended, "sliding_window", ended, "", *two.values()):
        assert (went_on["first"], went_on["steps"]) == (5, BATCHES * EPOCHS)
    assert_same_training(read_last(alone), read_last(ended))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_images_not_yet_seen(
    before: int, after: int, tmp_path: Path
) -> None:
    stopped = run_group(train, before, tmp_path, "retinanet", tmp_path, "terminated", before, 12)
    went_on = run_group(train, after, tmp_path, "retinanet", tmp_path, "", after, 12)
    epoch = stopped[0]["steps"] * before * 2 // 12  # the one in progress at step 5
    seen = [image for process in (*stopped, *went_on) for image in process["seen"][epoch]]
    rounded = 5 * before * 2 % 12 % (after * 2)  # of images that fill no round of batches; they are seen again
    assert set(seen) == set(range(1, 13))
    assert len(seen) == 12 + rounded
    later = [image for process in went_on for image in process["seen"][EPOCHS - 1]]
    assert sorted(later) == list(range(1, 13))
    rest = (EPOCHS * 12 + rounded - stopped[0]["steps"] * before * 2) // (after * 2)
    assert {process["steps"] for process in went_on} == {stopped[0]["steps"] + rest}


def test_what_has_changed_is_said() -> None:
    before = {"processes": 8, "batch_size": 2, "accumulate": 1}
    assert describe(3, 40, before, before) == ["goes on after epoch 3, step 40"]
    lines = describe(3, 40, before, {"processes": 2, "batch_size": 4, "accumulate": 1})
    assert "2 processes instead of 8, 4 images a process and batch instead of 2" in lines[1]
    assert "8 images an optimizer step instead of 16" in lines[2]
    lines = describe(3, 40, before, {"processes": 2, "batch_size": 2, "accumulate": 4})
    assert len(lines) == 3  # as many images a step as before
