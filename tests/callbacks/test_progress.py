"""Progress in a terminal and in a pipe."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
from clock import Clock
from pytorch_lightning import Trainer
from tiny_data import write_files
from tiny_detector import TinyDetector

import zoo.callbacks.progress
from zoo.callbacks.progress import ProgressLines, describe_seconds
from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.experiment.comparison import _describe_time

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def train(tmp_path: Path, num_images: int, **arguments: int) -> None:
    """Batches of four images."""
    data = DetectionDataModule(
        train=Shapes(num_images), val=Shapes(8, seed=1), batch_size=4, num_workers=0, augment=None
    )
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ProgressLines()],
        **arguments,
    )
    trainer.fit(TinyDetector(data.num_classes), data)


@pytest.mark.filterwarnings("ignore")
def test_a_line_after_long_epochs_and_at_least_every_thirty_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each look at the clock takes a second."""
    clock = Clock()

    def monotonic() -> float:
        clock.now += 1
        return clock.now

    monkeypatch.setattr(zoo.callbacks.progress.time, "monotonic", monotonic)
    train(tmp_path, 160, max_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2"] * 2 + ["epoch 2/2"] * 2
    assert re.fullmatch(r"epoch 1/2  batch \d+/40  loss \d\.\d{3}  \d+ s, .* left", lines[0])
    assert max(map(len, lines)) <= 80


@pytest.mark.filterwarnings("ignore")
def test_trainings_of_steps_count_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 16, max_steps=6, max_epochs=-1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("epoch 2  step 6/6  loss ")
    assert last.endswith("0 s left") or last.endswith(" s")


def test_times_are_short() -> None:
    seconds = [0, 59.4, 59.6, 150, 5900, 7560]
    assert [describe_seconds(value) for value in seconds] == ["0 s", "59 s", "1.0 min", "2.5 min", "98.3 min", "2.1 h"]
    assert _describe_time(120, 2, 3) == "all runs: 2.0 min, 3 runs left, about 3.0 min"
    assert _describe_time(120, 2, 0) == "all runs: 2.0 min"


def run_in_terminal(folder: Path, columns: int) -> str:
    """Output of a `zoo fit` of two epochs in a terminal of so many columns."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = ["fit", "--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
        os.execv(sys.executable, [sys.executable, "-m", "zoo.cli", *command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    output = b""
    while True:
        try:
            received = os.read(terminal, 4096)
        except OSError:  # the process has ended
            break
        output += received
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, output.decode()
    return output.decode()


def test_a_terminal_of_80_columns_shows_the_lines_of_a_pipe_and_wraps_none(tmp_path: Path) -> None:
    write_files(tmp_path)
    output = run_in_terminal(tmp_path, 80)
    assert "epoch 1/2  batch " in output  # the last line, rewritten in place
    lines = [ESCAPE.sub("", line) for line in re.split(r"[\r\n]+", output)]
    assert max(map(len, lines)) <= 80
    assert any(
        re.fullmatch(r"epoch 2/2  loss \d\.\d{3}  AP \d\.\d{3}  AP50 \d\.\d{3}  \d+ s.*", line) for line in lines
    )
    for noise in ("Tip", "v_num", "weights_only", "LOCAL_RANK", "GPU available", "Trainer.fit", "http"):
        assert noise not in output
    assert "run folder: runs/tinydetector/version_0" in output
