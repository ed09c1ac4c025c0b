"""Numeric precision of assignment, losses and decoding."""

import torch
from torch import Tensor


def upcast(values: Tensor) -> Tensor:
    """Values in at least float32: bf16 outputs of an autocast network become float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
