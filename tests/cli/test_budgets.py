"""Length and seed of a training, and run folders in place of checkpoints."""

from pathlib import Path

import pytest
import yaml
from commands import FIT

from zoo.cli.main import main


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (["--epochs", "1"], {"max_epochs": 1, "max_steps": -1}),
        (["--images", "9"], {"max_epochs": -1, "max_steps": 3}),  # of 4 images a step
        (["--steps", "3"], {"max_epochs": -1, "max_steps": 3}),
        (["--minutes", "0.01"], {"max_time": "00:00:00:01"}),
    ],
)
def test_fit_takes_the_budgets_of_compare(budget: list[str], expected: dict[str, object], folder: Path) -> None:
    assert main([*FIT, *budget, "--seed", "3", "--out", "run"]) == 0
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert {key: config["trainer"][key] for key in expected} == expected
    assert config["seed_everything"] == 3


def test_fit_without_a_budget_ends_and_says_when(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", "model.yaml", "--data", "data.yaml", "--trainer.accelerator", "cpu"]) == 0
    assert "budget: 30 epochs (change it by --epochs, --images, --minutes or --steps)" in capsys.readouterr().out


def test_run_folders_stand_for_their_checkpoints(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "runs" / "tiny" / "version_0"
    assert main(["validate", "--checkpoint", str(run), "--data", "data.yaml", "--trainer.accelerator", "cpu"]) == 0
    assert f"checkpoint: {run / 'checkpoints' / 'best.ckpt'}\n" in capsys.readouterr().err
    assert main(["predict", "--checkpoint", str(run), "test", "--out", "found", "--accelerator", "cpu"]) == 0
    assert "best.ckpt" in capsys.readouterr().err
    assert main([*FIT, "--checkpoint", str(run), "--epochs", "3"]) == 0
    assert "last.ckpt" in capsys.readouterr().err
