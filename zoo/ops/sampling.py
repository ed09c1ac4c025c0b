"""Draw n of many at a positive fraction, on the device, the same number for each image."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def sample(
    positive: Bool[Tensor, "B N"], negative: Bool[Tensor, "B N"], num: int, positive_fraction: float
) -> tuple[Int64[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """A random choice of at most num * positive_fraction positives, filled up with negatives to at most num.

    All randomness is torch's default generator of the tensors' device. Nothing is read back: an image with too few
    candidates has slots that the mask calls empty, instead of fewer slots.

    Returns:
        Indices of the chosen [B, min(num, N)], positives first, and which of these slots are filled.
    """
    num_candidates = positive.shape[1]
    max_positives = min(int(num * positive_fraction), num_candidates)
    num = min(num, num_candidates)
    keys = torch.rand(positive.shape, device=positive.device)
    # Chosen positives lie in 2..3, negatives in 1..2, everything else at 0: one top-k then fills the slots.
    positive_keys = torch.where(positive, keys + 1, 0.0)
    chosen = positive_keys.topk(max_positives, dim=1).indices
    is_chosen = torch.zeros_like(positive).scatter_(1, chosen, True) & positive
    priority = torch.where(is_chosen, keys + 2, torch.where(negative, keys + 1, 0.0))
    values, indices = priority.topk(num, dim=1)
    return indices, values > 0
