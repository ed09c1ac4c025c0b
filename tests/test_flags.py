"""Flags of the training verbs: what is said of them before torch is imported."""

import subprocess
import sys

import pytest
import yaml
from paths import ROOT

import zoo.cli.arguments


def test_the_kept_names_of_flags_are_those_of_the_parser() -> None:
    kept = yaml.safe_load(zoo.cli.arguments.FILE.read_text())
    if kept["pytorch-lightning"] != zoo.cli.arguments.version("pytorch-lightning"):
        pytest.skip("made with another version of Lightning")
    assert kept["verbs"] == zoo.cli.arguments.list_flags(), "run: python -m zoo.cli.arguments"


def run_without_torch(*args: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that fails if it imports torch."""
    code = (
        "import sys; from zoo.cli.main import main; code = main(sys.argv[1:]);"
        " sys.exit(code + 50 * ('torch' in sys.modules))"
    )
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trainer.max_epoch", "3"], "unknown flag --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        (["--max_epochs", "3"], "unknown flag --max_epochs; did you mean --trainer.max_epochs?"),
        (["--batch_size=3"], "unknown flag --batch_size; did you mean --data.batch_size?"),
        (["--mod", "x.yaml"], "unknown flag --mod; did you mean --model?"),  # no abbreviations
        (["--model.frame.minsize", "3"], "did you mean --model.frame.min_size?"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--epochs", "3", "--minutes", "2"], "give exactly one of --epochs, --images, --minutes and --steps"),
        (["--data", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_wrong_flags_are_said_before_torch_is_imported(flags: list[str], said: str) -> None:
    done = run_without_torch("fit", "--model", "retinanet", *flags)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_help_is_two_screens_of_eighty_columns_at_once(verb: str) -> None:
    done = run_without_torch(verb, "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 80
    assert "--help-all" in done.stdout
    assert "retinanet" in done.stdout


def test_flags_of_own_models_and_of_readers_are_left_to_the_parser() -> None:
    check = zoo.cli.arguments.check_flags
    check("fit", ["--model.anything", "3", "--data.train.init_args.whatever", "x", "--trainer.logger.save_dir=y"], True)
    check("fit", ["--model.init_args.frame.min_size=128", "--trainer.callbacks+=TorchCompile"], False)
