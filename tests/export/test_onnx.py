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
from forms import FRAME, PAPER_SSD
from snippets import read_snippets, run_snippet
from torch import Tensor

import zoo
from zoo.cli.exit_codes import BAD_INPUT, OK
from zoo.cli.main import main
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.export import onnx as module
from zoo.export.onnx import check_file, compare_predictions, export_onnx, unsupported_reason, write_onnx
from zoo.export.programs import ImageBatch, Program, SingleImage, select_image
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
    **{form: CONTRACT[form] for form in ("sliding_window", "ssd")},
    "ssd of the paper": PAPER_SSD,
    **{form: value for form, value in CONTRACT.items() if form.startswith(("yolov3", "mask_rcnn"))},
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
        if form == "ssd of the paper":  # features of length 20 would saturate the scores, and all would be close
            detector.get_parameter("finest.scale").fill_(1.0)
            for predictor in detector.get_submodule("classes").children():
                predictor.weight.mul_(0.3)
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
            write_onnx(SingleImage(detector), file, {"checkpoint": "last.ckpt"})
    return detector, file


# ------------------------------------------------------------------------------------------------- files and PyTorch


def assert_same(program: Program, file: Path) -> None:
    """The file's detections are those of the detector on each image alone."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    num_detections = 0
    for height, width in SIZES:
        inputs = program.example_inputs(height, width)
        outputs = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        images = inputs["images"] if "images" in inputs else inputs["image"][None]
        proposals = inputs["proposals"].view(len(images), -1, 4) if "proposals" in inputs else None
        found = program.split([torch.from_numpy(array) for array in outputs])
        for index, (image, one) in enumerate(zip(images, found, strict=True)):
            targets = None if proposals is None else [{"proposals": proposals[index]} | EMPTY]
            (expected,) = program.detector([image], targets)
            assert len(one["scores"]) == len(expected["scores"])
            assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
            num_detections += len(one["scores"])
            torch.testing.assert_close(one["scores"], expected["scores"], atol=1e-4, rtol=0)
            for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
                same = (expected["labels"] == label) & ((expected["scores"] - score).abs() <= 1e-4)
                assert (expected["boxes"][same] - box).abs().amax(dim=1).min() <= 1e-3
            if "masks" in expected:
                torch.testing.assert_close(one["masks"].mean(), expected["masks"].mean(), atol=1e-4, rtol=0)
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
    assert_same(SingleImage(detector), file)
    check = check_file(file, SingleImage(detector))
    assert check.num_detections >= 30
    assert 0 < check.box_difference <= 1e-3
    assert check.score_difference <= 1e-4


@pytest.mark.parametrize(
    "form", [*(set(FAST) - {"retinanet"}), *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)]
)
def test_onnx_detections_equal_pytorch_for_every_form(form: str, tmp_path: Path) -> None:
    program = SingleImage(build(form))
    write_onnx(program, tmp_path / "m.onnx", {})
    # Not `check_file`: its large images are scaled to small frames here, which multiplies rounding errors of boxes.
    assert_same(program, tmp_path / "m.onnx")


# Without RoIPool, which gives close proposals of one of the images the same features: rounding decides which is kept.
BATCHED = [form for form in FORMS if form != "fast_rcnn of the paper"]


@pytest.mark.parametrize("form", [f if f == "yolov1" else pytest.param(f, marks=pytest.mark.slow) for f in BATCHED])
def test_a_batch_equals_its_images(form: str, tmp_path: Path) -> None:
    program = ImageBatch(build(form), 2)
    write_onnx(program, tmp_path / "m.onnx", {})
    assert_same(program, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3, "height", "width"]
    masks = ["masks"] if program.detector.mask_side else []
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores", "labels", *masks, "image_index"]
    assert "images: uint8 [2, 3, height, width]" in session.get_modelmeta().description


def test_select_image_follows_declared_shapes() -> None:
    """Two images and two anchors: what belongs to an image is told by the declared type, not by the size."""
    outputs = zoo.models.retinanet.Outputs(
        [torch.arange(4.0).view(2, 2, 1)], [torch.arange(16.0).view(2, 2, 4)], [torch.arange(8.0).view(2, 4)]
    )
    selected = select_image(outputs, zoo.models.retinanet.Outputs, 1)
    assert selected.logits[0].tolist() == [[[2.0], [3.0]]]
    assert selected.deltas[0].shape == (1, 2, 4)
    assert torch.equal(selected.anchors[0], outputs.anchors[0])


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
    pixels = SingleImage(detector).example_inputs(96, 128)["image"].permute(1, 2, 0).numpy()
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    (snippet,) = read_snippets("docs/how-to/export.md")
    lines = run_snippet(snippet, tmp_path).splitlines()
    found = detector(PIL.Image.open(tmp_path / "photo.jpg"), score=0.3)
    assert len(lines) == len(found["scores"]) > 0
    assert [line.split()[0] for line in lines] == detector.names(found)


def test_thresholds_are_in_the_metadata(
    retinanet: tuple[Detector, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, file = retinanet
    written: dict[str, str] = {}

    def write_prepared(program: Program, to: Path, metadata: dict[str, str]) -> None:
        written.update(metadata)
        shutil.copy(file, to)

    monkeypatch.setattr(module, "write_onnx", write_prepared)
    monkeypatch.setattr(module, "load", lambda _: copy.deepcopy(detector))
    scores = {"red": 0.2, "green": 0.5, "blue": 1}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    export_onnx(save(detector, tmp_path / "last.ckpt"), tmp_path / "model.onnx", tmp_path / "scores.json")
    assert json.loads(written["thresholds"]) == scores


def test_thresholds_are_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = build("yolov1")
    checkpoint = save(detector, tmp_path / "last.ckpt")
    scores = {"red": 0.05, "green": 0.02, "blue": 1}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    thresholds = ["--thresholds", str(tmp_path / "scores.json"), "--apply_thresholds"]
    command = ["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "m.onnx")]
    assert main([*command, *thresholds]) == OK
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert "below the thresholds of the metadata are left out" in session.get_modelmeta().description
    image = SingleImage(detector).example_inputs(96, 128)["image"]
    boxes, found, labels = session.run(None, {"image": image.numpy()})
    everything = zoo.load(checkpoint)([image])[0]
    expected = everything["scores"] >= torch.tensor(list(scores.values()))[everything["labels"]]
    assert 0 < expected.sum() < len(expected)
    torch.testing.assert_close(torch.from_numpy(found), everything["scores"][expected], atol=1e-5, rtol=0)
    assert labels.tolist() == everything["labels"][expected].tolist()
    assert len(boxes) == len(labels)

    for wrong, message in (
        (["--apply_thresholds"], "--apply_thresholds needs --thresholds"),
        (["--batch_size", "0"], "--batch_size is 0; give 1 or more"),
    ):
        capsys.readouterr()
        assert main([*command, *wrong]) == BAD_INPUT
        assert capsys.readouterr().err == f"zoo: {message}\n"


# -------------------------------------------------------------------------------------------------------- the check


def test_check_detects_a_single_changed_weight(retinanet: tuple[Detector, Path]) -> None:
    detector, file = retinanet
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.get_parameter("regression.output.bias")[0] += 1e-3
    with pytest.raises(InputError, match=r"do not agree on an image of 500 x 375 pixels: .* detections"):
        check_file(file, SingleImage(other))


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

    def write_prepared(program: Program, to: Path, metadata: dict[str, str]) -> None:
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
