"""Focal losses and their gradients compared with hand-computed values, slow loops and torchvision."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from zoo.ops.focal import focal_loss_per_image, penalty_reduced_focal_loss_per_image

ALPHA, GAMMA = 0.25, 2.0


def slow_focal_loss(logits: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor, gamma: float) -> float:
    total = 0.0
    for row, label, skip in zip(logits.tolist(), labels.tolist(), ignored.tolist(), strict=True):
        for c, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            p_t, alpha_t = (p, ALPHA) if c == label else (1 - p, 1 - ALPHA)
            total += 0.0 if skip else -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total


def test_focal_loss_by_hand() -> None:
    # p = 1/2 at logit 0: positive 1/4 * 1/4 * log 2, negative 3/4 * 1/4 * log 2
    loss = focal_loss_per_image(torch.zeros(1, 1, 2), torch.tensor([[1]]), torch.tensor([[False]]), ALPHA, GAMMA)
    assert loss.item() == pytest.approx((1 / 16 + 3 / 16) * math.log(2))


def test_focal_loss_of_a_positive_at_logit_0() -> None:
    loss = focal_loss_per_image(torch.zeros(1, 1, 1), torch.tensor([[0]]), torch.tensor([[False]]), ALPHA, GAMMA)
    assert loss.item() == pytest.approx(0.0433217, abs=1e-7)


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_focal_loss_equals_a_slow_loop(gamma: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 12, 5, dtype=torch.float64) * 4
    labels = torch.randint(-1, 5, (2, 12))
    ignored = torch.rand(2, 12) < 0.3
    found = focal_loss_per_image(logits, labels, ignored, ALPHA, gamma)
    expected = [slow_focal_loss(*image, gamma) for image in zip(logits, labels, ignored, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_gradient_equals_torchvision() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 30, 4, dtype=torch.float64) * 3).requires_grad_()
    labels = torch.randint(-1, 4, (2, 30))
    ignored = torch.rand(2, 30) < 0.2
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = torch.autograd.grad((focal_loss_per_image(logits, labels, ignored, ALPHA, GAMMA) * weights).sum(), logits)
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), 4) * (labels >= 0)[..., None]
    reference = sigmoid_focal_loss(logits, one_hot.to(logits.dtype), ALPHA, GAMMA)
    reference = reference * (~ignored)[..., None] * weights[:, None, None]
    torch.testing.assert_close(found, torch.autograd.grad(reference.sum(), logits))


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[[200.0, -200.0]]], requires_grad=True)
    loss = focal_loss_per_image(logits, torch.tensor([[1]]), torch.tensor([[False]]), ALPHA, GAMMA).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_no_anchors() -> None:
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    assert focal_loss_per_image(torch.zeros(2, 0, 3), nothing, nothing.bool(), ALPHA, GAMMA).tolist() == [0, 0]


def test_penalty_reduced_by_hand() -> None:
    # p = 1/2 everywhere: 1/4 log 2 at the point; (1/2)^4 1/4 log 2 where the heat is 1/2; 1/4 log 2 where it is 0
    heat = torch.tensor([[[[1.0, 0.5, 0.0]]], [[[0.0, 0.0, 0.0]]]])
    loss = penalty_reduced_focal_loss_per_image(torch.zeros(2, 1, 1, 3), heat, 2.0, 4.0)
    assert loss.tolist() == pytest.approx([(1 + 1 / 16 + 1) / 4 * math.log(2), 3 / 4 * math.log(2)])


def test_penalty_reduced_and_its_gradient_equal_a_slow_loop() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 3, 4, 5, dtype=torch.float64) * 3).requires_grad_()
    heat = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    heat[torch.rand_like(heat) < 0.2] = 1
    found = penalty_reduced_focal_loss_per_image(logits, heat, 2.0, 4.0)
    expected = torch.zeros(2, dtype=torch.float64)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
        p, y = logits[b, c, i, j].sigmoid(), heat[b, c, i, j]
        expected[b] -= (1 - p) ** 2 * p.log() if y == 1 else (1 - y) ** 4 * p**2 * (1 - p).log()
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    gradients = [torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
