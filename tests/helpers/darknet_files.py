"""Darknet weights files."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zoo.nn.darknet import darknet_rows


def write_darknet(file: Path, network: nn.Module, numbers: dict[str, Tensor]) -> None:
    """A file of version 0.2 with these numbers for these parameters, and random ones for the others."""
    generator = torch.Generator().manual_seed(0)
    parts = [np.array([0, 2, 0, 64, 0], "<i4").tobytes()]  # images seen: 64 as an int64
    for name, shape in darknet_rows(network):
        part = numbers.get(name, torch.rand(shape, generator=generator) + 0.1)
        parts.append(part.numpy().astype("<f4").tobytes())
    file.write_bytes(b"".join(parts))
