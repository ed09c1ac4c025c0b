"""Metrics, non-finite losses and the learning curve with a minimal model in Lightning's Trainer."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from zoo.callbacks import LearningCurve, MeanAveragePrecision, StopOnNonFiniteLoss
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate, read_coco_results, read_predictions
from zoo.evaluation.coco import KEYS
from zoo.types import Prediction, RawBatch, Sample, Target

NUM_IMAGES = 6


def sample(image_id: int) -> Sample:
    """One object of class image_id % 2, at a place that depends on the image."""
    x = 2.0 * image_id
    target = Target(
        boxes=torch.tensor([[x, 0, x + 10, 10]]),
        labels=torch.tensor([image_id % 2]),
        image_id=torch.tensor(image_id),
        iscrowd=torch.zeros(1, dtype=torch.bool),
        difficult=torch.zeros(1, dtype=torch.bool),
        area=torch.tensor([100.0]),
    )
    return torch.full((3, 16, 32), image_id, dtype=torch.uint8), target


def loader() -> DataLoader:
    return DataLoader(
        [sample(i) for i in range(1, NUM_IMAGES + 1)],  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=lambda samples: ([image for image, _ in samples], [target for _, target in samples]),
    )


class Shifter(LightningModule):
    """Predicts each ground truth box displaced by a learned shift, which shrinks in training."""

    class_names = ("even", "odd")

    def __init__(self, nan_at_step: int | None = None, poison_at_step: int | None = None) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(6.0))
        self.nan_at_step = nan_at_step
        self.poison_at_step = poison_at_step

    def training_step(self, batch: RawBatch, batch_idx: int) -> torch.Tensor:
        good = self.shift.abs()
        bad = good * math.nan if self.global_step == self.nan_at_step else good
        self.log("train/loss", good + bad)
        self.log("train/good", good.detach())
        self.log("train/bad", bad.detach())
        if self.global_step == self.poison_at_step:
            return 1 + (self.shift * 0).sqrt()  # a finite loss whose gradient is 0 * inf
        return good + bad

    def evaluate(self, batch: RawBatch) -> dict[str, object]:
        predictions = [
            Prediction(
                boxes=target["boxes"] + self.shift.detach(),
                scores=torch.full((1,), 1 / float(target["image_id"])),
                labels=target["labels"],
            )
            for target in batch[1]
        ]
        return {"loss": self.shift.abs(), "predictions": predictions}

    def validation_step(self, batch: RawBatch, batch_idx: int) -> dict[str, object]:
        return self.evaluate(batch)

    def test_step(self, batch: RawBatch, batch_idx: int) -> dict[str, object]:
        return self.evaluate(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)


def trainer(folder: Path, callbacks: list, max_epochs: int = 3) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )


def expected_scores(shift: float):
    targets = [sample(i)[1] for i in range(1, NUM_IMAGES + 1)]
    predictions = Predictions.from_lists(
        [int(target["image_id"]) for target in targets],
        [
            Prediction(
                boxes=target["boxes"] + shift,
                scores=torch.tensor([1 / float(target["image_id"])]),
                labels=target["labels"],
            )
            for target in targets
        ],
    )
    return evaluate(GroundTruth.from_targets(targets, Shifter.class_names), predictions)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
class TestMeanAveragePrecision:
    def test_all_metrics_are_logged_by_name(self, tmp_path):
        map_callback = MeanAveragePrecision()
        run = trainer(tmp_path, [map_callback, ModelCheckpoint(tmp_path, save_top_k=0)])
        model = Shifter()
        model.shift.data.fill_(1.0)
        logged = run.validate(model, loader(), verbose=False)[0]
        expected = expected_scores(1.0)
        for key in (*KEYS, "VOC07", "VOC10"):
            assert logged[f"val/{key}"] == pytest.approx(expected.metrics[key], abs=1e-6), key
        assert logged["val/AP50/odd"] == pytest.approx(expected.per_class["odd"]["AP50"], abs=1e-6)
        assert 0 < logged["val/AP"] < 1
        assert map_callback.scores("val") == expected
        assert map_callback.predictions("val").image_ids.tolist() == [1, 2, 3, 4, 5, 6]
        assert map_callback.predictions("test") is None

    def test_checkpoints_and_early_stopping_monitor_ap(self, tmp_path):
        # the shift goes 6, 4.5, 3, 1.5, 0, ...: AP rises to 1 after four epochs of three steps of .5 each
        checkpoint = ModelCheckpoint(tmp_path, monitor="val/AP", mode="max", filename="best-{epoch}")
        stop = EarlyStopping("val/AP", mode="max", stopping_threshold=0.999)
        run = trainer(tmp_path, [checkpoint, stop, MeanAveragePrecision()], max_epochs=20)
        run.fit(Shifter(), loader(), loader())
        assert run.current_epoch == 4
        assert float(checkpoint.best_model_score) == 1
        assert checkpoint.best_model_path.endswith("best-epoch=3.ckpt")

    def test_written_predictions_have_the_same_scores(self, tmp_path):
        map_callback = MeanAveragePrecision(results_file=tmp_path / "run" / "predictions.json")
        run = trainer(tmp_path, [map_callback])
        logged = run.test(Shifter(), loader(), verbose=False)[0]
        path = tmp_path / "run" / "predictions.json"
        assert {entry["category_id"] for entry in json.loads(path.read_text())} == {1, 2}
        targets = [sample(i)[1] for i in range(1, NUM_IMAGES + 1)]
        ground_truth = GroundTruth.from_targets(targets, Shifter.class_names)
        scores = evaluate(ground_truth, read_coco_results(path, ground_truth.image_ids, [1, 2]))
        assert scores == map_callback.scores("test")
        assert logged["test/AP50"] == pytest.approx(scores.metrics["AP50"], abs=1e-6)

    def test_only_the_given_protocols_are_logged(self, tmp_path):
        run = trainer(tmp_path, [MeanAveragePrecision(["voc07"], log_classes=False)])
        assert list(run.validate(Shifter(), loader(), verbose=False)[0]) == ["val/VOC07"]

    def test_steps_without_predictions_raise(self, tmp_path):
        class Silent(Shifter):
            def evaluate(self, batch: RawBatch) -> dict[str, object]:
                return {"loss": self.shift}

        with pytest.raises(InputError, match="validation_step must return a dict with `predictions`"):
            trainer(tmp_path, [MeanAveragePrecision()]).validate(Silent(), loader(), verbose=False)

    def test_two_loaders_raise(self, tmp_path):
        class TwoLoaders(Shifter):
            def validation_step(self, batch: RawBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, object]:
                return self.evaluate(batch)

        with pytest.raises(InputError, match="2 val loaders"):
            trainer(tmp_path, [MeanAveragePrecision()]).validate(TwoLoaders(), [loader(), loader()], verbose=False)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
class TestStopOnNonFiniteLoss:
    def test_nan_names_step_losses_and_images_and_keeps_the_checkpoint(self, tmp_path):
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        # the fifth step (from 1) is the second batch of the second epoch: images 3 and 4
        with pytest.raises(InputError) as caught:
            trainer(tmp_path, [checkpoint, StopOnNonFiniteLoss()]).fit(Shifter(nan_at_step=4), loader(), loader())
        message = str(caught.value)
        assert "\n" not in message
        assert all(part in message for part in ("nan (bad) at step 5", "images 3, 4;"))
        assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"step={step}.ckpt" for step in (1, 2, 3, 4)]

    def test_save_on_exception_writes_no_checkpoint(self, tmp_path):
        checkpoint = ModelCheckpoint(tmp_path, every_n_epochs=100, save_on_exception=True, save_last=True)
        with pytest.raises(InputError, match="loss is nan"):
            trainer(tmp_path, [checkpoint, StopOnNonFiniteLoss()]).fit(Shifter(nan_at_step=1), loader(), loader())
        assert list(tmp_path.glob("*.ckpt")) == []

    def test_non_finite_weights_do_not_replace_a_checkpoint(self, tmp_path):
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="best", enable_version_counter=False)
        with pytest.raises(InputError, match=r"1 weights are not finite after step 4 \(first: shift\)"):
            trainer(tmp_path, [checkpoint, StopOnNonFiniteLoss()]).fit(Shifter(poison_at_step=3), loader(), loader())
        weights = torch.load(tmp_path / "best.ckpt", weights_only=False)["state_dict"]
        assert weights["shift"].isfinite()

    def test_finite_losses_do_not_stop_the_run(self, tmp_path):
        run = trainer(tmp_path, [StopOnNonFiniteLoss()], max_epochs=2)
        run.fit(Shifter(), loader(), loader())
        assert run.global_step == 6


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
class TestLearningCurve:
    def test_points_and_resume(self, tmp_path):
        curve = LearningCurve()
        callbacks = [curve, MeanAveragePrecision(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)]
        trainer(tmp_path, callbacks).fit(Shifter(), loader(), loader())
        assert [point["epoch"] for point in curve.points] == [1, 2, 3]
        assert [point["images_seen"] for point in curve.points] == [6, 12, 18]
        # losses are twice the shift, which goes down by .5 a step
        assert [point["loss"] for point in curve.points] == pytest.approx([2 * 5.5, 2 * 4, 2 * 2.5])
        assert [point["AP"] for point in curve.points] == pytest.approx(
            [expected_scores(shift).metrics["AP"] for shift in (4.5, 3, 1.5)], abs=1e-6
        )
        minutes = [point["minutes"] for point in curve.points]
        assert 0 < minutes[0] < minutes[1] < minutes[2] <= curve.train_minutes
        assert curve.train_images_per_s > 0

        resumed = LearningCurve()
        again = trainer(tmp_path, [resumed, MeanAveragePrecision()], max_epochs=4)
        again.fit(Shifter(), loader(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
        assert resumed.points[:2] == curve.points[:2]
        assert [point["images_seen"] for point in resumed.points] == [6, 12, 18, 24]
        assert resumed.points[2]["minutes"] > minutes[1]
        assert resumed.points[2]["loss"] == pytest.approx(curve.points[2]["loss"])

    def test_loss_is_not_divided_by_accumulation(self, tmp_path):
        curve = LearningCurve()
        run = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            accumulate_grad_batches=3,
            default_root_dir=tmp_path,
            callbacks=[curve],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        run.fit(Shifter(), loader(), loader())
        assert curve.points[0]["loss"] == pytest.approx(12)  # no step before the last batch
        assert np.isnan(curve.points[0]["AP"])  # no MeanAveragePrecision callback


class WithTable(LightningDataModule):
    """A DataModule with an annotation table, whose boxes extend beyond the images."""

    class_names = ("even", "odd")
    class_ids = (4, 9)

    def table(self, split: str) -> AnnotationTable:
        boxes = np.concatenate([sample(i)[1]["boxes"].numpy() for i in range(1, NUM_IMAGES + 1)]).astype(np.float64)
        return AnnotationTable.from_rows(
            classes=self.class_names,
            class_ids=np.array(self.class_ids),
            image_ids=np.arange(1, NUM_IMAGES + 1),
            widths=np.full(NUM_IMAGES, 32),
            heights=np.full(NUM_IMAGES, 16),
            file_names=[f"{i}.jpg" for i in range(1, NUM_IMAGES + 1)],
            image_index=np.arange(NUM_IMAGES),
            boxes=boxes - [0, 4, 0, 0],
            labels=np.arange(1, NUM_IMAGES + 1) % 2,
        )

    def train_dataloader(self) -> DataLoader:
        return loader()

    def test_dataloader(self) -> DataLoader:
        return loader()


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
class TestWithTable:
    def test_metrics_of_file_and_callback_are_equal(self, tmp_path):
        model, data = Shifter(), WithTable()
        model.shift.data.fill_(1.0)
        map_callback = MeanAveragePrecision(results_file=tmp_path / "p.json")
        trainer(tmp_path, [map_callback]).test(model, datamodule=data, verbose=False)
        assert {entry["category_id"] for entry in json.loads((tmp_path / "p.json").read_text())} == {4, 9}
        assert map_callback.scores("test") == evaluate(
            GroundTruth.from_table(data.table("test")),
            read_predictions(tmp_path / "p.json", data.table("test")).predictions,
        )
        assert map_callback.scores("test") != expected_scores(1.0)  # whose ground truth are the targets

    def test_nan_error_names_the_files(self, tmp_path):
        run = trainer(tmp_path, [StopOnNonFiniteLoss()])
        with pytest.raises(InputError, match=r"on images 1 \(1\.jpg\), 2 \(2\.jpg\);"):
            run.fit(Shifter(nan_at_step=0), datamodule=WithTable())
