"""A training that was killed or stopped at any time resumes to exactly the weights of an uninterrupted one."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import FORMS, FRAME, NARROW
from processes import run_group
from pytorch_lightning import seed_everything
from torch.multiprocessing import ProcessExitedException

import zoo.training.checkpoints
from zoo.callbacks import MovingAverage
from zoo.callbacks.resumption import describe_resumption
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


def train(
    rank: int,
    form: str,
    folder: Path,
    ended: str = "",
    world_size: int = 1,
    num_images: int = 2 * BATCHES,
    val_check_interval: int | None = None,
) -> dict[str, Any]:
    """Train, or resume; `ended` is the way in which the last process is ended.

    Returns:
        First and last step, whether it was preempted, and ids of the images of this process in each epoch.
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
            "val_check_interval": val_check_interval,
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
    """Make the process end at step 5, the second of the second epoch, or in the validation or checkpoint after it."""

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
    # only in this process, which is forked for the test
    zoo.training.checkpoints.torch = type("Torch", (), {"save": staticmethod(save)})


def read_last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Check that all tensors and numbers are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}/{index}")
    else:
        assert one == other, path


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
        for form in (
            "rcnn",
            "fast_rcnn",
            "yolov1 of the paper",
            "ssd",
            "retinanet",
            "yolov3",
            "cornernet",
            "sliding_window",
        )
        for how in WAYS
        if (form, how) not in [("rcnn", "terminated"), ("sliding_window", "terminated")]
    ],
)
def test_resumed_training_has_the_same_weights(form: str, how: str, tmp_path: Path) -> None:
    uninterrupted, ended = tmp_path / "uninterrupted", tmp_path / "ended"
    uninterrupted.mkdir()
    ended.mkdir()
    run_group(train, 1, uninterrupted, form, uninterrupted)
    if how == "terminated":
        (stopped,) = run_group(train, 1, ended, form, ended, how)
        assert (stopped["first"], stopped["steps"], stopped["preempted"]) == (0, 5, True)
    else:
        with pytest.raises(ProcessExitedException) as caught:
            run_group(train, 1, ended, form, ended, how)
        assert caught.value.signal_name == "SIGKILL"
    (resumed,) = run_group(train, 1, ended, form, ended)
    first = 5 if how == "terminated" else BATCHES
    assert (resumed["first"], resumed["steps"], resumed["preempted"]) == (first, BATCHES * EPOCHS, False)
    assert_same_training(read_last(uninterrupted), read_last(ended))
    if form == "rcnn":
        assert read_last(ended)["state_dict"]["linear_heads.fitted"]


@pytest.mark.parametrize("ended", ["killed in a step", "terminated"])
def test_resuming_with_validations_within_epochs(ended: str, tmp_path: Path) -> None:
    """Step 5, after which the training is terminated, is followed by a validation, which is not lost."""
    folders = tmp_path / "uninterrupted", tmp_path / "ended"
    for folder in folders:
        folder.mkdir()
    arguments = (1, 2 * BATCHES, 2)
    run_group(train, 1, folders[0], "retinanet", folders[0], "", *arguments)
    if ended == "terminated":
        run_group(train, 1, folders[1], "retinanet", folders[1], ended, *arguments)
    else:
        with pytest.raises(ProcessExitedException):
            run_group(train, 1, folders[1], "retinanet", folders[1], ended, *arguments)
    run_group(train, 1, folders[1], "retinanet", folders[1], "", *arguments)
    one, other = map(read_last, folders)
    assert_same_training(one, other)
    curves = [
        [(point["images_seen"], point["AP"]) for point in checkpoint["callbacks"]["LearningCurve"]["points"]]
        for checkpoint in (one, other)
    ]
    assert curves[0] == curves[1]
    assert [images for images, _ in curves[0]] == [4, 10, 16]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    uninterrupted, ended = tmp_path / "uninterrupted", tmp_path / "ended"
    uninterrupted.mkdir()
    ended.mkdir()
    two = {"world_size": 2, "num_images": 4 * BATCHES}
    run_group(train, 2, uninterrupted, "sliding_window", uninterrupted, "", *two.values())
    for stopped in run_group(train, 2, ended, "sliding_window", ended, "terminated", *two.values()):
        assert (stopped["steps"], stopped["preempted"]) == (5, True)
    for resumed in run_group(train, 2, ended, "sliding_window", ended, "", *two.values()):
        assert (resumed["first"], resumed["steps"]) == (5, BATCHES * EPOCHS)
    assert_same_training(read_last(uninterrupted), read_last(ended))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_with_another_number_of_processes_uses_the_remaining_images(
    before: int, after: int, tmp_path: Path
) -> None:
    stopped = run_group(train, before, tmp_path, "retinanet", tmp_path, "terminated", before, 12)
    resumed = run_group(train, after, tmp_path, "retinanet", tmp_path, "", after, 12)
    epoch = stopped[0]["steps"] * before * 2 // 12  # in progress at step 5
    seen = [image for process in (*stopped, *resumed) for image in process["seen"][epoch]]
    rounded = 5 * before * 2 % 12 % (after * 2)  # images of the incomplete round of batches, which are repeated
    assert set(seen) == set(range(1, 13))
    assert len(seen) == 12 + rounded
    later = [image for process in resumed for image in process["seen"][EPOCHS - 1]]
    assert sorted(later) == list(range(1, 13))
    rest = (EPOCHS * 12 + rounded - stopped[0]["steps"] * before * 2) // (after * 2)
    assert {process["steps"] for process in resumed} == {stopped[0]["steps"] + rest}


def test_describe_resumption() -> None:
    before = {"processes": 8, "batch_size": 2, "accumulate": 1}
    assert describe_resumption(3, 40, before, before) == ["resuming after epoch 3, step 40"]
    lines = describe_resumption(3, 40, before, {"processes": 2, "batch_size": 4, "accumulate": 1})
    assert "2 processes instead of 8, 4 images a process and batch instead of 2" in lines[1]
    assert "8 images an optimizer step instead of 16" in lines[2]
    lines = describe_resumption(3, 40, before, {"processes": 2, "batch_size": 2, "accumulate": 4})
    assert len(lines) == 3  # as many images a step as before
