"""The steps of "Add a detector" in CONTRIBUTING, and no others, on a copy of the project with the detector of docs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from zoo.report.results import read_results

KEY = "center_grid"
TESTS = [f"tests/{name}.py" for name in ("test_contract", "test_device_sync", "test_flags", "io/test_configurations")]


def add_detector(project: Path) -> None:
    """Copy the project, and follow CONTRIBUTING."""
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
    for folder in ("zoo", "configs", "tests", "docs"):
        shutil.copytree(ROOT / folder, project / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, project)
    examples = ROOT / "docs" / "examples"
    shutil.copy(examples / f"{KEY}.py", project / "zoo" / "models")
    for file in examples.glob("*.yaml"):
        shutil.copy(file, project / "configs" / "models")
    replace(
        project / "zoo" / "models" / "__init__.py",
        "from zoo.models.cornernet",
        f"from zoo.models.{KEY} import CenterGrid\n\\g<0>",
    )
    replace(
        project / "zoo" / "models" / "__init__.py", '    "cornernet": CornerNet,\n', f'\\g<0>    "{KEY}": CenterGrid,\n'
    )
    form = f'    "{KEY}": ("{KEY}", {{"trunk": "resnet10t"}}),\n'
    models = project / "zoo" / "models" / "__init__.py"
    replace(models, "from zoo.models.cornernet", f"from zoo.models.{KEY} import CenterGrid\n\\g<0>")
    replace(models, r'    "cornernet": CornerNet,\n', f'\\g<0>    "{KEY}": CenterGrid,\n')
    form = f'    "{KEY}": ("{KEY}", {{"trunk": "resnet10t"}}),\n'
    replace(project / "tests" / "helpers" / "forms.py", r"FORMS: .* = \{\n", f"\\g<0>{form}")
    run(project, "-m", "zoo.cli.arguments")


def replace(file: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, file.read_text())
    assert count == 1, pattern
    file.write_text(text)


def run(project: Path, *arguments: str) -> str:
    """Python on the copy; its output."""
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run([sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_steps_of_contributing_suffice(tmp_path: Path) -> None:
    """The contract tests pass, names and flags are known, and a comparison has the detector's name and ceiling."""
    add_detector(tmp_path)
    select = ["-m", "slow or not slow", "-k", f"{KEY} or every or match"]
    tested = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *select, *TESTS)
    assert "failed" not in tested
    assert int(re.search(r"(\d+) passed", tested)[1]) > 20
    assert f"{KEY}\n  CenterGrid: " in run(tmp_path, "-m", "zoo.cli", "models")
    out = tmp_path / "out"
    run(tmp_path, "-m", "zoo.cli", "compare", "--models", KEY, "yolov1", "--steps", "4", "--out", str(out))
    (added,) = [run for run in read_results(out / "results.json").runs if run.model == KEY]
    assert (added.name, added.status) == ("CenterGrid", "done")
    (ceiling,) = added.analysis.ceilings
    assert ceiling.limit == "its cell is assigned to a smaller object"
    assert 0 < ceiling.share < 0.2
    assert "CenterGrid" in (out / "report.md").read_text()
