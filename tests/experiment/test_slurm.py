"""`zoo compare --slurm` and `--collect` without SLURM: bash executes the tasks of the script with a minimal srun."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import HELPERS
from slurm import array_tasks, batch_options, sbatch
from tiny_data import model_config, write_files, write_yaml
from tiny_detector import TinyDetector

import zoo.experiment.comparison
import zoo.models
from zoo.cli.main import main
from zoo.errors import InputError, Preempted
from zoo.experiment import run as run_module
from zoo.experiment.slurm import ProcessLayout, count_devices, process_layout
from zoo.report.results import Results, read_results, read_run
from zoo.types import Batch, Losses


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images and configurations, in a folder whose name needs quotes."""
    place = tmp_path / 'it\'s 100% "mine" $HOME'
    place.mkdir()
    write_files(place)
    write_yaml(place / "wide.yaml", model_config(width=9))
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))  # for the processes of the tasks
    monkeypatch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
    monkeypatch.setattr(zoo.experiment.comparison, "launch_fork", run_module.main)
    monkeypatch.setattr(zoo.experiment.comparison, "warm_up", lambda: None)
    monkeypatch.setattr(run_module, "LATENCY_SECONDS", 0.02)
    return place


def run_compare(*extra: str, models: tuple[str, ...] = ("model.yaml", "wide.yaml"), out: str = "out") -> int:
    return main(
        ["compare", "--models", *models, "--data", "data.yaml", "--trainer", "trainer.yaml", "--out", out, *extra]
    )


def write_script(*extra: str, capsys: pytest.CaptureFixture[str], models: tuple[str, ...] = ("model.yaml",)) -> str:
    capsys.readouterr()
    assert run_compare("--slurm", *extra, models=models) == 0
    return capsys.readouterr().out


def results(out: str = "out") -> Results:
    return read_results(Path(out, "results.json"))


# ------------------------------------------------------------------------------------------------------------ script


def test_the_script_requests_the_nodes_and_gpus_of_the_trainer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four nodes of eight GPUs, which this machine need not have."""
    text = {"accelerator": "gpu", "devices": 8, "num_nodes": 4, "strategy": "ddp", "max_epochs": 1, "logger": None}
    write_yaml(folder / "trainer.yaml", text)
    script = write_script("--data.num_workers", "3", capsys=capsys, models=("model.yaml", "wide.yaml"))
    options = batch_options(script)
    assert options["array"] == "0-1"
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("4", "8", "8")
    assert options["cpus-per-task"] == "4"
    assert "requeue" in options
    assert options["signal"] == "USR1@180"
    assert options["output"] == f"{folder}/out/slurm_%A_%a.log".replace("100%", "100%%")
    assert f"cd {shlex.quote(str(folder))}" in script
    for name in ("model", "wide"):
        assert shlex.quote(f"{folder}/out/{name}_seed0") in script
        identity = json.loads((folder / f"out/{name}_seed0/run.json").read_text())
        assert identity["trainer"]["num_nodes"] == 4
        assert (folder / f"out/{name}_seed0/config.yaml").exists()
    assert shlex.quote(sys.executable) in script


def test_a_script_for_cpus_requests_no_gpus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_script(capsys=capsys)
    assert "gpus" not in batch_options(script)
    assert batch_options(script)["cpus-per-task"] == "1"
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_budget_counts_the_images_of_all_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yaml(folder / "trainer.yaml", {"accelerator": "gpu", "devices": 2, "num_nodes": 2, "logger": None})
    write_script("--images", "64", capsys=capsys)  # 4 images on each of 4 processes are 16 a step
    assert json.loads((folder / "out/model_seed0/run.json").read_text())["trainer"]["max_steps"] == 4


@pytest.mark.parametrize(
    ("devices", "number"), [(3, 3), ("3", 3), ("3,", 1), ("0,3", 2), ([0, 3], 2), ("auto", 0), (-1, 0), ("-1", 0)]
)
def test_devices_are_counted_as_in_lightning(devices: int | str | list[int], number: int) -> None:
    assert count_devices(devices) == number


def test_a_layout_is_read_from_the_trainer() -> None:
    assert process_layout({"accelerator": "cuda", "devices": [0, 1], "num_nodes": 3}) == ProcessLayout(
        3, 2, on_gpus=True
    )
    with pytest.raises(InputError, match=r"trainer\.accelerator"):
        process_layout({"accelerator": "auto", "devices": 1, "num_nodes": 1})
    with pytest.raises(InputError, match=r"trainer\.devices"):
        process_layout({"accelerator": "gpu", "devices": "auto", "num_nodes": 1})


# ----------------------------------------------------------------------------------------------- tasks, and the report


def test_the_tasks_of_the_script_give_the_results_of_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is finished already is not repeated."""
    models = ("model.yaml", "wide.yaml")
    assert run_compare("--seeds", "3", models=("model.yaml",)) == 0
    finished = folder / "out/model_seed3/result.json"
    before = finished.stat().st_mtime_ns
    script = write_script("--seeds", "0", "3", capsys=capsys, models=models)
    assert list(array_tasks(script)) == [0, 1, 2]
    file = folder / "runs.sh"
    file.write_text(script)
    for task in array_tasks(script):
        done = sbatch(file, task=task, start=False)
        assert done.returncode == 0, done.stderr
        place, *options, python, dash_m, module, run = done.stdout.splitlines()
        assert (place, python, dash_m, module) == (str(folder), sys.executable, "-m", "zoo.experiment.run")
        assert options == ["--wait=0", "--kill-on-bad-exit=1"]
        assert run_module.main(Path(run)) == 0
    assert finished.stat().st_mtime_ns == before
    assert run_compare("--collect", "--seeds", "0", "3", models=models) == 0
    assert {"report.html", "report.md", "results.json"} <= {place.name for place in (folder / "out").iterdir()}
    assert run_compare("--seeds", "0", "3", models=models, out="local") == 0
    collected, local = results(), results("local")
    assert [(run.folder, run.metrics["AP"]) for run in collected.runs] == [
        (run.folder, run.metrics["AP"]) for run in local.runs
    ]
    assert collected.runs[0].metrics["AP"] > 0
    assert collected.hardware == local.hardware
    assert collected.budget == local.budget
    with pytest.raises(AssertionError):  # all runs are finished
        write_script("--seeds", "0", "3", capsys=capsys, models=models)
    assert "finished" in capsys.readouterr().err


def test_unfinished_runs_are_reported_as_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compare(models=("model.yaml",)) == 0
    write_script(capsys=capsys, models=("model.yaml", "wide.yaml"))
    assert run_compare("--collect") == 1
    assert [(run.folder, run.status, run.error) for run in results().runs] == [
        ("model_seed0", "done", None),
        ("wide_seed0", "failed", "has not finished"),
    ]
    assert "has not finished" in (folder / "out/report.md").read_text()
    assert run_compare("--collect", "--seeds", "0", "7") == 1  # no script was ever written for seed 7
    assert {run.error for run in results().runs if run.seed == 7} == {"has not finished"}


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["--collect"], "--slurm"),
        (["--collect", "--slurm"], "not allowed"),
        (["--slurm", "--trainer.devices", "auto"], "trainer.devices"),
        (["--slurm", "--trainer.accelerator", "auto"], "trainer.accelerator"),
    ],
)
def test_bad_input_gives_one_line(
    folder: Path, extra: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_compare(*extra) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert word in captured.err
    assert not (folder / "out").exists()


def test_a_task_at_its_time_limit_is_requeued_and_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under SLURM: SIGUSR1 in the middle of the second epoch, and later the same task again."""
    assert run_compare("--epochs", "3", models=("model.yaml",), out="local") == 0
    write_script("--epochs", "3", capsys=capsys)
    run = folder / "out/model_seed0"
    original = TinyDetector.compute_losses
    seen: list[int] = []

    def compute_losses(self: TinyDetector, outputs: torch.Tensor, batch: Batch) -> Losses:
        if self.training:
            seen.append(self.trainer.global_step)
            if seen == [0, 1, 2]:
                signal.raise_signal(signal.SIGUSR1)
        return original(self, outputs, batch)

    monkeypatch.setattr(TinyDetector, "compute_losses", compute_losses)
    (folder / "bin").mkdir()
    (folder / "bin/scontrol").write_text('#!/bin/bash\necho "$@" > requeued\n')
    (folder / "bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert run_module.main(run) == Preempted.exit_code
    assert (folder / "requeued").read_text().split() == ["requeue", "4711_0"]
    assert not (run / "result.json").exists()
    assert not (run / "error.log").exists()
    assert run_module.main(run) == 0
    assert seen == [0, 1, 2, 3, 4, 5]
    assert read_run(run / "result.json").metrics == read_run(folder / "local/model_seed0/result.json").metrics


def test_a_task_does_not_resume_from_hpc_checkpoints(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would resume from these files, which it writes on SLURM's signal."""
    write_script("--epochs", "1", capsys=capsys)
    run = folder / "out/model_seed0"
    (folder / "runs").mkdir()
    for place in (folder / "runs", run):
        (place / "hpc_ckpt_1.ckpt").write_text("not a checkpoint")
    for name, value in {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 4711}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert run_module.main(run) == 0, (run / "error.log").read_text()
    assert read_run(run / "result.json").curve[-1].images_seen == 8


# ---------------------------------------------------------------------------------------------- several processes a run


def write_two_processes(folder: Path) -> None:
    trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 1, "log_every_n_steps": 1}
    write_yaml(folder / "trainer.yaml", trainer)


@pytest.mark.slow
def test_two_tasks_of_srun_are_one_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_two_processes(folder)
    script = folder / "runs.sh"
    script.write_text(write_script(capsys=capsys))
    done = sbatch(script, task=0)
    assert done.returncode == 0, done.stderr
    assert run_compare("--collect", models=("model.yaml",)) == 0
    run = results().runs[0]
    assert run.curve[-1].images_seen == 8
    last = torch.load(folder / "out/model_seed0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1  # 4 images on each of two processes
    assert len(list((folder / "out").glob("*_seed0"))) == 1


@pytest.mark.slow
def test_two_tasks_that_fail_before_they_connect_write_one_result(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_processes(folder)
    script = folder / "runs.sh"
    script.write_text(write_script(capsys=capsys))
    (folder / "out/model_seed0/config.yaml").write_text("model: 3\n")
    assert sbatch(script, task=0).returncode != 0
    assert run_compare("--collect", models=("model.yaml",)) == 1
    run = results().runs[0]
    assert run.status == "failed"
    assert run.error is not None
    assert "model" in run.error
    assert "has not finished" not in run.error
