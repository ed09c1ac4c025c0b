"""Processes that are killed on an error."""

import pytest
from pytorch_lightning import Trainer

import zoo.training.trainer
from zoo.errors import InputError, Preempted


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
