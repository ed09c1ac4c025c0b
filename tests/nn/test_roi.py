"""RoIAlign against torchvision and a slow loop, RoIPool against a slow loop; FPN levels, sampling, losses by hand."""

import math

import pytest
import torch
from scenes import make_image, make_target
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from zoo.nn.frame import Frame, FrameConfig
from zoo.nn.roi import (
    RoIPooling,
    SampledRoIs,
    assign_levels,
    pyramid_roi_align,
    roi_losses,
    roi_predictions,
    sample_rois,
)

STRIDES = (4, 8, 16, 32)


def make_levels(channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 80), (32, 40), (16, 20), (8, 10)]  # of a frame of 256 x 320
    return [torch.randn(2, channels, *size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def make_boxes(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    limit = torch.tensor([320.0, 256.0], dtype=dtype)
    centre = torch.rand(2, count, 2, generator=generator, dtype=dtype) * limit
    size = torch.exp(torch.rand(2, count, 2, generator=generator, dtype=dtype) * 4.5 + 1)
    corners = torch.cat((centre - size / 2, centre + size / 2), dim=-1)
    return corners.clamp(min=0).minimum(limit.repeat(2))


def test_levels_by_equation_1() -> None:
    # 224 -> level 4 (stride 16), half of it one finer, twice one coarser, clamped to the existing levels
    boxes = torch.tensor([[[0.0, 0, side, side] for side in (223, 224, 112, 447, 448, 5, 2000)]])
    assert (assign_levels(boxes, 5, 2)[0] + 2).tolist() == [3, 4, 3, 4, 5, 2, 5]


def test_same_as_torchvision_forward_and_backward() -> None:
    levels, boxes = make_levels(6), make_boxes(40)
    theirs = MultiScaleRoIAlign([str(i) for i in range(4)], 7, 2)
    expected = theirs({str(i): level for i, level in enumerate(levels)}, list(boxes), [(256, 320)] * 2)
    found = pyramid_roi_align(levels, boxes, STRIDES, side=7, samples=2)
    # torchvision computes the scale of each level, and so its sampling points, in float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=expected.dtype)
    ours = torch.autograd.grad((found * direction).sum(), levels)
    for mine, other in zip(ours, torch.autograd.grad((expected * direction).sum(), levels), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=0)


def slow_roi_align(level: Tensor, box: list[float], stride: int, side: int, samples: int) -> Tensor:
    """RoIAlign of one box by explicit loops (Mask R-CNN, arXiv 1703.06870, section 3)."""
    channels, height, width = level.shape
    x1, y1, x2, y2 = (edge / stride for edge in box)
    step_x, step_y = max(x2 - x1, 1) / side, max(y2 - y1, 1) / side
    pooled = torch.zeros(channels, side, side, dtype=level.dtype)
    for i in range(side):
        for j in range(side):
            for a in range(samples):
                for b in range(samples):
                    y = min(max(y1 + (i + (a + 0.5) / samples) * step_y, 0), height - 1)
                    x = min(max(x1 + (j + (b + 0.5) / samples) * step_x, 0), width - 1)
                    top, left = math.floor(y), math.floor(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    fy, fx = y - top, x - left
                    upper = (1 - fx) * level[:, top, left] + fx * level[:, top, right]
                    lower = (1 - fx) * level[:, bottom, left] + fx * level[:, bottom, right]
                    pooled[:, i, j] += ((1 - fy) * upper + fy * lower) / samples**2
    return pooled


def test_against_a_slow_loop() -> None:
    levels = [level.detach() for level in make_levels(2)]
    boxes = torch.tensor(
        [[[10.3, 20.7, 60.2, 50.9], [0, 0, 320, 256]], [[300, 240, 320, 256], [100, 3, 103, 9]]]
    ).double()
    found = pyramid_roi_align(levels, boxes, STRIDES, side=3, samples=2).view(2, 2, 2, 3, 3)
    number = assign_levels(boxes, 5, 2)
    for image in range(2):
        for roi in range(2):
            level = int(number[image, roi])
            args = (boxes[image, roi].tolist(), STRIDES[level], 3, 2)
            torch.testing.assert_close(found[image, roi], slow_roi_align(levels[level][image], *args))


def test_bf16_gradient_is_close_to_float32() -> None:
    wide, boxes = make_levels(16, torch.float32), make_boxes(100, torch.float32)
    narrow = [level.detach().to(torch.bfloat16).requires_grad_() for level in wide]
    expected = torch.autograd.grad(pyramid_roi_align(wide, boxes, STRIDES, 7, 2).square().sum(), wide)
    found = torch.autograd.grad(pyramid_roi_align(narrow, boxes, STRIDES, 7, 2).float().square().sum(), narrow)
    for mine, other in zip(found, expected, strict=True):
        assert (mine.float() - other).norm() <= 0.02 * other.norm()
    assert expected[0].norm() > 0


def test_no_regions() -> None:
    assert pyramid_roi_align(make_levels(3), make_boxes(0), STRIDES, 7, 2).shape == (0, 3, 7, 7)


def test_roi_pool_with_a_pyramid_raises() -> None:
    with pytest.raises(ValueError, match="one feature level"):
        RoIPooling((4, 8), "pool")


def slow_roi_pool(level: Tensor, box: list[float], stride: int, side: int) -> Tensor:
    """RoIPool of one box by explicit loops (Fast R-CNN, arXiv 1504.08083, section 2.1).

    Edges are rounded to pixels of the map, which both belong to the region; neighbouring cells may share pixels.
    """
    channels, height, width = level.shape
    x1, y1, x2, y2 = (math.floor(edge / stride + 0.5) for edge in box)
    step_x, step_y = max(x2 - x1 + 1, 1) / side, max(y2 - y1 + 1, 1) / side
    pooled = torch.zeros(channels, side, side, dtype=level.dtype)
    for i in range(side):
        for j in range(side):
            rows = [y for y in range(y1 + math.floor(i * step_y), y1 + math.ceil((i + 1) * step_y)) if 0 <= y < height]
            columns = [
                x for x in range(x1 + math.floor(j * step_x), x1 + math.ceil((j + 1) * step_x)) if 0 <= x < width
            ]
            for c in range(channels):
                values = [float(level[c, y, x]) for y in rows for x in columns]
                pooled[c, i, j] = max(values, default=0.0)  # a cell outside the map is empty
    return pooled


@pytest.mark.parametrize("side", [3, 7])
def test_roi_pool_against_a_slow_loop(side: int) -> None:
    level = make_levels(3)[2].detach()  # stride 16: 16 x 20
    boxes = [
        [10.3, 20.7, 160.2, 250.9],
        [0, 0, 320, 256],
        [300, 240, 320, 256],
        [100, 3, 103, 9],
        [23.9, 24.1, 90, 200],
    ]
    regions = torch.tensor([boxes, boxes[::-1]]).double()
    found = RoIPooling((16,), "pool", side)([level], regions)
    for number, region in enumerate(regions.flatten(0, 1).tolist()):
        expected = slow_roi_pool(level[number // len(boxes)], region, 16, side)
        torch.testing.assert_close(found[number], expected, rtol=0, atol=0)


def test_roi_pool_gradient_goes_to_the_maxima() -> None:
    level = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    RoIPooling((16,), "pool", 2)([level], torch.tensor([[[0.0, 0, 48, 48]]])).sum().backward()
    assert level.grad is not None
    assert level.grad[0, 0].nonzero().tolist() == [[1, 1], [1, 3], [3, 1], [3, 3]]


def sampled(background_iou: float, num: int = 8, objects: bool = True) -> tuple[SampledRoIs, Tensor]:
    """Sample from proposals of IoU 0.8, 0.5, 0.3, 0.1, 0.09 and 0 with the object, and one on a difficult object."""
    target = make_target([[0, 0, 100, 10], [0, 80, 100, 90]], [2, 1]) if objects else make_target([], [])
    target["difficult"] = torch.tensor([False, True][: len(target["labels"])], dtype=torch.bool)
    proposals = torch.tensor([[0.0, 0, width, 10] for width in (80, 50, 30, 10, 9)] + [[0, 50, 9, 60], [0, 80, 95, 90]])
    batch = Frame(FrameConfig(100, 100))([make_image(100, 100, target)], [target], [proposals])
    assert batch.proposals is not None
    assert batch.proposal_mask is not None
    torch.manual_seed(0)
    return sample_rois(batch.proposals, batch.proposal_mask, batch, num, 0.5, 0.5, background_iou), proposals


def test_rois_are_sampled_by_iou() -> None:
    for background_iou, background in ((0.0, [2, 3, 4, 5, 6]), (0.1, [2, 3]), (0.2, [2])):
        rois, proposals = sampled(background_iou, num=16)
        chosen = [box for box, filled in zip(rois.boxes[0].tolist(), rois.filled[0].tolist(), strict=True) if filled]
        labels = rois.labels[0][rois.filled[0]].tolist()
        # the ground truth box, which joins the proposals, and the two of IoU 0.5 or more
        positive = [[0, 0, 100, 10], *proposals[:2].tolist()]
        assert sorted(zip(chosen, labels, strict=True)) == sorted(
            [(box, 2) for box in positive] + [(box, -1) for box in proposals[background].tolist()]
        )


def test_positive_fraction_limits_positives() -> None:
    rois, _ = sampled(0.0, num=4)
    assert rois.filled.all()
    assert (rois.labels >= 0).sum() == 2


def test_image_without_objects_has_negatives_only_at_background_iou_0() -> None:
    rois, _ = sampled(0.0, objects=False)
    assert rois.filled.sum() == 7
    assert (rois.labels[rois.filled] == -1).all()
    assert not sampled(0.1, objects=False)[0].filled.any()


def test_losses_by_hand() -> None:
    # Image 1: a positive of class 1 and a negative; image 2: a negative and an empty slot.
    rois = SampledRoIs(
        boxes=torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10], [0, 0, 0, 0]]]),
        labels=torch.tensor([[1, -1], [-1, 0]]),
        gt_boxes=torch.tensor([[[1.0, 0, 11, 10], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]),
        filled=torch.tensor([[True, True], [True, False]]),
        matched=torch.tensor([[0, -1], [-1, -1]]),
    )
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    deltas = torch.zeros(2, 2, 2, 4, requires_grad=True)
    losses = roi_losses(logits, deltas, rois)
    # three RoIs, three equal classes; the only non-zero target is dx = 10 * 1/10 = 1: smooth L1 = 1 - beta / 2
    assert losses["roi_class"].item() == pytest.approx(math.log(3))
    assert losses["roi_box"].item() == pytest.approx((1 - 1 / 18) / 3)
    assert roi_losses(logits, deltas, rois, beta=1.0)["roi_box"].item() == pytest.approx(0.5 / 3)
    sum(losses.values()).backward()
    assert torch.isfinite(deltas.grad).all()
    assert deltas.grad.nonzero().tolist() == [[0, 0, 1, 0]]


def test_predictions_by_hand() -> None:
    logits = torch.full((1, 2, 3), -20.0)
    logits[0, 0, 2] = 0.0  # class 1
    logits[0, 1, 0] = 0.0  # background
    rois = torch.tensor([[[10.0, 10, 30, 30], [0, 0, 5, 5]]])
    found = roi_predictions(
        logits,
        torch.zeros(1, 2, 2, 4),
        rois,
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([[25.0, 40]]),
        0.05,
        0.5,
        9,
    )[0]
    assert found["boxes"].tolist() == [[10, 10, 25, 30]]
    assert found["labels"].tolist() == [1]
    assert found["scores"].item() == pytest.approx(1)
