"""When a training may stop, and what is done about the queue."""

import math
import os
import signal
import subprocess
import threading
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

from zoo.callbacks import preemption
from zoo.callbacks.preemption import is_between_steps, requeue, slurm_job
from zoo.callbacks.resumption import renew_rates


@pytest.mark.parametrize(
    ("batch_idx", "changes", "expected"),
    [
        (3, {}, True),
        (2, {"accumulate_grad_batches": 2}, False),  # gradients of three batches, of which one is not stepped
        (3, {"accumulate_grad_batches": 2}, True),
        (3, {"is_last_batch": True}, False),  # the end of an epoch follows
        (3, {"val_check_batch": 4}, False),  # a validation follows
        (3, {"val_check_batch": 5}, True),
        (3, {"val_check_batch": math.inf}, True),
        (3, {"max_steps": 40}, False),  # the training is over
        (3, {"max_steps": 41}, True),
        (3, {"should_stop": True}, False),
    ],
)
def test_a_stop_is_where_only_the_next_step_would_follow(
    batch_idx: int, changes: dict[str, object], expected: bool
) -> None:
    trainer = {"accumulate_grad_batches": 1, "is_last_batch": False, "val_check_batch": 100, "max_steps": -1}
    trainer |= {"global_step": 40, "should_stop": False}
    assert is_between_steps(SimpleNamespace(**trainer | changes), batch_idx) is expected


def test_a_step_that_does_not_end_is_given_up_and_a_validation_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    monkeypatch.setattr(preemption, "SECONDS_TO_STEP", 0.05)
    monkeypatch.setattr(os, "_exit", lambda code: left.set())
    callback, trainer, module = preemption.Preemption(), Trainer(logger=False), LightningModule()
    callback.on_validation_start(trainer, module)
    callback._hear(signal.SIGTERM, None)
    assert not left.wait(0.5), "neither a validation nor the checkpoints after it are a step"
    callback.on_train_batch_start(trainer, module, None, 0)
    assert left.wait(60)
    callback.on_exception(trainer, module, ValueError())


def test_a_queue_that_cannot_be_asked_is_said_and_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    requeue("4711")
    assert "job 4711 is not queued again: scontrol cannot be run" in capsys.readouterr().out
    refused = SimpleNamespace(returncode=1, stderr="Invalid job id\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    requeue("4711")
    assert capsys.readouterr().out == "job 4711 is not queued again: Invalid job id\n"


def test_a_task_of_an_array_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert slurm_job() == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "15_2"


def test_a_rate_that_a_checkpoint_brought_is_renewed() -> None:
    scale = [8.0]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: scale[0] / (1 + step))
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
    scale[0] = 1.0
    renew_rates(SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)]))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
