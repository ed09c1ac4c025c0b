"""Detectors and configurations by name, and command lines with them."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import zoo.io.configurations
import zoo.models
from zoo.cli.main import main
from zoo.io.configurations import default_models, detector_names, files_first, find_model_file, model_files, name_models
from zoo.models import MODELS
from zoo.training.configuration import make_parser, parse


@pytest.mark.parametrize(
    ("name", "data", "file"),
    [
        ("retinanet", None, "retinanet_tiny"),
        ("retinanet", "configs/data/shapes.yaml", "retinanet_tiny"),
        ("retinanet", "data/cells", "retinanet_mobilenetv2"),
        ("retinanet_r50_fpn", "data/cells", "retinanet_r50_fpn"),
        ("rcnn", "cells.yaml", "rcnn_mobilenetv2"),
    ],
)
def test_a_name_stands_for_a_shipped_file(name: str, data: str | None, file: str) -> None:
    assert find_model_file(name, data) == model_files()[file]


def test_a_detector_without_a_fine_tuned_form_is_trained_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: file for name, file in model_files().items() if name != "rcnn_mobilenetv2"}
    monkeypatch.setattr(zoo.io.configurations, "model_files", lambda: files)
    assert find_model_file("rcnn", "cells") == files["rcnn_r18"]
    assert files["rcnn_r18"] in default_models("cells", has_masks=False)


def test_every_detector_has_a_configuration_for_shapes_and_for_other_data() -> None:
    assert sorted(detector_names()) == sorted(MODELS)
    assert all(find_model_file(name, data).is_file() for name in MODELS for data in (None, "cells"))


def test_the_fastest_detectors_are_trained_first_and_all_are_trained() -> None:
    names = [file.stem.removesuffix("_tiny") for file in default_models(None, has_masks=True)]
    assert names[0] == "yolov1"
    assert names[-2:] == ["mask_rcnn", "rcnn"]
    assert sorted(names) == sorted(MODELS)


@pytest.mark.parametrize("verb", [["fit", "--model"], ["compare", "--models"]])
@pytest.mark.parametrize(("name", "near"), [("retinet", "retinanet"), ("faster-rcnn", "faster_rcnn"), ("xyz", "")])
def test_an_unknown_name_is_said_with_the_nearest(
    verb: list[str], name: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, name]) == 2
    message = capsys.readouterr().err
    assert f"no detector or configuration is named {name!r}" in message
    assert near in message
    assert message.count("\n") == 1


def test_the_file_of_a_name_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    file = model_files()["yolov1_mobilenetv2"]
    assert name_models(["--model", "yolov1", "--data=cells"]) == [f"--model={file}", "--data=cells"]
    assert capsys.readouterr().err == f"model yolov1: {file}\n"
    unchanged = ["--model", "m.yaml", "--model", "RetinaNet", '--model={"class_path": "RetinaNet"}']
    assert name_models(unchanged) == unchanged


def test_zoo_models_lists_every_detector_file_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in model_files())
    assert all(f"{name}\n  " in text for name in MODELS)
    for paper in (
        "1312.6229",
        "1311.2524",
        "1504.08083",
        "1506.01497",
        "1506.02640",
        "1512.02325",
        "1708.02002",
        "1804.02767",
        "1703.06870",
        "1808.01244",
    ):
        assert paper in text


@pytest.mark.parametrize("file", model_files().values(), ids=lambda file: file.stem)
def test_the_number_of_weights_in_a_model_file_is_right(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    cls = getattr(zoo.models, content["class_path"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "detector")
    arguments = content["init_args"] | {"num_classes": 20, "pretrained": False}
    # Windows are computed from values, which tensors without memory do not have.
    with torch.device("cpu" if cls is zoo.models.SlidingWindow else "meta"):
        detector = parser.instantiate(parser.parse_object({"detector": arguments})).detector
    count = sum(parameter.numel() for parameter in detector.parameters()) / 1e6
    assert f"\n# {count:.3g} million weights for 20 classes.\n" in file.read_text()


def test_the_order_of_files_and_single_values_does_not_matter() -> None:
    args = ["fit", "--model.trunk", "resnet18", "--model", "m.yaml", "--data.batch_size=2", "--data=d.yaml"]
    expected = ["fit", "--data=d.yaml", "--model=m.yaml", "--model.trunk", "resnet18", "--data.batch_size=2"]
    assert files_first(args) == expected
    file = str(model_files()["retinanet_tiny"])
    data = ["--data.train", "Shapes", "--data.train.num_images", "2"]
    config = parse(make_parser(), ["--model.trunk", "resnet18", "--model", file, *data])
    assert config.model.init_args.trunk == "resnet18"
    assert config.model.init_args.frame.min_size == 128
