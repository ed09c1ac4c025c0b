"""Multi-process runs from the command line, and runs that are interrupted and resumed by the same command."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from paths import HELPERS
from processes import SECONDS
from tiny_data import write_files
from tiny_detector import TinyDetector

import zoo.models
from zoo.cli.main import main
from zoo.types import Batch, Losses

FILES = ["--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
ENDLESS = ["--trainer.max_epochs", "1000000000"]  # the training cannot end before it is stopped


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    return tmp_path


def end(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process that was sent a signal; what it wrote to stderr."""
    try:
        return process.communicate(timeout=SECONDS)[1]
    finally:
        process.kill()


def last_step(folder: Path) -> int:
    return int(torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["global_step"])


def test_run_folder_is_resumed_and_rejects_another_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *FILES, "--out", "run"]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert last_step(folder) == 2
    assert main(fit) == 0  # two epochs
    assert last_step(folder) == 4
    assert "resuming after epoch 1, step 2" in capsys.readouterr().out
    with (folder / "run/metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val/AP"]] == [1, 3]
    assert main(fit) == 0  # nothing left to train
    with (folder / "run/metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val/AP"]] == [1, 3]
    assert main([*fit, "--model.width", "5"]) == 2
    assert "run: model.init_args.width: holds a run with 4, now it is 5; give another --out" in capsys.readouterr().err
    assert last_step(folder) == 4
    assert not (folder / "runs").exists()


def test_run_folder_is_resumed_without_loggers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *FILES, "--out", "run", "--trainer.logger", "false"]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert main(fit) == 0
    output = capsys.readouterr().out
    assert "resuming after epoch 1, step 2" in output
    assert "run folder: run\n" in output
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_without_a_run_folder_names_the_checkpoint_to_go_on_with(
    folder: Path,
    number: signal.Signals,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, sent = TinyDetector.compute_losses, []

    def compute_losses(self: TinyDetector, outputs: torch.Tensor, batch: Batch) -> Losses:
        if self.training and self.trainer.global_step == 2 and not sent:
            sent.append(True)
            signal.raise_signal(number)
        return original(self, outputs, batch)

    monkeypatch.setattr(TinyDetector, "compute_losses", compute_losses)
    assert main(["fit", *FILES]) == code
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found = re.search(r"run the same command with (--checkpoint) (\S+) to resume", capsys.readouterr().err)
    assert found
    assert main(["fit", *FILES, *found.groups()]) == 0
    assert "resuming after epoch 1, step 3" in capsys.readouterr().out


def test_ctrl_c_pressed_twice_stops_at_once(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TinyDetector.compute_losses

    def compute_losses(self: TinyDetector, outputs: torch.Tensor, batch: Batch) -> Losses:
        if self.training and self.trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one did not interrupt the step")
        return original(self, outputs, batch)

    monkeypatch.setattr(TinyDetector, "compute_losses", compute_losses)
    assert main(["fit", *FILES, "--out", "run"]) == 130
    errors = capfd.readouterr().err
    assert "Ctrl-C again stops at once" in errors
    assert errors.endswith("zoo: interrupted\n")
    assert last_step(folder) == 2, "the checkpoint of the last finished epoch"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_after_a_step_with_its_loader_workers(folder: Path) -> None:
    """A terminal sends SIGINT to the workers and the fork server, too."""
    fit = [sys.executable, "-m", "zoo.cli", "fit", *FILES, "--out", "run", "--data.num_workers", "2", *ENDLESS]
    last = folder / "run/checkpoints/last.ckpt"
    with subprocess.Popen(fit, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not last.exists():
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        errors = end(process)
    assert process.returncode == 130, errors
    assert "stopped by Ctrl-C" in errors
    assert "DataLoader worker" not in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_comparison_saves_a_checkpoint(folder: Path, number: signal.Signals) -> None:
    """Terminals send SIGINT, `timeout`, systemd and batch systems SIGTERM, to workers and the fork server too."""
    compare = [sys.executable, "-m", "zoo.cli", "compare", "--models", "model.yaml", *FILES[2:], "--out", "out"]
    compare += [*ENDLESS, "--data.num_workers", "2"]
    last = folder / "out/model_seed0/checkpoints/last.ckpt"
    with subprocess.Popen(compare, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not last.exists():
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, number)
        time.sleep(0.01)
        process.send_signal(number)  # `timeout` sends it to the process and to the group
        errors = end(process)
    assert process.returncode == 130, errors
    assert "run the same command again to resume" in errors
    assert "DataLoader worker" not in errors
    assert not (folder / "out/model_seed0/result.json").exists()
    assert not (folder / "out/model_seed0/error.log").exists()
    assert torch.load(last, weights_only=True)["global_step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_two_processes_and_they_resume(folder: Path, number: signal.Signals, code: int) -> None:
    fit = [sys.executable, "-m", "zoo.cli", "fit", *FILES, *TWO, "--out", "run", *ENDLESS]
    with subprocess.Popen(fit, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "run/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(number)
        errors = end(process)
    assert process.returncode == code
    assert errors.count("run the same command again to resume") == 1
    stopped = last_step(folder)
    epochs = str(stopped + 2)  # of one step each
    done = subprocess.run([*fit[:-1], epochs], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert f"step {stopped}" in done.stdout
    assert last_step(folder) == int(epochs)


@pytest.mark.slow
def test_predictions_of_two_processes_equal_those_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images, which two processes cannot share equally."""
    monkeypatch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
    assert main(["fit", *FILES, "--out", "run", "--trainer.max_epochs", "1"]) == 0
    checkpoint = "run/checkpoints/last.ckpt"
    predict = ["predict", "test", "val/0.png", "--checkpoint", checkpoint, "--score", "0", "--batch_size", "2"]
    predict += ["--accelerator", "cpu"]
    assert main([*predict, "--out", "one"]) == 0
    (folder / "in_two.py").write_text(IN_TWO)
    command = [sys.executable, "in_two.py", *predict, "--out", "two", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 images: two") == 1
    for name in ("predictions.json", "images.json"):
        assert (folder / "two" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


# Checkpoints are loaded by detector name, so each process, also the one that Lightning starts, must register it.
IN_TWO = """
import sys

import zoo.models
from tiny_detector import TinyDetector
from zoo.cli.main import main
zoo.models.MODELS["tiny"] = TinyDetector
sys.exit(main())
"""


KILLS = 10
SECONDS_TO_END = 5  # the kernel ends the children of a killed process, which takes milliseconds, however busy it is


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_outlives_a_comparison_that_is_killed(folder: Path) -> None:
    """SIGKILL at random moments: all of its processes end, and the same command goes on to the same weights."""
    compare = [sys.executable, "-m", "zoo.cli", "compare", "--models", "model.yaml", *FILES[2:], "--epochs", "40"]
    compare += ["--data.num_workers", "2", "--out"]
    subprocess.run([*compare, "whole"], check=True, capture_output=True, timeout=SECONDS)
    moments = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        with subprocess.Popen([*compare, "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(moments.uniform(1, 12))
            family = descendants(process.pid)
            if process.poll() is None:
                process.kill()
                killed += 1
        deadline = time.monotonic() + SECONDS_TO_END
        while any(map(is_running, family)):
            assert time.monotonic() < deadline, family
            time.sleep(0.01)
    assert killed
    done = subprocess.run([*compare, "killed"], check=False, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    whole, resumed = (
        torch.load(folder / out / "model_seed0/checkpoints/last.ckpt", weights_only=True) for out in ("whole", "killed")
    )
    assert resumed["global_step"] == whole["global_step"]
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one that are alive, without itself."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
