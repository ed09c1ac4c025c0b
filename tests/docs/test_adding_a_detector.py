"""The steps of the page "Add a detector", and no others, on a copy of the project."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT
from snippets import read_blocks, run_commands

from zoo.report.results import read_results

KEY = "center_grid"
PAGE = "docs/tutorials/add-a-detector.md"
TESTS = [f"tests/{name}.py" for name in ("test_contract", "test_device_sync", "test_flags", "io/test_configurations")]


def add_detector(project: Path) -> None:
    """Copy the project, and follow the page: its commands run, its patches are applied."""
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
    for folder in ("zoo", "configs", "tests", "docs"):
        shutil.copytree(ROOT / folder, project / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, project)
    for language, block in read_blocks(PAGE):
        if language == "diff":
            apply = ["git", "apply", "-p0", "--recount", "-"]
            subprocess.run(apply, cwd=project, input=block, text=True, check=True)
        elif "pytest" not in block:  # the tests and the comparison are those below
            run_commands(block, project, project)


@pytest.mark.slow
def test_the_steps_of_the_page_suffice(tmp_path: Path) -> None:
    """The contract tests pass, names and flags are known, and a comparison has the detector's name and ceiling."""
    add_detector(tmp_path)
    select = ["-m", "slow or not slow", "-k", f"{KEY} or every or match"]
    tested = run_commands(
        shlex.join(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *select, *TESTS]), tmp_path, tmp_path
    )
    assert "failed" not in tested
    assert int(re.search(r"(\d+) passed", tested)[1]) > 20
    assert f"{KEY}\n  CenterGrid: " in run_commands("zoo models", tmp_path, tmp_path)
    out = tmp_path / "runs" / "center_grid"
    run_commands(read_blocks(PAGE)[-1][1], tmp_path, tmp_path)
    (added,) = [run for run in read_results(out / "results.json").runs if run.model == KEY]
    assert (added.name, added.status) == ("CenterGrid", "done")
    (ceiling,) = added.analysis.ceilings
    assert ceiling.limit == "its cell is assigned to a smaller object"
    assert 0 < ceiling.share < 0.2
    assert "CenterGrid" in (out / "report.md").read_text()
