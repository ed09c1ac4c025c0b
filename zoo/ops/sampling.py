"""Random sampling of positives and negatives at a fixed ratio, on the device."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def sample(
    positive: Bool[Tensor, "B N"], negative: Bool[Tensor, "B N"], num: int, positive_fraction: float
) -> tuple[Int64[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Random sample of at most num * positive_fraction positives, filled up with negatives to at most num.

    Uses torch's default generator of the tensors' device. Nothing is read back from the device: every image has the
    same number of slots, and those that too few candidates leave empty are False in the mask.

    Returns:
        Indices of the samples [B, min(num, N)], positives first, and the mask of filled slots.
    """
    num_candidates = positive.shape[1]
    max_positives = min(int(num * positive_fraction), num_candidates)
    num = min(num, num_candidates)
    keys = torch.rand(positive.shape, device=positive.device)
    # Sampled positives have priorities in 2..3, negatives in 1..2, all others 0: one top-k then fills the slots.
    positive_keys = torch.where(positive, keys + 1, 0.0)
    chosen = positive_keys.topk(max_positives, dim=1).indices
    is_chosen = torch.zeros_like(positive).scatter_(1, chosen, True) & positive
    priority = torch.where(is_chosen, keys + 2, torch.where(negative, keys + 1, 0.0))
    values, indices = priority.topk(num, dim=1)
    return indices, values > 0
