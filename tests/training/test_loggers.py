"""Loggers by name, whose runs go on when a training is resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import FIT
from paths import HELPERS
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tiny_data import write_files

from zoo.cli.main import main
from zoo.training.loggers import build_loggers

COMPARE = ["compare", "--models", "model.yaml", *FIT[3:], "--epochs", "1", "--out", "out"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, [TensorBoardLogger, CSVLogger]),
        (["tensorboard"], [TensorBoardLogger, CSVLogger]),
        (["csv"], [CSVLogger]),
        (["csv", "tensorboard"], [TensorBoardLogger, CSVLogger]),
    ],
)
def test_loggers_share_a_folder(names: list[str] | None, expected: list[type], tmp_path: Path) -> None:
    run = build_loggers(names, tmp_path / "run", tmp_path, "run")
    assert [type(logger) for logger in run] == expected
    assert {Path(logger.log_dir) for logger in run} == {tmp_path / "run"}
    (tmp_path / "tiny" / "version_0").mkdir(parents=True)
    new = build_loggers(names, None, tmp_path, "tiny")
    assert {Path(logger.log_dir) for logger in new} == {tmp_path / "tiny" / "version_1"}


@pytest.mark.parametrize("command", [FIT, COMPARE])
def test_unknown_and_missing_loggers_are_said_at_once(
    command: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.io.logger_names.find_spec", lambda package: None)
    for names, message in (
        (["tensorbord"], "zoo: --logger 'tensorbord': expected some of tensorboard, csv, wandb, mlflow\n"),
        (["csv", "wandb"], "zoo: --logger wandb needs the package wandb: pip install wandb\n"),
    ):
        before = sorted(folder.iterdir())
        assert main([*command, "--logger", *names]) == 2
        assert capsys.readouterr().err == message
        assert sorted(folder.iterdir()) == before


def test_names_and_own_loggers_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--logger", "csv", "--trainer.logger", "false"]) == 2
    assert capsys.readouterr().err == "zoo: give --logger or --trainer.logger, not both\n"


def test_only_metrics_csv_is_written(folder: Path) -> None:
    assert main([*FIT, "--epochs", "1", "--out", "run", "--logger", "csv"]) == 0
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "metrics.csv",
    ]


def test_a_comparison_goes_on_with_other_loggers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    assert main([*COMPARE, "--logger", "csv"]) == 0
    (run,) = (path for path in (folder / "out").iterdir() if path.name.endswith("_seed0"))
    assert yaml.safe_load((run / "config.yaml").read_text())["logger"] == ["csv"]
    assert not list(run.glob("events*"))
    (run / "result.json").unlink()
    assert main(COMPARE) == 0
    assert list(run.glob("events*"))


# Weights & Biases starts a service, and MLflow keeps its store in global variables: a process for each command.


def run_zoo(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW"))}
    environment |= {"HOME": str(folder), "PYTHONPATH": str(HELPERS)} | variables
    command = [sys.executable, "-m", "zoo.cli", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def read_mlflow(folder: Path) -> list[Any]:
    """The runs in the default store, each with the steps of its val/AP."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "zoo"]
    runs = client.search_runs([experiment.experiment_id])
    return [(run, [m.step for m in client.get_metric_history(run.info.run_id, "val/AP")]) for run in runs]


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_wandb_and_mlflow(folder: Path) -> None:
    fit = [*FIT, "--out", "run", "--logger", "wandb", "mlflow"]
    ids = []
    for epochs in ("1", "2"):
        done = run_zoo(folder, *fit, "--epochs", epochs, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        ids.append(json.loads((folder / "run" / "loggers.json").read_text()))
    assert ids[0] == ids[1]
    assert len(list((folder / "run" / "wandb").glob(f"offline-run-*-{ids[0]['wandb']}"))) == 2
    ((run, steps),) = read_mlflow(folder)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (ids[0]["mlflow"], "tinydetector", "FINISHED")
    assert run.data.params["detector"] == "TinyDetector"
    assert run.data.params["width"] == "4"
    assert steps == [1, 3]
    assert (folder / "run" / "metrics.csv").exists()


@pytest.mark.slow
def test_a_comparison_logs_each_run(folder: Path) -> None:
    """Its runs are forked processes, which have no exit handlers: the file of the run has to be complete."""
    done = run_zoo(folder, *COMPARE, "--logger", "wandb", "mlflow", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    ((run, _),) = read_mlflow(folder)
    assert run.info.run_name == "model_seed0"
    assert "test/AP" in run.data.metrics
    assert "You can sync this run" in done.stderr


@pytest.mark.slow
def test_a_refusal_is_one_line_and_leaves_no_folder(folder: Path) -> None:
    fit = [*FIT, "--out", "run", "--logger"]
    done = run_zoo(folder, *fit, "wandb")
    assert done.returncode == 2
    assert "zoo: --logger wandb: No API key configured" in done.stderr
    assert "or set WANDB_MODE=offline\n" in done.stderr
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_zoo(folder, *fit, "mlflow", **nowhere)
    assert done.returncode == 2
    assert done.stderr.startswith("zoo: --logger mlflow: ")
    assert done.stderr.count("\n") == 1
    assert not (folder / "run").exists()
