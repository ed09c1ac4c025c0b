"""Box deltas compared with hand-computed ones, and round trips of encoding and decoding."""

import math

import pytest
import torch

from zoo.ops.coding import MAX_LOG_SCALE, ROI_WEIGHTS, decode_boxes, encode_boxes


def test_deltas_by_hand() -> None:
    anchor = torch.tensor([10.0, 20, 30, 60])  # centre (20, 40), 20 x 40
    box = torch.tensor([20.0, 20, 60, 30])  # centre (40, 25), 40 x 10
    expected = [20 / 20, -15 / 40, math.log(2), math.log(1 / 4)]
    assert encode_boxes(box, anchor).tolist() == pytest.approx(expected)
    weighted = [w * t for w, t in zip(ROI_WEIGHTS, expected, strict=True)]
    assert encode_boxes(box, anchor, ROI_WEIGHTS).tolist() == pytest.approx(weighted)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), ROI_WEIGHTS])
def test_round_trip(weights: tuple[float, float, float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 3, 50, 2, generator=generator, dtype=torch.float64) * 100
    sides = torch.rand(2, 3, 50, 2, generator=generator, dtype=torch.float64) * 60 + 3
    boxes, anchors = torch.cat((corners, corners + sides), dim=-1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors, weights), anchors, weights), boxes)


def test_padding_gives_finite_deltas_and_large_deltas_give_finite_boxes() -> None:
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    assert torch.isfinite(encode_boxes(torch.zeros(1, 4), anchor)).all()
    decoded = decode_boxes(torch.tensor([[0.0, 0, 1000, 1000]]), anchor)
    assert decoded[0, 2] - decoded[0, 0] == pytest.approx(16 * math.exp(MAX_LOG_SCALE))
