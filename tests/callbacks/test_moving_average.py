"""The moving average against a slow loop; what is validated, tested, saved and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tiny_detector import TinyDetector

from zoo.callbacks import MovingAverage
from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.detector import Recipe
from zoo.training.trainer import make_trainer

DECAY = 0.6


class WeightRecorder(Callback):
    """Records the weights after each step, and those used in validation and test."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []
        self.tested: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.weights.append(pl_module.head.weight.detach().clone())

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.validated.append(pl_module.head.weight.detach().clone())

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.tested.append(pl_module.head.weight.detach().clone())


def make_data() -> DetectionDataModule:
    """Data with two steps an epoch, one validation batch and one test batch."""
    return DetectionDataModule(
        train=Shapes(8), val=Shapes(4, seed=1), test=Shapes(4, seed=2), batch_size=4, num_workers=0
    )


def fit(folder: Path, epochs: int, checkpoint: str | None = None) -> tuple[WeightRecorder, Trainer, TinyDetector]:
    data = make_data()
    torch.manual_seed(0)
    detector = TinyDetector(data.num_classes, recipe=Recipe(lr=0.5, warmup_steps=0, schedule="constant"))
    recorder = WeightRecorder()
    arguments = {"accelerator": "cpu", "max_epochs": epochs, "num_sanity_val_steps": 0, "enable_progress_bar": False}
    arguments |= {"logger": False, "use_distributed_sampler": False, "callbacks": [MovingAverage(DECAY), recorder]}
    trainer = make_trainer(arguments, data, folder, "run")
    trainer.fit(detector, data, ckpt_path=checkpoint, weights_only=True)
    return recorder, trainer, detector


def averages(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Moving average after each step, by a loop."""
    found, average = [], weights[0]
    for number, weight in enumerate(weights, start=1):
        decay = min(DECAY, number / (9 + number)) if number > 1 else 0.0
        average = decay * average + (1 - decay) * weight
        found.append(average)
    return found


def test_average_is_validated_saved_and_tested_while_weights_are_trained(tmp_path: Path) -> None:
    recorder, trainer, detector = fit(tmp_path, 10)
    expected = averages(recorder.weights)
    torch.testing.assert_close(recorder.validated, expected[1::2])
    assert not torch.allclose(expected[-1], recorder.weights[-1])
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["head.weight"], expected[-1])
    torch.testing.assert_close(saved["current_model_state"]["head.weight"], recorder.weights[-1])
    torch.testing.assert_close(detector.head.weight.detach(), expected[-1])
    trainer.test(detector, make_data(), ckpt_path=tmp_path / "checkpoints/last.ckpt", verbose=False, weights_only=True)
    torch.testing.assert_close(recorder.tested, expected[-1:])


def test_resume_restores_weights_and_average(tmp_path: Path) -> None:
    in_one_go, _, _ = fit(tmp_path / "one", 4)
    fit(tmp_path / "two", 2)
    second, _, _ = fit(tmp_path / "two", 4, str(tmp_path / "two/checkpoints/last.ckpt"))
    assert all(map(torch.equal, second.weights, in_one_go.weights[4:]))
    assert all(map(torch.equal, second.validated, in_one_go.validated[2:]))


def test_decay_of_1_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        MovingAverage(1.0)
