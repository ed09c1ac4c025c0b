"""Recognise files of published detectors by their content, and build the detector that a file is of."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from zoo.detector import Detector
from zoo.detector.checkpoint import build
from zoo.errors import InputError
from zoo.io.class_names import COCO_CLASSES, VOC_CLASSES
from zoo.io.configurations import model_files, read_yaml
from zoo.models import MODELS
from zoo.nn.darknet import count_values, darknet_rows
from zoo.nn.ssd_levels import SEPARABLE_EPS
from zoo.weights.state import Layout, State
from zoo.weights.torchvision import COCO_IDS, TORCHVISION_SLOTS, count_classes

DARKNET_PIXELS = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


@dataclass(frozen=True)
class Published:
    """The form of a published file.

    Args:
        layout: of the file.
        config: name of the shipped model file of its architecture ...
        arguments: ... and the constructor arguments that differ from it.
        num_classes: of the detector.
        class_names: None where the file's classes are not known by name.
        norm_eps: epsilon of the batch norms that it was trained with.
    """

    layout: Layout
    config: str
    num_classes: int
    class_names: tuple[str, ...] | None
    arguments: dict[str, Any] = field(default_factory=dict)
    norm_eps: float = 1e-5

    def build(self) -> Detector:
        """A detector of this form, with random weights."""
        content = read_yaml(model_files()[self.config])
        arguments = {**content["init_args"], **self.arguments, "num_classes": self.num_classes}
        arguments["frame"] = {**content["init_args"]["frame"], **self.arguments.get("frame", {})}
        if self.class_names is not None:
            arguments["class_names"] = list(self.class_names)
        kinds = {kind.__name__: kind for kind in MODELS.values()}
        return build(kinds[content["class_path"]], arguments)


YOLO_FULL = Published(
    "darknet",
    "yolov1_darknet",
    len(VOC_CLASSES),
    VOC_CLASSES,
    {"head": "local", "head_widths": [256], "boxes_per_cell": 3, "frame": DARKNET_PIXELS},
)
"""yolov1.weights."""

YOLO_TINY = Published(
    "darknet",
    "yolov1_fast",
    len(VOC_CLASSES),
    VOC_CLASSES,
    {"neck": [1024, 256], "head_widths": [], "frame": DARKNET_PIXELS},
)
"""tiny-yolov1.weights."""

YOLOV3_FULL = Published("darknet", "yolov3_darknet", len(COCO_CLASSES), COCO_CLASSES, {"frame": DARKNET_PIXELS})
"""yolov3.weights."""

YOLOV3_TINY = Published("darknet", "yolov3_darknet7", len(COCO_CLASSES), COCO_CLASSES, {"frame": DARKNET_PIXELS})
"""yolov3-tiny.weights."""

DARKNET_FILES = {
    "yolov1.weights": YOLO_FULL,
    "tiny-yolov1.weights": YOLO_TINY,
    "yolov3.weights": YOLOV3_FULL,
    "yolov3-tiny.weights": YOLOV3_TINY,
}

SSD300 = Published(
    "torchvision",
    "ssd_vgg16",
    len(COCO_CLASSES),
    COCO_CLASSES,
    {
        "scales": [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        "frame": {"mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255] * 3},
    },
)
"""torchvision's ssd300_vgg16."""

SSDLITE = Published("torchvision", "ssd_lite_mobilenetv3", len(COCO_CLASSES), COCO_CLASSES, norm_eps=SEPARABLE_EPS)
"""torchvision's ssdlite320_mobilenet_v3_large."""


def recognise(state: State) -> Published | None:
    """The form of a state dict of torchvision or of the original CornerNet; None for others."""
    if "module.kps.0.up1.0.conv1.weight" in state:
        num_classes = len(state["module.tl_heats.0.1.bias"])
        return Published("cornernet", "cornernet_hourglass104", num_classes, _names(num_classes))
    found = count_classes(state)
    if found is None:
        return None
    for form, name in ((SSD300, "module_list.0.weight"), (SSDLITE, "module_list.0.1.weight")):
        if f"head.classification_head.{name}" in state:
            num_classes = len(COCO_IDS) if found + 1 == TORCHVISION_SLOTS else found
            return replace(form, num_classes=num_classes, class_names=_names(num_classes))
    is_retinanet = "head.classification_head.cls_logits.bias" in state
    is_v2 = "head.classification_head.conv.0.1.weight" in state or "roi_heads.box_head.0.0.weight" in state
    is_coco = found + (not is_retinanet) == TORCHVISION_SLOTS
    num_classes = len(COCO_IDS) if is_coco else found
    has_masks = "roi_heads.mask_predictor.mask_fcn_logits.bias" in state
    name = "retinanet" if is_retinanet else "mask_rcnn" if has_masks else "faster_rcnn"
    return Published(
        "torchvision",
        f"{name}_r50_fpn{'_v2' if is_v2 else ''}",
        num_classes,
        _names(num_classes),
        # torchvision sets it to 0 in the models that it publishes with COCO_V1.
        norm_eps=0.0 if is_coco and not is_v2 else 1e-5,
    )


def recognise_darknet(file: Path) -> Published:
    """The form of a darknet weights file, by the number of its values.

    Raises:
        InputError: it is not readable, or not one of `DARKNET_FILES`.
    """
    number, sizes = count_values(file), []
    for name, form in DARKNET_FILES.items():
        with torch.device("meta"):
            size = sum(torch.Size(shape).numel() for _, shape in darknet_rows(form.build()))
        if size == number:
            return form
        sizes.append(f"{name} {size:,}")
    raise InputError(f"holds {number:,} values after its header; {', '.join(sizes)}", file)


def _names(num_classes: int) -> tuple[str, ...] | None:
    return COCO_CLASSES if num_classes == len(COCO_CLASSES) else None
