"""Bad input ends in one line and exit code 2, and writes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import FIT, PROPOSALS
from tiny_data import data_config, model_config, write_split, write_yaml

from zoo.cli.main import main


def spoil(name: str) -> Callable[[Path], None]:
    """The function of this name, which breaks something in the folder."""

    def no_model(folder: Path) -> None:
        (folder / "model.yaml").unlink()

    def broken_yaml(folder: Path) -> None:
        (folder / "data.yaml").write_text("train:\n  class_path: [\n")

    def unknown_class(folder: Path) -> None:
        write_yaml(folder / "model.yaml", {"class_path": "zoo.models.nothing.Nothing"})

    def no_annotations(folder: Path) -> None:
        (folder / "train.json").unlink()

    def broken_json(folder: Path) -> None:
        (folder / "val.json").write_text('{"images": [')

    def missing_image(folder: Path) -> None:
        (folder / "train/3.png").unlink()

    def truncated_image(folder: Path) -> None:
        for file in (folder / "train").iterdir():
            file.write_bytes(file.read_bytes()[:700])

    def other_classes(folder: Path) -> None:
        write_split(folder, "val", 3, ("box", "ball"))

    def wrong_checkpoint_classes(folder: Path) -> None:
        for split in ("train", "val", "test"):
            write_split(folder, split, 3, ("box", "bar", "ball"))

    def corrupt_checkpoint(folder: Path) -> None:
        (folder / "bad.ckpt").write_bytes(b"PK\x03\x04 this is no checkpoint")

    def foreign_checkpoint(folder: Path) -> None:
        torch.save({"state_dict": {}, "epoch": 3}, folder / "foreign.ckpt")

    def not_an_image(folder: Path) -> None:
        (folder / "test/2.png").write_text("not an image")

    def out_is_a_file(folder: Path) -> None:
        (folder / "out").write_text("")

    def train_alone(folder: Path) -> None:
        write_yaml(folder / "data.yaml", {"train": data_config(folder)["train"], "num_workers": 0})

    def checkpoint_without_config(folder: Path) -> None:
        (folder / "run/checkpoints").mkdir(parents=True)
        (folder / "run/checkpoints/last.ckpt").write_bytes(b"")

    def nothing(folder: Path) -> None:
        pass

    return locals()[name]


TEST = ["test", "--data", "data.yaml", "--trainer", "trainer.yaml"]


PREDICT = ["predict", "test", "--out", "out", "--checkpoint"]


COMPARE = ["compare", "--models", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml", "--out", "cmp"]


# (name of the problem, command line, words that the error line must contain)
BAD_INPUT = [
    ("nothing", ["fitt"], ["fitt", "compare"]),
    ("nothing", [*FIT, "--modle", "x"], ["--modle"]),
    ("nothing", ["fit", "--data", "data.yaml"], ["--model"]),
    ("nothing", [*FIT, "--model.depth", "3"], ["depth"]),
    ("nothing", [*FIT, "--model.width", "wide"], ["width", "wide"]),
    ("nothing", [*FIT, "--model.frame.min_size", "0"], ["min_size 0"]),
    ("nothing", [*FIT, "--trainer.accelerator", "gpux"], ["trainer", "gpux"]),
    ("nothing", [*FIT, "--trainer", "absent.yaml"], ["absent.yaml", "no such file"]),
    ("no_model", FIT, ["model.yaml", "no such file"]),
    ("broken_yaml", FIT, ["data.yaml", "line 3"]),
    ("unknown_class", FIT, ["zoo.models.nothing"]),
    ("no_annotations", FIT, ["train.json"]),
    ("broken_json", FIT, ["val.json"]),
    ("missing_image", FIT, ["3.png"]),
    ("truncated_image", FIT, [".png", "damaged"]),
    ("truncated_image", [*FIT, "--data.num_workers", "1"], [".png", "damaged"]),
    ("other_classes", FIT, ["classes", "ball"]),
    ("nothing", TEST, ["--checkpoint"]),
    ("nothing", [*TEST, "--checkpoint", "absent.ckpt"], ["absent.ckpt"]),
    ("corrupt_checkpoint", [*TEST, "--checkpoint", "bad.ckpt"], ["bad.ckpt"]),
    ("foreign_checkpoint", [*TEST, "--checkpoint", "foreign.ckpt"], ["foreign.ckpt"]),
    ("wrong_checkpoint_classes", [*TEST, "--checkpoint", "CHECKPOINT"], ["2 classes", "3"]),
    ("wrong_checkpoint_classes", [*FIT, "--checkpoint", "CHECKPOINT"], ["2 classes", "3"]),
    ("nothing", [*FIT, "--checkpoint", "CHECKPOINT", "--model.width", "5"], ["best.ckpt", "body", "[4"]),
    ("nothing", [*PREDICT, "absent.ckpt"], ["absent.ckpt"]),
    ("nothing", ["predict", "absent.jpg", "--out", "out", "--checkpoint", "CHECKPOINT"], ["absent.jpg"]),
    (
        "not_an_image",
        ["predict", "test/2.png", "--out", "out", "--checkpoint", "CHECKPOINT"],
        ["2.png", "not an image"],
    ),
    ("out_is_a_file", [*PREDICT, "CHECKPOINT"], ["out", "folder"]),
    ("nothing", ["predict", "test"], ["--checkpoint"]),
    ("nothing", ["proposals"], ["--data"]),
    ("nothing", [*PROPOSALS, "--mode", "slow"], ["mode", "slow"]),
    ("nothing", [*PROPOSALS, "--limit", "0"], ["limit is 0"]),
    ("nothing", [*PROPOSALS, "--workers", "-1"], ["--workers"]),
    ("nothing", [*PROPOSALS, "--model", "model.yaml"], ["model.yaml", "no region proposals"]),
    ("nothing", [*PROPOSALS, "--model", "absent.yaml"], ["absent.yaml", "no such file"]),
    ("broken_yaml", PROPOSALS, ["data.yaml", "line 3"]),
    ("no_annotations", PROPOSALS, ["train.json"]),
    ("truncated_image", PROPOSALS, [".png", "damaged"]),
    ("truncated_image", [*PROPOSALS[:3], "--workers", "1"], [".png", "damaged"]),
    ("nothing", ["evaluate", "--predictions", "absent.json", "--data", "data.yaml"], ["absent.json"]),
    ("nothing", ["evaluate", "--predictions", "train.json", "--data", "data.yaml"], ["train.json"]),
    ("nothing", [*COMPARE, "--epochs", "1", "--minutes", "1"], ["--epochs", "--minutes"]),
    ("nothing", [*COMPARE, "--names", "a", "b"], ["2 names", "1 model"]),
    ("nothing", [*COMPARE, "--seeds", "1", "1"], ["twice"]),
    ("nothing", [*COMPARE, "--epoch", "1"], ["--epoch"]),
    ("nothing", [*COMPARE, "--model.depth", "3"], ["depth"]),
    ("no_model", COMPARE, ["model.yaml", "no such file"]),
    ("no_annotations", COMPARE, ["train.json"]),
    ("nothing", [*COMPARE, "--trainer.accelerator", "gpux"], ["trainer", "gpux"]),
    ("nothing", [*COMPARE, "--trainer.enable_checkpointing", "false"], ["enable_checkpointing"]),
    ("train_alone", COMPARE, ["has no test or val images", "zoo split"]),
    ("train_alone", ["validate", *TEST[1:], "--checkpoint", "CHECKPOINT"], ["no val images"]),
    ("checkpoint_without_config", [*FIT, "--out", "run"], ["run", "no config.yaml"]),
    ("nothing", [*FIT, "--data.batch_size", "0"], ["batch_size", "is 0"]),
    ("nothing", [*COMPARE, "--data.batch_size", "0", "--images", "8"], ["batch_size", "is 0"]),
    ("nothing", [*FIT, "--data.num_workers", "-1"], ["num_workers", "is -1"]),
    ("nothing", [*PREDICT, "CHECKPOINT", "--batch_size", "0"], ["batch_size", "is 0"]),
    ("nothing", [*FIT, "--model.recipe.total_batch", "-8"], ["total_batch is -8"]),
]


@pytest.mark.parametrize(
    ("problem", "args", "words"), BAD_INPUT, ids=[f"{problem}-{args[0]}-{args[-1]}" for problem, args, _ in BAD_INPUT]
)
def test_bad_input_gives_one_line_and_writes_nothing(
    problem: str,
    args: list[str],
    words: list[str],
    folder: Path,
    checkpoint: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spoil(problem)(folder)
    before = {file for file in folder.rglob("*") if "__pycache__" not in file.parts}
    assert main([str(checkpoint) if arg == "CHECKPOINT" else arg for arg in args]) == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("zoo: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert "Traceback" not in captured.out + captured.err
    after = {file for file in folder.rglob("*") if "__pycache__" not in file.parts}
    assert after == before


def test_a_checkpoint_of_another_detector_is_refused(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["detector"]["class"] = "RetinaNet"
    torch.save(content, folder / "other.ckpt")
    assert main([*TEST, "--model", "model.yaml", "--checkpoint", "other.ckpt"]) == 2
    line = capsys.readouterr().err
    assert "other.ckpt" in line
    assert "RetinaNet" in line
    assert "TinyDetector" in line


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.json").unlink()
    assert main([*FIT, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_non_finite_loss_keeps_the_last_checkpoint(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_yaml(folder / "model.yaml", model_config(fails="diverges", fails_at=3))
    assert main(FIT) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "nan" in lines[0]
    assert ".png" in lines[0]
    last = torch.load(folder / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_an_internal_error_is_not_reported_as_bad_input(folder: Path) -> None:
    write_yaml(folder / "model.yaml", model_config(fails="raises", fails_at=0))
    with pytest.raises(RuntimeError, match="fails on purpose"):
        main(FIT)
