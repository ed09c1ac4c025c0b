"""Callback that fits R-CNN's linear heads during training, and the loader of the images that they are fitted to.

`FitLinearHeads` fits them before each validation and at the end of a training, to features of the current trunk, and
marks them as not fitted as soon as the trunk is trained further. So the whole detector is validated, checkpoints of
a validation or of the end hold fitted heads, and any other checkpoint holds heads that are marked as not fitted.
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol, cast, runtime_checkable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from zoo.errors import InputError
from zoo.nn.linear_heads import Examples, HeadFitter, LinearHeads
from zoo.ops.distributed import broadcast_buffers
from zoo.types import RawBatch

SECONDS_BETWEEN_LINES = 5.0  # of progress


@runtime_checkable
class HasLinearHeads(Protocol):
    """A detector with `LinearHeads`, as `FitLinearHeads` uses it."""

    trunk: nn.Module
    linear_heads: LinearHeads
    fit_images: int

    def make_head_fitter(self) -> HeadFitter:
        """A fitter without examples."""

    def find_examples(self, raw: RawBatch) -> Examples:
        """Examples of the SVMs and box regressors in a batch of images."""


class FitLinearHeads(Callback):
    """Fits the linear heads before each validation of a training and at its end."""

    def __init__(self) -> None:
        self.just_fitted = False  # on the host, so that no step reads from the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Invalidate heads from a checkpoint, and check that there is a loader to fit to."""
        detector = cast(HasLinearHeads, pl_module)
        detector.linear_heads.invalidate()
        make_fit_loader(trainer, detector.fit_images)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RawBatch, batch_idx: int
    ) -> None:
        """Invalidate the heads of the last validation."""
        if self.just_fitted:
            cast(HasLinearHeads, pl_module).linear_heads.invalidate()
            self.just_fitted = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit to the weights that are validated, during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._fit(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit at the end of the training, before ModelCheckpoint, unless a validation has just done so."""
        if (
            trainer.should_stop
            or trainer.global_step >= trainer.max_steps >= 0
            or trainer.current_epoch + 1 == trainer.max_epochs
        ):
            self._fit(trainer, pl_module)

    def _fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.just_fitted:
            return
        detector = cast(HasLinearHeads, pl_module)
        loader, num_rounds = make_fit_loader(trainer, detector.fit_images)
        batches = (pl_module.transfer_batch_to_device(batch, pl_module.device, 0) for batch in loader)
        with trainer.precision_plugin.forward_context():
            fit_linear_heads(detector, batches, num_rounds, pl_module.print)
        self.just_fitted = True


@torch.no_grad()
def fit_linear_heads(
    detector: HasLinearHeads, batches: Iterable[RawBatch], num_rounds: int, report: Callable[[str], object] = print
) -> None:
    """Fit SVMs and box regressors to the features of training images, each image used once.

    In distributed training all processes call this, each with its own images.

    Args:
        detector: its heads are fitted.
        batches: at most `num_rounds` of them.
        num_rounds: the same number on every process.
        report: called with lines of progress.
    """
    assert isinstance(detector, nn.Module)
    broadcast_buffers(detector.trunk.buffers())  # DDP shares them before each forward pass of a training
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    fitter = detector.make_head_fitter()
    start = last_line = time.monotonic()
    remaining = iter(batches)
    for number in range(1, num_rounds + 1):
        raw = next(remaining, None)
        fitter.add_round(*(detector.find_examples(raw) if raw is not None else fitter.no_examples()))
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            report(f"SVMs and box regressors: round {number} of {num_rounds}, {len(fitter.signs)} examples kept")
    fitter.finish(detector.linear_heads)
    for module, training in modes.items():
        module.training = training
    dropped = f"; svm_examples had no room for {fitter.num_dropped} hard negatives" if fitter.num_dropped else ""
    report(f"SVMs and box regressors fitted in {time.monotonic() - start:.1f} s{dropped}")


def make_fit_loader(trainer: Trainer, num_images: int) -> tuple[DataLoader, int]:
    """This process's share of randomly chosen training images, and the number of batches every process has at most.

    Images are augmented as in training. The Trainer's own loader cannot be iterated a second time meanwhile.

    Raises:
        InputError: the training loader is not one DataLoader of batches.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__") or not loader.batch_size:
        raise InputError(
            "R-CNN fits its SVMs to training images; the training loader must be one DataLoader of batches"
        )
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(loader.dataset), generator=generator)[:num_images].tolist()
    share = chosen[trainer.global_rank :: trainer.world_size]
    num_rounds = -(-len(chosen) // (loader.batch_size * trainer.world_size))
    return (
        DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=share,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
        ),
        num_rounds,
    )
