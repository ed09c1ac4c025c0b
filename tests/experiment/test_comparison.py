"""`zoo compare` on tiny data: runs, budgets, resuming, refused folders, and failed runs."""

import csv
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning.callbacks.timer
import torch
import yaml
from clock import Clock
from paths import HELPERS
from tiny_data import NUM_IMAGES, data_config, model_config, write_files, write_yaml
from tiny_detector import TinyDetector

import zoo.experiment.comparison
import zoo.models
from zoo.cli.main import main
from zoo.data.source import DataWarning
from zoo.errors import InputError
from zoo.experiment import run as run_module
from zoo.experiment.budget import DEFAULT_BUDGET, FINE_TUNING_BUDGET, Budget, validation_interval
from zoo.experiment.comparison import ComparisonInterrupted, run_comparison
from zoo.experiment.gather import train_has_masks
from zoo.io.configurations import find_configs
from zoo.io.files import encode_json
from zoo.report.results import Results, read_results
from zoo.training.configuration import first_difference


@pytest.fixture(autouse=True)
def _register_tiny_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.models.MODELS, "tiny", TinyDetector)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and configurations; runs are executed in this process."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo.experiment.comparison, "launch_fork", run_module.main)
    monkeypatch.setattr(zoo.experiment.comparison, "warm_up", lambda: None)
    monkeypatch.setattr(run_module, "LATENCY_SECONDS", 0.02)
    return tmp_path


def run_compare(*extra: str, models: tuple[str, ...] = ("model.yaml",)) -> int:
    files = ["--data", "data.yaml", "--trainer", "trainer.yaml", "--out", "out"]
    return main(["compare", "--models", *models, *files, *extra])


def results(folder: Path) -> Results:
    return read_results(folder / "out/results.json")


def steps(run_folder: Path) -> int:
    return int(torch.load(run_folder / "checkpoints/last.ckpt", weights_only=True)["global_step"])


# -------------------------------------------------------------------------------------------------------------- runs


def test_two_models_are_compared_in_one_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yaml(folder / "wide.yaml", model_config(width=9))
    assert run_compare(models=("model.yaml", "wide.yaml")) == 0
    printed = capsys.readouterr().out
    assert "[1/2] model seed 0" in printed
    assert "[2/2] wide seed 0" in printed
    assert {"results.json", "report.md", "report.html", "model_seed0", "wide_seed0"} <= {
        file.name for file in (folder / "out").iterdir()
    }
    found = results(folder)
    assert [(run.config, run.model, run.status) for run in found.runs] == [
        ("model", "tiny", "done"),
        ("wide", "tiny", "done"),
    ]
    assert found.budget == "2 epochs"
    assert found.classes == ["box", "bar"]
    assert found.data == {"name": "tiny", "classes": 2, "train": 8, "val": 3, "test": 4}
    assert found.command.startswith("zoo compare --models model.yaml wide.yaml")
    assert {"python", "torch", "torchvision"} <= found.versions.keys()
    assert found.hardware

    run, wide = found.runs
    assert {"AP", "AP50", "AP75", "VOC07", "VOC10"} <= run.metrics.keys()
    assert run.per_class.keys() == {"box", "bar"}
    assert [(point.epoch, point.images_seen) for point in run.curve] == [(1, 4), (1, 8), (2, 12), (2, 16)]
    # convolution and head, with biases: (3 * 64 + 1) * width + (width + 1) * (2 + 4)
    assert run.cost.parameters == 193 * 4 + 5 * 6
    assert wide.cost.parameters == 193 * 9 + 10 * 6
    # two per multiply-add, on a grid of 16 cells
    assert run.cost.flops == 2 * 16 * (192 * 4 + 4 * 6)
    assert run.cost.flops_input == "48x32 framed to 32x32"
    assert run.cost.ms_per_image is not None
    assert run.cost.ms_per_image > 0

    for name in ("model_seed0", "wide_seed0"):
        inside = folder / "out" / name
        assert {"config.yaml", "metrics.csv", "predictions.json", "result.json"} <= {f.name for f in inside.iterdir()}
        assert {entry["category_id"] for entry in json.loads((inside / "predictions.json").read_text())} <= {3, 6}


def test_fit_reproduces_a_run_from_its_configuration(folder: Path) -> None:
    assert run_compare("--epochs", "1") == 0
    assert main(["fit", "--config", "out/model_seed0/config.yaml"]) == 0
    ours = torch.load(folder / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    theirs = torch.load(folder / "out/model_seed0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_seeds_and_names_and_overrides(folder: Path) -> None:
    assert run_compare("--seeds", "1", "2", "--names", "mine", "--epochs", "1", "--model.width", "5") == 0
    runs = results(folder).runs
    assert [(run.folder, run.config, run.seed) for run in runs] == [
        ("mine_seed1", "mine", 1),
        ("mine_seed2", "mine", 2),
    ]
    assert {run.cost.parameters for run in runs} == {193 * 5 + 6 * 6}
    weights = [
        torch.load(folder / "out" / run.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"][
            "body.weight"
        ]
        for run in runs
    ]
    assert not torch.equal(*weights)


def test_without_a_val_split_the_last_weights_are_tested(folder: Path) -> None:
    config = data_config(folder)
    del config["val"]
    write_yaml(folder / "data.yaml", config)
    assert run_compare() == 0
    assert results(folder).runs[0].status == "done"
    assert results(folder).runs[0].curve == []


def test_without_a_test_split_the_val_split_is_evaluated(folder: Path) -> None:
    config = data_config(folder)
    del config["test"]
    write_yaml(folder / "data.yaml", config)
    assert run_compare("--epochs", "1") == 0
    entries = json.loads((folder / "out/model_seed0/predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} == {10, 11, 12}


# ------------------------------------------------------------------------------------------------------------ budget


def test_an_image_budget_counts_images_and_ends_with_a_validation(folder: Path) -> None:
    # An epoch has 8 images in 2 steps; 12 images end in the middle of the second. Each third ends with a validation.
    assert run_compare("--images", "12") == 0
    run = results(folder).runs[0]
    assert steps(folder / "out/model_seed0") == 3
    assert [point.images_seen for point in run.curve] == [4, 8, 12]
    assert results(folder).budget == "12 images"


def test_a_run_that_fails_after_its_training_is_finished_by_the_same_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget ends in the middle of an epoch, and the process fails during the test that follows."""
    assert run_compare("--images", "12") == 0
    expected = results(folder).runs[0]
    (folder / "out").rename(folder / "uninterrupted")
    with monkeypatch.context() as patch:
        patch.setattr(TinyDetector, "test_step", lambda *_: 1 / 0)
        assert run_compare("--images", "12") == 1
    assert run_compare("--images", "12") == 0
    found = results(folder).runs[0]
    assert found.metrics == expected.metrics
    assert [(point.images_seen, point.AP, point.loss) for point in found.curve] == [
        (point.images_seen, point.AP, point.loss) for point in expected.curve
    ]


def test_a_time_budget_ends_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second, and so does the validation after every two steps: twelve seconds are nine steps."""
    clock = Clock()
    monkeypatch.setattr(pytorch_lightning.callbacks.timer, "time", clock)
    compute_losses = TinyDetector.compute_losses

    def take_a_second(self: TinyDetector, outputs: torch.Tensor, batch: object) -> dict[str, torch.Tensor]:
        clock.now += 1
        return compute_losses(self, outputs, batch)

    monkeypatch.setattr(TinyDetector, "compute_losses", take_a_second)
    assert run_compare("--minutes", "0.2") == 0
    assert results(folder).budget == "0.2 minutes"
    assert steps(folder / "out/model_seed0") == 9
    assert [point.images_seen for point in results(folder).runs[0].curve] == [8, 16, 24, 32, 36]


@pytest.mark.parametrize(
    ("budget", "arguments"),
    [
        (Budget(epochs=3), {"max_epochs": 3, "max_steps": -1, "max_time": None}),
        (Budget(images=17), {"max_epochs": -1, "max_steps": 5, "max_time": None}),
        (Budget(steps=7), {"max_epochs": -1, "max_steps": 7, "max_time": None}),
        (Budget(minutes=1.5), {"max_epochs": -1, "max_steps": -1, "max_time": "00:00:01:30"}),
    ],
)
def test_a_budget_as_trainer_arguments(budget: Budget, arguments: dict[str, object]) -> None:
    assert budget.trainer_arguments(batch_size=4) == arguments


@pytest.mark.parametrize("values", [{}, {"epochs": 1, "images": 5}, {"minutes": 0}, {"epochs": -1}])
def test_a_budget_needs_exactly_one_positive_limit(values: dict[str, int]) -> None:
    with pytest.raises(InputError, match="exactly one of"):
        Budget(**values)


@pytest.mark.parametrize(
    ("num_batches", "epoch_batches", "interval"),
    [
        (438, 438, 146),  # the default comparison: one epoch, three points
        (876, 438, 219),  # two epochs, four points
        (1000, 438, 219),
        (1314, 438, None),  # three epochs, of one point each
        (100, 438, 34),  # less than an epoch
        (1, 2, 1),
        (1, 1, 1),
    ],
)
def test_few_epochs_have_validations_within_them(num_batches: int, epoch_batches: int, interval: int | None) -> None:
    assert validation_interval(num_batches, epoch_batches) == interval


def test_validations_stay_as_the_trainer_file_has_them(folder: Path) -> None:
    assert run_compare("--epochs", "1", "--trainer.val_check_interval", "1.0") == 0
    assert [point.images_seen for point in results(folder).runs[0].curve] == [8]


def test_the_default_comparison_is_one_epoch_of_the_shapes() -> None:
    data = yaml.safe_load((find_configs() / "data" / "shapes.yaml").read_text())
    assert data["train"]["init_args"]["num_images"] == DEFAULT_BUDGET.images
    assert DEFAULT_BUDGET.images % data["batch_size"] == 0


def test_a_budget_as_text() -> None:
    texts = [str(Budget(epochs=1)), str(Budget(images=20000)), str(Budget(minutes=2.5))]
    assert texts == ["1 epoch", "20000 images", "2.5 minutes"]


# ---------------------------------------------------------------------------------------------------------- resuming


def test_finished_runs_are_not_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_compare() == 0
    before = results(folder)
    launched: list[Path] = []
    monkeypatch.setattr(
        zoo.experiment.comparison, "launch_fork", lambda place: launched.append(place) or run_module.main(place)
    )
    write_yaml(folder / "wide.yaml", model_config(width=9))
    assert run_compare(models=("model.yaml", "wide.yaml")) == 0
    assert [place.name for place in launched] == ["wide_seed0"]
    # As text, since undefined values are NaN, which is not equal to itself.
    assert encode_json(results(folder).runs[0]) == encode_json(before.runs[0])


def test_a_stopped_run_resumes_with_the_same_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third of four epochs: two are kept, two are trained, and weights equal an uninterrupted run's."""
    original = TinyDetector.compute_losses
    seen: list[int] = []

    def compute_losses(self: TinyDetector, outputs: torch.Tensor, batch: object) -> dict[str, torch.Tensor]:
        if self.training:
            seen.append(self.trainer.global_step)
            if seen.count(5) == 1 and seen[-1] == 5:
                raise KeyboardInterrupt
        return original(self, outputs, batch)

    def launch(place: Path) -> int:
        try:
            return run_module.main(place)
        except SystemExit:  # Lightning raises it on an interrupt
            raise KeyboardInterrupt from None

    monkeypatch.setattr(TinyDetector, "compute_losses", compute_losses)
    monkeypatch.setattr(zoo.experiment.comparison, "launch_fork", launch)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert run_compare("--epochs", "4") == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert not (folder / "out/model_seed0/result.json").exists()
    assert run_compare("--epochs", "4") == 0
    assert seen == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    stopped = results(folder).runs[0]
    assert [point.epoch for point in stopped.curve] == [1, 2, 3, 4]
    with (folder / "out/model_seed0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["val/AP"]] == [1, 3, 5, 7], "one file with all four epochs"

    monkeypatch.setattr(TinyDetector, "compute_losses", original)
    (folder / "out").rename(folder / "stopped")
    assert run_compare("--epochs", "4") == 0
    uninterrupted = torch.load(folder / "out/model_seed0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    resumed = torch.load(folder / "stopped/model_seed0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    assert results(folder).runs[0].metrics == stopped.metrics


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--data.batch_size", "2"], ["data.batch_size", "4", "2"]),
        (["--epochs", "3"], ["budget", "2 epochs", "3 epochs"]),
        (["--model.width", "5"], ["model.init_args.width", "4", "5"]),
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    folder: Path, change: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_compare() == 0
    before = (folder / "out/results.json").read_bytes()
    capsys.readouterr()
    assert run_compare(*change) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in ["out/model_seed0", "--out", "delete", *words]), lines[0]
    assert (folder / "out/results.json").read_bytes() == before


def test_a_folder_of_runs_on_other_annotations_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compare() == 0
    content = json.loads((folder / "test.json").read_text())
    content["annotations"][0]["bbox"][2] -= 1
    (folder / "test.json").write_text(json.dumps(content))
    assert run_compare() == 2
    assert "annotations.test" in capsys.readouterr().err


def test_first_difference_of_configurations() -> None:
    theirs = {"data": {"batch_size": 4, "name": "x"}, "model": 1}
    assert first_difference(theirs, {"data": {"batch_size": 4, "name": "x"}, "model": 1}) is None
    assert first_difference(theirs, {"data": {"batch_size": 8, "name": "x"}, "model": 2}) == ("data.batch_size", 4, 8)
    assert first_difference(theirs, {"data": {"batch_size": 4}, "model": 1}) == ("data.name", "x", None)


# ---------------------------------------------------------------------------------------------------------- failures


def test_a_failed_run_does_not_affect_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yaml(folder / "bad.yaml", model_config(fails="raises"))
    write_yaml(folder / "nan.yaml", model_config(fails="diverges"))
    assert run_compare(models=("bad.yaml", "nan.yaml", "model.yaml")) == 1
    bad, nan, good = results(folder).runs
    assert (bad.status, nan.status, good.status) == ("failed", "failed", "done")
    assert bad.error is not None
    assert bad.error.startswith("RuntimeError: this detector fails on purpose with two lines")
    assert "fails on purpose" in (folder / "out/bad_seed0/error.log").read_text()
    assert nan.error is not None
    assert ".png" in nan.error
    assert "\n" not in nan.error
    assert "fails on purpose" in capsys.readouterr().out
    assert "bad" in (folder / "out/report.md").read_text()


def test_a_failed_run_is_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TinyDetector, "compute_predictions", lambda *_: 1 / 0)
        assert run_compare() == 1
    assert run_compare() == 0
    assert results(folder).runs[0].status == "done"


def test_a_killed_process_fails_only_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, fails="dies")
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    found = run_comparison(
        [tmp_path / "model.yaml"], tmp_path / "data.yaml", tmp_path / "trainer.yaml", tmp_path / "out", Budget(epochs=2)
    )
    assert found.runs[0].status == "failed"
    assert found.runs[0].error is not None
    assert "SIGKILL" in found.runs[0].error
    assert (tmp_path / "out/report.html").exists()


def test_an_interrupt_between_runs_ends_the_comparison(folder: Path) -> None:
    def launch(place: Path) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ComparisonInterrupted, match="run the same command again to resume"):
        run_comparison([Path("model.yaml")], Path("data.yaml"), Path("trainer.yaml"), Path("out"), launch=launch)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_best_weights_are_tested_not_the_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation AP is replaced by .5, .9, .1, so the second of three epochs must be tested."""
    from zoo.evaluation.metric import DetectionMAP

    measured = DetectionMAP.compute
    made_up = iter([0.5, 0.9, 0.1])

    def compute(self: DetectionMAP) -> dict[str, torch.Tensor]:
        values = measured(self)
        values["AP"] = torch.tensor(next(made_up, math.nan))
        return values

    monkeypatch.setattr(DetectionMAP, "compute", compute)
    assert run_compare("--epochs", "3") == 0
    best = torch.load(folder / "out/model_seed0/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 4


PRETRAINED = "MobileNetV2 pretrained on ImageNet, fine-tuned"


@pytest.mark.parametrize(
    ("data", "kind", "suffix", "has_masks", "budget"),
    [
        ([], "small ones, from scratch", "tiny", True, DEFAULT_BUDGET),
        (["--data", "data.yaml"], PRETRAINED, "mobilenetv2", False, FINE_TUNING_BUDGET),
        (["--data", "masks.yaml"], PRETRAINED, "mobilenetv2", True, FINE_TUNING_BUDGET),
    ],
)
def test_a_comparison_says_what_it_chose(
    data: list[str],
    kind: str,
    suffix: str,
    has_masks: bool,
    budget: Budget,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shapes = "{class_path: Shapes, init_args: {num_images: 4}}"
    (folder / "masks.yaml").write_text(f"name: masks\ntrain: {shapes}\ntest: {shapes}\n")
    plans: list[tuple[object, ...]] = []

    def record(*plan: object, command: str) -> None:
        plans.append(plan)
        raise InputError("planned")

    monkeypatch.setattr(zoo.experiment.comparison, "run_comparison", record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["compare", *data]) == 2
    models, _, trainer, _, planned = plans[0][:5]
    chosen_keys = [key for key, detector in zoo.models.MODELS.items() if has_masks or not detector.mask_side]
    expected = sorted(f"{key}_{suffix}" for key in chosen_keys if key != "tiny")
    assert isinstance(models, list)
    assert sorted(model.stem for model in models) == expected
    assert trainer == find_configs() / "trainers/cpu.yaml"
    assert planned == budget
    chosen, limit = capsys.readouterr().out.splitlines()
    without = "" if has_masks else " but those of masks, as this data has none beyond boxes"
    assert chosen.startswith(f"models: all detectors{without}, {kind}: ")
    assert chosen.endswith("(choose others by --models, see zoo models)")
    assert limit == (
        f"budget: each model trains on {budget.images:,} images, repetitions included "
        "(change it by --images, --epochs or --minutes)"
    )


def test_a_detector_of_masks_is_refused_where_the_data_has_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in NUM_IMAGES:
        content = json.loads((folder / f"{split}.json").read_text())
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        (folder / f"{split}.json").write_text(json.dumps(content))
    assert main(["compare", "--models", "mask_rcnn_tiny", "--data", "data.yaml", "--out", "out"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "data.yaml: mask_rcnn_tiny is trained on masks, but the train split has none; leave it out" in error
    assert not (folder / "out").exists()


def test_a_broken_mask_leaves_out_detectors_of_masks_only(folder: Path) -> None:
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.warns(DataWarning, match="cannot be read: .*; detectors of masks are left out"):
        assert not train_has_masks(folder / "data.yaml")


@pytest.mark.parametrize(("shape", "expected"), [("rectangle", False), ("triangle", True)])
def test_rectangles_are_no_masks_whatever_their_size(folder: Path, shape: str, expected: bool) -> None:
    content = json.loads((folder / "train.json").read_text())
    random = np.random.default_rng(0)
    image_id = content["images"][0]["id"]
    content["annotations"] = []
    for number in range(60):
        x, y, width, height = *random.uniform(0, 10, 2), *random.uniform(5, 20, 2)
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        segmentation = [corners if shape == "rectangle" else corners[:6]] if number > 20 else []
        entry = {"id": number + 1, "image_id": image_id, "category_id": 3, "bbox": [x, y, width, height], "iscrowd": 0}
        content["annotations"].append(entry | {"area": width * height, "segmentation": segmentation})
    (folder / "train.json").write_text(json.dumps(content))
    assert train_has_masks(folder / "data.yaml") is expected
