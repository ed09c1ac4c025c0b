"""`zoo anchors`: shapes in the frame of a model, objects that count, and bad arguments."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_data import write_split

from zoo.cli.anchors import framed_sides, read_settings
from zoo.cli.main import main
from zoo.data.formats.coco import Coco
from zoo.io.configurations import model_files
from zoo.models.yolov3 import COCO_ANCHORS
from zoo.nn.frame import FrameConfig


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Boxes of 20 x 12 pixels in images of 48 x 32, and of one more size; a crowd that does not count."""
    for split in ("train", "val"):
        write_split(tmp_path, split, 6)
        file = tmp_path / f"{split}.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = [0, 0, 30, 30]
        content["annotations"][1] |= {"bbox": [0, 0, 48, 32], "iscrowd": 1}
        file.write_text(json.dumps(content))
    sources = {
        split: {
            "class_path": "Coco",
            "init_args": {"annotations": f"{tmp_path}/{split}.json", "images": f"{tmp_path}/{split}"},
        }
        for split in ("train", "val")
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(sources))
    return tmp_path / "data.yaml"


def test_anchors_are_printed_as_a_flag(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = data.with_name("model.yaml")
    frame = {"min_size": 96, "max_size": 96, "letterbox": True}
    model.write_text(yaml.safe_dump({"class_path": "YOLOv3", "init_args": {"frame": frame}}))
    assert main(["anchors", str(data), "--model", str(model), "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["9 objects, mean IoU with their best anchor:", "  2 anchors by k-means: 1.000"]
    assert lines[-3:] == [
        "    40.0    24.0         8",
        "    60.0    60.0         1",
        "--model.anchors [[40.0,24.0],[60.0,60.0]]",
    ]


def test_shapes_are_those_of_the_frame_without_crowds(data: Path) -> None:
    table = Coco(str(data.with_name("train.json")), str(data.with_name("train"))).read()
    for frame, sides in (
        (FrameConfig(96, 96, letterbox=True), (40.0, 24.0)),
        (FrameConfig(64, 64, stretch=True), (20 * 64 / 48, 12 * 64 / 32)),
        (FrameConfig(64, 80), (20 * 80 / 48, 12 * 53 / 32)),
    ):
        found = framed_sides(table, frame)
        assert found.shape == (9, 2)
        torch.testing.assert_close(found[1], torch.tensor(sides).double())


def test_a_models_settings_are_those_of_its_file_or_the_defaults() -> None:
    settings = read_settings(model_files()["yolov3_darknet"])
    assert settings["frame"] == FrameConfig(416, 416, letterbox=True)
    assert settings["anchors"] == COCO_ANCHORS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "3"], "cannot fit 3 anchors to 2 different box sizes; give another --count"),
        (["--split", "test"], "data.yaml: has no split test; give --split train or val"),
        (["--model", "retinanet"], "retinanet_mobilenetv2.yaml: is no YOLOv3 but RetinaNet"),
    ],
)
def test_bad_arguments(data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anchors", str(data), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
