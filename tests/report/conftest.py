"""A small comparison with invented numbers, and examples for it."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from zoo.models import MODELS
from zoo.report.pictures.examples import Example, make_example
from zoo.report.results import Cost, CurvePoint, Results, Run
from zoo.types import Prediction, Target


def _run(model: str, ap: float, folder: str | None = None, config: str | None = None, seed: int = 0) -> Run:
    config = config or f"{model}_tiny"
    curve = [CurvePoint(epoch, epoch * 100, epoch * 0.5, ap * epoch / 3, ap, 1 / epoch) for epoch in (1, 2, 3)]
    return Run(
        model=model,
        config=config,
        seed=seed,
        folder=folder or f"{config}_seed{seed}",
        status="done",
        name=MODELS[model].display_name if model in MODELS else "",
        metrics={"AP": ap, "AP50": ap * 1.5, "AP75": ap, "APs": math.nan, "APm": ap, "VOC07": ap, "VOC10": -1.0},
        per_class={"disc": {"AP": ap + 0.1}, "bar & <script>alert(1)</script>": {"AP": ap - 0.1}},
        cost=Cost(12_000_000, 20e9, "320x240", 10.0, 20.0, 100 * ap),
        curve=curve,
    )


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return _run


@pytest.fixture
def results() -> Results:
    failed = Run("cornernet", "cornernet_tiny", 0, "cornernet_tiny_seed0", "failed", "out of memory at <b>step</b> 12")
    failed.name = "CornerNet"
    return Results(
        runs=[_run("faster_rcnn", 0.4), failed, _run("retinanet", 0.5)],
        data={"name": "made-up", "train": 20, "test": 10, "classes": 2},
        classes=["disc", "bar & <script>alert(1)</script>"],
        budget="3 epochs",
        command="zoo compare --out 'runs/<a>'",
        hardware="no machine",
        versions={"torch": "0"},
        created="2025-01-01T00:00:00+00:00",
        fingerprints={"test": "0123abcd"},
        configs={"retinanet_tiny": "class_path: <x>\n"},
    )


def _target(boxes: list[list[float]], labels: list[int], ignored: Sequence[bool] = ()) -> Target:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "image_id": torch.tensor(1),
        "iscrowd": torch.zeros(len(labels), dtype=torch.bool),
        "difficult": torch.tensor(list(ignored) or [False] * len(labels), dtype=torch.bool),
        "area": torch.ones(len(labels)),
    }


def _prediction(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Prediction:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
    }


@pytest.fixture
def make_target() -> Callable[..., Target]:
    return _target


@pytest.fixture
def make_prediction() -> Callable[..., Prediction]:
    return _prediction


@pytest.fixture
def examples() -> list[Example]:
    image = torch.full((3, 60, 80), 128, dtype=torch.uint8)
    target = _target([[10, 10, 30, 30], [40, 10, 60, 50]], [0, 1])
    predictions = {
        "retinanet_tiny_seed0": _prediction([[11, 10, 30, 30], [0, 0, 5, 5]], [0, 1], [0.9, 0.6]),
        "faster_rcnn_tiny_seed0": _prediction([], [], []),
    }
    empty = {folder: _prediction([], [], []) for folder in predictions}
    return [
        make_example('"><img src=x>.jpg', image, target, predictions),
        make_example("b", image, _target([], []), empty),
    ]
