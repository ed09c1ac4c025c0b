"""Score threshold, top-k and NMS compared with hand-computed results and a slow loop."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from zoo.ops import postprocess
from zoo.ops.postprocess import (
    nms_by_class,
    nms_in_groups,
    nms_of_sorted,
    split_by_image,
    top_candidates,
)


def logit(p: float) -> float:
    return torch.logit(torch.tensor(p)).item()


def test_top_candidates_of_each_image_above_the_threshold() -> None:
    logits = torch.tensor(
        [
            [[logit(0.9), logit(0.04)], [logit(0.06), logit(0.7)]],
            [[logit(0.01)] * 2] * 2,
            [[logit(0.1), logit(0.2)], [logit(0.01), logit(0.3)]],
        ]
    )
    found = top_candidates(logits, 0.05, 10)
    assert found.image.tolist() == [0, 0, 0, 2, 2, 2]
    assert found.anchor.tolist() == [0, 1, 1, 0, 0, 1]
    assert found.label.tolist() == [0, 0, 1, 0, 1, 1]
    torch.testing.assert_close(found.logit.sigmoid(), torch.tensor([0.9, 0.06, 0.7, 0.1, 0.2, 0.3]))
    top = top_candidates(logits, 0.05, 2)
    assert top.image.tolist() == [0, 0, 2, 2]
    torch.testing.assert_close(top.logit.sigmoid(), torch.tensor([0.9, 0.7, 0.3, 0.2]))
    assert top.anchor.tolist() == [0, 1, 1, 0]
    assert len(top_candidates(logits, 0.95, 2).image) == 0


def test_nms_within_classes_only() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [30, 30, 40, 40], [5, 5, 5, 9]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.6, 0.99])
    labels = torch.tensor([0, 0, 1, 0, 0])
    (found,) = nms_by_class([boxes], [scores], [labels], 0.5, 10)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]))  # the last box has no area
    assert found["labels"].tolist() == [0, 1, 0]
    assert nms_by_class([boxes], [scores], [labels], 0.5, 1)[0]["labels"].tolist() == [0]


def test_no_candidates_give_an_empty_prediction() -> None:
    (found,) = nms_by_class([torch.zeros(0, 4)], [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)], 0.5, 10)
    assert found["boxes"].shape == (0, 4)


@pytest.mark.parametrize("num_groups", [3, 90])
@pytest.mark.parametrize("threads", [1, 2])
def test_nms_equals_greedy_nms_of_each_image_on_any_number_of_threads(
    num_groups: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 200, 2, generator=generator) * 20
    boxes = torch.cat((corners, corners + torch.rand(3, 200, 2, generator=generator) * 20), dim=2)
    scores = torch.rand(3, 200, generator=generator)
    groups = torch.randint(0, num_groups, (3, 200), generator=generator)
    monkeypatch.setattr(postprocess, "MIN_BOXES_FOR_THREADS", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kept = nms_in_groups(list(boxes), list(scores), list(groups), 0.5)
    finally:
        torch.set_num_threads(before)
    for image, index in enumerate(kept):
        assert index.tolist() == greedy_nms(boxes[image], scores[image], groups[image], 0.5)


def greedy_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        others = [other for other in kept if groups[other] == groups[index]]
        if not others or float(box_iou(boxes[[index]], boxes[others]).max()) <= iou_threshold:
            kept.append(index)
    return kept


def test_split_by_image_keeps_the_order_of_rows() -> None:
    image, rows = torch.tensor([2, 0, 2, 0, 2]), torch.arange(5)
    for tables in split_by_image((rows, 10 * rows, rows[:, None]), image, 3):
        assert [len(part) for part in tables] == [2, 0, 3]
    assert [part.tolist() for part in split_by_image((rows, rows, rows), image, 3)[0]] == [[1, 3], [], [0, 2, 4]]
    assert split_by_image((rows, rows, rows), torch.zeros(5, dtype=torch.int64), 1)[2][0].tolist() == rows.tolist()


def sorted_boxes(num_images: int, count: int, side: float) -> tuple[Tensor, Tensor]:
    """Boxes of up to 20 pixels in an image of `side`, in descending order of scores; some without area."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(num_images, count, 2, generator=generator) * side
    boxes = torch.cat((corners, corners + torch.rand(num_images, count, 2, generator=generator) * 20), dim=2)
    boxes[:, ::17, 2] = boxes[:, ::17, 0]
    return boxes, torch.rand(num_images, count, generator=generator).sort(dim=1, descending=True).values


@pytest.mark.parametrize("side", [5.0, 60.0])  # boxes that nearly all overlap, and boxes in long chains
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_nms_of_sorted_equals_greedy_nms(side: float, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "MAX_PAIRS", 2 * 150**2)  # two images at a time
    boxes, scores = sorted_boxes(5, 150, side)
    valid = torch.ones(5, 150, dtype=torch.bool)
    valid[:, 3::7] = False
    kept = nms_of_sorted(boxes, valid, threshold)
    for image in range(5):
        takes_part = (valid[image] & (boxes[image, :, 2] > boxes[image, :, 0])).nonzero()[:, 0]
        expected = takes_part[nms(boxes[image, takes_part], scores[image, takes_part], threshold)]
        assert kept[image].nonzero()[:, 0].tolist() == expected.tolist()


def test_nms_of_sorted_of_a_chain_in_which_each_box_overlaps_the_next() -> None:
    left = torch.arange(100.0) * 4
    boxes = torch.stack((left, torch.zeros(100), left + 10, torch.full((100,), 10.0)), dim=1)
    kept = nms_of_sorted(boxes[None], torch.ones(1, 100, dtype=torch.bool), 0.4)  # IoU of neighbours: 6 / 14
    assert kept[0].tolist() == [index % 2 == 0 for index in range(100)]


@pytest.mark.parametrize("limit", [30, 1000])
def test_nms_by_level_is_the_same_image_by_image_and_of_all_images_at_once(limit: int) -> None:
    levels = [sorted_boxes(3, count, 60.0) for count in (80, 50, 7)]
    levels[1][1][:, 40:] = -torch.inf
    levels[1][0][:, 40:] = 0.0
    boxes, scores = zip(*levels, strict=True)
    one_by_one = postprocess._nms_image_by_image(boxes, scores, 0.5, limit)
    at_once = postprocess._nms_of_all_images(boxes, scores, 0.5, limit)
    assert one_by_one[1].shape[1] <= min(limit, 137)
    for image in range(3):
        count = int(one_by_one[1][image].isfinite().sum())
        assert 10 < count == int(at_once[1][image].isfinite().sum())
        for expected, found in zip(one_by_one, at_once, strict=True):
            torch.testing.assert_close(found[image, :count], expected[image, :count], rtol=0, atol=0)
