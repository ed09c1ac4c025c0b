"""A training that is told to make room."""

import math
import os
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from zoo.errors import Preempted
from zoo.ops.distributed import DelayedMax, is_distributed, run_on_rank_zero

LAST = "last"  # name of the checkpoint that a run goes on from
STOP, REQUEUE = 1, 2
SIGNALS = {signal.SIGTERM: STOP}
if hasattr(signal, "SIGUSR1"):  # Windows has none
    SIGNALS[signal.SIGUSR1] = REQUEUE
SECONDS_TO_STEP = 60.0  # a process that was told to end, and comes to no end of a step, ends as it stands


class Preemption(Callback):
    """Stops a training between two steps, with a checkpoint that it goes on from at that very step.

    SIGTERM is what schedulers and clouds send before they take a machine away. SIGUSR1 is what SLURM sends ahead of the
    time limit when it is asked to (`sbatch --signal=USR1@180`): the job is put back into the queue as well. It does not
    matter which process has the signal, or how many have it: all stop after the same step.

    Where a validation follows a step, a signal is answered when it is done and its checkpoints are written: the notice
    should be longer than a validation takes. A kill without notice costs the epoch up to there, and nothing else.

    Raises:
        Preempted: in `on_train_batch_end` or `on_train_epoch_start`, on every process.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = 0  # by a signal to this process
        self._order = 0  # to all
        self._before: DelayedMax | None = None  # what all were told at the step before
        self._alarm: threading.Timer | None = None
        self._has_time = False  # a validation, or what ends an epoch (checkpoints, fitting): no step is due

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over from Lightning, which gives them back when the training is over."""
        self._told = self._order = 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._hear)
        # Lightning asks all processes before every step whether one has a signal, and waits for the device to answer.
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = _ask_nobody  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step is due again, and all of its seconds are before it."""
        if self._has_time and self._alarm is not None:
            self._rest()
            self._set_alarm()
        self._has_time = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks whether anybody was told; on a GPU, at the step before."""
        self._order = self._agree(trainer.strategy.root_device)
        self._has_time = self._has_time or trainer.is_last_batch
        if self._order and is_between_steps(trainer, batch_idx):
            file = last_checkpoint(trainer)
            self._rest()  # writing may take its time, too
            if file is not None:
                trainer.save_checkpoint(file)
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint of the epoch before is written, and nothing has come since."""
        if self._order:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training was over first."""
        self._rest()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Whatever it was, the process is on its way out."""
        self._rest()

    def _agree(self, device: torch.device) -> int:
        if not is_distributed():
            return self._told
        # a fill, since a copy to the device would be waited for
        now = DelayedMax(torch.full((), self._told, dtype=torch.int32, device=device))
        known, self._before = (now if device.type == "cpu" else self._before), now
        return 0 if known is None else known.read()

    def _stop(self, trainer: Trainer) -> None:
        file = last_checkpoint(trainer)
        if file is None:
            raise Preempted("told to stop; this run keeps no checkpoints")
        job = slurm_job()
        if self._order == REQUEUE and job is not None:
            # The others wait: the first process to leave may take the job, and this order, with it.
            run_on_rank_zero(partial(requeue, job)) if is_distributed() else requeue(job)
        words = f"told to stop; {file} has all of step {trainer.global_step}, and the same command goes on from there"
        raise Preempted(words if trainer.is_global_zero else "")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = max(self._told, SIGNALS[signal.Signals(number)])
        if number == signal.SIGTERM and self._alarm is None:
            self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm = threading.Timer(SECONDS_TO_STEP, self._give_up)
        self._alarm.daemon = True
        self._alarm.start()

    def _give_up(self) -> None:
        """No step has ended in all this time."""
        if self._has_time:
            self._set_alarm()
        else:
            os._exit(Preempted.exit_code)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It may take its time, and so may the checkpoints that follow it."""
        self._has_time = True

    def _rest(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def is_between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether nothing belongs to the step that is over but the next step: no batch of it, no validation, no end."""
    is_stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    every = trainer.val_check_batch
    is_validated = every is not None and every != math.inf and (batch_idx + 1) % int(every) == 0
    is_over = 0 <= trainer.max_steps <= trainer.global_step or trainer.should_stop
    return is_stepped and not (is_validated or is_over or trainer.is_last_batch)


def requeue(job: str) -> None:
    """Put a SLURM job back into the queue, or say that it could not be done."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"job {job} is not queued again: scontrol cannot be run ({error})", flush=True)
        return
    if done.returncode != 0:
        print(f"job {job} is not queued again: {done.stderr.strip()}", flush=True)


def _ask_nobody() -> None:
    """No signal reaches Lightning."""


def last_checkpoint(trainer: Trainer) -> Path | None:
    """The file that a run goes on from; None where none is kept."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.filename == LAST and callback.dirpath is not None:
            return Path(callback.dirpath, f"{LAST}{callback.FILE_EXTENSION}")
    return None


def slurm_job() -> str | None:
    """What SLURM calls the job that this process is of, None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
