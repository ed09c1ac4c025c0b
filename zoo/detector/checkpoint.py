"""Detectors in checkpoints: finding the file, reading it, and building the detector that it holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule

from zoo.errors import InputError

D = TypeVar("D", bound=LightningModule)


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


def rebuild(cls: type[D], content: dict[str, Any]) -> D:
    """The detector of this class that a checkpoint holds, in eval mode, on the CPU.

    Args:
        cls: class of the detector.
        content: of the checkpoint.
    """
    detector = build(cls, content["detector"]["arguments"])
    detector.load_state_dict(content["state_dict"])
    detector.configure_model()
    return detector.eval()


def build(cls: type[D], arguments: Mapping[str, Any]) -> D:
    """A detector of this class without pretrained weights, since others are to replace them.

    Args:
        cls: class of the detector.
        arguments: of its constructor, as plain values.
    """
    parser = ArgumentParser(exit_on_error=False)  # checks and converts them
    parser.add_class_arguments(cls, "detector")
    given = {"detector": {**arguments, "pretrained": False}}
    detector: D = parser.instantiate(parser.parse_object(given)).detector
    return detector
