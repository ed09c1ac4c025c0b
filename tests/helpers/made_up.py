"""Synthetic results of a comparison: invented but consistent values."""

import math
from itertools import combinations

import numpy as np
import torch

import zoo.models
from zoo.report.pictures.examples import Example, Reason, make_example
from zoo.report.results import (
    Analysis,
    Calibration,
    Ceiling,
    Combination,
    Cost,
    CurvePoint,
    Difference,
    Interval,
    Pair,
    ReliabilityBin,
    Results,
    Run,
    Slice,
    Threshold,
    Timing,
)
from zoo.types import Prediction, Target

MODELS = ("faster_rcnn", "retinanet", "cornernet", "fast_rcnn", "yolov1", "rcnn", "sliding_window")
_AP = (0.61, 0.60, 0.52, 0.50, 0.41, 0.33, 0.21)
_MS = (29.0, 52.0, 88.0, 140.0, 11.0, 900.0, 31.0)
_SIZES = (("APs", -0.12), ("APm", -0.03), ("APl", 0.05))


def make_results(
    num_models: int = 7, seeds: tuple[int, ...] = (0,), classes: tuple[str, ...] = ("disc", "ring")
) -> Results:
    """Complete results of up to seven detectors; intervals of detectors with similar AP overlap."""
    runs = [
        _make_run(index, seed, classes, _AP[index] + (0.01 * (order - (len(seeds) - 1) / 2)))
        for index in range(num_models)
        for order, seed in enumerate(seeds)
    ]
    pairs = [_make_pair(first, second, classes) for first, second in combinations(range(num_models), 2)]
    return Results(
        runs=runs,
        data={"name": "made-up", "train": 200, "test": 72, "classes": len(classes)},
        classes=list(classes),
        budget="8000 images",
        command="zoo compare --out runs/made-up",
        hardware="no machine",
        versions={"torch": "0"},
        created="2025-01-01T00:00:00+00:00",
        fingerprints={"test": "0123abcd"},
        configs={f"{model}_tiny": f"class_path: {model}\n" for model in MODELS[:num_models]},
        pairs=pairs,
        combinations=[_make_combination(*pair) for pair in combinations(range(num_models), 2)][:3],
        resamples=1000,
    )


def make_examples(results: Results, count: int, side: int = 480) -> list[Example]:
    """Noise images, as large in bytes as photographs, with objects and the predictions of each entry's first seed."""
    random = np.random.default_rng(0)
    folders = list({run.config: run.folder for run in reversed(results.runs) if run.status == "done"}.values())[::-1]
    examples = []
    for number in range(count):
        noise = random.normal(128, 18, (3, side * 3 // 4, side)).clip(0, 255).astype(np.uint8)
        boxes = _make_boxes(random, side, number % 11)
        labels = random.integers(0, len(results.classes), len(boxes))
        reason = Reason("sample")
        if number >= 4 and len(boxes):
            box = tuple(boxes[0].tolist())
            reason = (
                Reason("miss", folders[-1:], [box], int(labels[0])),
                Reason("mistake", folders[:1], [box], int(labels[0]), 0.97, "no object there"),
                Reason("pair", [folders[0], folders[-1]], [box]),
            )[number % 3]
        examples.append(
            make_example(
                f"image-{number:03d}.jpg",
                torch.from_numpy(noise),
                _make_target(boxes, labels),
                {folder: _make_prediction(random, boxes, labels) for folder in folders},
                [reason],
            )
        )
    return examples


def _make_combination(first: int, second: int) -> Combination:
    ap = _AP[first] + 0.02
    names = [f"{MODELS[index]}_tiny" for index in (first, second)]
    return Combination(
        *names,
        method="rescored" if second == 1 else "fused",
        metrics={"AP": ap, "AP50": ap * 1.4, "AP75": ap * 0.9},
        oracle=0.8,
        intervals={"AP": Interval(ap, ap - 0.03, ap + 0.03)},
        differences={
            names[0]: Difference(0.02, -0.01, 0.05, "tie"),
            names[1]: Difference(ap - _AP[second], 0.01, 0.4, "better"),
        },
    )


def _make_run(index: int, seed: int, classes: tuple[str, ...], ap: float) -> Run:
    per_class = {
        name: ap + 0.04 * (label - (len(classes) - 1) / 2) / len(classes) for label, name in enumerate(classes)
    }
    sizes = {name: ap + shift for name, shift in _SIZES}
    metrics = {"AP": ap, "AP50": min(1.0, ap * 1.45), "AP75": ap * 0.9, **sizes, "AR100": ap + 0.08, "VOC07": ap * 1.4}
    ms = _MS[index]
    return Run(
        model=MODELS[index],
        config=f"{MODELS[index]}_tiny",
        seed=seed,
        folder=f"{MODELS[index]}_tiny_seed{seed}",
        status="done",
        name=zoo.models.MODELS[MODELS[index]].display_name,
        metrics={**metrics, "VOC10": ap * 1.45},
        per_class={name: {"AP": value} for name, value in per_class.items()},
        cost=Cost(
            parameters=(index + 1) * 4_000_000,
            flops=(index + 1) * 3e9,
            flops_input="640x480 framed to 341x256",
            train_images_per_s=20.0 - index,
            train_minutes=8.0 + index,
            ms_per_image=ms,
            peak_memory_mb=300.0 + 20 * index,
            proposals=300 if "rcnn" in MODELS[index] else None,
            joules_per_image=0.5 * (index + 1),
            timings=[timing for batch in (1, 8, 32) for timing in _make_timings(ms, batch)],
        ),
        curve=[
            CurvePoint(epoch, epoch * 1000, epoch * 1.1, ap * (1 - math.exp(-epoch / 2)), ap, 1 / epoch)
            for epoch in range(1, 9)
        ],
        shown_score=0.4,
        analysis=_make_analysis(ap, {**metrics}, per_class),
    )


def _make_timings(ms: float, batch: int) -> list[Timing]:
    total = ms / batch**0.3
    shares = {"decode": 0.1, "frame": 0.1, "network": 0.7, "post-processing": 0.1}
    timings = [Timing(batch, part, total * share, total * share * 1.2) for part, share in shares.items()]
    return [*timings, Timing(batch, "total", total, total * 1.2)]


def _make_analysis(ap: float, metrics: dict[str, float], per_class: dict[str, float]) -> Analysis:
    recall = np.linspace(0, 1, 101)
    precision = (1 - recall ** (2 + 10 * ap)) * (0.6 + 0.4 * ap)
    num = len(per_class) + 1
    confusion = [[100 if predicted == true else 5 for predicted in range(num)] for true in range(num)]
    confusion[-1][-1] = 0
    lost = {"Cls": 0.1, "Loc": 0.35, "Both": 0.05, "Dupe": 0.1, "Bkg": 0.2, "Miss": 0.2, "FP": 0.6, "FN": 0.4}
    return Analysis(
        intervals={
            name: Interval(metrics[name], metrics[name] - 0.035, metrics[name] + 0.03)
            for name in ("AP", "AP50", "APs", "APm", "APl")
        },
        class_intervals={name: Interval(value, value - 0.06, value + 0.05) for name, value in per_class.items()},
        errors={kind: share * (1 - ap) * 0.7 for kind, share in lost.items()},
        curves={name: precision.tolist() for name in per_class},
        confusion=confusion,
        slices={
            "aspect": [Slice("wide: above 2", 40, ap - 0.1, ap), Slice("square: 1/2 to 2", 400, ap, ap)],
            "crowding": [Slice("alone", 300, ap, ap), Slice("touching others", 140, ap - 0.07, math.nan)],
        },
        calibration=Calibration(
            0.12 * (1 - ap),
            [
                ReliabilityBin(c, min(1.0, c * (0.6 + 0.5 * ap)), round(400 * (1 - c)) + 20)
                for c in np.arange(0.05, 1, 0.1).tolist()
            ],
        ),
        thresholds={name: Threshold(0.3 + 0.2 * ap, 0.8, 0.7, 0.747) for name in per_class},
        ceilings=[
            Ceiling("no anchor matches", 0.012, 5, "No anchor overlaps the object by the IoU that makes it a positive.")
        ],
    )


def _make_pair(first: int, second: int, classes: tuple[str, ...]) -> Pair:
    def difference(shift: float) -> Difference:
        value = _AP[first] - _AP[second] + shift
        low, high = value - 0.03, value + 0.03
        return Difference(value, low, high, "better" if low > 0 else "worse" if high < 0 else "tie")

    return Pair(
        f"{MODELS[first]}_tiny",
        f"{MODELS[second]}_tiny",
        {"AP": difference(0.0), "AP50": difference(0.01), "APs": difference(-0.02)},
        {name: difference(0.01 * index / len(classes)) for index, name in enumerate(classes)},
    )


def _make_boxes(random: np.random.Generator, side: int, count: int) -> np.ndarray:
    corners = random.uniform(0, 0.5 * side, (count, 2))
    return np.concatenate([corners, corners + random.uniform(0.05 * side, 0.2 * side, (count, 2))], axis=1)


def _make_target(boxes: np.ndarray, labels: np.ndarray) -> Target:
    nothing = torch.zeros(len(boxes), dtype=torch.bool)
    return {
        "boxes": torch.from_numpy(boxes).float().reshape(-1, 4),
        "labels": torch.from_numpy(labels),
        "image_id": torch.tensor(1),
        "iscrowd": nothing,
        "difficult": nothing,
        "area": torch.ones(len(boxes)),
    }


def _make_prediction(random: np.random.Generator, boxes: np.ndarray, labels: np.ndarray) -> Prediction:
    moved = boxes + random.normal(0, 6, boxes.shape)
    scores = np.sort(random.uniform(0.2, 1, len(boxes)))[::-1].copy()
    return {
        "boxes": torch.from_numpy(moved).float().reshape(-1, 4),
        "labels": torch.from_numpy(labels),
        "scores": torch.from_numpy(scores).float(),
    }
