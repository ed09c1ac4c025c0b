"""Corner pooling (Law and Deng, arXiv 1808.01244, section 3.4, equations 6 and 7).

    top-left:     t_ij = max over rows    i' >= i of f_t(i', j),   l_ij = max over columns j' >= j of f_l(i, j')
    bottom-right: b_ij = max over rows    i' <= i of f_b(i', j),   r_ij = max over columns j' <= j of f_r(i, j')

and the two are added: what a corner needs to know lies along its box's two edges, not at the corner. Each is a running
maximum, scanned from the far end towards the corner.

Of equal values the one that the scan meets first (the one furthest from the corner) receives the gradient, as in the
original code's backward pass; `torch.maximum` would split it and `torch.cummax` give it to the last.
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
"""Doublings of a graph made for any size: enough for maps of 4096 cells a side."""


class _RunningMax(torch.autograd.Function):
    """One pass over the rows, in place, forward and backward.

    A row's result either is its own (a record) or was carried over from the row before. Backward, the scan runs the
    other way: a carried row hands all that it has received to the row before, so

        T_i = g_i + carried_(i+1) T_(i+1),    gradient_i = T_i where i is a record, else 0
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
        # What was carried has been handed on; the scan's first row is always a record.
        total.narrow(dim, 0 if ctx.reverse else 1, last).mul_(carried.neg_().add_(1))
        return total.to(result.dtype), None, None


def _in_order(maps: Tensor, dim: int, reverse: bool) -> tuple[Tensor, ...]:
    rows = maps.unbind(dim)
    return rows[::-1] if reverse else rows


def _running_max_by_doubling(maps: Tensor, dim: int, reverse: bool) -> Tensor:
    """The same values from log2(n) shifted maxima: for compilers, which would unroll the loop over rows."""
    size = maps.shape[dim]
    steps = (size - 1).bit_length() if isinstance(size, int) else MAX_STEPS
    for shift in (2**step for step in range(steps)):
        before, after = (0, shift) if reverse else (shift, 0)
        padding = [0, 0, before, after] if dim == 2 else [before, after]
        padded = F.pad(maps, padding, value=-torch.inf)
        maps = torch.maximum(maps, padded.narrow(dim, after, size))
    return maps


def running_max(maps: Float[Tensor, "B C H W"], dim: Literal[2, 3], reverse: bool) -> Float[Tensor, "B C H W"]:
    """Maximum of all values up to each place along rows (dim 2) or columns (dim 3).

    Args:
        maps: any memory order; channels_last is the fastest.
        dim: along which it runs.
        reverse: from the last row (column) to the first.
    """
    if torch.compiler.is_compiling():
        return _running_max_by_doubling(maps, dim, reverse)
    return _RunningMax.apply(maps, dim, reverse)


def corner_pool(
    vertical: Float[Tensor, "B C H W"], horizontal: Float[Tensor, "B C H W"], corner: Corner
) -> Float[Tensor, "B C H W"]:
    """Equations 6 and 7: the maximum below (above) each place of one map plus that to the right (left) of the other.

    Args:
        vertical: f_t or f_b, looked through along columns of the image.
        horizontal: f_l or f_r, looked through along its rows.
        corner: "top_left" looks down and right, "bottom_right" up and left.
    """
    reverse = corner == "top_left"
    return running_max(vertical, 2, reverse) + running_max(horizontal, 3, reverse)
