"""The layers of `pyproject.toml`, checked by import-linter: the package keeps them, and a broken one is found."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "zoo", folder / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_package_keeps_its_layers(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "contract"),
    [
        ("ops/boxes.py", "from zoo.nn.frame import Frame", "Imports run downwards only"),
        ("nn/fpn.py", "from zoo import load", "Imports run downwards only"),
        ("experiment/comparison.py", "def plant():\n    from zoo.cli.main import main", "Imports run downwards only"),
        ("report/html.py", "import zoo.callbacks.learning_curve", "Imports run downwards only"),
        ("models/retinanet.py", "import zoo.models.faster_rcnn", "A model file imports no other model file"),
        ("models/retinanet.py", "from zoo.data import table", "Detectors know neither data sets nor evaluation"),
        ("evaluation/coco.py", "from zoo.data.module import Split", "Evaluation knows annotation tables only"),
        ("evaluation/coco.py", "import pytorch_lightning", "Evaluation knows annotation tables only"),
        ("data/dataset.py", "from zoo.data.formats.coco import Coco", "Formats stay at the edge"),
    ],
)
def test_a_planted_import_breaks_its_contract(copy: Path, file: str, planted: str, contract: str) -> None:
    path = copy / "zoo" / file
    before = path.read_text()
    path.write_text(f"{before}\n{planted}\n")
    try:
        done = lint(copy)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert re.search(rf"^{re.escape(contract)}.* BROKEN( \(1 ignored import\))?$", done.stdout, re.MULTILINE), (
        done.stdout
    )


def test_a_new_folder_needs_a_layer(copy: Path) -> None:
    (copy / "zoo" / "unknown").mkdir()
    (copy / "zoo" / "unknown" / "__init__.py").touch()
    try:
        done = lint(copy)
    finally:
        shutil.rmtree(copy / "zoo" / "unknown")
    assert done.returncode == 1
    assert "zoo.unknown" in done.stdout
