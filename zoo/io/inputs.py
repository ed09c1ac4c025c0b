"""Convert what users have (files, PIL images, arrays, tensors) to the images that detectors take."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from zoo.errors import InputError
from zoo.io.decoding import load_image, to_rgb
from zoo.types import Image

ImageInput: TypeAlias = str | Path | PILImage.Image | NDArray[Any] | Tensor
"""A file, a PIL image, an array [H, W, 3] or a tensor [3, H, W], both uint8 and RGB."""

ImageInputs: TypeAlias = list[ImageInput] | list[Tensor] | list[str] | list[Path] | tuple[ImageInput, ...]


def as_image(value: ImageInput) -> Image:
    """An image as uint8 tensor [3, H, W], RGB, upright.

    Args:
        value: a file of any format that Pillow reads; a PIL image of any mode; an array uint8 [H, W, 3] or a tensor
            uint8 [3, H, W], RGB (OpenCV's images are BGR: reverse their last axis).

    Raises:
        InputError: it is none of these, or the file cannot be read.
    """
    if isinstance(value, Tensor):
        _require_pixels("tensor", str(value.dtype).removeprefix("torch."), tuple(value.shape), channels_at=0)
        return value
    if isinstance(value, np.ndarray):
        _require_pixels("array", str(value.dtype), value.shape, channels_at=-1)
        return torch.from_numpy(np.ascontiguousarray(value)).permute(2, 0, 1)
    if isinstance(value, PILImage.Image):
        return torch.from_numpy(to_rgb(ImageOps.exif_transpose(value))).permute(2, 0, 1)
    if isinstance(value, (str, Path)):
        return load_image(value)
    raise InputError(
        f"an image is a file, a PIL image, a numpy array [H, W, 3] or a tensor [3, H, W], not {type(value).__name__}"
    )


def _require_pixels(what: str, dtype: str, shape: tuple[int, ...], channels_at: int) -> None:
    layout = "[3, H, W]" if channels_at == 0 else "[H, W, 3]"
    form = f"this {what} of {dtype} {list(shape)} is no image"
    if dtype != "uint8":
        scaled = "; multiply values of 0..1 by 255" if dtype.startswith(("float", "bfloat")) else ""
        raise InputError(f"{form}: give uint8 values 0..255{scaled}")
    if len(shape) == 4:
        raise InputError(f"{form}: give a list of images {layout} instead of a batch")
    if len(shape) == 2 or (len(shape) == 3 and shape[channels_at] == 1):
        raise InputError(f"{form} with three channels {layout}: repeat the grey channel three times")
    if len(shape) != 3 or shape[channels_at] != 3:
        other = len(shape) == 3 and shape[-1 - channels_at] == 3
        hint = f"; its channels are at the {'end' if channels_at == 0 else 'start'}: permute it" if other else ""
        raise InputError(f"{form} of layout {layout}, RGB{hint}")
