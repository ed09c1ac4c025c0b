"""Convert state dicts of torchvision's RetinaNet, Faster R-CNN, Mask R-CNN and SSD to ours."""

import re
from collections.abc import Callable

from torch import Tensor, nn

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.retinanet import RetinaNet
from zoo.models.ssd import SSD
from zoo.nn.frozen import FrozenBatchNorm
from zoo.nn.ssd_levels import SSDLiteMobileNet
from zoo.ops.matching import BACKGROUND
from zoo.weights.state import Rules, State, rename

COCO_IDS_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(number for number in range(1, 91) if number not in COCO_IDS_UNUSED)
"""COCO's 80 category ids; a detector trained on COCO here has them as labels 0..79 in this order."""

TORCHVISION_SLOTS = 91
"""torchvision's COCO detectors have a slot for each id 0..90: 0 is background (unused by RetinaNet)."""


def _tower(layers_each: int) -> Callable[[re.Match[str]], str]:
    """Replacement for `rename`: convolution i, part j of a torchvision tower is our layer i * layers_each + j."""
    return lambda match: f"{match[1]}.{int(match[2]) * layers_each + int(match[3])}."


def from_torchvision(state: State, detector: Detector, file: str | None = None) -> State:
    """Parameters of a torchvision RetinaNet or Faster R-CNN under our names, shapes and class slots.

    Raises:
        InputError: the detector has no torchvision counterpart, or its number of classes does not fit the file's.
    """
    if isinstance(detector, RetinaNet):
        return _retinanet_from_torchvision(state, detector, file)
    if isinstance(detector, FasterRCNN):
        return _faster_rcnn_from_torchvision(state, detector, file)
    if isinstance(detector, SSD):
        return _ssd_from_torchvision(state, detector, file)
    raise InputError(
        f"torchvision has no weights for a {type(detector).__name__}; only for RetinaNet, FasterRCNN and SSD", file
    )


TRUNK_RULES: Rules = [
    (r"^backbone\.body\.", "trunk.network."),
    (r"^backbone\.fpn\.", "pyramid.fpn."),
]


def _retinanet_from_torchvision(state: State, detector: RetinaNet, file: str | None) -> State:
    group_norm = "head.classification_head.conv.0.1.weight" in state
    state = rename(
        state,
        [
            *TRUNK_RULES,
            (r"^head\.classification_head\.cls_logits\.", "classification.output."),
            (r"^head\.regression_head\.bbox_reg\.", "regression.output."),
            (r"^head\.(classification|regression)_head\.conv\.", r"\1.tower."),
            (r"^(\w+\.tower)\.(\d+)\.(\d)\.", _tower(3 if group_norm else 2)),
        ],
    )
    num_anchors = len(state.get("regression.output.bias", ())) // 4
    for part in ("weight", "bias"):
        name = f"classification.output.{part}"
        if name in state and num_anchors:
            by_class = state[name].unflatten(0, (num_anchors, -1))
            slots = _class_slots(by_class.shape[1], detector.num_classes, 0, file)
            state[name] = by_class[:, slots].flatten(0, 1)
    return state


def _faster_rcnn_from_torchvision(state: State, detector: FasterRCNN, file: str | None) -> State:
    has_mask_norm = "roi_heads.mask_head.0.1.weight" in state
    state = rename(
        state,
        [
            *TRUNK_RULES,
            (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
            (r"^rpn\.head\.bbox_pred\.", "rpn.deltas."),
            (r"^(rpn)\.head\.conv\.(\d+)\.(\d)\.", lambda match: f"rpn.tower.{int(match[2]) * 2}."),
            (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.class_logits."),
            (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.box_deltas."),
            (r"^roi_heads\.box_head\.fc6\.", "roi_head.fcs.0."),
            (r"^roi_heads\.box_head\.fc7\.", "roi_head.fcs.2."),
            (r"^(roi_heads\.box_head)\.(\d+)\.(\d)\.", lambda m: f"roi_head.convs.{int(m[2]) * 3 + int(m[3])}."),
            (r"^roi_heads\.box_head\.\d+\.(weight|bias)$", r"roi_head.fcs.0.\1"),
            (r"^roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.upsample."),
            (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.output."),
            (r"^(roi_heads\.mask_head)\.(\d+)\.(\d)\.", lambda m: _mask_layer(m, has_mask_norm)),
        ],
    )
    first = "roi_head.fcs.0.weight"
    if first in state:
        # torchvision flattens pooled regions channel by channel, we cell by cell.
        cells = detector.roi_pooling.side**2
        state[first] = state[first].unflatten(1, (-1, cells)).transpose(1, 2).flatten(1)
    for part in ("weight", "bias"):
        name = f"roi_head.class_logits.{part}"
        if name in state:
            slots = _class_slots(len(state[name]), detector.num_classes, 1, file)
            state[name] = state[name][[0, *slots]]
        name = f"mask_head.output.{part}"
        if name in state:
            state[name] = state[name][_class_slots(len(state[name]), detector.num_classes, 1, file)]
        name = f"roi_head.box_deltas.{part}"
        if name in state:
            slots = _class_slots(len(state[name]) // 4, detector.num_classes, 1, file)
            state[name] = state[name].unflatten(0, (-1, 4))[slots].flatten(0, 1)
    return state


def _mask_layer(match: re.Match[str], has_norm: bool) -> str:
    """Our name of part j of convolution i of torchvision's mask head."""
    return f"mask_head.tower.{int(match[2]) * (3 if has_norm else 2) + int(match[3])}."


def _ssd_from_torchvision(state: State, detector: SSD, file: str | None) -> State:
    state = rename(
        state,
        [
            (r"^backbone\.scale_weight$", "finest.scale"),
            (r"^backbone\.extra\.0\.7\.", "second."),
            (r"^head\.classification_head\.module_list\.", "classes."),
            (r"^head\.regression_head\.module_list\.", "deltas."),
        ],
    )
    if isinstance(detector.trunk, SSDLiteMobileNet):
        rules: Rules = [(r"^backbone\.features\.", "trunk.network."), (r"^backbone\.extra\.", "extras.")]
    else:
        # torchvision splits VGG's layers at its fourth pooling, layer 23.
        rules = [
            (r"^backbone\.features\.(\d+)\.", r"trunk.network.features_\1."),
            (r"^backbone\.extra\.0\.(\d+)\.", lambda match: f"trunk.network.features_{int(match[1]) + 23}."),
            (r"^backbone\.extra\.(\d+)\.", lambda match: f"extras.{int(match[1]) - 1}."),
        ]
    state = rename(state, rules)
    for name, rows in detector.class_rows().items():
        num_boxes = rows.count(BACKGROUND)
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            if key in state:
                by_class = state[key].unflatten(0, (num_boxes, -1))
                slots = _class_slots(by_class.shape[1], detector.num_classes, 1, file)
                state[key] = by_class[:, [0, *slots]].flatten(0, 1)
    return state


def count_classes(state: State) -> int | None:
    """Foreground classes of a torchvision RetinaNet (each slot is one), Faster R-CNN or SSD; None for others."""
    for logits, boxes, background in (
        ("classification_head.cls_logits", "regression_head.bbox_reg", 0),
        ("classification_head.module_list.0", "regression_head.module_list.0", 1),
        ("classification_head.module_list.0.1", "regression_head.module_list.0.1", 1),
    ):
        outputs, edges = state.get(f"head.{logits}.bias"), state.get(f"head.{boxes}.bias")
        if outputs is not None and edges is not None:
            return 4 * len(outputs) // len(edges) - background
    scores = state.get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores) - 1


def _class_slots(num_slots: int, num_classes: int, first: int, file: str | None) -> list[int]:
    """Slots of a file's class axis that a detector's labels 0..C-1 take; `first` is 1 where slot 0 is background."""
    if num_slots - first == num_classes:
        return list(range(first, num_slots))
    if num_slots == TORCHVISION_SLOTS and num_classes == len(COCO_IDS):
        return list(COCO_IDS)
    raise InputError(f"has {num_slots - first} classes, the detector {num_classes}", file)


def match_norm_eps(detector: Detector, norm_eps: float) -> None:
    """Shift the trunk's running variances so that variance + our eps equals the file's variance + its eps."""
    trunk = getattr(detector, "trunk", None)
    if not isinstance(trunk, nn.Module):
        return
    for layer in trunk.modules():
        if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm)) and isinstance(layer.running_var, Tensor):
            layer.running_var.add_(norm_eps - layer.eps)
