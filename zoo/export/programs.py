"""Detectors as functions of tensors, which torch.export can trace: of one image, or of a batch of equal size.

Both trace the detector's own framing, network and post-processing, so no detector is implemented a second time here.
"""

import types
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from zoo.detector import Detector
from zoo.detector.base import above_score
from zoo.ops.postprocess import select
from zoo.types import Batch, Prediction, Target

NUM_PROPOSALS = 200

Shapes: TypeAlias = dict[str, list[int | str]]
"""Shape of each input or output by its name; dynamic sizes have names."""

OUTPUT_SHAPES: Shapes = {"boxes": ["detections", 4], "scores": ["detections"], "labels": ["detections"]}
MASKS_TEXT = "; masks: float32 [detections, side, side], probabilities in the box"


class Program(nn.Module, ABC):
    """A detector as a function of tensors.

    Args:
        detector: on the CPU.
        thresholds: the score of each class from which detections are output; None for the detector's own threshold.
    """

    dynamic_shapes: dict[str, dict[int, Any]]
    input_shapes: Shapes
    output_shapes: Shapes
    description: str  # of inputs and outputs

    def __init__(self, detector: Detector, thresholds: Sequence[float] | None = None) -> None:
        super().__init__()
        self.detector = detector
        self.thresholds = None if thresholds is None else torch.tensor(thresholds)

    @abstractmethod
    def example_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """Deterministic inputs: random patches, and random proposals if the detector needs them."""

    @abstractmethod
    def split(self, outputs: Sequence[Tensor]) -> list[Prediction]:
        """The detections of each image, from the outputs."""

    def _select(self, found: Prediction) -> Prediction:
        return found if self.thresholds is None else above_score(found, self.thresholds)


class SingleImage(Program):
    """Boxes, scores and labels of one image."""

    def __init__(self, detector: Detector, thresholds: Sequence[float] | None = None) -> None:
        super().__init__(detector, thresholds)
        self.dynamic_shapes = {"image": {1: Dim("height"), 2: Dim("width")}, "proposals": {0: Dim("P")}}
        self.input_shapes = {"image": [3, "height", "width"]}
        self.output_shapes = output_shapes(detector)
        proposals = "; proposals: float32 [P, 4], region proposals, boxes in pixels" if detector.proposals else ""
        self.description = (
            f"Inputs: image: uint8 [3, height, width], RGB, of any size{proposals}. Outputs, by descending score: "
            "boxes: float32 [detections, 4], x1 y1 x2 y2 in pixels of the image; scores: float32 [detections]; "
            "labels: int64 [detections], positions in class_names of the metadata"
            f"{MASKS_TEXT if detector.mask_side else ''}."
        )

    def forward(self, image: Tensor, proposals: Tensor | None = None) -> tuple[Tensor, ...]:
        """Boxes, scores and labels of the image, and masks, if the detector has them."""
        targets = None if proposals is None else [_target_with(proposals)]
        found: dict[str, Any] = {**self._select(self.detector([image], targets)[0])}
        return tuple(found[name] for name in self.output_shapes)

    def example_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """See `Program`."""
        return _example_inputs(self.detector, height, width, seed=height * width)

    def split(self, outputs: Sequence[Tensor]) -> list[Prediction]:
        """See `Program`."""
        return [cast(Prediction, dict(zip(self.output_shapes, outputs, strict=True)))]


class ImageBatch(Program):
    """Boxes, scores, labels and image numbers of the detections of a fixed number of images of equal size.

    The network runs once on the batch, post-processing once for each image.
    """

    def __init__(self, detector: Detector, batch_size: int, thresholds: Sequence[float] | None = None) -> None:
        super().__init__(detector, thresholds)
        self.batch_size = batch_size
        self.dynamic_shapes = {"images": {2: Dim("height"), 3: Dim("width")}, "proposals": {1: Dim("P")}}
        self.input_shapes = {"images": [batch_size, 3, "height", "width"]}
        self.output_shapes = output_shapes(detector) | {"image_index": ["detections"]}
        proposals = f"; proposals: float32 [{batch_size}, P, 4], region proposals, boxes in pixels, padded with zeros"
        self.description = (
            f"Inputs: images: uint8 [{batch_size}, 3, height, width], RGB, of any one size"
            f"{proposals if detector.proposals else ''}. Outputs, image by image, by descending score: boxes: float32 "
            "[detections, 4], x1 y1 x2 y2 in pixels of the image; scores: float32 [detections]; labels: int64 "
            "[detections], positions in class_names of the metadata; image_index: int64 [detections], the position of "
            f"the image in the batch{MASKS_TEXT if detector.mask_side else ''}."
        )

    def forward(self, images: Tensor, proposals: Tensor | None = None) -> tuple[Tensor, ...]:
        """Boxes, scores, labels, masks, if the detector has them, and image numbers of all detections."""
        detector = self.detector
        targets = None if proposals is None else [_target_with(boxes) for boxes in proposals.unbind()]
        batch = detector.frame_batch(list(images.unbind()), targets)
        outputs, declared = detector.encode(batch), get_type_hints(type(detector).encode)["return"]
        found: list[dict[str, Any]] = []
        for index in range(self.batch_size):
            batch_of_one = select_image(batch, Batch, index)
            predictions = detector.compute_predictions(select_image(outputs, declared, index), batch_of_one)
            found.append({**self._select(detector.frame.unframe(predictions, batch_of_one)[0])})
            found[-1]["image_index"] = torch.full_like(found[-1]["labels"], index)
        return tuple(torch.cat([image[name] for image in found]) for name in self.output_shapes)

    def example_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """See `Program`."""
        images = [_example_inputs(self.detector, height, width, seed=index) for index in range(self.batch_size)]
        names = {"images": "image", "proposals": "proposals"}
        return {name: torch.stack([i[key] for i in images]) for name, key in names.items() if key in images[0]}

    def split(self, outputs: Sequence[Tensor]) -> list[Prediction]:
        """See `Program`."""
        found = dict(zip(self.output_shapes, outputs, strict=True))
        image_index = found.pop("image_index")
        return [select(cast(Prediction, found), image_index == index) for index in range(self.batch_size)]


def output_shapes(detector: Detector) -> Shapes:
    """Shapes of what a detector predicts."""
    return OUTPUT_SHAPES | ({"masks": ["detections", "side", "side"]} if detector.mask_side else {})


def select_image(value: Any, hint: Any, index: int) -> Any:
    """The part of network outputs, or of a batch, that belongs to one image of the batch, as a batch of one.

    Args:
        value: tensors, dataclasses of tensors, and lists and tuples of these.
        hint: its declared type; tensors are per image where their declared shape starts with B.
        index: of the image.
    """
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        return replace(
            value, **{f.name: select_image(getattr(value, f.name), hints[f.name], index) for f in fields(value)}
        )
    if isinstance(value, (list, tuple)):
        inner = get_args(hint)
        return type(value)(select_image(item, inner[min(i, len(inner) - 1)], index) for i, item in enumerate(value))
    if isinstance(value, Tensor) and hint.dim_str.split()[0] == "B":
        return value[index : index + 1]
    return value


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


def _example_inputs(detector: Detector, height: int, width: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = [torch.rand(1, 3, height // side + 1, width // side + 1, generator=generator) for side in (64, 16, 4)]
    image = sum(F.interpolate(values, size=(height, width)) for values in patches)[0]  # type: ignore[index]
    inputs = {"image": (image / len(patches) * 255).to(torch.uint8)}
    if detector.proposals is not None:
        corners = torch.rand(NUM_PROPOSALS, 2, 2, generator=generator).sort(dim=1).values
        inputs["proposals"] = (corners * torch.tensor([width, height])).flatten(1)
    return inputs
