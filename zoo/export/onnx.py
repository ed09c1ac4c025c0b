"""Export a detector to one ONNX file, and check it against PyTorch before it gets its final name.

Inputs and outputs of the file:

    image        uint8 [3, height, width], RGB, any size
    proposals    float32 [P, 4], xyxy in pixels of the image; only for detectors that take region proposals
    boxes        float32 [detections, 4], xyxy in pixels of the image, by descending score
    scores       float32 [detections]
    labels       int64 [detections], 0 .. C-1; the names are in the metadata's `class_names` (JSON)

and with a batch size N:

    images       uint8 [N, 3, height, width]
    proposals    float32 [N, P, 4], padded with zeros
    boxes, scores, labels    as above, image by image
    image_index  int64 [detections], 0 .. N-1

The file says so itself, in its `doc_string`. Metadata: `class_names`, `detector`, `arguments`, `versions`,
`checkpoint`, and `thresholds` (JSON, a score for each class) if they are given.
"""

import copy
import json
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.export.programs import ImageBatch, Program, SingleImage
from zoo.io.files import atomic_path
from zoo.models.rcnn import RCNN
from zoo.models.sliding_window import SlidingWindow
from zoo.profiling.hardware import list_versions
from zoo.report.thresholds import read_thresholds
from zoo.types import Prediction
from zoo.weights import load

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


@dataclass(frozen=True)
class ExportCheck:
    """Number of detections, and largest differences between ONNX and PyTorch, over the images of the check."""

    num_detections: int
    box_difference: float  # pixels
    score_difference: float
    note: str = ""  # how the file differs from the checkpoint


def export_onnx(
    checkpoint: Path,
    out: Path,
    thresholds: Path | None = None,
    apply_thresholds: bool = False,
    batch_size: int | None = None,
) -> ExportCheck:
    """Export the detector of a checkpoint to ONNX; written only if onnxruntime gives the same detections as PyTorch.

    Args:
        checkpoint: checkpoint of `zoo fit` or `zoo compare`.
        out: the file to write; its folder must exist.
        thresholds: a run or file with a score threshold for each class (`read_thresholds`), put into the metadata.
        apply_thresholds: whether the file leaves out detections below them.
        batch_size: number of images that the file takes at once; None for one image without a batch dimension.

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
    scores = None if thresholds is None else read_thresholds(thresholds, detector.class_names)
    if scores is not None:
        metadata["thresholds"] = json.dumps(dict(zip(detector.class_names, scores, strict=True)))
    applied = scores if apply_thresholds else None
    program = SingleImage(detector, applied) if batch_size is None else ImageBatch(detector, batch_size, applied)
    with atomic_path(out) as temporary:
        write_onnx(program, temporary, metadata)
        check = check_file(temporary, program)
        if not check.num_detections:
            check = _check_without_score_threshold(temporary, program)
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


def write_onnx(program: Program, file: Path, metadata: dict[str, str]) -> None:
    """Trace a detector in eval mode and write it as ONNX, without a check.

    Args:
        program: of a detector on the CPU, in float32, which is converted to contiguous format in place.
        file: the file to write.
        metadata: added to the file's metadata, beside the description of the detector.

    Raises:
        InputError: torch.export or the translation to ONNX fails.
    """
    from zoo.export.onnx_operators import TRANSLATIONS  # imports onnxscript

    program.to(memory_format=torch.contiguous_format)
    inputs = program.example_inputs(*CHECK_SIZES[0])
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # oneDNN is off, since up to torch 2.11 a convolution decides by the image's size whether to use it.
            with torch.backends.mkldnn.flags(enabled=False):
                traced = torch.export.export(
                    program,
                    (),
                    inputs,
                    dynamic_shapes={name: program.dynamic_shapes[name] for name in inputs},
                    strict=False,
                )
            translated = torch.onnx.export(
                traced,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(program.output_shapes),
                custom_translation_table=TRANSLATIONS,
                verbose=False,
            )
    except Exception as error:
        name = type(program.detector).__name__
        raise InputError(f"this {name} cannot be translated to ONNX ({_root_cause(error)})") from error
    assert translated is not None
    _add_metadata(translated, program, metadata)
    translated.save(file)


def _add_metadata(translated: "ONNXProgram", program: Program, metadata: dict[str, str]) -> None:
    """Add class names, detector and versions to the metadata, and name the dynamic dimensions."""
    from onnx_ir import Shape

    model, detector = translated.model, program.detector
    versions = list_versions()
    kept = (
        f"Scores start at {detector.score_threshold}; keep those above a threshold of your own, or above thresholds of "
        "the metadata."
        if program.thresholds is None
        else "Detections below the thresholds of the metadata are left out."
    )
    model.doc_string = f"{type(detector).__name__}. {program.description} {kept}"
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
    for values, shapes in ((model.graph.inputs, program.input_shapes), (model.graph.outputs, program.output_shapes)):
        for value in values:
            if value.name in shapes:
                value.shape = Shape(shapes[value.name])


def _root_cause(error: BaseException) -> str:
    """Type and first line of the exception that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# ---------------------------------------------------------------------------------------------------------- checking


def check_file(file: Path, program: Program) -> ExportCheck:
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
        inputs = program.example_inputs(height, width)
        with torch.no_grad():
            expected = program.split(program(**inputs))
        try:
            arrays = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        except Exception as error:
            raise InputError(f"onnxruntime cannot run the exported file ({_root_cause(error)})") from error
        found = program.split([torch.from_numpy(array) for array in arrays])
        for expected_one, found_one in zip(expected, found, strict=True):
            difference = compare_predictions(expected_one, found_one)
            if isinstance(difference, str):
                raise InputError(
                    f"ONNX and PyTorch do not agree on an image of {width} x {height} pixels: {difference}"
                )
            num_detections += len(expected_one["scores"])
            box_difference, score_difference = max(box_difference, difference[0]), max(score_difference, difference[1])
    return ExportCheck(num_detections, box_difference, score_difference)


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


def _check_without_score_threshold(file: Path, program: Program) -> ExportCheck:
    """Check a copy with score threshold 0 and no others, for a detector without detections on the check's images."""
    copied = copy.deepcopy(program)
    copied.detector.score_threshold = 0.0  # type: ignore[assignment]
    copied.thresholds = None
    temporary = file.with_suffix(".unthresholded")
    try:
        write_onnx(copied, temporary, {})
        return check_file(temporary, copied)
    finally:
        temporary.unlink(missing_ok=True)
