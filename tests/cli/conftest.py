from pathlib import Path

import pytest
from commands import FIT
from tiny_data import write_files
from tiny_detector import TinyDetector

import zoo.models
from zoo.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def _register_tiny_detector() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and configurations; the working directory of the test."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `folder`, after a `zoo fit` of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
    return folder


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "runs/tiny/version_0/checkpoints/best.ckpt"
