"""Weights from elsewhere into a detector: one function, each foreign layout a table of renamings and a few reshapes.

Files are read as safetensors or with `weights_only=True`: no code that a file may carry is run.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.detector import Detector
from zoo.errors import InputError
from zoo.models.cornernet import CornerNet
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.retinanet import RetinaNet
from zoo.models.yolov1 import YOLOv1
from zoo.nn.darknet import Darknet, read_darknet
from zoo.nn.trunk import FrozenBatchNorm

State = dict[str, Tensor]
Layout = Literal["zoo", "torchvision", "darknet", "cornernet"]

COCO_IDS_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(number for number in range(1, 91) if number not in COCO_IDS_UNUSED)
"""COCO's 80 category ids; a detector trained on COCO here has them as labels 0..79 in this order."""

TORCHVISION_SLOTS = 91
"""torchvision's COCO detectors have a slot for each id 0..90: 0 is background (unused by RetinaNet)."""


def load_weights(
    detector: Detector,
    source: str | Path | Mapping[str, Tensor],
    layout: Layout = "zoo",
    norm_eps: float = 1e-5,
) -> None:
    """Load a whole detector's weights.

    Args:
        detector: takes the weights; nothing in it changes if they do not fit.
        source: a .safetensors, .pth, .pt or .ckpt file, or a state dict.
        layout: "zoo": ours. "torchvision": state dicts of `retinanet_resnet50_fpn`, `retinanet_resnet50_fpn_v2`,
            `fasterrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn_v2`, on a detector of the same form. Their 91 class
            slots fit a detector of as many classes (91 for RetinaNet, label = COCO id; 90 for Faster R-CNN, label =
            COCO id - 1), or one of COCO's 80 classes, which takes the 80 slots that are in use. "darknet": a .weights
            file, on a YOLOv1 of the same form (see `from_darknet`). "cornernet": the original code's Hourglass-104
            (see `from_cornernet`).
        norm_eps: layout "torchvision" only: what the file's trunk added to its batch-norm variances. The published
            COCO_V1 files were trained with 0.0; everything else of torchvision has 1e-5.

    Raises:
        InputError: the file cannot be read, or a parameter does not fit; the first wrong one is named.
    """
    name = str(source) if isinstance(source, (str, Path)) else None
    if layout == "darknet":
        state = from_darknet(source, detector)
    else:
        state = dict(source) if isinstance(source, Mapping) else read_state(Path(source))
    if layout == "torchvision":
        state = from_torchvision(state, detector, name)
    if layout == "cornernet":
        state = from_cornernet(state, detector, name)
    _check_fit(state, detector.state_dict(), name)
    detector.load_state_dict(state, strict=False)
    if layout == "torchvision":
        _match_norm_eps(detector, norm_eps)


def read_state(file: Path) -> State:
    """A state dict from a file; of a Lightning checkpoint its "state_dict".

    Raises:
        InputError: there is no such file, or it is no table of tensors.
    """
    if not file.is_file():
        raise InputError("no such weights file", file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise InputError(f"is no readable weights file ({type(error).__name__})", file) from error
    except Exception as error:  # torch.load raises pickle's own errors for what weights_only refuses
        raise InputError("holds more than weights, and is not read for safety", file) from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError("is no table of tensors by name", file)
    return content


# ------------------------------------------------------------------------------------------------------ torchvision


def _tower(layers_each: int) -> Callable[[re.Match[str]], str]:
    """Convolution i, part j of a torchvision tower is our layer i * layers_each + j."""
    return lambda match: f"{match[1]}.{int(match[2]) * layers_each + int(match[3])}."


def from_torchvision(state: State, detector: Detector, file: str | None = None) -> State:
    """Parameters of a torchvision RetinaNet or Faster R-CNN under our names, shapes and class slots.

    Raises:
        InputError: the detector has no torchvision twin, or its number of classes does not fit the file's.
    """
    if isinstance(detector, RetinaNet):
        return _retinanet_from_torchvision(state, detector, file)
    if isinstance(detector, FasterRCNN):
        return _faster_rcnn_from_torchvision(state, detector, file)
    raise InputError(f"torchvision has no weights for a {type(detector).__name__}", file)


def _rename(state: State, rules: list[tuple[str, str | Callable[[re.Match[str]], str]]]) -> State:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


TRUNK_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^backbone\.body\.", "trunk.network."),
    (r"^backbone\.fpn\.", "pyramid.fpn."),
]


def _retinanet_from_torchvision(state: State, detector: RetinaNet, file: str | None) -> State:
    group_norm = "head.classification_head.conv.0.1.weight" in state
    state = _rename(
        state,
        [
            *TRUNK_RULES,
            (r"^head\.classification_head\.cls_logits\.", "classification.output."),
            (r"^head\.regression_head\.bbox_reg\.", "regression.output."),
            (r"^head\.(classification|regression)_head\.conv\.", r"\1.tower."),
            (r"^(\w+\.tower)\.(\d+)\.(\d)\.", _tower(3 if group_norm else 2)),
        ],
    )
    num_anchors = detector.regression.output.out_channels // 4
    for part in ("weight", "bias"):
        name = f"classification.output.{part}"
        if name in state:
            by_class = state[name].unflatten(0, (num_anchors, -1))
            slots = _class_slots(by_class.shape[1], detector.num_classes, 0, file)
            state[name] = by_class[:, slots].flatten(0, 1)
    return state


def _faster_rcnn_from_torchvision(state: State, detector: FasterRCNN, file: str | None) -> State:
    state = _rename(
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
        name = f"roi_head.box_deltas.{part}"
        if name in state:
            slots = _class_slots(len(state[name]) // 4, detector.num_classes, 1, file)
            state[name] = state[name].unflatten(0, (-1, 4))[slots].flatten(0, 1)
    return state


def _class_slots(num_slots: int, num_classes: int, first: int, file: str | None) -> list[int]:
    """Slots of a file's class axis that a detector's labels 0..C-1 take; `first` is 1 where slot 0 is background."""
    if num_slots - first == num_classes:
        return list(range(first, num_slots))
    if num_slots == TORCHVISION_SLOTS and num_classes == len(COCO_IDS):
        return list(COCO_IDS)
    raise InputError(f"has {num_slots - first} classes, the detector {num_classes}", file)


# ---------------------------------------------------------------------------------------------------------- darknet


def from_darknet(file: str | Path | Mapping[str, Tensor], detector: Detector) -> State:
    """Parameters of a YOLOv1 from a darknet weights file; the head's outputs have one order there and here.

    The form of the detector must be that of the file's cfg. Of the released files:

        yolov1.weights (753 MB)         head: local, head_widths: [256], boxes_per_cell: 3, the rest as it is
        tiny-yolov1.weights (103 MB)    trunk: darknet6, neck: [1024, 256], head: fc, head_widths: []

    both for VOC's 20 classes in alphabetical order, on pixels in 0..1 (frame.mean 0, frame.std 1). Files of networks
    without batch norm (yolo-small, the paper's own of 2015) have fewer numbers and are refused.

    Raises:
        InputError: the detector is none that darknet has, or the file is not of its form.
    """
    if isinstance(file, Mapping):
        raise InputError("layout darknet is one of files; name the .weights file")
    if not isinstance(detector, YOLOv1) or not isinstance(detector.trunk, Darknet):
        raise InputError("only a YOLOv1 with a trunk of darknet's takes darknet weights", file)
    if detector.head.kind == "conv":
        raise InputError("darknet's YOLOv1 has no convolutional head; set head to fc or local", file)
    return read_darknet(file, detector)


# -------------------------------------------------------------------------------------------------------- cornernet


def from_cornernet(state: State, detector: Detector, file: str | None = None) -> State:
    """Parameters of princeton-vl/CornerNet's files (`CornerNet_500000.pkl`) under our names.

    For a CornerNet with `trunk: hourglass` and all else as it comes, 80 classes of COCO as labels 0..79 in the order of
    their ids, and the mean and std of `configs/models/cornernet_hourglass104.yaml`. The original code reads its images
    as blue, green, red; the first convolution's input channels are turned to red, green, blue. Its names:

        module.pre.0, .1                  stem: convolution, residual
        module.kps.S                      hourglass of stack S; in it up1, low1, low2, low3: skip, down, inner, up
        module.cnvs.S                     output of stack S
        module.inters_.S, cnvs_.S         1x1 convolutions of its input and output, whose sum goes through
        module.inters.S                   a residual into stack S + 1
        module.tl_cnvs.S                  corner pooling; in it p1_conv1, p2_conv1: what is pooled along columns, rows
        module.tl_heats.S, _tags, _regrs  heat maps, embeddings, offsets; and br_ for the bottom-right corner

    Raises:
        InputError: the detector is no CornerNet over hourglasses.
    """
    if not isinstance(detector, CornerNet) or detector.arguments["trunk"] != "hourglass":
        raise InputError("only a CornerNet with trunk hourglass takes the original CornerNet's weights", file)
    corners = {"tl": "top_left", "br": "bottom_right"}
    parts = {"cnvs": "pooling", "heats": "heat", "tags": "embedding", "regrs": "offset"}
    state = _rename(
        state,
        [
            (r"^module\.", ""),
            (r"^pre\.", "trunk.stem."),
            (r"^kps\.", "trunk.hourglasses."),
            (r"^cnvs\.", "trunk.outputs."),
            (r"^inters_\.", "trunk.from_inputs."),
            (r"^cnvs_\.", "trunk.from_outputs."),
            (r"^inters\.", "trunk.merged."),
            (r"\.up1(?=\.)", ".skip"),
            (r"\.low1(?=\.)", ".down"),
            (r"\.low2(?=\.)", ".inner"),
            (r"\.low3(?=\.)", ".up"),
            (r"^(tl|br)_(cnvs|heats|tags|regrs)\.(\d+)\.", lambda m: f"heads.{m[3]}.{corners[m[1]]}.{parts[m[2]]}."),
            (r"\.(heat|embedding|offset)\.1\.", r".\1.2."),
            (r"\.(heat|embedding|offset)\.0\.conv\.", r".\1.0."),
            (r"\.pooling\.p1_conv1\.", ".pooling.vertical."),
            (r"\.pooling\.p2_conv1\.", ".pooling.horizontal."),
            (r"\.pooling\.p_conv1\.", ".pooling.pooled.0."),
            (r"\.pooling\.p_bn1\.", ".pooling.pooled.1."),
            (r"\.pooling\.conv1\.", ".pooling.shortcut.0."),
            (r"\.pooling\.bn1\.", ".pooling.shortcut.1."),
            (r"\.pooling\.conv2\.", ".pooling.output."),
        ],
    )
    first = "trunk.stem.0.conv.weight"
    if first in state:
        state[first] = state[first].flip(1)
    return state


# ---------------------------------------------------------------------------------------------------------- fitting


def _check_fit(state: State, wanted: Mapping[str, Tensor], file: str | None) -> None:
    """Refuse the whole if one parameter is missing, unknown or of another shape; make `state` ours where it may differ.

    Batch norm's count of batches is kept by some layers and not by others, and decides nothing here.
    """
    for name in [name for name in state if name.endswith("num_batches_tracked") and name not in wanted]:
        del state[name]
    for name, parameter in wanted.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue
            raise InputError(f"lacks {name}, which the detector has", file)
        if state[name].shape != parameter.shape:
            shapes = f"{tuple(state[name].shape)}, the detector wants {tuple(parameter.shape)}"
            raise InputError(f"{name} has shape {shapes}", file)
    unknown = next((name for name in state if name not in wanted), None)
    if unknown is not None:
        raise InputError(f"has {unknown}, which the detector does not know", file)


def _match_norm_eps(detector: Detector, norm_eps: float) -> None:
    """Move the trunk's running variances so that variance + our eps is the file's variance + its eps."""
    trunk = getattr(detector, "trunk", None)
    if not isinstance(trunk, torch.nn.Module):
        return
    for layer in trunk.modules():
        if isinstance(layer, (torch.nn.BatchNorm2d, FrozenBatchNorm)) and isinstance(layer.running_var, Tensor):
            layer.running_var.add_(norm_eps - layer.eps)
