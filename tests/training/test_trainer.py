from types import SimpleNamespace

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import RichProgressBar

import zoo.training.trainer
from zoo.callbacks.progress import STEPS_BETWEEN_METRICS, ThrottledProgressBar
from zoo.errors import InputError, Preempted


def test_the_bar_reads_the_loss_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading is a wait for the device."""
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


@pytest.mark.parametrize(("error", "is_ended"), [(InputError("damaged"), True), (Preempted("told to stop"), False)])
def test_a_failure_of_one_ends_the_processes_that_it_started(
    error: Exception, is_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Trainer] = []
    monkeypatch.setattr(zoo.training.trainer, "terminate_children", ended.append)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(type(error)), zoo.training.trainer.together(trainer):
        raise error
    assert ended == ([trainer] if is_ended else [])
    with zoo.training.trainer.together(trainer):
        pass
    assert len(ended) == is_ended
