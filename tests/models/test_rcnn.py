import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rcnn_scenes import FRAME, SEARCH, Scenes, build, collate, fit, make_batch, make_loader
from scenes import make_image, make_target
from sklearn.svm import LinearSVC

import zoo
from zoo.models.fast_rcnn import FastRCNN
from zoo.models.rcnn import RCNN, REGRESSION_IOU, Windows, sample_windows, svm_signs, window_predictions
from zoo.nn.head_fitting import fit_linear_heads
from zoo.ops.boxes import pairwise_iou
from zoo.ops.coding import encode_boxes

# ------------------------------------------------------------------------------------------------------------ windows


def test_a_batch_without_any_window() -> None:
    detector = build()
    image, target = make_image(64, 80, make_target([], [], 0), 0), make_target([], [], 0)
    target["proposals"] = torch.zeros(0, 4)
    assert len(detector([image], [target])[0]["boxes"]) == 0
    fit_linear_heads(detector, iter([([image], [target]), next(iter(make_loader(4)))]), 2, report=lambda line: None)
    assert len(detector([image], [target])[0]["boxes"]) == 0


def test_windows_are_sampled_over_the_whole_batch() -> None:
    batch = make_batch(build())
    torch.manual_seed(0)
    windows, labels = sample_windows(batch, 48, 0.25, 0.5)
    assert len(labels) == 48
    assert 0 < (labels >= 0).sum() <= 12
    assert (windows.image.diff() >= 0).all()
    for image, box, label in zip(windows.image, windows.boxes, labels.tolist(), strict=True):
        iou = pairwise_iou(box[None], batch.boxes[image])[0].masked_fill(~batch.mask[image], -1)
        assert label == (batch.labels[image, iou.argmax()].item() if iou.max() >= 0.5 else -1)


def test_ground_truth_is_a_window_and_objects_that_are_not_learned_from_are_none() -> None:
    detector = build()
    image, target = Scenes(4)[1]
    target["proposals"] = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    target["difficult"] = torch.tensor([False, True])
    windows, labels = sample_windows(detector.frame_batch([image], [target]), 8, 0.25, 0.5)
    assert sorted(labels.tolist()) == [-1, target["labels"][0].item()]
    torch.testing.assert_close(windows.boxes[labels >= 0], target["boxes"][:1])


def test_signs_by_hand() -> None:
    """Objects of class 0 and 2, and a difficult one of class 1; IoU with a window of 10 x 10 is its share of it."""
    objects = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]])
    proposals = torch.tensor([[[0.0, 0.0, 10.0, 2.9], [0.0, 0.0, 10.0, 3.1], [20.0, 0.0, 30.0, 9.0], [40.0, 0, 50, 9]]])
    batch = make_batch(build(), 1)
    batch.boxes, batch.labels = objects, torch.tensor([[0, 2, 1]])
    batch.mask = torch.tensor([[True, True, False]])
    signs = svm_signs(pairwise_iou(objects, torch.cat((proposals, objects), dim=1)), batch, 3)
    assert signs[0].tolist() == [
        [-1, -1, -1],  # 0.29 of the first object
        [0, -1, -1],  # 0.31 of it
        [-1, -1, 0],
        [-1, 0, -1],  # on the difficult one: no negative of its class
        [1, -1, -1],
        [-1, -1, 1],
        [-1, 0, -1],
    ]


def test_an_image_without_objects_is_all_negatives() -> None:
    detector = build()
    image, target = Scenes(4)[0]
    empty = make_target([], []) | {"proposals": target["proposals"]}
    batch = detector.frame_batch([image], [empty])  # type: ignore[list-item]
    assert (svm_signs(pairwise_iou(batch.boxes, batch.proposals), batch, 2) == -1).all()
    _, labels = sample_windows(batch, 8, 0.25, 0.5)
    assert labels.tolist() == [-1] * 8
    fit_linear_heads(detector, iter([([image], [empty])]), 1, report=lambda line: None)  # type: ignore[list-item]
    assert detector.linear_heads.fitted
    assert (detector.linear_heads.box_weight == 0).all()
    assert (detector.linear_heads.svm_bias < 0).all()


def test_targets_of_boxes_are_the_papers() -> None:
    """Appendix C, equations 6 to 9, with numbers that can be checked in the head."""
    proposal, truth = torch.tensor([10.0, 20.0, 30.0, 60.0]), torch.tensor([15.0, 20.0, 55.0, 40.0])
    # P: centre (20, 40), 20 x 40; G: centre (35, 30), 40 x 20
    expected = [(35 - 20) / 20, (30 - 40) / 40, math.log(40 / 20), math.log(20 / 40)]
    torch.testing.assert_close(encode_boxes(truth, proposal), torch.tensor(expected))


# ------------------------------------------------------------------------------------------------------ what is fitted


def slow_examples(detector: RCNN, num: int) -> Iterator[tuple[torch.Tensor, list[int], torch.Tensor | None, int]]:
    """Image by image, window by window: features, signs, and deltas and class for the regressors."""
    for index in range(num):
        batch = detector.frame_batch(*collate([Scenes(num)[index]]))
        boxes, labels = batch.boxes[0], batch.labels[0].tolist()
        for place, box in enumerate(torch.cat((batch.proposals[0], boxes))):
            windows = Windows(torch.tensor([0]), box[None])
            features = detector.extract_features(batch.images, batch, windows)[0]
            overlaps = pairwise_iou(box[None], boxes)[0].tolist()
            signs = []
            for label in range(2):
                own = [overlap for overlap, other in zip(overlaps, labels, strict=True) if other == label]
                is_truth = place >= len(batch.proposals[0]) and labels[place - len(batch.proposals[0])] == label
                signs.append(1 if is_truth else -1 if max(own, default=0.0) < 0.3 else 0)
            best = max(range(len(labels)), key=lambda number: overlaps[number])
            deltas = encode_boxes(boxes[best], box) if overlaps[best] >= REGRESSION_IOU else None
            yield features, signs, deltas, labels[best]


@torch.no_grad()
def test_fitting_against_a_slow_loop_and_scikit_learn() -> None:
    """One round, so that all negatives are hard: LinearSVC on all windows, and the normal equations of each class."""
    detector = fit(build(ridge_penalty=10.0).double(), num=8, batch_size=8)
    examples = list(slow_examples(detector, 8))
    features = torch.stack([example[0] for example in examples])
    scale = 20 / features.norm(dim=1).mean()
    values, deltas = detector.linear_heads.decide(features), detector.linear_heads.regress(features)
    for label in range(2):
        signs = torch.tensor([example[1][label] for example in examples])
        counted = signs != 0
        machine = LinearSVC(
            C=1e-3, dual=False, intercept_scaling=10, class_weight={1: 2.0, -1: 1.0}, tol=1e-8, max_iter=10000
        ).fit((features[counted] * scale).numpy(), signs[counted].numpy())
        expected = torch.from_numpy(machine.decision_function((features * scale).numpy()))
        torch.testing.assert_close(values[:, label], expected, atol=5e-3, rtol=5e-3)

        mine = [number for number, example in enumerate(examples) if example[2] is not None and example[3] == label]
        x = torch.cat((features[mine] * scale, torch.ones(len(mine), 1, dtype=torch.float64)), dim=1)
        t = torch.stack([examples[number][2] for number in mine])  # type: ignore[misc]
        left = x.T @ x + 10 * torch.eye(x.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(left, x.T @ (t - t.mean(dim=0)))
        torch.testing.assert_close(deltas[mine, label], x @ solution + t.mean(dim=0), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_negatives_that_are_mined_leave_nothing_out() -> None:
    """In rounds, keeping the hard ones only, the machines are nearly those of all windows at once."""
    detector = build()
    at_once = fit(detector, num=24, batch_size=24).linear_heads.svm_weight.clone()
    in_rounds = fit(detector, num=24, batch_size=2).linear_heads.svm_weight
    assert torch.nn.functional.cosine_similarity(at_once, in_rounds).min() > 0.98


def test_fitted_heads_find_what_the_softmax_has_not_learned() -> None:
    """Random features are enough for plain colours: after fitting the objects come first, and closer than proposed."""
    detector = fit(build(ridge_penalty=10.0), num=32)
    images, targets = collate([Scenes(100)[index] for index in range(40, 48)])
    improved, found = 0, 0
    for prediction, target in zip(detector(images, targets), targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            own = prediction["boxes"][prediction["labels"] == label]
            iou = pairwise_iou(box[None], own[:1]).sum().item() if len(own) else 0.0
            found += iou > 0.5
            improved += iou > pairwise_iou(box[None], target["proposals"]).max().item()
    assert found >= 8
    assert improved >= 1


def test_decision_values_stay_the_same_through_a_checkpoint(tmp_path: Path) -> None:
    detector = fit(build())
    checkpoint = {"state_dict": detector.state_dict()}
    detector.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "fitted.ckpt")
    loaded = zoo.load(tmp_path / "fitted.ckpt")
    assert isinstance(loaded, RCNN)
    assert loaded.linear_heads.fitted
    features = torch.randn(5, detector.trunk.channels)
    assert torch.equal(loaded.linear_heads.decide(features), detector.linear_heads.decide(features))
    assert torch.equal(loaded.linear_heads.regress(features), detector.linear_heads.regress(features))
    batch = collate([Scenes(4)[1]])
    for one, other in zip(detector(*batch), loaded(*batch), strict=True):
        torch.testing.assert_close(one["scores"], other["scores"])


def test_autocast_does_not_round_decision_values() -> None:
    heads = fit(build()).linear_heads
    features = torch.randn(6, heads.svm_weight.shape[1])
    expected = features @ heads.svm_weight.T + heads.svm_bias
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(heads.decide(features), expected)


# ----------------------------------------------------------------------------------------------------------- ablation


def test_the_switches_give_the_papers_ablation() -> None:
    detector = fit(build())
    features = torch.randn(6, detector.trunk.channels).abs()
    svm, deltas = detector.score_features(features)
    torch.testing.assert_close(svm, torch.sigmoid(3 * detector.linear_heads.decide(features)))
    assert deltas is not None
    detector.head = "softmax"
    softmax, deltas = detector.score_features(features)
    torch.testing.assert_close(softmax, detector.softmax(features).softmax(dim=1)[:, 1:])
    assert deltas is not None
    detector.regress_boxes = False
    assert detector.score_features(features)[1] is None
    detector.head, detector.regress_boxes = "svm", True
    detector.linear_heads.invalidate()
    unfitted, deltas = detector.score_features(features)
    torch.testing.assert_close(unfitted, softmax)
    assert deltas is None


def test_boxes_by_hand() -> None:
    """Two windows of one image: the surer one of a class moves by its own class's deltas, and the other goes."""
    windows = Windows(torch.tensor([0, 0]), torch.tensor([[10.0, 10.0, 30.0, 30.0], [11.0, 10.0, 31.0, 30.0]]))
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.6]])
    deltas = torch.zeros(2, 2, 4)
    deltas[0, 0] = torch.tensor([0.5, 0.0, math.log(0.5), 0.0])
    deltas[1, 0] = deltas[0, 0]
    found = window_predictions(scores, deltas, windows, torch.tensor([[50.0, 50.0]]), 0.05, 0.3, 10)[0]
    torch.testing.assert_close(found["boxes"], torch.tensor([[25.0, 10.0, 35.0, 30.0], [11.0, 10.0, 31.0, 30.0]]))
    assert found["labels"].tolist() == [0, 1]


def test_rcnn_and_fast_rcnn_score_the_same_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image that comes without any, both ask for the same search; of one that brings some, both take these."""
    rcnn = build(regress_boxes=False, score_threshold=0.0, nms_threshold=1.0, detections_per_image=1000).eval()
    fast = FastRCNN(
        num_classes=2,
        trunk="resnet10t",
        channels=16,
        head_width=16,
        proposals=SEARCH,
        frame=FRAME,
        score_threshold=0.0,
        nms_threshold=1.0,
        detections_per_image=1000,
    ).eval()
    torch.nn.init.zeros_(fast.roi_head.box_deltas.weight)  # boxes stay where they were proposed
    image, target = Scenes(4)[1]
    for targets in (None, [target]):
        ours, theirs = rcnn([image], targets)[0]["boxes"], fast([image], targets)[0]["boxes"]
        ours, theirs = (boxes[_order(boxes)].view(-1, 2, 4)[:, 0] for boxes in (ours, theirs))  # once a class
        assert len(ours) == (len(target["proposals"]) if targets else len(rcnn.frame_batch([image]).proposals[0]))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def _order(boxes: torch.Tensor) -> list[int]:
    return sorted(range(len(boxes)), key=lambda row: [round(edge, 2) for edge in boxes[row].tolist()])
