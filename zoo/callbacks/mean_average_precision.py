"""Mean average precision of each validation and test run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pytorch_lightning import Callback, LightningModule, Trainer

from zoo.errors import InputError
from zoo.evaluation.coco import Engine
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.identity import write_predictions
from zoo.evaluation.metric import DetectionMAP
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.results_file import write_coco_results
from zoo.evaluation.scores import PROTOCOLS, Protocol, Scores, check_protocols
from zoo.types import RawBatch

Stage: TypeAlias = Literal["val", "test"]


class MeanAveragePrecision(Callback):
    """Compute COCO and VOC metrics of each validation and test run, and log them by name.

    Logs `val/AP`, `val/AP50`, ... `val/VOC10`, and `val/AP/<class>` and so on for each class; `test/...` in test runs.
    Where detector and data have masks, COCO's metrics of these, too: `val/mask_AP` and so on.
    Each image counts once on any number of processes; the first process computes and broadcasts the metrics.

    If the DataModule has a method `table(split)` (`DetectionDataModule` has), its annotations are the ground truth;
    otherwise the targets of the batches are. Class names and ids are the DataModule's `class_names` and `class_ids`;
    without these, names are the model's `class_names`, and ids count from 1.

    Args:
        protocols: any of "coco" (twelve metrics), "voc07" (11-point) and "voc10" (all-point).
        engine: library for COCO metrics: "hotcoco", or the reference, "pycocotools".
        log_classes: also log the metrics of each class.
        results_file: file for the test run's predictions in COCO results format; None writes none.
    """

    def __init__(
        self,
        protocols: Sequence[Protocol] = PROTOCOLS,
        engine: Engine = "hotcoco",
        log_classes: bool = True,
        results_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_protocols(protocols, engine)
        self.protocols = tuple(protocols)
        self.engine: Engine = engine
        self.log_classes = log_classes
        self.results_file = results_file
        self._metrics: dict[Stage, DetectionMAP] = {}

    def predictions(self, stage: Stage) -> Predictions | None:
        """All detections of the last run of a stage, on the first process; None on others and before a run."""
        return self._metrics[stage].predictions if stage in self._metrics else None

    def scores(self, stage: Stage) -> Scores | None:
        """Metrics of the last run of a stage, on every process; None before a run."""
        return self._metrics[stage].scores if stage in self._metrics else None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the metric."""
        self._start("val", trainer, pl_module, trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the metric."""
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
        """Add the batch's predictions and targets."""
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
        """Add the batch's predictions and targets."""
        self._update("test", outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the metrics, except after the sanity check, which sees too few images."""
        if not trainer.sanity_checking:
            self._finish("val", pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the metrics, and write the predictions to `results_file`."""
        self._finish("test", pl_module)
        predictions = self.predictions("test")
        if self.results_file is not None and predictions is not None:
            datamodule = getattr(trainer, "datamodule", None)
            if callable(table := getattr(datamodule, "table", None)):
                write_predictions(predictions, self.results_file, table("test"))
            else:
                scores = self.scores("test")
                class_ids = range(1, len(scores.per_class) + 1) if scores is not None else ()
                write_coco_results(predictions, self.results_file, list(class_ids))

    def _start(
        self, stage: Stage, trainer: Trainer, pl_module: LightningModule, num_batches: list[int | float]
    ) -> None:
        if len(num_batches) > 1:
            raise InputError(
                f"{len(num_batches)} {stage} loaders: metrics need a single one; give one loader at a time"
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
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in batch[0]]
        self._metrics[stage].update(outputs["predictions"], batch[1], sizes)

    def _finish(self, stage: Stage, pl_module: LightningModule) -> None:
        values = self._metrics[stage].compute()
        self._metrics[stage].reset()  # frees the metric state; the detections are kept in `predictions`
        for key, value in values.items():
            of_class = "/" in key
            if self.log_classes or not of_class:
                # All processes have the same value, which "max" keeps exactly and a mean might round. sync_dist is
                # not needed, but Lightning warns for every key without it.
                pl_module.log(
                    f"{stage}/{key}", float(value), prog_bar=key in ("AP", "AP50"), reduce_fx="max", sync_dist=True
                )
