"""The mask branch against torchvision's functions, and by hand."""

import math

import pytest
import torch
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image

from zoo.nn.mask_head import MaskHead, mask_loss, mask_targets
from zoo.ops.paste import paste_masks


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_head_is_torchvisions(batch_norm: bool) -> None:
    norm = torch.nn.BatchNorm2d if batch_norm else None
    theirs = torch.nn.Sequential(MaskRCNNHeads(6, (8,) * 4, 1, norm_layer=norm), MaskRCNNPredictor(8, 8, 5)).double()
    ours = MaskHead(6, 4, 8, 5, batch_norm).double()
    values = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(values)
    pooled = random(3, 6, 14, 14) - 0.5
    found = ours.eval()(pooled)
    assert found.shape == (3, 5, 28, 28)
    torch.testing.assert_close(found, theirs.eval()(pooled))


def test_loss_is_torchvisions() -> None:
    """Two images with three objects and one; one RoI of the second is padding."""
    masks = (random(2, 3, 60, 80) > 0.4).to(torch.uint8)
    corners = random(2, 4, 2, seed=1) * 40
    boxes = torch.cat([corners, corners + 3 + random(2, 4, 2, seed=2) * 20], dim=2)
    matched = torch.tensor([[0, 2, 1, 2], [0, 0, 0, -1]])
    labels = torch.tensor([[3, 1, 0, 1], [2, 2, 2, -1]])
    positive = matched >= 0
    logits = random(2, 4, 5, 28, 28, seed=3) - 0.5
    targets = mask_targets(masks, matched, boxes, 28)
    flat = [part.flatten(0, 1) for part in (logits, labels, targets)]
    found = mask_loss(*flat, positive.flatten())
    kept = [logits[0], logits[1, :3]]
    expected = maskrcnn_loss(
        torch.cat(kept),
        [boxes[0], boxes[1, :3]],
        [masks[0], masks[1]],
        [torch.tensor([3, 0, 1]), torch.tensor([2])],
        [matched[0], matched[1, :3]],
    )
    torch.testing.assert_close(found, expected)
    assert mask_loss(*flat, torch.zeros(8, dtype=torch.bool)).item() == 0
    assert mask_targets(masks[:, :0], matched, boxes, 28).shape == (2, 4, 28, 28)


def test_targets_and_loss_by_hand() -> None:
    """The left half of an object's mask is set, and the RoI is its box."""
    masks = torch.zeros(1, 1, 28, 56, dtype=torch.uint8)
    masks[:, :, :, :28] = 1
    targets = mask_targets(masks, torch.tensor([[0]]), torch.tensor([[[0.0, 0, 56, 28]]]), 28)
    assert targets[0, 0, 5, :13].tolist() == pytest.approx([1] * 13)
    assert targets[0, 0, 5, 15:].tolist() == pytest.approx([0] * 13)
    logits = torch.full((1, 2, 28, 28), -100.0)
    logits[:, 1] = 0.0
    loss = mask_loss(logits, torch.tensor([1]), targets[0], torch.tensor([True]))
    assert loss.item() == pytest.approx(math.log(2)), "the masks of other classes do not count"


def test_pasted_masks_are_torchvisions() -> None:
    masks = random(40, 28, 28)
    corners = random(40, 2, seed=1) * 90 - 10
    boxes = torch.cat([corners, corners + 0.2 + random(40, 2, seed=2) ** 3 * 60], dim=1)
    touching = ((boxes[:, :2] < torch.tensor([78.0, 62])) & (boxes[:, 2:] > 1)).all(
        dim=1
    )  # torchvision fails for others
    masks, boxes = masks[touching], boxes[touching]
    assert len(masks) > 25
    expected = paste_masks_in_image(masks[:, None], boxes, (64, 80))[:, 0] >= 0.5
    assert torch.equal(paste_masks(masks, boxes, 64, 80), expected)
    assert paste_masks(masks[:0], boxes[:0], 5, 6).shape == (0, 5, 6)
    outside = paste_masks(masks[:2], torch.tensor([[200.0, 5, 300, 9], [-90, -90, -50, -50]]), 64, 80)
    assert not outside.any()
