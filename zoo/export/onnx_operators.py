"""ONNX translations of PyTorch operators that torch.onnx does not support or translates incorrectly.

Written in opset 18 like torch.onnx's own translations, which are converted to a later opset at the end. A plain
function is traced once per call site; `script` makes an ONNX function, which may contain a loop.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18, script
from onnxscript.onnx_types import FLOAT, INT64

import zoo.ops.postprocess
import zoo.ops.soft_nms  # noqa: F401  (both define operators)

op: Any = opset18  # Any: its type stubs do not accept constants as tensors


def group_nms(boxes: Any, scores: Any, groups: Any, iou_threshold: float) -> Any:
    """`zoo.ops.postprocess.group_nms`; ONNX needs a row of scores for each group, and does not sort across groups."""
    x1, y1, x2, y2 = op.Split(boxes, axis=1, num_outputs=4)
    has_area = op.Squeeze(op.And(op.Less(x1, x2), op.Less(y1, y2)), [1])
    last = op.ReduceMax(op.Concat(groups, op.Constant(value_ints=[0]), axis=0), keepdims=0)
    numbers = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
    is_member = op.And(op.Equal(op.Unsqueeze(numbers, [1]), op.Unsqueeze(groups, [0])), has_area)
    excluded = op.Constant(value_float=-torch.inf)
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]),
        op.Unsqueeze(op.Where(is_member, op.Unsqueeze(scores, [0]), excluded), [0]),
        op.Constant(value_ints=[torch.iinfo(torch.int64).max]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[torch.finfo(torch.float32).min]),
    )
    kept = op.Gather(chosen, op.Constant(value_int=2), axis=1)
    _, order = op.TopK(op.Gather(scores, kept), op.Shape(kept), axis=0)
    return op.Gather(kept, order)


@script(default_opset=opset18)
def soft_nms(boxes: FLOAT, scores: FLOAT, labels: INT64, sigma: float, limit: int) -> tuple[FLOAT, INT64]:
    """`zoo.ops.soft_nms` of one image, as an ONNX loop."""
    x1, y1, x2, y2 = op.Split(op.Squeeze(boxes, [0]), axis=1, num_outputs=4)
    area = (x2 - x1) * (y2 - y1)
    left = op.Reshape(scores, [-1])
    label = op.Reshape(labels, [-1])
    size = op.Size(left)
    numbers = op.Range(0, size, 1)
    steps = op.Min(limit, size)
    taken_scores = op.Slice(left, [0], [0])
    taken = op.Slice(label, [0], [0])
    for _ in range(steps):
        index = op.ArgMax(left, axis=0, keepdims=1)
        score = op.Gather(left, index)
        inner_x2 = op.Min(x2, op.Gather(x2, index))
        inner_y2 = op.Min(y2, op.Gather(y2, index))
        width = op.Relu(inner_x2 - op.Max(x1, op.Gather(x1, index)))
        height = op.Relu(inner_y2 - op.Max(y1, op.Gather(y1, index)))
        intersection = width * height
        union = op.Max(area + op.Gather(area, index) - intersection, 1e-12)
        overlap = op.Squeeze(intersection / union, [1])
        overlap = op.Where(op.Equal(label, op.Gather(label, index)), overlap, 0.0)
        decayed = left * op.Exp(op.Neg(overlap * overlap / sigma))
        left = op.Where(op.Equal(numbers, index), -3.4e38, decayed)
        taken_scores = op.Concat(taken_scores, score, axis=0)
        taken = op.Concat(taken, index, axis=0)
    return op.Unsqueeze(taken_scores, [0]), op.Unsqueeze(taken, [0])


def resize_antialiased(
    images: Any, output_size: Any, align_corners: bool, scales_h: float | None = None, scales_w: float | None = None
) -> Any:
    """Antialiased bilinear resizing by scales, as in PyTorch; output sizes are rounded down and would shift pixels."""
    if scales_h is None or scales_w is None or align_corners:
        raise NotImplementedError("antialiased resizing to a size")
    # Slightly larger scales, so that float32 does not round an integer number of pixels down.
    scales = [1.0, 1.0, scales_h * (1 + 1e-7), scales_w * (1 + 1e-7)]
    options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 1, "exclude_outside": 1}
    return op.Resize(images, None, op.Constant(value_floats=scales), None, **options)


def roi_pool(maps: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> tuple[Any, Any]:
    """RoIPool; the second output, PyTorch's argmax indices for the gradient, is replaced by the RoIs."""
    pooled = op.MaxRoiPool(maps, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale)
    return pooled, op.Identity(rois)


def remainder(dividend: Any, divisor: Any) -> Any:
    """Remainder of a division by a dynamic size."""
    return op.Mod(dividend, divisor)


def floor_division(dividend: Any, divisor: Any) -> Any:
    """Integer division rounding down, as in Python; ONNX's Div truncates towards 0, but its Mod equals Python's."""
    return op.Div(op.Sub(dividend, op.Mod(dividend, divisor)), divisor)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.zoo.group_nms.default: group_nms,
    torch.ops.zoo.soft_nms.default: soft_nms,
    torch.ops.torchvision.roi_pool.default: roi_pool,
    torch.ops.aten._upsample_bilinear2d_aa.default: resize_antialiased,
    torch.ops.aten.remainder.Scalar: remainder,
    operator.floordiv: floor_division,
}
