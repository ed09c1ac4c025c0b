"""Between which steps a training may stop; the watchdog; requeueing in SLURM."""

import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from zoo.callbacks import preemption
from zoo.callbacks.preemption import is_between_steps, requeue, slurm_job
from zoo.callbacks.resumption import update_learning_rates
from zoo.errors import Interrupted, Preempted


@pytest.mark.parametrize(
    ("batch_idx", "changes", "expected"),
    [
        (3, {}, True),
        (2, {"accumulate_grad_batches": 2}, False),  # the third batch waits for the fourth: gradients are accumulated
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
def test_is_between_steps(batch_idx: int, changes: dict[str, object], expected: bool) -> None:
    trainer = {"accumulate_grad_batches": 1, "is_last_batch": False, "val_check_batch": 100, "max_steps": -1}
    trainer |= {"global_step": 40, "should_stop": False}
    assert is_between_steps(SimpleNamespace(**trainer | changes), batch_idx) is expected


class FakeTimer:
    """Replaces `threading.Timer`; `fire` ends its time."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.seconds, self.function = seconds, function
        self.state = "new"

    def start(self) -> None:
        self.state = "running"

    def cancel(self) -> None:
        self.state = "cancelled"

    def fire(self) -> None:
        assert self.state == "running"
        self.state = "fired"
        self.function()


def test_watchdog_exits_in_a_step_but_not_in_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[FakeTimer] = []
    exit_codes: list[int] = []
    fake = SimpleNamespace(Timer=lambda *arguments: timers.append(FakeTimer(*arguments)) or timers[-1])
    monkeypatch.setattr(preemption, "threading", fake)
    monkeypatch.setattr(preemption, "SECONDS_TO_STEP", 17.0)
    monkeypatch.setattr(os, "_exit", exit_codes.append)
    callback, trainer, module = preemption.Preemption(), Trainer(logger=False), LightningModule()
    callback.on_validation_start(trainer, module)
    callback._on_signal(signal.SIGTERM, None)
    for _ in range(3):
        timers[-1].fire()
        assert exit_codes == [], "the watchdog waits in a validation and in the checkpoints after it"
    callback.on_train_batch_start(trainer, module, None, 0)
    assert [timer.state for timer in timers] == ["fired"] * 3 + ["cancelled", "running"], "a step has its full time"
    timers[-1].fire()
    assert exit_codes == [Preempted.exit_code]
    assert {timer.seconds for timer in timers} == {17.0}


@pytest.mark.parametrize("first", [None, signal.SIGTERM])
def test_only_the_second_ctrl_c_interrupts_a_step(
    first: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*arguments: object) -> int:
        raise BrokenPipeError  # as when Ctrl-C has ended `tee`

    monkeypatch.setattr(os, "write", write)
    callback = preemption.Preemption()
    if first is not None:
        monkeypatch.setattr(callback, "_start_watchdog", lambda: None)
        callback._on_signal(first, None)
    callback._on_interrupt(signal.SIGINT, None)
    assert callback._received == (preemption.INTERRUPT if first is None else preemption.STOP)
    with pytest.raises(KeyboardInterrupt):
        callback._on_interrupt(signal.SIGINT, None)


def test_ctrl_c_in_a_validation_stops_before_the_next_epoch_if_there_is_a_checkpoint(tmp_path: Path) -> None:
    callback, module = preemption.Preemption(), LightningModule()
    trainer = Trainer(logger=False, callbacks=[ModelCheckpoint(tmp_path, filename=preemption.LAST)])
    callback._on_interrupt(signal.SIGINT, None)
    callback.on_train_epoch_start(trainer, module)  # the first epoch of a new run: its first step writes one
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(Interrupted, match="stopped by Ctrl-C"):
        callback.on_train_epoch_start(trainer, module)


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_watchdog_is_cancelled_when_the_training_is_over(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[FakeTimer] = []
    fake = SimpleNamespace(Timer=lambda *arguments: timers.append(FakeTimer(*arguments)) or timers[-1])
    monkeypatch.setattr(preemption, "threading", fake)
    callback, trainer, module = preemption.Preemption(), Trainer(logger=False), LightningModule()
    callback._on_signal(signal.SIGTERM, None)
    getattr(callback, end)(trainer, module, *([ValueError()] if end == "on_exception" else []))
    assert [timer.state for timer in timers] == ["cancelled"]


def test_failed_requeue_prints_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    requeue("4711")
    assert "SLURM job 4711 was not requeued: scontrol cannot be run" in capsys.readouterr().out
    refused = SimpleNamespace(returncode=1, stderr="Invalid job id\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    requeue("4711")
    assert capsys.readouterr().out == "SLURM job 4711 was not requeued: Invalid job id\n"


def test_slurm_job_id_of_array_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert slurm_job() == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "15_2"


def test_learning_rate_of_a_checkpoint_is_recomputed() -> None:
    scale = [8.0]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: scale[0] / (1 + step))
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
    scale[0] = 1.0
    update_learning_rates(SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)]))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
