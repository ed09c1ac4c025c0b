"""Detectors called from Python: images of every kind, results, and words for what is no image."""

import re
import sys
import types
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import zoo
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models import MODELS
from zoo.nn.frame import FrameConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    arguments = {"trunk": "resnet10t", "channels": 32, "frame": FrameConfig(64, 96), "score_threshold": 1e-4}
    detector = MODELS["retinanet"](3, ["red", "green", "blue"], **arguments).eval()
    torch.nn.init.normal_(detector.get_parameter("classification.output.weight"), std=1.0)  # scores that differ
    return detector


def test_images_of_every_kind_give_the_same_detections(detector: Detector, tmp_path: Path) -> None:
    PILImage.fromarray(PIXELS).save(tmp_path / "a.png")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), PILImage.fromarray(PIXELS), PIXELS, tensor]
    reference = detector([tensor])[0]
    assert len(reference["scores"]) > 5
    for kind in kinds:
        for found in (detector(kind), detector([kind, PIXELS])[0], detector((kind,))[0]):
            assert found.keys() == reference.keys()
            torch.testing.assert_close(found["scores"][:5], reference["scores"][:5])
            torch.testing.assert_close(found["boxes"][:5], reference["boxes"][:5])
    assert detector([]) == []


def test_score_and_names(detector: Detector) -> None:
    found = detector(PIXELS)
    score = float(found["scores"][3])
    above = detector(PIXELS, score=score)
    assert len(above["scores"]) == 4
    assert detector.names(above) == [["red", "green", "blue"][label] for label in found["labels"][:4].tolist()]
    assert len(detector([PIXELS], score=2.0)[0]["scores"]) == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 40, 60), "this tensor of float32 [3, 40, 60] is no image: give uint8 values 0..255; multiply"),
        (
            PIXELS.astype(np.float64),
            "this array of float64 [40, 60, 3] is no image: give uint8 values 0..255; multiply",
        ),
        (PIXELS.astype(np.int64), "this array of int64 [40, 60, 3] is no image: give uint8 values 0..255"),
        (PIXELS[:, :, 0], "this array of uint8 [40, 60] is no image with three channels [H, W, 3]: repeat the grey"),
        (torch.zeros(1, 40, 60, dtype=torch.uint8), "[1, 40, 60] is no image with three channels [3, H, W]: repeat"),
        (torch.from_numpy(PIXELS), "[40, 60, 3] is no image of layout [3, H, W], RGB; its channels are at the end"),
        (PIXELS.transpose(2, 0, 1), "[3, 40, 60] is no image of layout [H, W, 3], RGB; its channels are at the start"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "give a list of images [3, H, W] instead of a batch"),
        (np.zeros((8, 8, 4), np.uint8), "[8, 8, 4] is no image of layout [H, W, 3], RGB"),
        ("absent.jpg", "absent.jpg: image cannot be read"),
        (7, "an image is a file, a PIL image, a numpy array [H, W, 3] or a tensor [3, H, W], not int"),
    ],
)
def test_what_is_no_image_is_refused_in_words(detector: Detector, image: object, message: str) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # which refuses the type of the last one itself
    try:
        check_refusal(detector, image, message)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def check_refusal(detector: Detector, image: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        detector(image)
    with pytest.raises(InputError, match=re.escape(message)):
        detector([PIXELS, image])


def test_grey_and_rotated_pil_images_are_converted(detector: Detector) -> None:
    assert detector(PILImage.fromarray(PIXELS).convert("L")).keys() == {"boxes", "scores", "labels"}
    exif = PILImage.Exif()
    exif[0x0112] = 6
    turned = PILImage.fromarray(PIXELS)
    turned.info["exif"] = exif.tobytes()
    assert float(detector(turned)["boxes"].amax(dim=0)[2]) <= 40


def test_detections_are_drawn(detector: Detector, tmp_path: Path) -> None:
    found = detector(PIXELS)
    drawn = zoo.draw(PIXELS, found, detector.class_names)
    assert drawn.size == (480, 320)  # enlarged eight times
    plain = zoo.draw(PIXELS, detector(PIXELS, score=2.0), detector.class_names)
    assert not np.array_equal(np.asarray(drawn), np.asarray(plain))


def test_detections_for_supervision(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    found = detector(PIXELS)
    module = types.ModuleType("supervision")
    module.Detections = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "supervision", module)
    converted = zoo.to_supervision(found, detector.class_names)
    assert converted.xyxy.shape == (len(found["scores"]), 4)
    assert converted.data["class_name"] == detector.names(found)
    assert converted.class_id.tolist() == found["labels"].tolist()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        zoo.to_supervision(found, detector.class_names)


def test_what_the_package_has() -> None:
    assert dir(zoo) == ["__version__", "draw", "load", "to_supervision"]
    assert all(hasattr(zoo, name) for name in dir(zoo))


def test_a_run_folder_is_loaded_by_its_best_checkpoint(detector: Detector, tmp_path: Path) -> None:
    description = {"class": "RetinaNet", "arguments": detector.arguments}
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run: holds no checkpoints/best.ckpt or last.ckpt"):
        zoo.load(tmp_path / "run")
    for name, value in (("last", 1.0), ("best", 2.0)):
        state = {**detector.state_dict(), "classification.output.bias": torch.full((27,), value)}
        torch.save({"state_dict": state, "detector": description}, tmp_path / f"run/checkpoints/{name}.ckpt")
        assert float(zoo.load(tmp_path / "run").state_dict()["classification.output.bias"][0]) == value
