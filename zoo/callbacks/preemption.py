"""Stop a training on SIGTERM, SIGUSR1 or Ctrl-C, with a checkpoint from which it resumes exactly."""

import math
import os
import signal
import subprocess
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from zoo.errors import Interrupted, Preempted
from zoo.ops.distributed import DelayedMax, is_distributed, run_on_rank_zero

LAST = "last"  # name of the checkpoint from which a run resumes
INTERRUPT, STOP, REQUEUE = 1, 2, 3  # the highest of all processes decides
SIGNALS = {signal.SIGTERM: STOP}
if hasattr(signal, "SIGUSR1"):  # Windows has none
    SIGNALS[signal.SIGUSR1] = REQUEUE
SECONDS_TO_STEP = 60.0  # after SIGTERM, a process whose step does not end within this time exits without a checkpoint


class Preemption(Callback):
    """Stop a training between two steps on a signal, and save a checkpoint that resumes at the next step.

    Schedulers and clouds send SIGTERM before they stop a machine. SLURM sends SIGUSR1 before the time limit if asked to
    (`sbatch --signal=USR1@180`); the job is then also requeued. Ctrl-C does the same as SIGTERM; the second time it
    stops at once. Any number of processes may receive the signal: all stop after the same step.

    If a validation follows a step, the training stops when it is over and its checkpoints are written, so the notice
    must be longer than a validation. A kill without notice loses only the epoch in progress.

    Args:
        resumes_itself: whether the same command resumes the run, for the message.

    Raises:
        Preempted: in `on_train_batch_end` or `on_train_epoch_start`, on every process; `Interrupted` after Ctrl-C.
    """

    def __init__(self, resumes_itself: bool = True) -> None:
        super().__init__()
        self._resumes_itself = resumes_itself
        self._received = 0  # by this process: 0, INTERRUPT, STOP or REQUEUE
        self._was_interrupted = False  # by a first Ctrl-C
        self._decision = 0  # maximum over all processes
        self._previous: DelayedMax | None = None  # reduction that was started at the previous step
        self._watchdog: threading.Timer | None = None
        self._is_outside_steps = False  # in a validation or at the end of an epoch (checkpoints, fitting)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install signal handlers in place of Lightning's, which restores the original ones after training."""
        self._received = self._decision = 0
        self._previous, self._was_interrupted, self._is_outside_steps = None, False, False
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # runs of a comparison, and background jobs
                signal.signal(signal.SIGINT, self._on_interrupt)
        # Lightning broadcasts before each step whether a process received a signal, which synchronises with the device.
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = _no_broadcast  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restart the watchdog for the first step after a validation or an epoch's end."""
        if self._is_outside_steps and self._watchdog is not None:
            self._cancel_watchdog()
            self._start_watchdog()
        self._is_outside_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if any process has received a signal; on a GPU, if one had by the previous step."""
        self._decision = self._max_over_processes(trainer.strategy.root_device)
        self._is_outside_steps = self._is_outside_steps or trainer.is_last_batch
        if self._decision and is_between_steps(trainer, batch_idx):
            file = last_checkpoint(trainer)
            self._cancel_watchdog()  # writing may take longer
            if file is not None:
                trainer.save_checkpoint(file, weights_only=False)
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came in the previous epoch or in its validation; its checkpoint is written."""
        file = last_checkpoint(trainer)
        if not is_distributed() and file is not None and file.exists():  # none before the first epoch of a new run
            self._decision = self._received
        if self._decision:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cancel the watchdog."""
        self._cancel_watchdog()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Cancel the watchdog."""
        self._cancel_watchdog()

    def _max_over_processes(self, device: torch.device) -> int:
        if not is_distributed():
            return self._received
        # filled on the device, since a copy to it would synchronise
        now = DelayedMax(torch.full((), self._received, dtype=torch.int32, device=device))
        known, self._previous = (now if device.type == "cpu" else self._previous), now
        return 0 if known is None else known.read()

    def _stop(self, trainer: Trainer) -> None:
        file = last_checkpoint(trainer)
        error, what = (Interrupted, "Ctrl-C") if self._decision == INTERRUPT else (Preempted, "a signal")
        if file is None:
            raise error(f"stopped by {what}; this run writes no checkpoints")
        job = slurm_job()
        if self._decision == REQUEUE and job is not None:
            # The other processes wait, since SLURM may end the job with the first process that exits.
            run_on_rank_zero(partial(requeue, job)) if is_distributed() else requeue(job)
        how = "again" if self._resumes_itself else f"with --checkpoint {file}"
        message = f"stopped by {what}; {file} holds step {trainer.global_step}: run the same command {how} to resume"
        raise error(message if trainer.is_global_zero else "")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received = max(self._received, SIGNALS[signal.Signals(number)])
        if number == signal.SIGTERM and self._watchdog is None:
            self._start_watchdog()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._was_interrupted:
            raise KeyboardInterrupt
        self._received, self._was_interrupted = max(self._received, INTERRUPT), True
        with suppress(OSError):  # the terminal may have ended the reader of a pipe, too
            os.write(2, b"\nstopping after the next step or validation; Ctrl-C again stops at once\n")

    def _start_watchdog(self) -> None:
        self._watchdog = threading.Timer(SECONDS_TO_STEP, self._on_timeout)
        self._watchdog.daemon = True
        self._watchdog.start()

    def _on_timeout(self) -> None:
        """Exit the process, or wait again if it is in a validation or at the end of an epoch."""
        if self._is_outside_steps:
            self._start_watchdog()
        else:
            os._exit(Preempted.exit_code)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Suspend the watchdog during the validation and the checkpoints after it."""
        self._is_outside_steps = True

    def _cancel_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None


def is_between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the next optimizer step follows directly: no accumulation, validation, end of epoch or of training."""
    is_stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    every = trainer.val_check_batch
    is_validated = every is not None and every != math.inf and (batch_idx + 1) % int(every) == 0
    is_over = 0 <= trainer.max_steps <= trainer.global_step or trainer.should_stop
    return is_stepped and not (is_validated or is_over or trainer.is_last_batch)


def requeue(job: str) -> None:
    """Requeue a SLURM job, or print why that failed."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        print(f"SLURM job {job} was not requeued: scontrol cannot be run ({error})", flush=True)
        return
    if done.returncode != 0:
        print(f"SLURM job {job} was not requeued: {done.stderr.strip()}", flush=True)


def _no_broadcast() -> None:
    """Do nothing: `Preemption` handles the signals instead of Lightning."""


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Checkpoint file from which a run resumes; None if the Trainer has none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.filename == LAST and callback.dirpath is not None:
            return Path(callback.dirpath, f"{LAST}{callback.FILE_EXTENSION}")
    return None


def slurm_job() -> str | None:
    """Id of the SLURM job of this process (<array>_<task> in a job array); None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
