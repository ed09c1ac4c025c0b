"""What watches a training: the ruler, the guard against losses that are not finite, and the learning curve.

Each of them works with every detector, and with any LightningModule whose validation and test steps return
`{"loss": ..., "predictions": list[Prediction]}` for batches of `(images, targets)`. Lightning runs ModelCheckpoint
after all other callbacks, and both it and EarlyStopping read what was logged until `on_validation_epoch_end`: they
can monitor `val/AP`, on every process.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.errors import InputError
from zoo.evaluation.coco import Engine
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.metric import DetectionMAP
from zoo.evaluation.predictions import Predictions, write_coco_results
from zoo.evaluation.scores import PROTOCOLS, Protocol, Scores, check_names
from zoo.types import RawBatch

Stage: TypeAlias = Literal["val", "test"]


class MeanAveragePrecision(Callback):
    """Measures every validation and test run by COCO's and VOC's protocols and logs each number by name.

    Logged are `val/AP`, `val/AP50`, ... `val/VOC10`, and `val/AP/<class>` and so on by class; `test/...` in test runs.
    Each image counts once, on any number of processes; the first one measures and tells the others.

    Where the DataModule has a method `table(split)` (ours has), its annotations are the ground truth; otherwise the
    targets of the batches are. Names and ids of classes come from the DataModule's `class_names` and `class_ids`,
    names else from the model's `class_names`.

    Args:
        protocols: any of "coco" (twelve numbers), "voc07" (11-point) and "voc10" (all-point).
        engine: who computes COCO's numbers: "hotcoco", or the reference, "pycocotools".
        log_classes: log the numbers of each class, too.
        results_file: where to write the test run's predictions as COCO-results json; None writes nothing.
    """

    def __init__(
        self,
        protocols: Sequence[Protocol] = PROTOCOLS,
        engine: Engine = "hotcoco",
        log_classes: bool = True,
        results_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_names(protocols, engine)
        self.protocols = tuple(protocols)
        self.engine: Engine = engine
        self.log_classes = log_classes
        self.results_file = results_file
        self._metrics: dict[Stage, DetectionMAP] = {}

    def predictions(self, stage: Stage) -> Predictions | None:
        """All detections of the last run of this stage, on the first process; None on others and before a run."""
        return self._metrics[stage].predictions if stage in self._metrics else None

    def scores(self, stage: Stage) -> Scores | None:
        """The numbers of the last run of this stage, on every process; None before there was one."""
        return self._metrics[stage].scores if stage in self._metrics else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._start("val", trainer, pl_module, trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._start("test", trainer, pl_module, trainer.num_test_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: RawBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes the batch's predictions and targets."""
        self._update("val", outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: RawBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes the batch's predictions and targets."""
        self._update("test", outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures and logs; a sanity check before the training is not measured, since it sees too few images."""
        if not trainer.sanity_checking:
            self._finish("val", pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, logs, and writes the predictions if asked to."""
        self._finish("test", pl_module)
        predictions = self.predictions("test")
        if self.results_file is not None and predictions is not None:
            class_ids = getattr(getattr(trainer, "datamodule", None), "class_ids", None)
            if class_ids is None:
                scores = self.scores("test")
                class_ids = range(1, len(scores.per_class) + 1) if scores is not None else ()
            Path(self.results_file).parent.mkdir(parents=True, exist_ok=True)
            write_coco_results(predictions, self.results_file, list(class_ids))

    def _start(
        self, stage: Stage, trainer: Trainer, pl_module: LightningModule, num_batches: list[int | float]
    ) -> None:
        if len(num_batches) > 1:
            raise InputError(
                f"{len(num_batches)} {stage} loaders, whose images cannot be told apart; hand in one at a time"
            )
        datamodule = getattr(trainer, "datamodule", None)
        table = getattr(datamodule, "table", None)
        self._metrics[stage] = DetectionMAP(
            classes=getattr(datamodule, "class_names", None) or getattr(pl_module, "class_names", None),
            protocols=self.protocols,
            engine=self.engine,
            ground_truth=GroundTruth.from_table(table(stage)) if callable(table) else None,
        )

    def _update(self, stage: Stage, outputs: Any, batch: RawBatch) -> None:
        if not isinstance(outputs, Mapping) or "predictions" not in outputs:
            raise InputError(
                f"the model's {'validation' if stage == 'val' else 'test'}_step must return a dict with `predictions`, "
                f"one for each image, but it returned {type(outputs).__name__}"
            )
        self._metrics[stage].update(outputs["predictions"], batch[1])

    def _finish(self, stage: Stage, pl_module: LightningModule) -> None:
        values = self._metrics[stage].compute()
        self._metrics[stage].reset()  # the columns are in `predictions` now, once
        for key, value in values.items():
            of_class = "/" in key
            if self.log_classes or not of_class:
                # All processes have the same value; the largest of them is it, to the bit, which a mean might not be.
                # Not synchronising would do, but Lightning warns of it at every key.
                pl_module.log(
                    f"{stage}/{key}", float(value), prog_bar=key in ("AP", "AP50"), reduce_fx="max", sync_dist=True
                )


class StopOnNonFiniteLoss(Callback):
    """Ends the run at a training loss that is NaN or infinite, and leaves the last good checkpoint as it is.

    On a GPU the loss of a step is looked at when the next step has been sent off, so that nobody waits for it; before
    a validation or a checkpoint it is looked at right away. A checkpoint whose weights are not finite is never written.

    Raises:
        InputError: in `on_train_batch_end`, naming the step, the losses that are not finite and the images.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: _Step | None = None
        self._error: InputError | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RawBatch, batch_idx: int
    ) -> None:
        """Looks at the step before, or on a CPU at this one."""
        self._settle(trainer)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._pending = _Step(trainer, loss, batch)
            if loss.device.type == "cpu":
                self._settle(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves nothing open."""
        self._settle(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves nothing open: no time is spent on validating a network that is lost."""
        self._settle(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Runs before the file is opened; an error here leaves what was there untouched."""
        self._settle(trainer)
        lost = [name for name, weight in pl_module.named_parameters() if not torch.isfinite(weight).all()]
        if lost:
            raise InputError(
                f"{len(lost)} weights are not finite after step {trainer.global_step}, {lost[0]} among them, though "
                "the loss still was; the checkpoint is not written: lower the learning rate or clip gradients"
            )

    def _settle(self, trainer: Trainer) -> None:
        if self._error is None and self._pending is not None:
            if not self._pending.is_finite():
                self._error = self._pending.explain(trainer)
            self._pending = None
        if self._error is not None:  # again and again, so that no handler writes a checkpoint on the way out
            raise self._error


class _Step:
    """The loss of one training step, on its way from the device, and what is needed to explain it."""

    def __init__(self, trainer: Trainer, loss: Tensor, batch: RawBatch) -> None:
        self.number = trainer.global_step
        self.loss = loss.detach()
        self.targets = batch[1]
        # references, not values: nothing is read back
        self.logged = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name != "train/loss"
        }
        # into pinned memory, without waiting; the event says when it is there
        self.flag = torch.isfinite(self.loss).all().to("cpu", non_blocking=True)
        self.arrived = None
        if self.loss.is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def is_finite(self) -> bool:
        """Waits for this step, but for nothing that was sent off after it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.flag)

    def explain(self, trainer: Trainer) -> InputError:
        bad = [name.removeprefix("train/") for name, value in self.logged.items() if not math.isfinite(float(value))]
        which = f" ({', '.join(bad)})" if bad else ""
        image_ids = [int(target["image_id"]) for target in self.targets]
        names = _file_names(trainer, image_ids)
        images = ", ".join(f"{i} ({names[i]})" if i in names else str(i) for i in image_ids)
        return InputError(
            f"the loss is {float(self.loss)}{which} at step {self.number}, on images {images}; "
            "check their boxes, lower the learning rate or clip gradients. The last checkpoint is kept"
        )


def _file_names(trainer: Trainer, image_ids: Sequence[int]) -> dict[int, str]:
    """File names by image id, where the DataModule has a table of its training images."""
    table = getattr(getattr(trainer, "datamodule", None), "table", None)
    if not callable(table):
        return {}
    columns = table("train")
    places = {image_id: place for place, image_id in enumerate(columns.image_ids.tolist())}
    return {image_id: columns.file_name(places[image_id]) for image_id in image_ids if image_id in places}


class LearningCurve(Callback):
    """Records what a comparison draws: quality against epochs, images and minutes, and the speed of training.

    `points` holds one dict for each validation, with the fields of `zoo.report.results.CurvePoint`. Checkpoints carry
    all of it, so that a resumed run goes on with its curve and its clock.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: list[dict[str, float]] = []
        self.images_seen = 0  # by all processes
        self.seconds = 0.0  # of training; validation is not in it
        # rates of single steps; a thousand are enough for a median, and bound what a checkpoint carries
        self._rates: deque[float] = deque(maxlen=1000)
        self._loss_sum: Tensor | float = 0.0
        self._num_losses = 0
        self._clock: float | None = None  # runs while training
        self._last_step: float | None = None
        self._steps_to_skip = WARMUP_STEPS

    @property
    def train_images_per_s(self) -> float | None:
        """Images a second of all processes while training: the median over steps, data loading included."""
        return statistics.median(self._rates) if self._rates else None

    @property
    def train_minutes(self) -> float:
        """Minutes of training up to now, validation left out."""
        running = time.perf_counter() - self._clock if self._clock is not None else 0.0
        return (self.seconds + running) / 60

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._clock = time.perf_counter()
        self._last_step = None
        self._steps_to_skip = WARMUP_STEPS

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RawBatch, batch_idx: int
    ) -> None:
        """Counts images and times the step, from the end of the one before; reads nothing from the device."""
        num_images = len(batch[0]) * trainer.world_size
        self.images_seen += num_images
        now = time.perf_counter()
        if self._steps_to_skip > 0:
            self._steps_to_skip -= 1
        elif self._last_step is not None:
            self._rates.append(num_images / (now - self._last_step))
        self._last_step = now
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Lightning hands out the loss divided by the number of batches that share an optimizer step
            self._loss_sum = self._loss_sum + loss.detach().float() * trainer.accumulate_grad_batches
            self._num_losses += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._stop_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a point, from what `MeanAveragePrecision` logged, and lets the clock go on."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        self.points.append(
            {
                "epoch": trainer.current_epoch + 1,  # the first is 1: what has been done, not what is going on
                "images_seen": self.images_seen,
                "minutes": self.seconds / 60,
                "AP": float(metrics.get("val/AP", math.nan)),
                "AP50": float(metrics.get("val/AP50", math.nan)),
                "loss": float(self._loss_sum) / self._num_losses if self._num_losses else math.nan,
            }
        )
        self._loss_sum, self._num_losses = 0.0, 0
        self._clock = time.perf_counter()
        self._last_step = None  # the next step's time would have the validation in it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._stop_clock()

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a checkpoint stays loadable with `weights_only`."""
        return {
            "points": [dict(point) for point in self.points],
            "images_seen": self.images_seen,
            "seconds": self.train_minutes * 60,
            "rates": list(self._rates),
            "loss_sum": float(self._loss_sum),
            "num_losses": self._num_losses,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a checkpoint was written."""
        self.points = [dict(point) for point in state_dict["points"]]
        self.images_seen = state_dict["images_seen"]
        self.seconds = state_dict["seconds"]
        self._rates = deque(state_dict["rates"], maxlen=self._rates.maxlen)
        self._loss_sum = state_dict["loss_sum"]
        self._num_losses = state_dict["num_losses"]

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self.seconds += time.perf_counter() - self._clock
            self._clock = None


WARMUP_STEPS = 5  # first steps allocate, compile and wait for loader workers
