"""State dicts: reading them from files, renaming their parameters, and checking that they fit a detector."""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import InputError

Layout = Literal["zoo", "torchvision", "darknet", "cornernet"]
State = dict[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Pairs (regular expression, replacement) for parameter names, applied in order."""


def read_state(file: Path) -> State:
    """State dict from a file, or from the "state_dict" of a Lightning checkpoint.

    Files are read as safetensors or with `weights_only=True`: no code in a file is run.

    Raises:
        InputError: there is no such file, or it is not a state dict.
    """
    if not file.is_file():
        raise InputError("no such weights file", file)
    if file.suffix != ".safetensors" and not _is_saved_by_torch(file):
        raise InputError("is not a readable weights file", file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise InputError(f"is not a readable weights file ({type(error).__name__})", file) from error
    except Exception as error:  # torch.load raises pickle's own errors for what weights_only refuses
        raise InputError(
            "holds more than weights, which is not safe to load; save only its state_dict", file
        ) from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError("is not a state dict of tensors by name", file)
    return content


def _is_saved_by_torch(file: Path) -> bool:
    """Whether it is a zip archive, or begins as a pickle: older files, and those of the original CornerNet."""
    with file.open("rb") as content:
        return zipfile.is_zipfile(file) or content.read(1) == b"\x80"


def rename(state: State, rules: Rules) -> State:
    """The same parameters under new names."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def check_fit(state: State, expected: Mapping[str, Tensor], file: str | None) -> None:
    """Check that a state dict has exactly the expected parameters in their shapes.

    The counters `num_batches_tracked` of batch norm, which not all layers have, are removed from `state` where they are
    not expected, and may be missing where they are.

    Raises:
        InputError: names the first parameter that is missing, unknown or of another shape.
    """
    for name in [name for name in state if name.endswith("num_batches_tracked") and name not in expected]:
        del state[name]
    for name, parameter in expected.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue
            raise InputError(f"lacks {name}, which the detector has", file)
        if state[name].shape != parameter.shape:
            shapes = f"{tuple(state[name].shape)}, the detector needs {tuple(parameter.shape)}"
            raise InputError(f"{name} has shape {shapes}", file)
    unknown = next((name for name in state if name not in expected), None)
    if unknown is not None:
        raise InputError(f"has {unknown}, which the detector does not have", file)
