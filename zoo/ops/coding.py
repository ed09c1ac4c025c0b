"""Encode boxes as deltas and decode them (R-CNN, Girshick et al., arXiv 1311.2524, appendix C, equations 6 to 9).

    t_x = (G_x - P_x) / P_w      t_y = (G_y - P_y) / P_h      t_w = log(G_w / P_w)      t_h = log(G_h / P_h)

with G the ground truth, P the anchor or proposal, x and y their centres. Each is multiplied by a weight, which scales
the four to about unit variance (Fast R-CNN divides by standard deviations .1 .1 .2 .2: weights 10 10 5 5).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

UNIT_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

MAX_LOG_SCALE = math.log(1000 / 16)
"""Decoded boxes are at most 62.5 times as large as their anchor, so that exp does not overflow (as in detectron)."""


def encode_boxes(
    boxes: Float[Tensor, "... 4"],
    anchors: Float[Tensor, "... 4"],
    weights: tuple[float, float, float, float] = UNIT_WEIGHTS,
) -> Float[Tensor, "... 4"]:
    """Regression deltas from anchors to boxes. Boxes without area (padding) give finite values, not NaN."""
    widths = anchors[..., 2] - anchors[..., 0]
    heights = anchors[..., 3] - anchors[..., 1]
    gt_widths = boxes[..., 2] - boxes[..., 0]
    gt_heights = boxes[..., 3] - boxes[..., 1]
    dx = (boxes[..., 0] + 0.5 * gt_widths - anchors[..., 0] - 0.5 * widths) / widths
    dy = (boxes[..., 1] + 0.5 * gt_heights - anchors[..., 1] - 0.5 * heights) / heights
    dw = torch.log(gt_widths.clamp(min=1e-6) / widths)
    dh = torch.log(gt_heights.clamp(min=1e-6) / heights)
    wx, wy, ww, wh = weights
    return torch.stack((wx * dx, wy * dy, ww * dw, wh * dh), dim=-1)


def decode_boxes(
    deltas: Float[Tensor, "... 4"],
    anchors: Float[Tensor, "... 4"],
    weights: tuple[float, float, float, float] = UNIT_WEIGHTS,
) -> Float[Tensor, "... 4"]:
    """Boxes from deltas and anchors; the inverse of `encode_boxes`."""
    wx, wy, ww, wh = weights
    widths = anchors[..., 2] - anchors[..., 0]
    heights = anchors[..., 3] - anchors[..., 1]
    centre_x = deltas[..., 0] / wx * widths + anchors[..., 0] + 0.5 * widths
    centre_y = deltas[..., 1] / wy * heights + anchors[..., 1] + 0.5 * heights
    half_width = 0.5 * torch.exp((deltas[..., 2] / ww).clamp(max=MAX_LOG_SCALE)) * widths
    half_height = 0.5 * torch.exp((deltas[..., 3] / wh).clamp(max=MAX_LOG_SCALE)) * heights
    return torch.stack(
        (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height), dim=-1
    )
