"""Linear SVMs compared with scikit-learn, with the optimality condition and with a hand-computed solution."""

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from zoo.ops.svm import fit_linear_svms


def make_examples(seed: int, num: int = 300, dims: int = 12, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features, and signs that depend on them, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, dims, dtype=torch.float64, generator=generator) * 3
    values = features @ torch.randn(dims, classes, dtype=torch.float64, generator=generator)
    values += 4 * torch.randn(num, classes, dtype=torch.float64, generator=generator) - 3
    signs = torch.where(values > 0, 1, -1).to(torch.int8)
    signs[torch.rand(num, classes, generator=generator) < 0.2] = 0
    return features, signs


@pytest.mark.parametrize(("cost", "positive_weight", "bias_scale"), [(1e-3, 2.0, 10.0), (1.0, 1.0, 1.0)])
def test_weights_and_biases_equal_scikit_learn(cost: float, positive_weight: float, bias_scale: float) -> None:
    features, signs = make_examples(0)
    weights, biases = fit_linear_svms(features, signs, cost, positive_weight, bias_scale)
    for label in range(3):
        counted = signs[:, label] != 0
        svm = LinearSVC(
            C=cost,
            loss="squared_hinge",
            dual=False,
            intercept_scaling=bias_scale,
            class_weight={1: positive_weight, -1: 1.0},
            tol=1e-9,
            max_iter=10000,
        ).fit(features[counted].numpy(), signs[counted, label].numpy())
        np.testing.assert_allclose(weights[label].numpy(), svm.coef_[0], rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(biases[label].item(), svm.intercept_[0], rtol=1e-2, atol=1e-3)


def test_gradient_of_the_objective_is_zero() -> None:
    features, signs = make_examples(1)
    weights, biases = (part.requires_grad_() for part in fit_linear_svms(features, signs, 0.1, 2.0, 10.0))
    objective = 0.5 * weights.square().sum() + 0.5 * (biases / 10).square().sum()
    for label in range(3):
        for row, sign in zip(features, signs[:, label].tolist(), strict=True):
            if sign:
                slack = 1 - sign * (weights[label] @ row + biases[label])
                objective = objective + 0.1 * (2.0 if sign > 0 else 1.0) * slack.clamp(min=0) ** 2
    objective.backward()
    assert weights.grad.abs().max() < 0.1
    assert biases.grad.abs().max() < 0.1


def test_two_points_by_hand() -> None:
    """At x = +1 and -1: w = 4 cost / (1 + 4 cost), b = 0, from w + 2 cost * 2 (w - 1) = 0."""
    weights, biases = fit_linear_svms(
        torch.tensor([[1.0], [-1.0]]), torch.tensor([[1], [-1]], dtype=torch.int8), 0.5, 1.0, 10.0
    )
    torch.testing.assert_close(weights, torch.tensor([[2 / 3]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(biases, torch.zeros(1), rtol=0, atol=1e-5)


def test_examples_of_sign_zero_are_ignored_and_classes_without_examples_are_zero() -> None:
    features, signs = make_examples(2)
    signs[:, 1] = 0
    weights, biases = fit_linear_svms(features, signs, 1e-2, 2.0, 10.0)
    assert (weights[1] == 0).all()
    assert biases[1] == 0
    counted = signs[:, 0] != 0
    expected, _ = fit_linear_svms(features[counted], signs[counted, :1], 1e-2, 2.0, 10.0)
    torch.testing.assert_close(weights[:1], expected, rtol=1e-3, atol=1e-5)
    no_weights, no_biases = fit_linear_svms(features[:0], signs[:0], 1e-2, 2.0, 10.0)
    assert (no_weights == 0).all()
    assert (no_biases == 0).all()


def test_only_negatives_give_a_negative_bias() -> None:
    features, signs = make_examples(3)
    _, biases = fit_linear_svms(features, torch.full_like(signs, -1), 1.0, 2.0, 10.0)
    assert (biases < -0.9).all()
