"""The throttled progress bar, and processes that are killed on an error."""

from types import SimpleNamespace

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import RichProgressBar

import zoo.training.trainer
from zoo.callbacks.progress import STEPS_BETWEEN_METRICS, ThrottledProgressBar
from zoo.errors import InputError, Preempted


def test_progress_bar_reads_metrics_every_20_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read synchronises with the device."""
    readings: list[int] = []

    def read(bar: RichProgressBar, trainer: SimpleNamespace, module: object) -> dict[str, float]:
        readings.append(trainer.global_step)
        return {"train/loss": float(trainer.global_step)}

    monkeypatch.setattr(RichProgressBar, "get_metrics", read)
    bar = ThrottledProgressBar()
    steps = range(1, 2 * STEPS_BETWEEN_METRICS + 1)
    shown = [bar.get_metrics(SimpleNamespace(training=True, global_step=step), None)["train/loss"] for step in steps]
    assert readings == [1, STEPS_BETWEEN_METRICS + 1]
    assert shown == [1.0] * STEPS_BETWEEN_METRICS + [STEPS_BETWEEN_METRICS + 1.0] * STEPS_BETWEEN_METRICS
    bar.get_metrics(SimpleNamespace(training=False, global_step=40), None)
    assert readings[-1] == 40


@pytest.mark.parametrize(("error", "is_killed"), [(InputError("damaged"), True), (Preempted("stopped"), False)])
def test_errors_but_not_preemption_kill_the_started_processes(
    error: Exception, is_killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Trainer] = []
    monkeypatch.setattr(zoo.training.trainer, "terminate_children", killed.append)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(type(error)), zoo.training.trainer.terminate_children_on_error(trainer):
        raise error
    assert killed == ([trainer] if is_killed else [])
    with zoo.training.trainer.terminate_children_on_error(trainer):
        pass
    assert len(killed) == is_killed
