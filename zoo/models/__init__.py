"""All detectors by their keys, and loading of checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from zoo.detector import Detector
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
    # Initial weights are replaced below, so pretrained ones need not be downloaded.
    arguments = recorded["arguments"] | {"pretrained": False}
    detector = _build(by_class[recorded["class"]], arguments)
    detector.load_state_dict(content["state_dict"])
    detector.configure_model()
    return detector.eval()


def find_checkpoint(path: str | Path, names: Sequence[str] = ("best", "last")) -> Path:
    """The checkpoint file itself, or the first of `names` that a run folder has.

    Raises:
        InputError: the folder has no checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in names:
        file = path / "checkpoints" / f"{name}.ckpt"
        if file.is_file():
            return file
    raise InputError("holds no checkpoints/best.ckpt or last.ckpt; give the folder of one run, or a .ckpt file", path)


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Content of a checkpoint, read with `weights_only=True`: no code in it is run.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint of a detector.
    """
    if not Path(file).is_file():
        raise InputError("no such checkpoint", file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"is not a readable checkpoint ({type(error).__name__})", file) from error
    if not isinstance(content, dict) or "state_dict" not in content or "detector" not in content:
        raise InputError("is not a checkpoint of a zoo detector", file)
    return content


def _build(cls: type[Detector], arguments: dict[str, Any]) -> Detector:
    """A detector from plain constructor arguments, which jsonargparse checks and converts."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "detector")
    return parser.instantiate(parser.parse_object({"detector": arguments})).detector
