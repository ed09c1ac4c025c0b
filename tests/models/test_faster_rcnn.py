"""Faster R-CNN's proposals: in the paper's form against the original code's steps, in a slow loop."""

import pytest
import torch
from scenes import make_image, make_target
from torchvision.ops import nms

from zoo.models.faster_rcnn import RPN_NMS, FasterRCNN
from zoo.nn.frame import FrameConfig
from zoo.ops.coding import decode_boxes

NO_PYRAMID = {"pyramid": False, "pooling": "pool", "anchor_scales": (2.0, 4.0), "trunk": "resnet10t", "head_width": 16}


def build(**arguments: object) -> FasterRCNN:
    torch.manual_seed(0)
    settings = {**NO_PYRAMID, "frame": FrameConfig(96, 128), **arguments}
    return FasterRCNN(3, **settings).eval()  # type: ignore[arg-type]


def test_anchors_of_the_paper_s_form_are_centred_on_their_cells() -> None:
    detector = build(anchor_scales=(8.0, 16.0, 32.0))
    batch = detector.frame_batch([make_image(96, 128, make_target([], []))])
    (anchors,) = detector.encode(batch).anchors
    assert anchors[0].tolist() == [-84, -40, 100, 56], "the first anchor of py-faster-rcnn"
    cells = anchors.view(6, 8, 9, 4)
    middles = (cells[..., :2] + cells[..., 2:]) / 2
    assert middles[2, 5].unique(dim=0).tolist() == [[5 * 16 + 8, 2 * 16 + 8]]


@pytest.mark.parametrize("min_side", [0.0, 16.0, 1000.0])
@torch.no_grad()
def test_proposals_equal_a_slow_loop(min_side: float) -> None:
    """Decode, clip, drop small boxes, take the best, NMS, take the best of those: `proposal_layer.py`."""
    detector = build(min_proposal_side=min_side).double()
    images = [make_image(48, 64, make_target([], [])), make_image(192, 200, make_target([], []), seed=1)]
    batch = detector.frame_batch(images)
    outputs = detector.encode(batch)
    outputs.deltas[0].normal_(std=0.7)
    outputs.objectness[0].normal_()
    proposals, mask = detector.propose(outputs, batch, before_nms=60, after_nms=20)
    for index in range(2):
        width, height = batch.sizes[index].tolist()
        scale = batch.scales[index, 0].item()
        kept = []
        for anchor, delta, score in zip(
            outputs.anchors[0], outputs.deltas[0][index], outputs.objectness[0][index].tolist(), strict=True
        ):
            x1, y1, x2, y2 = decode_boxes(delta, anchor).tolist()
            x1, x2 = (min(max(x, 0.0), width) for x in (x1, x2))
            y1, y2 = (min(max(y, 0.0), height) for y in (y1, y2))
            if min(x2 - x1, y2 - y1) > 0 and min(x2 - x1, y2 - y1) >= min_side * scale:
                kept.append((score, (x1, y1, x2, y2)))
        kept = sorted(kept, reverse=True)[:60]
        boxes = torch.tensor([box for _, box in kept], dtype=torch.float64).reshape(-1, 4)
        best = nms(boxes, torch.tensor([score for score, _ in kept], dtype=torch.float64), RPN_NMS)[:20]
        torch.testing.assert_close(proposals[index][mask[index]], boxes[best])
