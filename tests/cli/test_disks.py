"""Places that cannot be written, and full disks: one line, exit code 2, before any work."""

import errno
import os
from pathlib import Path

import pytest
from tiny_data import write_files

import zoo.cli.data
from zoo.cli.main import main
from zoo.errors import InputError
from zoo.io.files import require_writable

TRAINING = ["--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
COMMANDS = {
    "compare": ["compare", "--models", "model.yaml", *TRAINING[2:], "--out"],
    "fit": ["fit", *TRAINING, "--out"],
    "report": ["report", "runs", "--out"],
    "predict": ["predict", "val", "--checkpoint", "last.ckpt", "--out"],
    "export": ["export", "--checkpoint", "last.ckpt", "--out"],
    "doctor": ["doctor", "data.yaml", "--fix"],
    "split": ["split", "data.yaml", "--out"],
    "stats": ["stats", "data.yaml", "--html"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_place_that_cannot_be_written(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    (folder / "last.ckpt").write_bytes(b"")
    assert main([*COMMANDS[verb], "/proc/zoo.onnx"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("zoo: /proc/zoo.onnx: cannot be written (")
    (folder / "last.ckpt").unlink()
    assert sorted(folder.rglob("*")) == before


def test_writable_places(tmp_path: Path) -> None:
    require_writable(tmp_path)
    require_writable(tmp_path / "a" / "b" / "c.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/c.json: cannot be written \(Not a directory\)"):
        require_writable(tmp_path / "file" / "c.json")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_one_line_without_tables(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, content: bytes) -> None:
        try:
            raise OSError(number, os.strerror(number), str(path))
        except OSError as error:
            raise RuntimeError("as a library wraps it") from error

    monkeypatch.setattr(zoo.cli.data, "write_atomically", fail)
    monkeypatch.setattr(zoo.cli.data, "print_statistics", lambda *_: None)
    assert main(["stats", "data.yaml", "--json", "stats.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err
        == f"zoo: stats.json: {os.strerror(number)}; free or choose another disk, and run the same command again\n"
    )
