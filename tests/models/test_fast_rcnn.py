"""Fast R-CNN: its loss by equations 1 to 3, what is scored, and where its proposals come from."""

from pathlib import Path

import pytest
import torch
from scenes import make_image, make_target
from torch import Tensor

import zoo.detector.base
import zoo.models.fast_rcnn
from zoo.models.fast_rcnn import FastRCNN
from zoo.nn.frame import FrameConfig
from zoo.nn.roi import RoIHead, RoIPooling, sample_rois, score_rois
from zoo.ops.coding import ROI_WEIGHTS
from zoo.proposals import ProposalCache, SelectiveSearch, propose
from zoo.types import Batch, Target

SEARCH = SelectiveSearch("single", width=None, min_side=8, limit=40)
TARGETS = [make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2], 7), make_target([[30, 30, 90, 80]], [1], 8)]
IMAGES = [make_image(96, 128, target) for target in TARGETS]


@pytest.fixture(params=["align", "pool"])
def detector(request: pytest.FixtureRequest) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(
        3,
        trunk="resnet10t",
        pyramid=request.param == "align",
        channels=32,
        pooling=request.param,
        head_width=64,
        score_threshold=0.0,
        nms_threshold=1.0,
        detections_per_image=1000,
        proposals=SEARCH,
        frame=FrameConfig(64, 256),
    ).eval()


def with_proposals(targets: list[Target], *proposals: list[list[float]]) -> list[Target]:
    boxes = [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in proposals]
    return [Target(**{**target, "proposals": rows}) for target, rows in zip(targets, boxes, strict=True)]


def smooth_l1(x: float) -> float:
    """Equation 3."""
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_the_loss_is_that_of_the_paper(detector: FastRCNN) -> None:
    """Equations 1 and 2 over all sampled regions, one by one, with the deltas of R-CNN's appendix C."""
    batch = detector.frame_batch(IMAGES, TARGETS)
    assert batch.proposals is not None
    assert batch.proposal_mask is not None
    with torch.no_grad():
        detector.roi_head.box_deltas.weight.mul_(300)  # or all predictions are nearly zero
        outputs = detector.encode(batch)
        torch.manual_seed(3)
        losses = detector.compute_losses(outputs, batch)
        torch.manual_seed(3)
        rois = sample_rois(batch.proposals, batch.proposal_mask, batch, 64, 0.25, 0.5, 0.1)
        logits, deltas = score_rois(detector.roi_head, detector.roi_pooling, outputs, rois.boxes, rois.filled)

    class_loss = box_loss = 0.0
    count = num_positive = 0
    for image in range(2):
        for r in range(rois.boxes.shape[1]):
            if not rois.filled[image, r]:
                continue
            count += 1
            label = int(rois.labels[image, r])
            class_loss -= float(logits[image, r].double().log_softmax(0)[label + 1])
            if label < 0:
                continue
            num_positive += 1
            px1, py1, px2, py2 = rois.boxes[image, r].tolist()
            gx1, gy1, gx2, gy2 = rois.gt_boxes[image, r].tolist()
            pw, ph, gw, gh = px2 - px1, py2 - py1, gx2 - gx1, gy2 - gy1
            wanted = torch.tensor(
                [((gx1 + gx2) - (px1 + px2)) / 2 / pw, ((gy1 + gy2) - (py1 + py2)) / 2 / ph, gw / pw, gh / ph]
            ).double()
            wanted[2:] = wanted[2:].log()
            wanted = wanted * torch.tensor(ROI_WEIGHTS)
            differences = deltas[image, r, label].double() - wanted
            box_loss += sum(smooth_l1(value) for value in differences.tolist())
    assert 0 < num_positive < count
    assert losses["roi_class"].item() == pytest.approx(class_loss / count, rel=1e-4)
    assert losses["roi_box"].item() == pytest.approx(box_loss / count, rel=1e-4)


def test_at_most_a_quarter_of_the_regions_is_positive(detector: FastRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(
        head: RoIHead, pooling: RoIPooling, features: list[Tensor], boxes: Tensor, filled: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen.append(boxes)
        return score_rois(head, pooling, features, boxes, filled)

    monkeypatch.setattr(zoo.models.fast_rcnn, "score_rois", watched)
    near = [[10.0 + i / 4, 12, 60, 70] for i in range(100)]
    far = [[100.0 + i / 10, 50, 125, 95] for i in range(100)]
    targets = with_proposals(TARGETS[:1], near + far)
    targets[0]["boxes"][1] = torch.tensor([90.0, 50, 120, 90])
    detector.compute_raw_losses((IMAGES[:1], targets))
    assert seen[0].shape == (1, 64, 4)
    scale = 64 / 96
    assert (seen[0][0, :, 0] < 50 * scale).sum() <= 16


def answer_with_proposals(detector: FastRCNN) -> None:
    """Every class for every proposal, no box moved."""
    with torch.no_grad():
        for layer in (detector.roi_head.class_logits, detector.roi_head.box_deltas):
            layer.weight.zero_()


def test_ground_truth_is_scored_in_training_only(detector: FastRCNN) -> None:
    answer_with_proposals(detector)
    boxes = [[0.0, 0, 40, 40], [64, 32, 128, 96]]
    found = detector.validation_step((IMAGES[:1], with_proposals(TARGETS[:1], boxes)), 0)["predictions"][0]
    assert len(found["scores"]) == 3 * len(boxes)
    torch.testing.assert_close(found["boxes"].round().unique(dim=0), torch.tensor(boxes))


def test_what_is_scored_are_the_proposals(detector: FastRCNN) -> None:
    answer_with_proposals(detector)
    for image, found in zip(IMAGES, detector(IMAGES), strict=True):
        expected = propose(image, SEARCH)
        torch.testing.assert_close(found["boxes"].unique(dim=0), expected.unique(dim=0), atol=1e-3, rtol=0)


def test_bare_images_and_those_with_proposals_are_the_same(detector: FastRCNN) -> None:
    given = with_proposals(TARGETS, *[propose(image, SEARCH).tolist() for image in IMAGES])
    for one, other in zip(detector(IMAGES), detector(IMAGES, given), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])


def test_proposals_are_searched_only_where_there_are_none(
    detector: FastRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(image: Tensor, search: SelectiveSearch) -> Tensor:
        raise AssertionError("nothing is to be searched")

    detector.proposal_cache = ProposalCache(tmp_path)
    expected = detector(IMAGES)
    monkeypatch.setattr(zoo.detector.base, "propose", forbidden)
    monkeypatch.setattr("zoo.proposals.propose", forbidden)
    for one, other in zip(expected, detector(IMAGES), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    detector.proposal_cache = None
    detector(IMAGES, with_proposals(TARGETS, [[0, 0, 50, 50]], [[0, 0, 50, 50]]))
    with pytest.raises(AssertionError, match="nothing is to be searched"):
        detector(IMAGES, [TARGETS[0], *with_proposals(TARGETS[1:], [[0, 0, 50, 50]])][::-1])


def test_the_trunk_sees_a_batch_once(detector: FastRCNN) -> None:
    calls: list[int] = []
    detector.trunk.register_forward_hook(lambda module, inputs, outputs: calls.append(len(inputs[0])))
    detector.validation_step((IMAGES, TARGETS), 0)
    assert calls == [2]


@pytest.mark.parametrize("proposals", [([], []), ([], [[10.0, 10, 60, 60]])])
def test_images_without_proposals(detector: FastRCNN, proposals: tuple[list[list[float]], ...]) -> None:
    """A crop can leave none."""
    targets = with_proposals(TARGETS, *proposals)
    predictions = detector(IMAGES, targets)
    assert [len(found["scores"]) for found in predictions] == [3 * len(rows) for rows in proposals]
    losses = detector.train().compute_raw_losses((IMAGES, targets))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value.grad).all() for value in detector.parameters())


def test_a_batch_framed_without_proposals_is_refused(detector: FastRCNN) -> None:
    batch: Batch = detector.frame(IMAGES, TARGETS)
    with pytest.raises(ValueError, match="frame_batch"):
        detector.compute_losses(detector.encode(batch), batch)


def test_difficult_objects_are_not_learned_from(detector: FastRCNN) -> None:
    flagged = with_proposals(TARGETS[1:], [[30.0, 30, 90, 80], [0, 0, 20, 20]])
    flagged[0]["difficult"] = torch.tensor([True])
    detector.background_iou = 0.0
    losses = detector.compute_raw_losses((IMAGES[1:], flagged))
    assert float(losses["roi_box"].detach()) == 0
