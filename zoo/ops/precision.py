"""In which precision assignment, losses and decoding are computed."""

import torch
from torch import Tensor


def upcast(values: Tensor) -> Tensor:
    """At least float32: what an autocast network gave in bf16 is computed with in float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
