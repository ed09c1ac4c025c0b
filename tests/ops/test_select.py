"""Which candidates survive threshold, top-k and NMS, by hand."""

import torch

from zoo.ops.select import nms_by_class, top_candidates


def logit(p: float) -> float:
    return torch.logit(torch.tensor(p)).item()


def test_candidates_above_the_threshold_surest_first() -> None:
    logits = torch.tensor([[[logit(0.9), logit(0.04)], [logit(0.06), logit(0.7)]], [[logit(0.01)] * 2] * 2])
    (anchors, labels, values), empty = top_candidates(logits, 0.05, 10)
    assert anchors.tolist() == [0, 1, 1]
    assert labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(values.sigmoid(), torch.tensor([0.9, 0.7, 0.06]))
    assert [len(part) for part in empty] == [0, 0, 0]
    assert top_candidates(logits, 0.05, 2)[0][0].tolist() == [0, 1]


def test_nms_within_classes_only() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [30, 30, 40, 40], [5, 5, 5, 9]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.6, 0.99])
    labels = torch.tensor([0, 0, 1, 0, 0])
    found = nms_by_class(boxes, scores, labels, 0.5, 10)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]))  # the last box has no area
    assert found["labels"].tolist() == [0, 1, 0]
    assert nms_by_class(boxes, scores, labels, 0.5, 1)["labels"].tolist() == [0]


def test_nothing_in_nothing_out() -> None:
    found = nms_by_class(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5, 10)
    assert found["boxes"].shape == (0, 4)
