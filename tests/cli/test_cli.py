import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_data import data_config, model_config, write_files, write_split, write_yaml
from tiny_detector import TinyDetector

import zoo.models
from zoo.cli.main import VERBS, find_configs, main
from zoo.proposals import SelectiveSearch
from zoo.training.configuration import make_parser, one_line, parse

FIT = ["fit", "--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]


@pytest.fixture(scope="module", autouse=True)
def _known_to_the_zoo() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and configurations, and the place where the command line is called."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, after a `zoo fit` of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
    return folder


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "runs/tiny/version_0/checkpoints/best.ckpt"


def table_rows(text: str) -> list[str]:
    """Lines of a terminal's table that have numbers in them."""
    return [line for line in text.splitlines() if any(character.isdigit() for character in line)]


# ----------------------------------------------------------------------------------------------------------- training


def test_fit_leaves_checkpoints_logs_and_its_configuration(trained: Path) -> None:
    run = trained / "runs/tiny/version_0"
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/AP", "val/VOC07", "train/loss", "train/class"} <= set(header)
    assert list(run.glob("events.out.tfevents.*"))
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["model"]["class_path"] == "tiny_detector.TinyDetector"
    assert written["seed_everything"] == 0


def test_classes_come_from_the_data(checkpoint: Path) -> None:
    detector = zoo.models.load(checkpoint)
    assert detector.num_classes == 2
    assert detector.class_names == ("box", "bar")


def test_the_same_seed_trains_the_same_weights(folder: Path, trained: Path, checkpoint: Path) -> None:
    assert main(FIT) == 0
    ours = torch.load(folder / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    theirs = torch.load(checkpoint.with_name("last.ckpt"), weights_only=True)["state_dict"]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert main([*FIT, "--seed_everything", "1"]) == 0
    other = torch.load(folder / "runs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not all(torch.equal(other[key], theirs[key]) for key in theirs)


def test_fit_goes_on_from_a_checkpoint(folder: Path, checkpoint: Path) -> None:
    last = str(checkpoint.with_name("last.ckpt"))
    assert main([*FIT, "--trainer.max_epochs", "3", "--checkpoint", last]) == 0
    state = torch.load(folder / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 3 * 2


def test_a_single_value_overrides_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--model.width", "3", "--data.batch_size", "2", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["width"] == 3
    assert printed["data"]["batch_size"] == 2
    assert printed["trainer"]["max_epochs"] == 2
    assert not (folder / "runs").exists()


def test_training_without_a_validation_split(folder: Path) -> None:
    config = data_config(folder)
    del config["val"]
    write_yaml(folder / "data.yaml", config)
    assert main([*FIT, "--trainer.max_epochs", "1"]) == 0
    checkpoints = folder / "runs/tiny/version_0/checkpoints"
    assert [file.name for file in checkpoints.iterdir()] == ["last.ckpt"]


# ---------------------------------------------------------------------------------------------------------- measuring


def test_test_and_evaluate_give_the_same_numbers(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = ["--checkpoint", str(checkpoint), "--data", "data.yaml", "--trainer", "trainer.yaml"]
    assert main(["test", *measured, "--predictions", "p.json"]) == 0
    tested = table_rows(capsys.readouterr().out)
    assert not (folder / "runs").exists()
    entries = json.loads((folder / "p.json").read_text())
    assert {entry["category_id"] for entry in entries} <= {3, 6}
    assert {entry["image_id"] for entry in entries} == {10, 11, 12, 13}
    assert main(["evaluate", "--predictions", "p.json", "--data", "data.yaml"]) == 0
    assert table_rows(capsys.readouterr().out) == tested
    assert len(tested) >= 3

    assert main(["validate", *measured, "--model", "model.yaml"]) == 0
    assert len(table_rows(capsys.readouterr().out)) == len(tested)


def test_predict_writes_results_and_pictures(folder: Path, checkpoint: Path) -> None:
    (folder / "more").mkdir()
    Image.fromarray(np.full((20, 30), 128, np.uint8)).save(folder / "more/0.jpg")
    args = ["predict", "--checkpoint", str(checkpoint), "test", "more/0.jpg", "--out", "out", "--score", "0.4"]
    assert main(args) == 0
    out = folder / "out"
    images = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in images["images"]] == [0, 1, 2, 3, 4]
    assert images["images"][4] == {"id": 4, "file_name": "more/0.jpg", "width": 30, "height": 20}
    assert images["categories"] == [{"id": 1, "name": "box"}, {"id": 2, "name": "bar"}]
    entries = json.loads((out / "predictions.json").read_text())
    assert all(entry["score"] >= 0.4 for entry in entries)
    assert sorted(file.name for file in (out / "annotated").iterdir()) == [
        "0.jpg",
        "0_1.jpg",
        "1.jpg",
        "2.jpg",
        "3.jpg",
    ]

    detector = zoo.models.load(checkpoint)
    pixels = torch.from_numpy(np.array(Image.open(folder / "more/0.jpg").convert("RGB"))).permute(2, 0, 1)
    with torch.no_grad():
        expected = detector([pixels])[0]
    scores = [entry["score"] for entry in entries if entry["image_id"] == 4]
    kept = expected["scores"][expected["scores"] >= 0.4]
    torch.testing.assert_close(torch.tensor(scores), kept, atol=1e-5, rtol=0)


PROPOSALS = ["proposals", "--data", "data.yaml", "--workers", "0"]


def test_proposals_fills_the_cache_and_reports_recall(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*PROPOSALS, "--data.proposal_cache", "kept", "--min_side", "8", "--mode", "single"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = table_rows(captured.out)
    assert [row.split()[1] for row in rows if "0.5" in row] == ["train", "val", "test"]
    assert len([file for file in (folder / "kept").rglob("*") if file.is_file()]) == 8 + 3 + 4
    monkeypatch.setattr("zoo.proposals.group", None)  # nothing is left to be searched
    again = ["proposals", "--data", "data.yaml", "--workers", "2", "--data.proposal_cache", "kept"]
    assert main([*again, "--min_side", "8", "--mode", "single"]) == 0
    assert table_rows(capsys.readouterr().out) == rows


def test_proposals_of_a_model_are_what_its_training_finds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"trunk": "resnet10t", "proposals": {"mode": "single", "width": 60, "min_side": 5}}
    model |= {"channels": 16, "head_width": 16, "frame": {"min_size": 32, "max_size": 64}}
    write_yaml(folder / "fast.yaml", {"class_path": "zoo.models.fast_rcnn.FastRCNN", "init_args": model})
    monkeypatch.setenv("ZOO_PROPOSALS", str(folder / "kept"))
    assert main([*PROPOSALS, "--model", "fast.yaml", "--limit", "7"]) == 0
    monkeypatch.setattr("zoo.proposals.group", None)
    fit = ["fit", "--model", "fast.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
    assert main([*fit, "--trainer.max_epochs", "1", "--model.proposals.limit", "7"]) == 0
    checkpoint = "runs/fast_rcnn/version_0/checkpoints/best.ckpt"
    loaded = zoo.models.load(checkpoint)
    assert loaded.proposals == SelectiveSearch("single", 7, 60, 5)
    assert main(["predict", "test", "--out", "out", "--checkpoint", checkpoint]) == 0


# ---------------------------------------------------------------------------------------------------------- the door


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"zoo {verb}" in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"zoo {verb}" in capsys.readouterr().out.replace("zoo [options] ", "zoo ")


def test_help_and_a_mistyped_verb_load_nothing_heavy() -> None:
    code = (
        "import sys; from zoo.cli.main import main; codes = main(['--help']), main(['fitt']);"
        " sys.exit(codes != (0, 2) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("zoo: no verb 'fitt'; there are fit, ")


@pytest.mark.parametrize("kind", ["models", "data", "trainers"])
def test_the_configurations_that_come_with_the_zoo_parse(kind: str) -> None:
    files = sorted((find_configs() / kind).glob("*.yaml"))
    parser = make_parser()
    for file in files:
        config = parse(parser, [f"--{kind.removesuffix('s')}", str(file)])
        assert config.get(kind.removesuffix("s")) is not None


# ---------------------------------------------------------------------------------------------------------- bad input


def spoil(name: str) -> Callable[[Path], None]:
    """What is wrong, by name, as a change to the good folder."""

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


MEASURE = ["test", "--data", "data.yaml", "--trainer", "trainer.yaml"]
PREDICT = ["predict", "test", "--out", "out", "--checkpoint"]
COMPARE = ["compare", "--models", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml", "--out", "cmp"]

# (what is wrong, command line, words that the one line must have)
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
    ("nothing", MEASURE, ["--checkpoint"]),
    ("nothing", [*MEASURE, "--checkpoint", "absent.ckpt"], ["absent.ckpt"]),
    ("corrupt_checkpoint", [*MEASURE, "--checkpoint", "bad.ckpt"], ["bad.ckpt"]),
    ("foreign_checkpoint", [*MEASURE, "--checkpoint", "foreign.ckpt"], ["foreign.ckpt"]),
    ("wrong_checkpoint_classes", [*MEASURE, "--checkpoint", "CHECKPOINT"], ["2 classes", "3"]),
    ("wrong_checkpoint_classes", [*FIT, "--checkpoint", "CHECKPOINT"], ["2 classes", "3"]),
    ("nothing", [*FIT, "--checkpoint", "CHECKPOINT", "--model.width", "5"], ["best.ckpt", "body", "[4"]),
    ("nothing", [*PREDICT, "absent.ckpt"], ["absent.ckpt"]),
    ("nothing", ["predict", "absent.jpg", "--out", "out", "--checkpoint", "CHECKPOINT"], ["absent.jpg"]),
    ("not_an_image", [*PREDICT, "CHECKPOINT"], ["2.png", "not an image"]),
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
    ("train_alone", COMPARE, ["neither a test nor a val split"]),
    ("train_alone", ["validate", *MEASURE[1:], "--checkpoint", "CHECKPOINT"], ["no val images"]),
    ("checkpoint_without_config", [*FIT, "--out", "run"], ["run", "no config.yaml"]),
    ("nothing", [*FIT, "--data.batch_size", "0"], ["batch_size", "is 0"]),
    ("nothing", [*COMPARE, "--data.batch_size", "0", "--images", "8"], ["batch_size", "is 0"]),
    ("nothing", [*FIT, "--data.num_workers", "-1"], ["num_workers", "is -1"]),
    ("nothing", [*PREDICT, "CHECKPOINT", "--batch_size", "0"], ["batch_size", "is 0"]),
    ("nothing", [*FIT, "--model.recipe.total_batch", "-8"], ["total_batch -8"]),
]


@pytest.mark.parametrize(
    ("problem", "args", "words"), BAD_INPUT, ids=[f"{problem}-{args[0]}-{args[-1]}" for problem, args, _ in BAD_INPUT]
)
def test_bad_input_is_one_line_and_leaves_nothing(
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


def test_a_checkpoint_of_another_detector(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["detector"]["class"] = "RetinaNet"
    torch.save(content, folder / "other.ckpt")
    assert main([*MEASURE, "--model", "model.yaml", "--checkpoint", "other.ckpt"]) == 2
    line = capsys.readouterr().err
    assert "other.ckpt" in line
    assert "RetinaNet" in line
    assert "TinyDetector" in line


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.json").unlink()
    assert main([*FIT, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_yaml(folder / "model.yaml", model_config(fails="diverges", fails_at=3))
    assert main(FIT) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "nan" in lines[0]
    assert ".png" in lines[0]
    last = torch.load(folder / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_a_fault_of_ours_is_not_dressed_up_as_bad_input(folder: Path) -> None:
    write_yaml(folder / "model.yaml", model_config(fails="raises", fails_at=0))
    with pytest.raises(RuntimeError, match="told to fail"):
        main(FIT)


def test_a_parsers_many_lines_become_one() -> None:
    said = """Parser key "trainer.max_epochs":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: q"""
    assert one_line(said) == "Parser key \"trainer.max_epochs\": Expected a <class 'int'>"
