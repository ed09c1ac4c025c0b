"""Export a detector to one ONNX file, and check it against PyTorch before it gets its final name.

Inputs and outputs of the file:

    image       uint8 [3, height, width], RGB, any size
    proposals   float32 [P, 4], xyxy in pixels of the image; only for detectors that take region proposals
    boxes       float32 [detections, 4], xyxy in pixels of the image, by descending score
    scores      float32 [detections]
    labels      int64 [detections], 0 .. C-1; the names are in the metadata's `class_names` (JSON)

The file says so itself, in its `doc_string`. Metadata: `class_names`, `detector`, `arguments`, `versions`,
`checkpoint`, and `thresholds` (JSON, a score for each class) if they are given.

torch.export traces `Detector.forward` on one image, framing and post-processing included, so no detector is
implemented a second time here.
"""

import copy
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.io.files import atomic_path
from zoo.models import load
from zoo.models.rcnn import RCNN
from zoo.models.sliding_window import SlidingWindow
from zoo.profiling.hardware import list_versions
from zoo.report.thresholds import read_thresholds
from zoo.types import Image, Prediction, Target

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
LARGEST_FILE = 2**31
"""Bytes; the limit of a protocol buffer."""

CHECK_SIZES = ((375, 500), (480, 333), (97, 208))
"""(height, width) of the images of the check: landscape, portrait, and a small one."""

BOX_TOLERANCE = 1e-3
"""Pixels; the float32 rounding error at the far end of a large image is about a tenth of that."""

SCORE_TOLERANCE = 1e-4
NUM_PROPOSALS = 200


@dataclass(frozen=True)
class ExportCheck:
    """Number of detections, and largest differences between ONNX and PyTorch, over the images of the check."""

    num_detections: int
    box_difference: float  # pixels
    score_difference: float
    note: str = ""  # how the file differs from the checkpoint


def export_onnx(checkpoint: Path, out: Path, thresholds: Path | None = None) -> ExportCheck:
    """Export the detector of a checkpoint to ONNX; written only if onnxruntime gives the same detections as PyTorch.

    Args:
        checkpoint: checkpoint of `zoo fit` or `zoo compare`.
        out: the file to write; its folder must exist.
        thresholds: a run or file with a score threshold for each class (`read_thresholds`), put into the metadata.

    Raises:
        InputError: packages are missing, the checkpoint or `out` cannot be used, the detector cannot be exported, or
            the file does not agree with PyTorch. Nothing is written then.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(f"zoo export needs {missing[0]}: pip install detection-zoo[export]")
    if out.is_dir():
        raise InputError("is a folder; give --out a file", out)
    if not out.parent.is_dir():
        raise InputError("no such folder; create it or give another --out", out.parent)
    detector = load(checkpoint)
    reason = unsupported_reason(detector)
    if reason is not None:
        raise InputError(reason, checkpoint)

    note = _replace_merging(detector)
    metadata = {"checkpoint": checkpoint.name}
    if thresholds is not None:
        scores = read_thresholds(thresholds, detector.class_names)
        metadata["thresholds"] = json.dumps(dict(zip(detector.class_names, scores, strict=True)))
    with atomic_path(out) as temporary:
        write_onnx(detector, temporary, metadata)
        check = check_file(temporary, detector)
        if not check.num_detections:
            check = _check_without_score_threshold(temporary, detector)
    return replace(check, note=note)


def _replace_merging(detector: Detector) -> str:
    """Let a sliding window use NMS, since greedy merging is a loop that ONNX files do not have; a sentence on it."""
    if not isinstance(detector, SlidingWindow) or detector.suppression == "nms":
        return ""
    detector.suppression = "nms"
    detector.arguments["suppression"] = "nms"
    return "the file has NMS in place of greedy merging, so its AP is another one"


def unsupported_reason(detector: Detector) -> str | None:
    """Why a detector cannot be exported to one ONNX file; None if it can."""
    if isinstance(detector, RCNN):
        return "R-CNN classifies each warped proposal separately, which cannot be exported; export a Fast R-CNN"
    if isinstance(detector, SlidingWindow) and detector.evaluation == "crops":
        return "this sliding window evaluates crops separately, which cannot be exported; use evaluation: dense"
    if sum(values.nbytes for values in detector.state_dict().values()) >= LARGEST_FILE:
        return "its weights exceed the 2 GB limit of an ONNX file; export a smaller detector"
    return None


# ----------------------------------------------------------------------------------------------------------- writing


class SingleImageDetector(nn.Module):
    """Wraps a detector as a function of tensors: one image, and its region proposals if the detector needs them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Image, proposals: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the image."""
        targets = None if proposals is None else [_target_with(proposals)]
        (prediction,) = self.detector([image], targets)
        return prediction["boxes"], prediction["scores"], prediction["labels"]


def _target_with(proposals: Tensor) -> Target:
    """A target without objects, with the proposals."""
    no_flags = torch.zeros(0, dtype=torch.bool)
    return Target(
        boxes=proposals[:0],
        labels=torch.zeros(0, dtype=torch.int64),
        image_id=torch.zeros((), dtype=torch.int64),
        iscrowd=no_flags,
        difficult=no_flags,
        area=torch.zeros(0),
        proposals=proposals,
    )


def write_onnx(detector: Detector, file: Path, metadata: dict[str, str]) -> None:
    """Trace a detector in eval mode and write it as ONNX, without a check.

    Args:
        detector: on the CPU, in float32; converted to contiguous format in place.
        file: the file to write.
        metadata: added to the file's metadata, beside the description of the detector.

    Raises:
        InputError: torch.export or the translation to ONNX fails.
    """
    from zoo.export.onnx_operators import TRANSLATIONS  # imports onnxscript

    detector.to(memory_format=torch.contiguous_format)
    inputs = example_inputs(detector, *CHECK_SIZES[0])
    dynamic: dict[str, dict[int, Any]] = {"image": {1: Dim("height"), 2: Dim("width")}, "proposals": {0: Dim("P")}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # oneDNN is off, since up to torch 2.11 a convolution decides by the image's size whether to use it.
            with torch.backends.mkldnn.flags(enabled=False):
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
        raise InputError(f"this {name} cannot be translated to ONNX ({_root_cause(error)})") from error
    assert program is not None
    _add_metadata(program, detector, metadata)
    program.save(file)


def _add_metadata(program: "ONNXProgram", detector: Detector, metadata: dict[str, str]) -> None:
    """Add class names, detector and versions to the metadata, and name the dynamic dimensions."""
    from onnx_ir import Shape

    model = program.model
    versions = list_versions()
    proposals = "; proposals: float32 [P, 4], region proposals, boxes in pixels" if detector.proposals else ""
    model.doc_string = (
        f"{type(detector).__name__}. Inputs: image: uint8 [3, height, width], RGB, of any size{proposals}. Outputs, by "
        "descending score: boxes: float32 [detections, 4], x1 y1 x2 y2 in pixels of the image; scores: float32 "
        "[detections]; labels: int64 [detections], positions in class_names of the metadata. Scores start at "
        f"{detector.score_threshold}; keep those above a threshold of your own, or above thresholds of the metadata."
    )
    model.producer_name, model.producer_version = "zoo", versions["detection-zoo"]
    model.metadata_props.update(
        metadata
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


def _root_cause(error: BaseException) -> str:
    """Type and first line of the exception that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# ---------------------------------------------------------------------------------------------------------- checking


def check_file(file: Path, detector: Detector) -> ExportCheck:
    """Compare the detections of an ONNX file under onnxruntime with the detector's own, on images of three sizes.

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
        raise InputError(f"onnxruntime cannot load the exported file ({_root_cause(error)})") from error
    for height, width in CHECK_SIZES:
        inputs = example_inputs(detector, height, width)
        with torch.no_grad():
            expected = _as_prediction(SingleImageDetector(detector)(**inputs))
        try:
            arrays = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        except Exception as error:
            raise InputError(f"onnxruntime cannot run the exported file ({_root_cause(error)})") from error
        difference = compare_predictions(expected, _as_prediction(torch.from_numpy(array) for array in arrays))
        if isinstance(difference, str):
            raise InputError(f"ONNX and PyTorch do not agree on an image of {width} x {height} pixels: {difference}")
        num_detections += len(expected["scores"])
        box_difference, score_difference = max(box_difference, difference[0]), max(score_difference, difference[1])
    return ExportCheck(num_detections, box_difference, score_difference)


def _as_prediction(outputs: Iterable[Tensor]) -> Prediction:
    boxes, scores, labels = outputs
    return Prediction(boxes=boxes, scores=scores, labels=labels)


def compare_predictions(expected: Prediction, found: Prediction) -> tuple[float, float] | str:
    """Largest differences of boxes and of scores, or a message if the detections differ beyond the tolerances.

    The order is ignored, since detections of nearly equal scores may be swapped.
    """
    num_expected, num_found = len(expected["scores"]), len(found["scores"])
    if num_expected != num_found:
        return f"{num_found} detections instead of {num_expected}"
    if not num_found:
        return 0.0, 0.0
    scores = (expected["scores"][:, None] - found["scores"]).abs()
    boxes = (expected["boxes"][:, None] - found["boxes"]).abs().amax(dim=2)
    is_match = (expected["labels"][:, None] == found["labels"]) & (scores <= SCORE_TOLERANCE) & (boxes <= BOX_TOLERANCE)
    unmatched = int((~is_match.any(dim=0)).sum().maximum((~is_match.any(dim=1)).sum()))
    if unmatched:
        return f"{unmatched} of {num_found} detections differ"
    largest = [values.masked_fill(~is_match, torch.inf).amin(dim=1).max().item() for values in (boxes, scores)]
    return largest[0], largest[1]


def _check_without_score_threshold(file: Path, detector: Detector) -> ExportCheck:
    """Check a copy of the detector with score threshold 0, for a detector without detections on the check's images."""
    unthresholded = copy.deepcopy(detector)
    unthresholded.score_threshold = 0.0  # type: ignore[assignment]
    temporary = file.with_suffix(".unthresholded")
    try:
        write_onnx(unthresholded, temporary, {})
        return check_file(temporary, unthresholded)
    finally:
        temporary.unlink(missing_ok=True)


def example_inputs(detector: Detector, height: int, width: int) -> dict[str, Tensor]:
    """Deterministic inputs: an image of random patches, and random proposals if the detector needs them."""
    generator = torch.Generator().manual_seed(height * width)
    patches = [torch.rand(1, 3, height // side + 1, width // side + 1, generator=generator) for side in (64, 16, 4)]
    image = sum(F.interpolate(values, size=(height, width)) for values in patches)[0]  # type: ignore[index]
    inputs = {"image": (image / len(patches) * 255).to(torch.uint8)}
    if detector.proposals is not None:
        corners = torch.rand(NUM_PROPOSALS, 2, 2, generator=generator).sort(dim=1).values
        inputs["proposals"] = (corners * torch.tensor([width, height])).flatten(1)
    return inputs
