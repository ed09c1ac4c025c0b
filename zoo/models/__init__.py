"""All detectors by their keys, and loading of checkpoints."""

from pathlib import Path

from zoo.detector import Detector
from zoo.detector.checkpoint import find_checkpoint, read_checkpoint, rebuild
from zoo.errors import InputError
from zoo.models.cornernet import CornerNet
from zoo.models.fast_rcnn import FastRCNN
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.rcnn import RCNN
from zoo.models.retinanet import RetinaNet
from zoo.models.sliding_window import SlidingWindow
from zoo.models.yolov1 import YOLOv1

MODELS: dict[str, type[Detector]] = {
    "sliding_window": SlidingWindow,
    "rcnn": RCNN,
    "fast_rcnn": FastRCNN,
    "faster_rcnn": FasterRCNN,
    "yolov1": YOLOv1,
    "retinanet": RetinaNet,
    "cornernet": CornerNet,
}


def load(checkpoint: str | Path) -> Detector:
    """The detector of a checkpoint, in eval mode, on the CPU.

    Args:
        checkpoint: a .ckpt file of `zoo fit`, `zoo compare` or any Lightning Trainer, or the folder of a run, whose
            best checkpoint is loaded (the last one where there is no best).

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint of a detector in `MODELS`.
    """
    checkpoint = find_checkpoint(checkpoint)
    content = read_checkpoint(checkpoint)
    recorded = content["detector"]
    by_class = {cls.__name__: cls for cls in MODELS.values()}
    if recorded["class"] not in by_class:
        raise InputError(f"has a detector {recorded['class']!r}; expected one of {', '.join(by_class)}", checkpoint)
    return rebuild(by_class[recorded["class"]], content)
