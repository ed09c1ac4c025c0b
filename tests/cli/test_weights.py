"""`--model.weights` in fit and compare, and published files in the commands that need a detector."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from commands import FIT
from PIL import Image
from tiny_data import model_config, write_yaml

import zoo
from zoo.cli.main import main
from zoo.io.class_names import COCO_CLASSES

ONE_STEP = ["--model.recipe.lr", "0", "--steps", "1"]  # the weights stay as they were loaded


def state(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


def test_a_training_starts_from_weights(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, *ONE_STEP, "--model.weights", str(checkpoint), "--out", "run"]) == 0
    assert f"weights: 4 of 4 tensors from {checkpoint}\n" in capsys.readouterr().out
    ours, theirs = state(folder / "run/checkpoints/last.ckpt"), state(checkpoint)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert (config["weights"], config["weights_layout"]) == (str(checkpoint), None)


def test_resuming_does_not_load_them_again(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "start.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    pixels = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}  # which the run takes over, resumed too
    content["detector"]["arguments"]["frame"] |= pixels
    torch.save(content, weights)
    command = [*FIT, "--model.weights", "start.ckpt", "--out", "run"]
    assert main([*command, "--epochs", "1"]) == 0
    weights.unlink()
    capsys.readouterr()
    assert main([*command, "--epochs", "2"]) == 0
    assert "weights:" not in capsys.readouterr().out
    last = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    frame = last["detector"]["arguments"]["frame"]
    assert {key: frame[key] for key in pixels} == pixels
    assert main([*FIT, "--out", "run", "--epochs", "3"]) == 2
    assert "weights: holds a run with start.ckpt, now it is None" in capsys.readouterr().err


def test_a_model_file_names_its_weights(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model of a comparison has its own; the command line comes after the file."""
    write_yaml(folder / "tuned.yaml", {**model_config(), "weights": str(checkpoint), "weights_layout": "zoo"})
    compare = ["compare", "--models", "model.yaml", "tuned.yaml", *FIT[3:], *ONE_STEP, "--out", "out"]
    assert main(compare) == 0
    assert f"tuned: weights: 4 of 4 tensors from {checkpoint}" in capsys.readouterr().out
    theirs = state(checkpoint)
    ours = {name: state(folder / f"out/{name}_seed0/checkpoints/last.ckpt") for name in ("model", "tuned")}
    assert all(torch.equal(ours["tuned"][name], theirs[name]) for name in theirs)
    assert not torch.equal(ours["model"]["head.weight"], theirs["head.weight"])
    assert json.loads((folder / "out/tuned_seed0/run.json").read_text())["weights"] == str(checkpoint)

    assert main(["fit", "--model=tuned.yaml", *FIT[3:], "--model.weights=none.ckpt", "--out", "run"]) == 2
    assert capsys.readouterr().err == "zoo: none.ckpt: no such weights file\n"
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.weights_layout", "zoo"], "--model.weights_layout needs --model.weights FILE"),
        (["--model.weights", "data.yaml"], "data.yaml: is not a readable weights file"),
        (["--model.weights", "x.pth", "--checkpoint", "CHECKPOINT"], "give --checkpoint to go on with a training, or"),
        (["--model.weights", "data.yaml", "--model.weights_layout", "keras"], "weights_layout: is 'keras'; it must be"),
    ],
)
def test_weights_that_cannot_be_used(
    folder: Path, checkpoint: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag.replace("CHECKPOINT", str(checkpoint)) for flag in flags]
    assert main([*FIT, *flags, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"zoo: {message}")
    assert error.count("\n") == 1
    assert not (folder / "run").exists()


# ------------------------------------------------------------------------------------------------------ published files


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's RetinaNet, which finds a person everywhere."""
    torch.manual_seed(0)
    network = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    logits = network.head.classification_head.cls_logits
    torch.nn.init.constant_(logits.bias.data.view(9, 91)[:, 1], 0.0)
    torch.nn.init.normal_(logits.weight.data.view(9, 91, 256, 3, 3)[:, 1], std=0.05)  # scores that differ
    file = tmp_path_factory.mktemp("published") / "retinanet_resnet50_fpn_coco-eeacb38b.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images in COCO format, with COCO's classes."""
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    for split in ("val", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(pixels).save(tmp_path / split / "a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
            ],
            "categories": [{"id": number, "name": name} for number, name in enumerate(COCO_CLASSES, start=1)],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_predictions_of_a_published_file(published: Path, images: Path) -> None:
    out = images / "found"
    assert main(["predict", str(images / "val/a.png"), "--checkpoint", str(published), "--out", str(out)]) == 0
    assert [category["name"] for category in json.loads((out / "images.json").read_text())["categories"]] == [
        *COCO_CLASSES
    ]
    found = json.loads((out / "predictions.json").read_text())
    assert {detection["category_id"] for detection in found} == {1}
    assert max(detection["score"] for detection in found) > 0.5


@pytest.mark.slow
def test_other_commands_take_a_published_file(published: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    splits = {
        split: {"class_path": "Coco", "init_args": {"annotations": f"{split}.json", "images": split}}
        for split in ("val", "test")
    }
    write_yaml(images / "data.yaml", {"name": "coco", "num_workers": 0, **splits})
    for verb in ("validate", "test"):
        file = images / f"{verb}_predictions.json"
        assert main([verb, "--checkpoint", str(published), "--data", "data.yaml", "--predictions", str(file)]) == 0
        assert {detection["category_id"] for detection in json.loads(file.read_text())} == {1}
    # In a process of its own, since shapes are not checked while a detector is translated.
    export = [sys.executable, "-m", "zoo.cli", "export", "--checkpoint", str(published), "--out", "retinanet.onnx"]
    assert subprocess.run(export, check=False).returncode == 0
    assert (images / "retinanet.onnx").stat().st_size > 100e6
    measure = [
        "benchmark",
        "--checkpoint",
        str(published),
        "--data",
        "data.yaml",
        "--batch_sizes",
        "1",
        "--seconds",
        "0.1",
    ]
    assert main(measure) == 0


def test_the_form_of_a_published_file(published: Path) -> None:
    detector = zoo.load(published)
    assert detector.class_names == COCO_CLASSES
    assert not detector.training
    norm = detector.get_submodule("trunk.network.bn1")
    assert float(norm.running_var[0]) + norm.eps == pytest.approx(1.0)  # COCO_V1 has epsilon 0
