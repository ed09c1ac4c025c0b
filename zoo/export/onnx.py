"""A detector as one ONNX file: raw image in, detections out, checked against PyTorch before anybody sees it.

    image       uint8 [3, height, width], RGB, any size
    proposals   float32 [P, 4], xyxy in pixels of that image; only of detectors that score region proposals
    boxes       float32 [detections, 4], xyxy in pixels of that image, surest first
    scores      float32 [detections]
    labels      int64 [detections], 0 .. C-1; the metadata's `class_names` (json) tells what they are called

It is `Detector.forward` on one image that torch.export follows, framing and selection included: no detector is written
a second time here.
"""

import copy
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models import load
from zoo.models.rcnn import RCNN
from zoo.models.sliding_window import SlidingWindow
from zoo.profiling.hardware import list_versions
from zoo.types import Image, Prediction, Target

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
LARGEST_FILE = 2**31
"""Bytes; protocol buffers have no more."""

CHECK_SIZES = ((375, 500), (480, 333), (97, 208))
"""(height, width) of the images of the check: lying, standing, and a small one."""

BOX_TOLERANCE = 1e-3
"""Pixels; float32 itself is good for a tenth of that at the far end of a large image."""

SCORE_TOLERANCE = 1e-4
NUM_PROPOSALS = 200


@dataclass(frozen=True)
class Agreement:
    """How far a file is from PyTorch, at most, over the images of the check."""

    num_detections: int
    box_difference: float  # pixels
    score_difference: float


def export(checkpoint: Path, out: Path) -> Agreement:
    """Write the detector of a checkpoint to an ONNX file, once onnxruntime has made the same detections as PyTorch.

    Args:
        checkpoint: of `zoo fit` or `zoo compare`.
        out: the file; its folder must be there.

    Raises:
        InputError: packages are missing, the checkpoint or `out` cannot be used, there is no way to export this
            detector, or the file does not agree with PyTorch. Then nothing is written.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(f"zoo export needs {missing[0]}: pip install detection-zoo[export]")
    if out.is_dir():
        raise InputError("is a folder; give --out a file", out)
    if not out.parent.is_dir():
        raise InputError("no such folder to write to", out.parent)
    detector = load(checkpoint)
    reason = unsupported_reason(detector)
    if reason is not None:
        raise InputError(reason, checkpoint)

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_onnx(detector, temporary, {"checkpoint": checkpoint.name})
        agreement = check_file(temporary, detector)
        if not agreement.num_detections:
            agreement = _check_talkative_twin(temporary, detector)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return agreement


def unsupported_reason(detector: Detector) -> str | None:
    """What keeps a detector from being one ONNX file, if anything does."""
    if isinstance(detector, RCNN):
        return "R-CNN warps and classifies each region proposal by itself, which no ONNX file holds; export Fast R-CNN"
    if isinstance(detector, SlidingWindow) and detector.evaluation == "crops":
        return (
            "this sliding window looks at crops one by one, which no ONNX file holds; export one with evaluation: dense"
        )
    if sum(values.nbytes for values in detector.state_dict().values()) >= LARGEST_FILE:
        return "its weights are more than the 2 GB that one ONNX file can hold"
    return None


# ----------------------------------------------------------------------------------------------------------- writing


class SingleImageDetector(nn.Module):
    """A detector as a function of tensors: one image, and its region proposals where the detector wants them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Image, proposals: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the image."""
        targets = None if proposals is None else [_target_with(proposals)]
        (prediction,) = self.detector([image], targets)
        return prediction["boxes"], prediction["scores"], prediction["labels"]


def _target_with(proposals: Tensor) -> Target:
    nothing = torch.zeros(0, dtype=torch.bool)
    return Target(
        boxes=proposals[:0],
        labels=torch.zeros(0, dtype=torch.int64),
        image_id=torch.zeros((), dtype=torch.int64),
        iscrowd=nothing,
        difficult=nothing,
        area=torch.zeros(0),
        proposals=proposals,
    )


def write_onnx(detector: Detector, file: Path, notes: dict[str, str]) -> None:
    """Trace a detector in eval mode and write it down, unchecked.

    Args:
        detector: on the CPU, in float32; it leaves channels_last.
        file: to write.
        notes: for the file's metadata, beside what is known of the detector.

    Raises:
        InputError: torch.export or the translation to ONNX does not get through the detector.
    """
    from zoo.export.onnx_operators import TRANSLATIONS  # imports onnxscript

    detector.to(memory_format=torch.contiguous_format)
    inputs = example_inputs(detector, *CHECK_SIZES[0])
    dynamic: dict[str, dict[int, Any]] = {"image": {1: Dim("height"), 2: Dim("width")}, "proposals": {0: Dim("P")}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.export.export(
                SingleImageDetector(detector),
                (),
                inputs,
                dynamic_shapes={name: dynamic[name] for name in inputs},
                strict=False,
            )
            program = torch.onnx.export(
                traced,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["boxes", "scores", "labels"],
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
    except Exception as error:
        name = type(detector).__name__
        raise InputError(f"this {name} cannot be translated to ONNX ({_first_words(error)})") from error
    assert program is not None
    _describe(program, detector, notes)
    program.save(file)


def _describe(program: "ONNXProgram", detector: Detector, notes: dict[str, str]) -> None:
    """Class names and what made the file into its metadata, and names for lengths that are any."""
    from onnx_ir import Shape

    model = program.model
    versions = list_versions()
    model.producer_name, model.producer_version = "zoo", versions["detection-zoo"]
    model.metadata_props.update(
        notes
        | {
            "class_names": json.dumps(list(detector.class_names)),
            "detector": type(detector).__name__,
            "arguments": json.dumps(detector.arguments),
            "versions": json.dumps(versions),
        }
    )
    model.graph.inputs[0].shape = Shape([3, "height", "width"])
    for output in model.graph.outputs:
        output.shape = Shape(["detections", 4] if output.name == "boxes" else ["detections"])


def _first_words(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# ---------------------------------------------------------------------------------------------------------- checking


def check_file(file: Path, detector: Detector) -> Agreement:
    """Compare what onnxruntime makes of a file with what PyTorch makes of its detector, on images of three sizes.

    Raises:
        InputError: they differ, or onnxruntime cannot run the file.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    num_detections, box_difference, score_difference = 0, 0.0, 0.0
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"onnxruntime does not read what was written ({_first_words(error)})") from error
    for height, width in CHECK_SIZES:
        inputs = example_inputs(detector, height, width)
        with torch.no_grad():
            expected = _as_prediction(SingleImageDetector(detector)(**inputs))
        try:
            arrays = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        except Exception as error:
            raise InputError(f"onnxruntime does not run what was written ({_first_words(error)})") from error
        apart = compare(expected, _as_prediction(torch.from_numpy(array) for array in arrays))
        if isinstance(apart, str):
            raise InputError(f"ONNX and PyTorch do not agree on an image of {width} x {height} pixels: {apart}")
        num_detections += len(expected["scores"])
        box_difference, score_difference = max(box_difference, apart[0]), max(score_difference, apart[1])
    return Agreement(num_detections, box_difference, score_difference)


def _as_prediction(outputs: Iterable[Tensor]) -> Prediction:
    boxes, scores, labels = outputs
    return Prediction(boxes=boxes, scores=scores, labels=labels)


def compare(expected: Prediction, found: Prediction) -> tuple[float, float] | str:
    """Largest difference of boxes and of scores; what is wrong in words where they are not the same detections.

    Two detections of nearly the same score may have changed places.
    """
    num_expected, num_found = len(expected["scores"]), len(found["scores"])
    if num_expected != num_found:
        return f"{num_found} detections instead of {num_expected}"
    if not num_found:
        return 0.0, 0.0
    scores = (expected["scores"][:, None] - found["scores"]).abs()
    boxes = (expected["boxes"][:, None] - found["boxes"]).abs().amax(dim=2)
    is_twin = (expected["labels"][:, None] == found["labels"]) & (scores <= SCORE_TOLERANCE) & (boxes <= BOX_TOLERANCE)
    alone = int((~is_twin.any(dim=0)).sum().maximum((~is_twin.any(dim=1)).sum()))
    if alone:
        return f"{alone} of {num_found} detections differ"
    largest = [values.masked_fill(~is_twin, torch.inf).amin(dim=1).max().item() for values in (boxes, scores)]
    return largest[0], largest[1]


def _check_talkative_twin(file: Path, detector: Detector) -> Agreement:
    """Nothing found agrees with anything, so the same detector is checked with all that its threshold holds back."""
    twin = copy.deepcopy(detector)
    twin.score_threshold = 0.0  # type: ignore[assignment]
    twin_file = file.with_suffix(".twin")
    try:
        write_onnx(twin, twin_file, {})
        return check_file(twin_file, twin)
    finally:
        twin_file.unlink(missing_ok=True)


def example_inputs(detector: Detector, height: int, width: int) -> dict[str, Tensor]:
    """An image of large and small patches, always the same, and region proposals where the detector wants them."""
    generator = torch.Generator().manual_seed(height * width)
    patches = [torch.rand(1, 3, height // side + 1, width // side + 1, generator=generator) for side in (64, 16, 4)]
    image = sum(F.interpolate(values, size=(height, width)) for values in patches)[0]  # type: ignore[index]
    inputs = {"image": (image / len(patches) * 255).to(torch.uint8)}
    if detector.proposals is not None:
        corners = torch.rand(NUM_PROPOSALS, 2, 2, generator=generator).sort(dim=1).values
        inputs["proposals"] = (corners * torch.tensor([width, height])).flatten(1)
    return inputs
