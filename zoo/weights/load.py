"""Load whole detectors: checkpoints, published files, and weights into a detector of the same form."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from zoo.detector import Detector
from zoo.detector.checkpoint import find_checkpoint, read_checkpoint, rebuild
from zoo.errors import InputError
from zoo.models import MODELS
from zoo.weights.cornernet import from_cornernet
from zoo.weights.darknet import from_darknet
from zoo.weights.published import Published, recognise, recognise_darknet
from zoo.weights.state import Layout, check_fit, read_state
from zoo.weights.torchvision import from_torchvision, match_norm_eps

OWN_SUFFIX = ".ckpt"
DARKNET_SUFFIX = ".weights"


def load(file: str | Path) -> Detector:
    """The detector of a checkpoint or of a published file, in eval mode, on the CPU.

    Args:
        file: a .ckpt file of `zoo fit`, `zoo compare` or any Lightning Trainer; the folder of a run, whose best
            checkpoint is loaded (the last one where there is no best); or a published file, which is recognised by its
            content: torchvision's RetinaNet, Faster R-CNN, Mask R-CNN and SSD (COCO's 80 classes, or as many as the
            file has), darknet's files of YOLOv1 and YOLOv3, the original CornerNet's.

    Raises:
        InputError: the file is missing, damaged, or neither a checkpoint of a detector in `MODELS` nor a known
            published file.
    """
    file = find_checkpoint(file)
    published = find_published(file)
    if published is not None:
        detector = published.build()
        load_weights(detector, file, published.layout, published.norm_eps)
        detector.configure_model()
        return detector.eval()
    content = read_checkpoint(file)
    recorded = content["detector"]
    by_class = {cls.__name__: cls for cls in MODELS.values()}
    if recorded["class"] not in by_class:
        raise InputError(f"has a detector {recorded['class']!r}; expected one of {', '.join(by_class)}", file)
    return rebuild(by_class[recorded["class"]], content)


def find_published(file: Path) -> Published | None:
    """The form of a published file; None for a checkpoint, for an unknown file and where there is no file.

    Raises:
        InputError: a darknet file that is not one of the released ones.
    """
    if file.suffix == OWN_SUFFIX or not file.is_file():
        return None
    if file.suffix == DARKNET_SUFFIX:
        return recognise_darknet(file)
    try:
        return recognise(read_state(file))
    except InputError:  # `read_checkpoint` says what it is not
        return None


def load_weights(
    detector: Detector,
    source: str | Path | Mapping[str, Tensor],
    layout: Layout = "zoo",
    norm_eps: float = 1e-5,
) -> None:
    """Load weights into a detector of the same form and classes; `start_from` is for others.

    Args:
        detector: unchanged if the weights do not fit.
        source: a .safetensors, .pth, .pt or .ckpt file, or a state dict.
        layout: "zoo": ours. "torchvision": state dicts of `retinanet_resnet50_fpn`, `retinanet_resnet50_fpn_v2`,
            `fasterrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn_v2`, on a detector of the same architecture. Their 91
            class slots fit a detector of as many classes (91 for RetinaNet, label = COCO id; 90 for Faster R-CNN,
            label = COCO id - 1), or one of COCO's 80 classes, which takes the 80 slots that are in use. "darknet": a
            .weights file, on a YOLOv1 or YOLOv3 of the same architecture (see `from_darknet`). "cornernet": the
            original code's Hourglass-104 (see `from_cornernet`).
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
