"""Corner pooling (Law and Deng, arXiv 1808.01244, section 3.4, equations 6 and 7).

    top-left:     t_ij = max over rows    i' >= i of f_t(i', j),   l_ij = max over columns j' >= j of f_l(i, j')
    bottom-right: b_ij = max over rows    i' <= i of f_b(i', j),   r_ij = max over columns j' <= j of f_r(i, j')

and the two are added: the evidence for a corner lies along its box's two edges, not at the corner itself. Each is a
running maximum, scanned from the far end towards the corner.

Of equal values the first one scanned (the furthest from the corner) receives the gradient, as in the original code's
backward pass; `torch.maximum` would split it and `torch.cummax` would give it to the last.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.ops.precision import upcast

Corner = Literal["top_left", "bottom_right"]

MAX_STEPS = 12
"""Number of doublings in a graph with dynamic sizes: enough for maps with sides of 4096 cells."""


class _RunningMax(torch.autograd.Function):
    """Running maximum with one pass over the rows forward and one backward.

    A cell of the result is either its own value (a new maximum) or carried over from the previous row. The backward
    scan runs in the other direction: a carried cell passes its total gradient to the previous row, so

        T_i = g_i + carried_(i+1) T_(i+1),    gradient_i = T_i where i is a new maximum, else 0
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, dim: int, reverse: bool) -> Tensor:
        result = torch.empty_like(maps)
        rows, results = _in_order(maps, dim, reverse), _in_order(result, dim, reverse)
        results[0].copy_(rows[0])
        for row, before, here in zip(rows[1:], results[:-1], results[1:], strict=True):
            torch.maximum(before, row, out=here)
        ctx.save_for_backward(result)
        ctx.dim, ctx.reverse = dim, reverse
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        dim, last = ctx.dim, result.shape[ctx.dim] - 1
        wide = upcast(grad)
        total = torch.empty_like(grad) if wide is grad else wide
        carried = (result.narrow(dim, 0, last) == result.narrow(dim, 1, last)).to(total.dtype)
        back = not ctx.reverse
        grads, totals, shares = (_in_order(part, dim, back) for part in (wide, total, carried))
        totals[0].copy_(grads[0])
        for row, after, here, share in zip(grads[1:], totals[:-1], totals[1:], shares, strict=True):
            torch.addcmul(row, after, share, out=here)
        # Carried cells have passed their gradient on; the scan's first row is always a new maximum.
        total.narrow(dim, 0 if ctx.reverse else 1, last).mul_(carried.neg_().add_(1))
        return total.to(result.dtype), None, None


def _in_order(maps: Tensor, dim: int, reverse: bool) -> tuple[Tensor, ...]:
    rows = maps.unbind(dim)
    return rows[::-1] if reverse else rows


def _running_max_by_doubling(maps: Tensor, dim: int, reverse: bool) -> Tensor:
    """`running_max` from log2(n) shifted maxima, for compilers, which would unroll the loop over rows."""
    size = maps.shape[dim]
    steps = (size - 1).bit_length() if isinstance(size, int) else MAX_STEPS
    for shift in (2**step for step in range(steps)):
        before, after = (0, shift) if reverse else (shift, 0)
        padding = [0, 0, before, after] if dim == 2 else [before, after]
        padded = F.pad(maps, padding, value=-torch.inf)
        maps = torch.maximum(maps, padded.narrow(dim, after, size))
    return maps


def running_max(maps: Float[Tensor, "B C H W"], dim: Literal[2, 3], reverse: bool) -> Float[Tensor, "B C H W"]:
    """Running maximum over rows (dim 2) or columns (dim 3).

    Args:
        maps: in any memory format; channels_last is the fastest.
        dim: dimension to scan.
        reverse: scan from the last row (column) to the first.
    """
    if torch.compiler.is_compiling():
        return _running_max_by_doubling(maps, dim, reverse)
    return _RunningMax.apply(maps, dim, reverse)


def corner_pool(
    vertical: Float[Tensor, "B C H W"], horizontal: Float[Tensor, "B C H W"], corner: Corner
) -> Float[Tensor, "B C H W"]:
    """Corner pooling, equations 6 and 7: vertical running maximum of one map plus the horizontal one of the other.

    Args:
        vertical: f_t or f_b, scanned vertically.
        horizontal: f_l or f_r, scanned horizontally.
        corner: "top_left" takes maxima of all cells below and to the right, "bottom_right" above and to the left.
    """
    reverse = corner == "top_left"
    return running_max(vertical, 2, reverse) + running_max(horizontal, 3, reverse)
