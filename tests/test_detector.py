"""The recipe: its rates over a training, and which weights decay."""

import pytest
import torch

from zoo.detector import Recipe, build_optimizer
from zoo.models import RetinaNet


def test_multistep_with_warm_up() -> None:
    recipe = Recipe(warmup_steps=10, milestones=(0.5, 0.75), gamma=0.1)
    assert recipe.factor(0.0, 0) == pytest.approx(1e-3)
    assert recipe.factor(0.1, 5) == pytest.approx(0.5005)
    assert recipe.factor(0.3, 30) == 1
    assert recipe.factor(0.5, 50) == pytest.approx(0.1)
    assert recipe.factor(0.75, 75) == pytest.approx(0.01)


def test_warm_up_starts_where_the_recipe_says() -> None:
    """YOLOv1's schedule: from 1e-3 to 1e-2, then 75, 30 and 30 epochs at 1e-2, 1e-3 and 1e-4."""
    recipe = Recipe(lr=1e-2, warmup_steps=10, warmup_start=0.1, milestones=(75 / 135, 105 / 135))
    rates = [recipe.lr * recipe.factor(epoch / 135, 100 * epoch) for epoch in (0, 1, 74, 75, 104, 105, 134)]
    assert rates == pytest.approx([1e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert recipe.lr * recipe.factor(0.0, 5) == pytest.approx(5.5e-3)


def test_cosine_goes_from_one_to_nothing() -> None:
    recipe = Recipe(warmup_steps=0, schedule="cosine")
    assert [recipe.factor(p, 0) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


def test_norms_and_biases_decay_apart() -> None:
    recipe = Recipe("adamw", lr=0.5, weight_decay=0.1, norm_weight_decay=0.0)
    detector = RetinaNet(2, trunk="resnet10t", channels=32, head_depth=1, recipe=recipe)
    optimizer = build_optimizer(detector.parameters(), recipe)
    weights, rest = optimizer.param_groups
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(weight.ndim > 1 for weight in weights["params"])
    assert all(weight.ndim == 1 for weight in rest["params"])
    assert len(weights["params"]) + len(rest["params"]) == len(list(detector.parameters()))
    assert isinstance(optimizer, torch.optim.AdamW)
