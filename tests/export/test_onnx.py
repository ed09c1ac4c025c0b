"""ONNX files of small detectors against PyTorch, the check of an exported file, and error messages."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import onnxruntime
import PIL.Image
import pytest
import torch
from filelock import FileLock
from forms import FORMS as CONTRACT
from forms import FRAME
from snippets import read_snippets, run_snippet
from torch import Tensor

from zoo.cli.exit_codes import BAD_INPUT, OK
from zoo.cli.main import main
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.export import onnx as module
from zoo.export.onnx import check_file, compare_predictions, example_inputs, export_onnx, unsupported_reason, write_onnx
from zoo.models import MODELS
from zoo.nn.frame import FrameConfig
from zoo.types import Prediction

LARGE = FrameConfig(min_size=320, max_size=400)
SIZES = ((100, 130), (64, 200), (160, 96))  # resized slightly, resized by the longer side, not resized

FAST: dict[str, tuple[str, dict[str, object]]] = {
    "retinanet": ("retinanet", {"trunk": "resnet10t", "channels": 64, "head_depth": 1}),
    "yolov1": CONTRACT["yolov1"],
}
SLOW: dict[str, tuple[str, dict[str, object]]] = {
    "faster_rcnn": ("faster_rcnn", {"trunk": "resnet10t", "channels": 64, "head_width": 64}),
    # Not RoIPool: on small frames it gives close proposals identical features, and rounding decides which is kept.
    "faster_rcnn of one level": (
        "faster_rcnn",
        {
            "trunk": "vgg11",
            "pyramid": False,
            "anchor_scales": (2.0, 4.0, 8.0),
            "head_width": 64,
            "frame": LARGE,
        },
    ),
    "faster_rcnn with convolutions in the head": (
        "faster_rcnn",
        {"trunk": "resnet10t", "pyramid_norm": True, "head_convs": 1, "head_fcs": 1, "channels": 64, "head_width": 64},
    ),
    "retinanet at the images' own size": (
        "retinanet",
        {"trunk": "resnet10t", "channels": 64, "head_depth": 1, "frame": FrameConfig(32, 48, native_at_test=True)},
    ),
    "retinanet with frozen and group norm": (
        "retinanet",
        {"trunk": "resnet10t", "norm": "frozen", "group_norm": True, "channels": 64, "head_depth": 1},
    ),
    "fast_rcnn": ("fast_rcnn", {"trunk": "resnet10t", "channels": 64, "head_width": 64}),
    "fast_rcnn of the paper": (
        "fast_rcnn",
        {"trunk": "vgg11", "pyramid": False, "pooling": "pool", "head_width": 64, "frame": LARGE},
    ),
    **{form: CONTRACT[form] for form in ("yolov1 of the paper", "yolov1 of darknet's weights")},
    "sliding_window": CONTRACT["sliding_window"],
    **{form: value for form, value in CONTRACT.items() if form.startswith("cornernet")},
}
FORMS = FAST | SLOW


@pytest.fixture(scope="module", autouse=True)
def without_shape_checks() -> Iterator[None]:
    """Shape checks would read sizes, which are symbolic while torch.export runs."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def build(form: str) -> Detector:
    """An untrained detector with well separated scores: with close ones rounding decides what NMS keeps."""
    torch.manual_seed(0)
    name, arguments = FORMS[form]
    arguments = {"frame": FRAME, "class_names": ["red", "green", "blue"]} | arguments
    detector = MODELS[name](num_classes=3, **arguments).eval()
    detector.score_threshold = 1e-3  # type: ignore[assignment]
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            is_classifier = "class" in name or "heat" in name
            parameter.add_(torch.randn_like(parameter) * (0.1 if is_classifier else 0.02))
    return detector


def save(detector: Detector, file: Path) -> Path:
    description = {"class": type(detector).__name__, "arguments": detector.arguments}
    torch.save({"state_dict": detector.state_dict(), "detector": description}, file)
    return file


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """A detector and its ONNX file, which is written once for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "retinanet.onnx"
    detector = build("retinanet")
    with FileLock(folder / "retinanet.lock"):
        if not file.exists():
            write_onnx(detector, file, {"checkpoint": "last.ckpt"})
    return detector, file


# ------------------------------------------------------------------------------------------------- files and PyTorch


def assert_same(detector: Detector, file: Path) -> None:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    num_detections = 0
    for height, width in SIZES:
        inputs = example_inputs(detector, height, width)
        targets = [{"proposals": inputs["proposals"]} | EMPTY] if "proposals" in inputs else None
        (expected,) = detector([inputs["image"]], targets)
        boxes, scores, labels = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        assert len(scores) == len(expected["scores"])
        assert (boxes <= [width, height, width, height]).all()
        num_detections += len(scores)
        torch.testing.assert_close(torch.from_numpy(scores), expected["scores"], atol=1e-4, rtol=0)
        for box, score, label in zip(boxes, scores, labels, strict=True):
            same = (expected["labels"] == label) & ((expected["scores"] - score).abs() <= 1e-4)
            assert (expected["boxes"][same] - torch.from_numpy(box)).abs().amax(dim=1).min() <= 1e-3
    assert num_detections >= 5


EMPTY: dict[str, Tensor] = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "iscrowd": torch.zeros(0, dtype=torch.bool),
    "difficult": torch.zeros(0, dtype=torch.bool),
    "image_id": torch.tensor(0),
}


def test_onnx_detections_equal_pytorch(retinanet: tuple[Detector, Path]) -> None:
    detector, file = retinanet
    assert_same(detector, file)
    check = check_file(file, detector)
    assert check.num_detections >= 30
    assert 0 < check.box_difference <= 1e-3
    assert check.score_difference <= 1e-4


@pytest.mark.parametrize(
    "form", [*(set(FAST) - {"retinanet"}), *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)]
)
def test_onnx_detections_equal_pytorch_for_every_form(form: str, tmp_path: Path) -> None:
    detector = build(form)
    write_onnx(detector, tmp_path / "m.onnx", {})
    # Not `check_file`: its large images are scaled to small frames here, which multiplies rounding errors of boxes.
    assert_same(detector, tmp_path / "m.onnx")


@pytest.mark.slow
def test_greedy_merging_is_exported_as_nms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = MODELS["sliding_window"](num_classes=3, **CONTRACT["sliding_window"][1], suppression="merging")
    assert call(save(detector, tmp_path / "last.ckpt"), tmp_path / "m.onnx") == OK
    assert "note: the file has NMS in place of greedy merging" in capsys.readouterr().out
    metadata = onnxruntime.InferenceSession(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(metadata["arguments"])["suppression"] == "nms"


def test_metadata_inputs_and_outputs_of_the_file(retinanet: tuple[Detector, Path]) -> None:
    detector, file = retinanet
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["red", "green", "blue"]
    assert (metadata["detector"], metadata["checkpoint"]) == ("RetinaNet", "last.ckpt")
    assert json.loads(metadata["arguments"]) == json.loads(json.dumps(detector.arguments))
    assert torch.__version__.startswith(json.loads(metadata["versions"])["torch"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", [3, "height", "width"])
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("boxes", "tensor(float)", ["detections", 4]),
        ("scores", "tensor(float)", ["detections"]),
        ("labels", "tensor(int64)", ["detections"]),
    ]
    description = session.get_modelmeta().description
    assert "image: uint8 [3, height, width], RGB, of any size" in description
    assert "boxes: float32 [detections, 4], x1 y1 x2 y2 in pixels of the image" in description


def test_snippet_of_onnxruntime_alone(retinanet: tuple[Detector, Path], tmp_path: Path) -> None:
    detector, file = retinanet
    shutil.copy(file, tmp_path / "retinanet.onnx")
    pixels = example_inputs(detector, 96, 128)["image"].permute(1, 2, 0).numpy()
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    (snippet,) = read_snippets("docs/commands.md")
    lines = run_snippet(snippet, tmp_path).splitlines()
    found = detector(PIL.Image.open(tmp_path / "photo.jpg"), score=0.3)
    assert len(lines) == len(found["scores"]) > 0
    assert [line.split()[0] for line in lines] == detector.names(found)


def test_thresholds_are_in_the_metadata(
    retinanet: tuple[Detector, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, file = retinanet
    written: dict[str, str] = {}

    def write_prepared(detector: Detector, to: Path, metadata: dict[str, str]) -> None:
        written.update(metadata)
        shutil.copy(file, to)

    monkeypatch.setattr(module, "write_onnx", write_prepared)
    monkeypatch.setattr(module, "load", lambda _: copy.deepcopy(detector))
    scores = {"red": 0.2, "green": 0.5, "blue": 1}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    export_onnx(save(detector, tmp_path / "last.ckpt"), tmp_path / "model.onnx", tmp_path / "scores.json")
    assert json.loads(written["thresholds"]) == scores


# -------------------------------------------------------------------------------------------------------- the check


def test_check_detects_a_single_changed_weight(retinanet: tuple[Detector, Path]) -> None:
    detector, file = retinanet
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.get_parameter("regression.output.bias")[0] += 1e-3
    with pytest.raises(InputError, match=r"do not agree on an image of 500 x 375 pixels: .* detections"):
        check_file(file, other)


def prediction(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Prediction:
    return Prediction(boxes=torch.tensor(boxes).view(-1, 4), scores=torch.tensor(scores), labels=torch.tensor(labels))


def test_compare_predictions_by_hand() -> None:
    a, b = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 40.0]
    expected = prediction([a, b], [0.9, 0.9], [1, 2])
    assert compare_predictions(expected, expected) == (0.0, 0.0)
    assert compare_predictions(expected, prediction([b, a], [0.9, 0.9], [2, 1])) == (0.0, 0.0)
    boxes, scores = compare_predictions(expected, prediction([a, [20.0, 20.0, 30.0, 40.0005]], [0.90005, 0.9], [1, 2]))
    assert boxes == pytest.approx(5e-4, rel=0.02)
    assert scores == pytest.approx(5e-5, rel=0.02)
    assert compare_predictions(expected, prediction([a], [0.9], [1])) == "1 detections instead of 2"
    assert compare_predictions(expected, prediction([a, [20.0, 20.0, 30.0, 40.002]], [0.9, 0.9], [1, 2])).startswith(
        "1 of 2"
    )
    assert compare_predictions(expected, prediction([a, b], [0.9, 0.8998], [1, 2])).startswith("1 of 2")
    assert compare_predictions(expected, prediction([a, b], [0.9, 0.9], [1, 1])).startswith("1 of 2")
    assert compare_predictions(expected, prediction([a, a], [0.9, 0.9], [1, 1])).startswith("1 of 2")
    nothing = prediction([], [], [])
    assert compare_predictions(nothing, nothing) == (0.0, 0.0)


# ------------------------------------------------------------------------------------------------- the command line


def call(checkpoint: Path, out: Path) -> int:
    return main(["export", "--checkpoint", str(checkpoint), "--out", str(out)])


def test_only_a_file_that_passes_the_check_is_written(
    retinanet: tuple[Detector, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    detector, file = retinanet
    out, checkpoint = tmp_path / "out" / "model.onnx", save(detector, tmp_path / "last.ckpt")
    out.parent.mkdir()

    def write_prepared(detector: Detector, to: Path, metadata: dict[str, str]) -> None:
        assert to != out
        to.write_bytes(file.read_bytes())

    monkeypatch.setattr(module, "write_onnx", write_prepared)
    monkeypatch.setattr(module, "load", lambda _: copy.deepcopy(detector))
    assert call(checkpoint, out) == OK
    assert "detections as PyTorch on 3 images" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    assert out.read_bytes() == file.read_bytes()

    out.write_text("an older file")
    detector = copy.deepcopy(detector)
    with torch.no_grad():
        detector.get_parameter("classification.output.weight")[0] *= 1.1
    assert call(checkpoint, out) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "ONNX and PyTorch do not agree" in line
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    assert out.read_text() == "an older file"


def test_unusable_input_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"

    def error_line(checkpoint: Path, out: Path = out) -> str:
        before = sorted(tmp_path.iterdir())
        assert call(checkpoint, out) == BAD_INPUT
        assert sorted(tmp_path.iterdir()) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    detector = build("retinanet")
    checkpoint = save(detector, tmp_path / "last.ckpt")
    assert "no such checkpoint" in error_line(tmp_path / "other.ckpt")
    assert "no such folder" in error_line(checkpoint, tmp_path / "folder" / "model.onnx")
    assert "give --out a file" in error_line(checkpoint, tmp_path)
    detector = build("sliding_window")
    detector.arguments["evaluation"] = "crops"
    assert "evaluation: dense" in error_line(save(detector, tmp_path / "crops.ckpt"))

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the cause") from ValueError("of it\nand more")

    monkeypatch.setattr(torch.export, "export", fail)
    assert "this RetinaNet cannot be translated to ONNX (ValueError: of it)" in error_line(checkpoint)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert "zoo export needs onnxruntime: pip install detection-zoo[export]" in error_line(checkpoint)


def test_rcnn_and_too_large_detectors_are_refused() -> None:
    assert "Fast R-CNN" in (unsupported_reason(MODELS["rcnn"](num_classes=3, trunk="resnet10t")) or "")
    detector = build("retinanet")
    assert unsupported_reason(detector) is None
    detector.register_buffer("large", torch.empty(2**29, device="meta"))
    assert "2 GB" in (unsupported_reason(detector) or "")


@pytest.mark.slow
def test_without_detections_the_check_uses_score_threshold_zero(tmp_path: Path) -> None:
    detector = build("retinanet")
    detector.arguments["score_threshold"] = 0.9999
    checkpoint = save(detector, tmp_path / "last.ckpt")
    check = module.export_onnx(checkpoint, tmp_path / "model.onnx")
    assert check.num_detections > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "model.onnx"]
