"""The sliding-window CNN: crops against the dense pass, the pyramid's geometry, sampling and losses by slow loops."""

import math
from typing import Any

import pytest
import torch
from scenes import make_image, make_target
from torch import Tensor, nn
from torchvision.ops import box_iou

from zoo.errors import InputError
from zoo.models.sliding_window import (
    SlidingWindow,
    Windows,
    sample_windows,
    window_losses,
)
from zoo.nn.frame import FrameConfig
from zoo.nn.image_pyramid import slot_cells
from zoo.ops.matching import BACKGROUND, IGNORED
from zoo.types import Batch

SHAPES = ((28.0, 28.0), (56.0, 40.0), (70.0, 70.0))


def build(**arguments: Any) -> SlidingWindow:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "num_classes": 3,
        "trunk": "resnet10t",
        "stride": 8,
        "window_side": 28,
        "window_shapes": SHAPES,
        "head_kernel": 1,
        "head_dilation": 1,
        "class_widths": (16,),
        "box_widths": (16,),
        "frame": FrameConfig(min_size=128, max_size=160),
    }
    return SlidingWindow(**small | arguments)


def liven(detector: SlidingWindow) -> SlidingWindow:
    """As after some training: timm starts a residual branch's last norm with 0, and our last layers say little."""
    generator = torch.Generator().manual_seed(1)
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.2, generator=generator)
    for head in (detector.network.classifier, detector.network.regressor):
        if head is not None:
            head[-1].weight.data.normal_(0, 0.3, generator=generator)
    return detector.eval()


def frame_noise(detector: SlidingWindow, height: int = 128, width: int = 160) -> Batch:
    return detector.frame([make_image(height, width, make_target([[20, 30, 90, 100]], [1]))])


def sees_no_padding(detector: SlidingWindow, canvas: Tensor, cells: Tensor) -> Tensor:
    """Which windows have all the pixels that they see on the canvas."""
    network, (height, width) = detector.network, canvas.shape[2:]
    columns = width // network.stride
    y, x = cells // columns * network.stride, cells % columns * network.stride
    before, after = network.before, network.after
    return (y >= before) & (x >= before) & (y + after <= height) & (x + after <= width)


# -------------------------------------------------------------------------------------------------- crops and dense


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_shapes": ((28.0, 28.0), (56.0, 40.0))},
        {
            "trunk": "vgg11",
            "head_kernel": 3,
            "window_side": 40,
            "window_shapes": ((40.0, 40.0),),
        },  # sees more to the right
        {"stride": 4, "head_kernel": 3, "head_dilation": 2, "regress_boxes": False, "window_shapes": ((60.0, 60.0),)},
    ],
    ids=["resnet", "vgg", "cells apart"],
)
def test_crops_equal_the_dense_pass_where_they_see_no_padding(arguments: dict[str, Any]) -> None:
    detector = liven(build(**arguments).double())
    batch = frame_noise(detector)
    with torch.no_grad():
        outputs = detector.encode(batch)
        clear = sees_no_padding(detector, outputs.canvas, outputs.cells)
        # A dozen of those and a few of the others, since each crop is worth a forward pass in float64.
        some = torch.cat((outputs.cells[clear][:: max(int(clear.sum()) // 12, 1)], outputs.cells[~clear][::24]))
        dense = detector.network.dense(outputs.canvas, some)
        crops = detector.network.crops(outputs.canvas, some, at_once=7)
    clear = sees_no_padding(detector, outputs.canvas, some)
    assert clear.sum() >= 12
    torch.testing.assert_close(crops.logits[:, clear], dense.logits[:, clear], atol=1e-10, rtol=0)
    torch.testing.assert_close(crops.deltas[:, clear], dense.deltas[:, clear], atol=1e-10, rtol=0)
    assert dense.logits[0, clear].std(dim=0).min() > 1e-3, "all windows look alike: nothing is compared"
    assert (crops.logits - dense.logits)[:, ~clear].abs().max() > 1e-6, "no window saw padding: the test is blind"


def test_overfeat_crops_equal_the_dense_pass() -> None:
    detector = build(trunk="overfeat", stride=12, head_kernel=5, head_dilation=3, window_side=221, class_widths=(8,))
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randn(1, 3, 324, 336, generator=generator)
    cells = torch.arange(27 * 28)
    cells = cells[sees_no_padding(detector, canvas, cells)]
    assert cells.tolist() == [13 * 28 + 13, 13 * 28 + 14]  # 153 pixels before, 164 after
    with torch.no_grad():
        dense = detector.eval().network.dense(canvas, cells)
        crops = detector.network.crops(canvas, cells, at_once=1)
    torch.testing.assert_close(crops.logits, dense.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(crops.deltas, dense.deltas, atol=1e-4, rtol=1e-4)


def test_both_evaluations_find_the_same_and_read_the_same_losses() -> None:
    dense, crops = (liven(build(evaluation=way, window_shapes=((70.0, 70.0),))) for way in ("dense", "crops"))
    batch, target = frame_noise(dense), make_target([[20, 30, 90, 100]], [1])
    image = make_image(128, 160, target)
    losses = []
    for detector in (dense, crops):
        detector.score_threshold, detector.nms_threshold, detector.detections_per_image = 0.0, 1.0, 10**6
        with torch.no_grad():
            assert (detector.encode(batch).windows is None) == (detector is crops)
            torch.manual_seed(2)
            losses.append(
                {key: float(value) for key, value in detector.compute_raw_losses(([image], [target])).items()}
            )
    assert losses[0] == losses[1]
    with torch.no_grad():
        (one,), (other,) = dense([image]), crops([image])
    assert len(one["scores"]) == len(other["scores"]) > 100
    torch.testing.assert_close(one["scores"], other["scores"], atol=0.1, rtol=0)  # most windows here see padding


def test_a_window_sees_its_crop_and_nothing_else() -> None:
    detector = liven(build(head_kernel=3))
    network = detector.network
    side = 16  # cells
    middle = side // 2 * network.stride
    cell = torch.tensor([side // 2 * side + side // 2])
    for place, seen in [
        (middle - network.before - 1, False),
        (middle - network.before, True),
        (middle + network.after - 1, True),
        (middle + network.after, False),
    ]:
        canvas = torch.zeros(1, 3, side * network.stride, side * network.stride)
        canvas[:, :, :, place] = torch.nan
        with torch.no_grad():
            assert bool(network.dense(canvas, cell).logits.isnan().any()) == seen


def test_crops_are_cut_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = liven(build(evaluation="crops", crops_at_once=5, window_shapes=((90.0, 90.0),)))
    batch = frame_noise(detector)
    sizes = []
    forward = detector.network.trunk.forward
    monkeypatch.setattr(detector.network.trunk, "forward", lambda crops: sizes.append(len(crops)) or forward(crops))
    with torch.no_grad():
        outputs = detector.encode(batch)
        assert sizes == []
        detector.compute_predictions(outputs, batch)
    assert max(sizes) == 5
    assert sum(sizes) == len(outputs.cells)


# ------------------------------------------------------------------------------------------------------ the pyramid


def test_no_window_sees_another_level() -> None:
    detector = liven(build())
    canvas, slots = detector.pyramid.draw(frame_noise(detector).images)
    columns = canvas.shape[3] // 8
    for blank, slot in enumerate(slots):
        spoiled = canvas.clone()
        spoiled[:, :, slot.top * 8 : (slot.top + slot.rows) * 8, slot.left * 8 : (slot.left + slot.columns) * 8] = (
            math.nan
        )
        for level, other in enumerate(slots):
            with torch.no_grad():
                windows = detector.network.dense(spoiled, slot_cells(other, columns, canvas.device))
            assert bool(windows.logits.isnan().all()) == (level == blank)
            assert bool(windows.logits.isnan().any()) == (level == blank)


@pytest.mark.parametrize("trunk", ["resnet10t", "vgg11"])
def test_what_fills_a_window_on_the_frame_fills_it_on_its_level(trunk: str) -> None:
    detector = build(trunk=trunk, window_shapes=((56.0, 40.0), (28.0, 28.0)))
    batch = frame_noise(detector)
    columns = detector.pyramid.draw(batch.images)[0].shape[3] // 8
    outputs = detector.encode(batch)
    whole = ((outputs.boxes > 4) & (outputs.boxes < 124)).all(dim=1).nonzero()[:, 0].tolist()
    assert whole[0] < 20 * 16 <= whole[-1], "windows of both levels"
    for number in (whole[0], whole[3], whole[-1]):
        x1, y1, x2, y2 = outputs.boxes[number].round().long().tolist()
        batch.images.zero_()[:, :, y1:y2, x1:x2] = 1
        canvas, _ = detector.pyramid.draw(batch.images)
        row, column = divmod(int(outputs.cells[number]), columns)
        left, top, right, bottom = (detector.first_window[0] + 8 * torch.tensor([column, row] * 2)).long().tolist()
        assert canvas[:, :, top + 2 : bottom - 1, left + 2 : right - 1].min() > 0.9
        for outside in (canvas[..., top - 2, left:right], canvas[..., top:bottom, right + 2]):
            assert outside.max() < 0.1


# --------------------------------------------------------------------------------------------- sampling and the losses


def test_hard_negatives_are_the_surest_false_positives() -> None:
    matched = torch.full((1, 40), BACKGROUND)
    matched[0, :6], matched[0, 6:10] = 0, IGNORED
    allowed = torch.ones(1, 40, dtype=torch.bool)
    allowed[0, 39] = False
    scores = torch.arange(40.0)[None] / 40  # the surest are positives' neighbours 36, 37, 38; 39 is not on the image
    seen: set[int] = set()
    for seed in range(20):
        torch.manual_seed(seed)
        chosen, filled = sample_windows(
            matched, allowed, scores, 16, positive_fraction=0.25, hard_negative_fraction=0.5
        )
        numbers = chosen[filled].tolist()
        assert len(numbers) == len(set(numbers)) == 16
        assert sum(number < 6 for number in numbers) == 4
        assert {33, 34, 35, 36, 37, 38} <= set(numbers)
        assert not {6, 7, 8, 9, 39} & set(numbers)
        seen |= set(numbers)
    assert seen == set(range(40)) - {6, 7, 8, 9, 39}, "positives and the other negatives are drawn at random"


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_share_of_hard_negatives(fraction: float) -> None:
    matched = torch.full((2, 100), BACKGROUND)
    matched[0, 0] = 0
    scores = torch.rand(2, 100)
    chosen, filled = sample_windows(matched, torch.ones(2, 100, dtype=torch.bool), scores, 20, 0.25, fraction)
    hardest = [set(row.topk(15).indices.tolist()) for row in scores.masked_fill(matched >= 0, -1)]
    for image in range(2):
        numbers = chosen[image][filled[image]].tolist()
        assert len(set(numbers)) == len(numbers) == 20  # random negatives stand in for the positives that are missing
        assert (set(numbers) >= hardest[image]) == (fraction == 1.0)
    assert 0 in chosen[0][filled[0]].tolist()


def test_more_slots_than_windows_stay_empty() -> None:
    matched = torch.tensor([[0, BACKGROUND, IGNORED, BACKGROUND, IGNORED]])
    chosen, filled = sample_windows(matched, torch.ones(1, 5, dtype=torch.bool), torch.rand(1, 5), 64, 0.5, 0.5)
    assert sorted(chosen[filled].tolist()) == [0, 1, 3]


def test_mining_follows_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the present weights take for an object is what the next step learns from: nothing is remembered."""
    detector = build(hard_negative_fraction=1.0, positive_fraction=0.25, windows_per_image=16, dropout=0.0)
    batch = frame_noise(detector)
    with torch.no_grad():
        outputs = detector.encode(batch)
    assert outputs.windows is not None
    outputs.windows.logits.zero_()
    outputs.windows.logits[0, 17, 2] = 9.0  # a false positive
    before = detector.compute_losses(outputs, batch)["class"]
    outputs.windows.logits[0, 17, 2] = 0.0
    after = detector.compute_losses(outputs, batch)["class"]
    expected = (math.log(math.exp(9) + 3) - math.log(4)) / 16
    assert float(before - after) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("foreground_iou", [0.4, 0.5])
def test_which_windows_answer_for_an_object(foreground_iou: float) -> None:
    """All windows are sampled here, so the class loss is a mean over those that a loop finds positive or negative."""
    detector = build(
        foreground_iou=foreground_iou, windows_per_image=10**6, positive_fraction=0.5, hard_negative_fraction=0.0
    )
    image = make_image(128, 150, target := make_target([[20, 30, 90, 100], [3, 3, 14, 13]], [1, 2]))
    batch = detector.frame([image], [target])
    with torch.no_grad():
        outputs = liven(detector).encode(batch)
        loss = detector.compute_losses(outputs, batch)["class"]
    assert outputs.windows is not None
    iou = box_iou(batch.boxes[0], outputs.boxes)
    entropies, num_positive = [], 0
    for window, (best, which) in enumerate(zip(*iou.max(dim=0), strict=True)):
        is_best = bool((iou[:, window] == iou.max(dim=1).values).any())
        if best >= foreground_iou or is_best:
            slot = int(target["labels"][which]) + 1
            num_positive += 1
        elif best < 0.3 and (outputs.boxes[window, :2] + outputs.boxes[window, 2:] < 2 * batch.sizes[0]).all():
            slot = 0
        else:
            continue
        entropies.append(-float(outputs.windows.logits[0, window].log_softmax(dim=0)[slot]))
    assert iou[1].max() < 0.4, "the small object has its best window alone"
    assert num_positive > 5
    assert float(loss) == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def slow_losses(windows: Windows, boxes: Tensor, matched: Tensor, chosen: Tensor, filled: Tensor, batch: Batch) -> Any:
    """Window by window; deltas are 10 (dx / w), 10 (dy / h), 5 log(w' / w), 5 log(h' / h)."""
    entropies, squares = [], []
    for image in range(len(chosen)):
        for slot in range(chosen.shape[1]):
            if not filled[image, slot]:
                continue
            window = int(chosen[image, slot])
            which = int(matched[image, window])
            label = 0 if which < 0 else 1 + int(batch.labels[image, which])
            logits = windows.logits[image, window].detach()
            entropies.append(float(logits.exp().sum().log() - logits[label]))
            if which >= 0:
                x1, y1, x2, y2 = boxes[window].tolist()
                gx1, gy1, gx2, gy2 = batch.boxes[image, which].tolist()
                width, height = x2 - x1, y2 - y1
                target = [
                    10 * ((gx1 + gx2) / 2 - (x1 + x2) / 2) / width,
                    10 * ((gy1 + gy2) / 2 - (y1 + y2) / 2) / height,
                    5 * math.log((gx2 - gx1) / width),
                    5 * math.log((gy2 - gy1) / height),
                ]
                deltas = windows.deltas[image, window].tolist()
                squares.append(sum((t - d) ** 2 for t, d in zip(target, deltas, strict=True)) / 2)
    return sum(entropies) / max(len(entropies), 1), sum(squares) / max(len(squares), 1)


@pytest.mark.parametrize("num_objects", [0, 2])
def test_losses_equal_a_slow_loop(num_objects: int) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(30, 2, generator=generator) * 60
    boxes = torch.cat((corners, corners + 20), dim=1)
    objects = [[[5.0, 5.0, 30.0, 28.0], [40.0, 40.0, 60.0, 70.0]], [[20.0, 10.0, 45.0, 40.0]]]
    batch = build().frame(
        [torch.zeros(3, 128, 128, dtype=torch.uint8)] * 2,
        [make_target(one[:num_objects], [2, 0][: min(num_objects, len(one))]) for one in objects],
    )
    matched = torch.randint(-2, max(num_objects, 1), (2, 30), generator=generator)
    if num_objects == 0:
        matched.clamp_(max=BACKGROUND)
    matched[1].clamp_(max=0)
    chosen = torch.stack([torch.randperm(30, generator=generator)[:12] for _ in range(2)])
    filled = (matched.gather(1, chosen) != IGNORED) & (torch.rand(2, 12, generator=generator) < 0.8)
    logits, deltas = torch.randn(2, 30, 4, generator=generator), torch.randn(2, 30, 4, generator=generator)
    windows = Windows(logits.requires_grad_(), deltas.requires_grad_())
    losses = window_losses(windows, boxes, matched, chosen, filled, batch)
    entropy, square = slow_losses(windows, boxes, matched, chosen, filled, batch)
    assert losses["class"].item() == pytest.approx(entropy, rel=1e-5)
    assert losses["box"].item() == pytest.approx(square, rel=1e-5)
    assert (square > 0) == (num_objects > 0)
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(deltas.grad).all()


# ------------------------------------------------------------------------------------------------- switches and errors


def test_without_a_regressor_boxes_are_windows() -> None:
    detector = liven(build(regress_boxes=False))
    detector.score_threshold = 1e-3
    batch = frame_noise(detector)
    assert not any("regressor" in name for name, _ in detector.named_parameters())
    with torch.no_grad():
        outputs = detector.encode(batch)
        assert set(detector.compute_losses(outputs, batch)) == {"class"}
        (found,) = detector.compute_predictions(outputs, batch)
    clipped = outputs.boxes.clamp(min=0).minimum(torch.tensor([160.0, 128.0, 160.0, 128.0]))
    assert len(found["boxes"]) > 10
    for box in found["boxes"]:
        assert (clipped - box).abs().amax(dim=1).min() < 1e-4


def test_scores_start_at_the_shares_that_are_sampled() -> None:
    detector = build(positive_fraction=0.25)
    batch = frame_noise(detector)
    with torch.no_grad():
        windows = detector.eval().encode(batch).windows
    assert windows is not None
    assert windows.logits.softmax(dim=-1).mean(dim=(0, 1)).tolist() == pytest.approx([0.75] + [0.25 / 3] * 3, abs=0.02)


def test_what_cannot_be_built() -> None:
    with pytest.raises(InputError, match="sees the whole image"):
        build(trunk="mobilenetv3_small_050")
    with pytest.raises(ValueError, match="head_kernel is 4"):
        build(head_kernel=4)
    with pytest.raises(ValueError, match="OverFeat's cells are 12 pixels apart"):
        build(trunk="overfeat", stride=36)
    with pytest.raises(ValueError, match="for their own program"):
        build(trunk="overfeat", stride=12, pretrained=True)
