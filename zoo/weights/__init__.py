"""Load published weights into a detector; one file for each layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from zoo.detector import Detector
from zoo.weights.cornernet import from_cornernet
from zoo.weights.darknet import from_darknet
from zoo.weights.state import check_fit, read_state
from zoo.weights.torchvision import from_torchvision, match_norm_eps

Layout = Literal["zoo", "torchvision", "darknet", "cornernet"]


def load_weights(
    detector: Detector,
    source: str | Path | Mapping[str, Tensor],
    layout: Layout = "zoo",
    norm_eps: float = 1e-5,
) -> None:
    """Load weights into a whole detector.

    Args:
        detector: unchanged if the weights do not fit.
        source: a .safetensors, .pth, .pt or .ckpt file, or a state dict.
        layout: "zoo": ours. "torchvision": state dicts of `retinanet_resnet50_fpn`, `retinanet_resnet50_fpn_v2`,
            `fasterrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn_v2`, on a detector of the same architecture. Their 91
            class slots fit a detector of as many classes (91 for RetinaNet, label = COCO id; 90 for Faster R-CNN,
            label = COCO id - 1), or one of COCO's 80 classes, which takes the 80 slots that are in use. "darknet": a
            .weights file, on a YOLOv1 of the same architecture (see `from_darknet`). "cornernet": the original code's
            Hourglass-104 (see `from_cornernet`).
        norm_eps: layout "torchvision" only: epsilon of the batch norms in the file's trunk. The published COCO_V1 files
            were trained with 0.0, all other torchvision files with 1e-5.

    Raises:
        InputError: the file cannot be read, or a parameter does not fit; the first one is named.
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
    check_fit(state, detector.state_dict(), name)
    detector.load_state_dict(state, strict=False)
    if layout == "torchvision":
        match_norm_eps(detector, norm_eps)
