from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import RichProgressBar

from zoo.callbacks.progress import STEPS_BETWEEN_METRICS, UnhurriedBar


def test_the_bar_reads_the_loss_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading is a wait for the device."""
    readings: list[int] = []

    def read(bar: RichProgressBar, trainer: SimpleNamespace, module: object) -> dict[str, float]:
        readings.append(trainer.global_step)
        return {"train/loss": float(trainer.global_step)}

    monkeypatch.setattr(RichProgressBar, "get_metrics", read)
    bar = UnhurriedBar()
    steps = range(1, 2 * STEPS_BETWEEN_METRICS + 1)
    shown = [bar.get_metrics(SimpleNamespace(training=True, global_step=step), None)["train/loss"] for step in steps]
    assert readings == [1, STEPS_BETWEEN_METRICS + 1]
    assert shown == [1.0] * STEPS_BETWEEN_METRICS + [STEPS_BETWEEN_METRICS + 1.0] * STEPS_BETWEEN_METRICS
    bar.get_metrics(SimpleNamespace(training=False, global_step=40), None)
    assert readings[-1] == 40
