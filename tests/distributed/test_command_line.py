"""The command line starts its own processes, and a run that is told to stop goes on by the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paths import HELPERS
from tiny_data import write_files
from tiny_detector import TinyDetector

import zoo.models
from zoo.cli.main import main

FILES = ["--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    return tmp_path


def last_step(folder: Path) -> int:
    return int(torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["global_step"])


def test_a_run_folder_goes_on_and_is_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *FILES, "--out", "run"]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert last_step(folder) == 2
    assert main(fit) == 0  # two epochs
    assert last_step(folder) == 4
    assert "goes on after epoch 1, step 2" in capsys.readouterr().out
    assert (folder / "run/metrics_part1.csv").exists()
    assert main([*fit, "--model.width", "5"]) == 2
    assert "run: model.init_args.width: holds a run with 4, now it is 5; give another --out" in capsys.readouterr().err
    assert last_step(folder) == 4
    assert not (folder / "runs").exists()


def test_a_run_folder_needs_no_logs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *FILES, "--out", "run", "--trainer.logger", "false"]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert main(fit) == 0
    said = capsys.readouterr().out
    assert "goes on after epoch 1, step 2" in said
    assert "run folder: run\n" in said
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_in_a_comparison_keeps_the_step(folder: Path) -> None:
    """A terminal sends it to every process: the run's own is told by its parent, and saves."""
    compare = [sys.executable, "-m", "zoo.cli", "compare", "--models", "model.yaml", *FILES[2:], "--out", "out"]
    compare += ["--trainer.max_epochs", "4000"]
    last = folder / "out/model_seed0/checkpoints/last.ckpt"
    with subprocess.Popen(compare, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not last.exists():
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    assert not (folder / "out/model_seed0/result.json").exists()
    assert torch.load(last, weights_only=True)["global_step"] > 0


@pytest.mark.slow
def test_two_processes_are_told_to_stop_and_go_on(folder: Path) -> None:
    fit = [sys.executable, "-m", "zoo.cli", "fit", *FILES, *TWO, "--out", "run", "--trainer.max_epochs", "4000"]
    with subprocess.Popen(fit, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "run/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert said.count("the same command goes on from there") == 1
    stopped = last_step(folder)
    epochs = str(stopped + 2)  # of one step each
    done = subprocess.run([*fit[:-1], epochs], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"step {stopped}" in done.stdout
    assert last_step(folder) == int(epochs)


@pytest.mark.slow
def test_two_processes_predict_what_one_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images and a fifth, which do not divide."""
    monkeypatch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
    assert main(["fit", *FILES, "--out", "run", "--trainer.max_epochs", "1"]) == 0
    checkpoint = "run/checkpoints/last.ckpt"
    predict = ["predict", "test", "val/0.png", "--checkpoint", checkpoint, "--score", "0", "--batch_size", "2"]
    predict += ["--accelerator", "cpu"]
    assert main([*predict, "--out", "one"]) == 0
    (folder / "in_two.py").write_text(IN_TWO)
    command = [sys.executable, "in_two.py", *predict, "--out", "two", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 images done") == 1
    for name in ("predictions.json", "images.json"):
        assert (folder / "two" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


# A checkpoint is loaded by its detector's name, which has to be known in each process; Lightning starts the second.
IN_TWO = """
import sys

import zoo.models
from tiny_detector import TinyDetector
from zoo.cli.main import main
zoo.models.MODELS["tiny"] = TinyDetector
sys.exit(main())
"""
