import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import FIT, PROPOSALS
from PIL import Image
from tiny_data import data_config, write_yaml
from videos import write_video

import zoo.models
from zoo.cli.main import VERBS, main
from zoo.io.configurations import find_configs
from zoo.proposals import SelectiveSearch
from zoo.training.configuration import make_parser, parse


def table_rows(text: str) -> list[str]:
    """Lines of a terminal table that contain numbers."""
    return [line for line in text.splitlines() if any(character.isdigit() for character in line)]


# ----------------------------------------------------------------------------------------------------------- training


def test_fit_writes_checkpoints_logs_and_configuration(trained: Path) -> None:
    run = trained / "runs/tiny/version_0"
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/AP", "val/VOC07", "train/loss", "train/class"} <= set(header)
    assert list(run.glob("events.out.tfevents.*"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["class_path"] == "tiny_detector.TinyDetector"
    assert config["seed_everything"] == 0


def test_classes_come_from_the_data(checkpoint: Path) -> None:
    detector = zoo.load(checkpoint)
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


def test_fit_resumes_from_a_checkpoint(folder: Path, checkpoint: Path) -> None:
    last = str(checkpoint.with_name("last.ckpt"))
    assert main([*FIT, "--trainer.max_epochs", "3", "--checkpoint", last]) == 0
    state = torch.load(folder / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 3 * 2


def test_a_flag_overrides_a_value_of_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


# --------------------------------------------------------------------------------------------------------- evaluation


def test_test_and_evaluate_give_the_same_numbers(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--checkpoint", str(checkpoint), "--data", "data.yaml", "--trainer", "trainer.yaml"]
    assert main(["test", *files, "--predictions", "p.json"]) == 0
    tested = table_rows(capsys.readouterr().out)[1:]  # the first line says what is evaluated
    assert not (folder / "runs").exists()
    entries = json.loads((folder / "p.json").read_text())
    assert {entry["category_id"] for entry in entries} <= {3, 6}
    assert {entry["image_id"] for entry in entries} == {10, 11, 12, 13}
    assert main(["evaluate", "--predictions", "p.json", "--data", "data.yaml"]) == 0
    assert table_rows(capsys.readouterr().out) == tested
    assert len(tested) >= 3

    assert main(["validate", *files, "--model", "model.yaml"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("val: 3 images, precision 32-true\n")
    assert len(table_rows(output)[1:]) == len(tested)


def test_evaluation_has_the_precision_of_the_training_or_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--model", "model.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml", "--out", "run"]
    assert main([*fit, "--trainer.max_epochs", "1", "--trainer.precision", "bf16-mixed"]) == 0
    capsys.readouterr()
    test = ["test", "--checkpoint", "run/checkpoints/last.ckpt", "--data", "data.yaml"]
    for precision, line in (
        ([], "bf16-mixed"),
        (["--trainer.precision", "32-true"], "32-true (the training had bf16-mixed)"),
    ):
        assert main([*test, "--trainer.accelerator", "cpu", *precision]) == 0
        assert capsys.readouterr().out.startswith(f"test: 4 images, precision {line}\n")


def test_predict_takes_videos_beside_images(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(folder / "film.mp4", 3)
    (folder / "broken.mp4").write_bytes(b"none")
    command = ["predict", "--checkpoint", str(checkpoint), "--out", "out", "--accelerator", "cpu", "--score", "0"]
    assert main([*command, "film.mp4"]) == 0
    assert "3 frames: out/annotated/film.mp4, out/annotated/film.json" in capsys.readouterr().out
    assert main([*command, "test", "film.mp4", "broken.mp4"]) == 1
    captured = capsys.readouterr()
    assert "4 images: out (1 of 6 skipped)" in captured.out
    assert "skipped: broken.mp4: cannot be read as a video" in captured.err
    assert main([*command, "broken.mp4"]) == 2


def test_predict_takes_thresholds_by_class(folder: Path, checkpoint: Path) -> None:
    options = ["predict", "test", "--checkpoint", str(checkpoint), "--accelerator", "cpu"]
    write_yaml(folder / "thresholds.yaml", {"box": 0.0, "bar": 1.0})
    assert main([*options, "--out", "all", "--score", "0"]) == 0
    assert main([*options, "--out", "boxes", "--thresholds", "thresholds.yaml"]) == 0
    every, boxes = (json.loads((folder / out / "predictions.json").read_text()) for out in ("all", "boxes"))
    assert 0 < len(boxes) < len(every)
    assert boxes == [detection for detection in every if detection["category_id"] == 1]


def test_predict_writes_predictions_and_annotated_images(folder: Path, checkpoint: Path) -> None:
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

    detector = zoo.load(checkpoint)
    pixels = torch.from_numpy(np.array(Image.open(folder / "more/0.jpg").convert("RGB"))).permute(2, 0, 1)
    with torch.no_grad():
        expected = detector([pixels])[0]
    scores = [entry["score"] for entry in entries if entry["image_id"] == 4]
    kept = expected["scores"][expected["scores"] >= 0.4]
    torch.testing.assert_close(torch.tensor(scores), kept, atol=1e-5, rtol=0)


def test_predict_skips_images_that_cannot_be_read(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "test/0.png").read_bytes()
    (folder / "test/0a.png").write_bytes(whole[: len(whole) // 2])
    (folder / "test/0b.png").write_bytes(b"no image")
    args = ["predict", "--checkpoint", str(checkpoint), "--out", "out"]
    assert main([*args, "test"]) == 1
    captured = capsys.readouterr()
    assert "4 images: out (2 of 6 skipped)" in captured.out
    skipped = [line for line in captured.err.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in skipped] == ["test/0a.png", "test/0b.png"]
    images = json.loads((folder / "out/images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"test/{number}.png" for number in range(4)]
    assert main([*args[:-1], "none", "test/0a.png"]) == 2
    assert "0a.png: image is damaged" in capsys.readouterr().err
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [("https://example.org/a.jpg", "is a URL; download"), ("film.MP4", "no such file")],
)
def test_predict_names_inputs_of_other_kinds(
    folder: Path, checkpoint: Path, path: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--checkpoint", str(checkpoint), path, "--out", "out"]) == 2
    assert capsys.readouterr().err.startswith(f"zoo: {path}: {reason}")


def test_proposals_fills_the_cache_and_reports_recall(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*PROPOSALS, "--data.proposal_cache", "kept", "--min_side", "8", "--mode", "single"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = table_rows(captured.out)
    assert [row.split()[1] for row in rows if "0.5" in row] == ["train", "val", "test"]
    assert len([file for file in (folder / "kept").rglob("*") if file.is_file()]) == 8 + 3 + 4
    monkeypatch.setattr("zoo.proposals.group_regions", None)  # any further search would fail
    again = ["proposals", "--data", "data.yaml", "--workers", "2", "--data.proposal_cache", "kept"]
    assert main([*again, "--min_side", "8", "--mode", "single"]) == 0
    assert table_rows(capsys.readouterr().out) == rows


def test_proposals_takes_the_name_of_a_detector(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROPOSALS, "--model", "fast_rcnn", "--data.proposal_cache", "kept"]) == 0
    assert "model fast_rcnn: " in capsys.readouterr().err
    assert main([*PROPOSALS, "--model", "retinanet"]) == 2
    assert capsys.readouterr().err.endswith("its detector needs no region proposals\n")


def test_fit_reads_the_proposals_cached_for_its_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"trunk": "resnet10t", "proposals": {"mode": "single", "width": 60, "min_side": 5}}
    model |= {"channels": 16, "head_width": 16, "frame": {"min_size": 32, "max_size": 64}}
    write_yaml(folder / "fast.yaml", {"class_path": "zoo.models.fast_rcnn.FastRCNN", "init_args": model})
    monkeypatch.setenv("ZOO_PROPOSALS", str(folder / "kept"))
    assert main([*PROPOSALS, "--model", "fast.yaml", "--limit", "7"]) == 0
    monkeypatch.setattr("zoo.proposals.group_regions", None)
    fit = ["fit", "--model", "fast.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
    assert main([*fit, "--trainer.max_epochs", "1", "--model.proposals.limit", "7"]) == 0
    checkpoint = "runs/fast_rcnn/version_0/checkpoints/best.ckpt"
    loaded = zoo.load(checkpoint)
    assert loaded.proposals == SelectiveSearch("single", 7, 60, 5)
    assert main(["predict", "test", "--out", "out", "--checkpoint", checkpoint]) == 0


# ------------------------------------------------------------------------------------------------------ verbs and help


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"zoo {verb}" in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"zoo {verb}" in capsys.readouterr().out.replace("zoo [options] ", "zoo ")


def test_help_and_a_mistyped_verb_do_not_import_torch() -> None:
    code = (
        "import sys; from zoo.cli.main import main; codes = main(['--help']), main(['fitt']);"
        " sys.exit(codes != (0, 2) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("zoo: unknown verb 'fitt'; choose from fit, ")


@pytest.mark.parametrize("kind", ["models", "data", "trainers"])
def test_shipped_configurations_parse(kind: str) -> None:
    files = sorted((find_configs() / kind).glob("*.yaml"))
    parser = make_parser()
    for file in files:
        config = parse(parser, [f"--{kind.removesuffix('s')}", str(file)])
        assert config.get(kind.removesuffix("s")) is not None
