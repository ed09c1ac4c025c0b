"""Focal loss (Lin et al., arXiv 1708.02002, equation 5), and CornerNet's form of it for heat maps.

    FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t),   p_t = p for the true class, 1 - p for every other

Almost every logit is a negative, and almost every anchor has no positive. So the sum is computed as if all logits were
negatives and corrected at the few positives: no one-hot target, and one saved tensor for the backward pass.

Legend: B images, N anchors of an image, C classes, H x W cells of a heat map.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.ops.precision import upcast

CPU_CHUNK = 2**17
"""Elements per chunk on a CPU: five float32 values of each fit into a core's second-level cache."""


class _NegativeFocal(torch.autograd.Function):
    """Sum over anchors and classes of weight * p^gamma softplus(x), with an analytic gradient.

    Weights are [B, N, C], or [B, N, 1] where they are the same for all classes.

    d/dx p^gamma softplus(x) = p^gamma (gamma (1 - p) softplus(x) + p)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, gamma: float) -> Tensor:
        num_images, num_anchors, num_classes = logits.shape
        step = num_anchors if logits.is_cuda else max(CPU_CHUNK // max(num_images * num_classes, 1), 1)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss = weights.new_zeros(num_images)
        for start in range(0, num_anchors, max(step, 1)):
            rows = slice(start, start + step)
            x = upcast(logits[:, rows])
            p = torch.sigmoid(x)
            softplus = F.softplus(x)
            modulation = (p.square() if gamma == 2 else p.pow(gamma)).mul_(weights[:, rows])
            loss += (modulation * softplus).sum(dim=(1, 2))
            if gradient is not None:
                # gamma (1 - p) softplus + p, in place: (softplus - p softplus) gamma + p
                gradient[:, rows] = softplus.addcmul_(p, softplus, value=-1).mul_(gamma).add_(p).mul_(modulation)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None, None].to(gradient.dtype), None, None


def focal_loss_per_image(
    logits: Float[Tensor, "B N C"],
    labels: Int64[Tensor, "B N"],
    ignored: Tensor,
    alpha: float,
    gamma: float,
) -> Float[Tensor, " B"]:
    """Sigmoid focal loss of each image, summed over anchors and classes.

    Args:
        logits: class logits of each anchor.
        labels: 0..C-1, or negative for background.
        ignored: bool [B, N], anchors without any loss.
        alpha: weight of positives; negatives have 1 - alpha.
        gamma: focusing parameter: how strongly easy examples are down-weighted.
    """
    counted = (~ignored).to(upcast(logits[:0]).dtype)
    negatives = (1 - alpha) * _NegativeFocal.apply(logits, counted[..., None], gamma)
    positive = (labels >= 0) & ~ignored
    label_logits = upcast(logits.gather(2, labels.clamp(min=0)[..., None])[..., 0])
    p = torch.sigmoid(label_logits)
    as_positive = alpha * (1 - p) ** gamma * F.softplus(-label_logits)
    as_negative = (1 - alpha) * p**gamma * F.softplus(label_logits)
    return negatives + torch.where(positive, as_positive - as_negative, 0.0).sum(dim=1)


def penalty_reduced_focal_loss_per_image(
    logits: Float[Tensor, "B C H W"], heat: Float[Tensor, "B C H W"], alpha: float, beta: float
) -> Float[Tensor, " B"]:
    """CornerNet's focal loss of each image, summed over its heat maps (Law and Deng, arXiv 1808.01244, equation 1).

        (1 - p)^alpha log(p)                    where the heat y is 1
        (1 - y)^beta p^alpha log(1 - p)         elsewhere, both negated

    The first equals the second at -x with weight 1, so one function computes both.

    Args:
        logits: predicted heat maps.
        heat: y, the target heat maps: 1 at each point and less around it.
        alpha: how strongly easy cells are down-weighted.
        beta: how strongly negatives near a point are down-weighted.
    """
    positive = heat == 1
    signed = torch.where(positive, -logits, logits)
    weights = torch.where(positive, 1.0, (1 - heat).pow(beta))
    by_cell = (values.permute(0, 2, 3, 1).flatten(1, 2) for values in (signed, weights))
    return _NegativeFocal.apply(*by_cell, alpha)
