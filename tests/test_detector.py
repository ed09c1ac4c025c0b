"""The recipe: its learning rates over a training, and its weight decay groups."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.callbacks.timer
import torch
from clock import Clock
from pytorch_lightning import Callback, Trainer
from tiny_detector import TinyDetector

from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.detector import Recipe, build_optimizer
from zoo.models import RCNN, RetinaNet, YOLOv1
from zoo.nn.frame import FrameConfig


def test_multistep_with_warm_up() -> None:
    recipe = Recipe(warmup_steps=10, milestones=(0.5, 0.75), gamma=0.1)
    assert recipe.factor(0.0, 0) == pytest.approx(1e-3)
    assert recipe.factor(0.1, 5) == pytest.approx(0.5005)
    assert recipe.factor(0.3, 30) == 1
    assert recipe.factor(0.5, 50) == pytest.approx(0.1)
    assert recipe.factor(0.75, 75) == pytest.approx(0.01)


def test_warm_up_starts_where_the_recipe_says() -> None:
    """YOLOv1's schedule: from 1e-3 to 1e-2, then 75, 30 and 30 epochs at 1e-2, 1e-3 and 1e-4."""
    recipe = Recipe(lr=1e-2, warmup_steps=10, warmup_start=0.1, milestones=(75 / 135, 105 / 135))
    rates = [recipe.lr * recipe.factor(epoch / 135, 100 * epoch) for epoch in (0, 1, 74, 75, 104, 105, 134)]
    assert rates == pytest.approx([1e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert recipe.lr * recipe.factor(0.0, 5) == pytest.approx(5.5e-3)


def test_cosine_falls_from_one_to_zero() -> None:
    recipe = Recipe(warmup_steps=0, schedule="cosine")
    assert [recipe.factor(p, 0) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


def test_batch_size_scales_rate_and_warm_up() -> None:
    """Four times the images a step: SGD's rate times four, Adam's times two; warm-up over the same number of images."""
    sgd = Recipe(warmup_steps=100, warmup_start=0.0, schedule="constant", total_batch=8)
    adam = replace(sgd, optimizer="adamw")
    assert [sgd.factor(0.0, step, 4.0) for step in (0, 5, 25, 30)] == pytest.approx([0, 0.8, 4, 4])
    assert [adam.factor(0.0, step, 4.0) for step in (0, 5, 25, 30)] == pytest.approx([0, 0.4, 2, 2])
    assert [sgd.factor(0.0, step, 0.5) for step in (0, 100, 200)] == pytest.approx([0, 0.25, 0.5])
    assert sgd.factor(0.0, 40, 1.0) == sgd.factor(0.0, 40) == pytest.approx(0.4)


def plain_trainer(folder: Path, **arguments: Any) -> Trainer:
    """A Trainer that writes no files."""
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        **arguments,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "total_batch", "rate"), [(4, 1, 8, 0.005), (4, 4, 8, 0.02), (4, 1, 0, 0.01)]
)
def test_rate_is_scaled_by_the_trainer_s_total_batch(
    tmp_path: Path, batch_size: int, accumulate: int, total_batch: int, rate: float
) -> None:
    data = DetectionDataModule(train=Shapes(16), batch_size=batch_size, num_workers=0)
    recipe = Recipe(warmup_steps=0, schedule="constant", total_batch=total_batch)
    detector = TinyDetector(data.num_classes, recipe=recipe)
    trainer = plain_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate)
    trainer.fit(detector, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
@pytest.mark.parametrize(
    ("clip_norm", "of_trainer", "largest"),
    [(0.0, None, None), (1e-3, None, 1e-3), (1e-3, 2e-3, 2e-3), (0.0, 2e-3, 2e-3)],
)
def test_gradients_are_clipped_by_the_trainer_or_the_recipe(
    tmp_path: Path, clip_norm: float, of_trainer: float | None, largest: float | None
) -> None:
    """So a model file trains the same with every trainer file."""
    data = DetectionDataModule(train=Shapes(8), batch_size=4, num_workers=0)
    detector = TinyDetector(data.num_classes, recipe=Recipe(clip_norm=clip_norm))
    norms: list[float] = []

    class RecordNorms(Callback):
        def on_train_start(self, trainer: Trainer, *_: object) -> None:
            trainer.optimizers[0].register_step_post_hook(self.record)

        def record(self, *_: object) -> None:
            gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
            norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    plain_trainer(tmp_path, max_epochs=1, gradient_clip_val=of_trainer, callbacks=[RecordNorms()]).fit(detector, data)
    assert len(norms) == 2
    if largest is None:
        assert min(norms) > 2e-3
    else:
        assert norms == pytest.approx([largest] * 2, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_progress_counts_epochs(tmp_path: Path) -> None:
    """Two epochs of three steps."""
    data = DetectionDataModule(train=Shapes(12), batch_size=4, num_workers=0)
    detector = TinyDetector(data.num_classes)
    seen: list[float] = []

    class RecordProgress(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            seen.append(detector.progress())

    plain_trainer(tmp_path, max_epochs=2, callbacks=[RecordProgress()]).fit(detector, data)
    assert seen == pytest.approx([(step + 1) / 6 for step in range(6)])


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_rates_follow_the_clock_of_a_training_with_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten seconds the first step takes one, the second two, the third three and the fourth the other four."""
    clock = Clock()
    monkeypatch.setattr(pytorch_lightning.callbacks.timer, "time", clock)
    data = DetectionDataModule(train=Shapes(12), batch_size=4, num_workers=0)
    detector = TinyDetector(data.num_classes, recipe=Recipe(lr=0.5, warmup_steps=0, schedule="cosine"))
    progress: list[float] = []
    rates: list[float] = []

    class RecordRates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            clock.now += trainer.global_step + 1

        def on_train_batch_end(self, *_: object) -> None:
            progress.append(detector.progress())

    limit = {"max_time": {"seconds": 10}, "max_epochs": -1}
    plain_trainer(tmp_path, callbacks=[RecordRates()], **limit).fit(detector, data)
    assert progress == pytest.approx([0.1, 0.3, 0.6, 1.0])
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * over)) for over in (0, 0.1, 0.3, 0.6)])


def test_norms_and_biases_have_their_own_weight_decay() -> None:
    recipe = Recipe("adamw", lr=0.5, weight_decay=0.1, norm_weight_decay=0.0)
    detector = RetinaNet(2, trunk="resnet10t", channels=32, head_depth=1, recipe=recipe)
    optimizer = build_optimizer(detector, recipe)
    weights, rest = optimizer.param_groups
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(weight.ndim > 1 for weight in weights["params"])
    assert all(weight.ndim == 1 for weight in rest["params"])
    assert len(weights["params"]) + len(rest["params"]) == len(list(detector.parameters()))
    assert isinstance(optimizer, torch.optim.AdamW)


def test_the_trunk_has_its_own_learning_rate() -> None:
    recipe = Recipe("sgd", lr=0.5, trunk_lr=0.1)
    square = FrameConfig(448, 448, stretch=True, divisor=1)
    for detector in (
        RetinaNet(2, trunk="resnet10t", channels=32, recipe=recipe),
        RCNN(2, trunk="resnet10t"),
        YOLOv1(2, trunk="darknet6", neck=(64,), head_widths=(16,), frame=square),
    ):
        optimizer = build_optimizer(detector, recipe)
        by_rate: dict[float, set[int]] = {}
        for group in optimizer.param_groups:
            by_rate.setdefault(round(group["lr"], 6), set()).update(map(id, group["params"]))
        assert by_rate[0.05] == {id(parameter) for parameter in detector.trunk.parameters()}
        assert by_rate[0.5] == {id(parameter) for parameter in detector.parameters()} - by_rate[0.05]
    with pytest.raises(ValueError, match=r"trunk_lr is -0\.1"):
        Recipe(trunk_lr=-0.1)
