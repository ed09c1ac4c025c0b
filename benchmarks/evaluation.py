"""Time of a detection metric at COCO val2017's size: update and compute, ours and torchmetrics'.

    python benchmarks/evaluation.py                     # 5,000 images; torchmetrics with its defaults takes minutes
    python benchmarks/evaluation.py --images 500        # a tenth, for a quick look
    python benchmarks/evaluation.py --out benchmarks/results/evaluation.md

Objects and detections are drawn from a seed: object sizes from 8 to 300 pixels, up to three classes per image, 40% of
the detections near objects with various overlaps. All sides get the same tensors in batches of 8, in alternating order,
and their values are compared with ours.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torchmetrics.detection import MeanAveragePrecision

from zoo.evaluation import DetectionMAP
from zoo.evaluation.coco import Engine
from zoo.evaluation.scores import Protocol
from zoo.types import Prediction, Target

BATCH = 8
NUM_CLASSES = 80
OBJECTS_PER_IMAGE = 7.3  # COCO val2017: 36,781 in 5,000 images
DETECTIONS_PER_IMAGE = 100
WIDTH, HEIGHT = 640, 480

Batches = list[tuple[list[Prediction], list[Target]]]

TORCHMETRICS_KEYS = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "APs": "map_small",
    "APm": "map_medium",
    "APl": "map_large",
    "AR1": "mar_1",
    "AR10": "mar_10",
    "AR100": "mar_100",
    "ARs": "mar_small",
    "ARm": "mar_medium",
    "ARl": "mar_large",
}


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 4] xyxy, sides from 8 to 300 pixels, uniform on a log scale."""
    side = np.exp(rng.uniform(np.log(8), np.log(300), count))
    aspect = np.exp(rng.normal(0, 0.4, count))
    width, height = np.minimum(side * aspect, WIDTH - 1), np.minimum(side / aspect, HEIGHT - 1)
    x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
    return np.stack([x, y, x + width, y + height], axis=1)


def make_batches(num_images: int, seed: int) -> Batches:
    """Random predictions and targets in batches; the same for the same seed."""
    rng = np.random.default_rng(seed)
    images: list[tuple[Prediction, Target]] = []
    for image_id in range(num_images):
        # geometric: many images with few objects, some with none, a few crowded ones
        num_objects = min(int(rng.geometric(1 / (OBJECTS_PER_IMAGE + 1))) - 1, 60)
        palette = rng.integers(0, NUM_CLASSES, 3)
        boxes, labels = random_boxes(rng, num_objects), rng.choice(palette, num_objects)
        found, found_labels = (
            random_boxes(rng, DETECTIONS_PER_IMAGE),
            rng.integers(0, NUM_CLASSES, DETECTIONS_PER_IMAGE),
        )
        same_palette = rng.random(DETECTIONS_PER_IMAGE) < 0.5
        found_labels = np.where(same_palette, rng.choice(palette, DETECTIONS_PER_IMAGE), found_labels)
        near = (rng.random(DETECTIONS_PER_IMAGE) < 0.4) & (num_objects > 0)
        if num_objects:
            source = rng.integers(0, num_objects, DETECTIONS_PER_IMAGE)
            size = np.tile(boxes[source, 2:] - boxes[source, :2], 2)
            spread = rng.exponential(0.08, (DETECTIONS_PER_IMAGE, 1))
            moved = boxes[source] + rng.normal(0, 1, size.shape) * size * spread
            found = np.where(near[:, None], moved, found)
            right_class = near & (rng.random(DETECTIONS_PER_IMAGE) < 0.9)
            found_labels = np.where(right_class, labels[source], found_labels)
        found = np.concatenate([found[:, :2], np.maximum(found[:, 2:], found[:, :2] + 1)], axis=1)
        scores = np.where(near, rng.beta(2, 2, DETECTIONS_PER_IMAGE), rng.beta(1, 6, DETECTIONS_PER_IMAGE))
        order = np.argsort(-scores)
        prediction = Prediction(
            boxes=torch.from_numpy(found[order].astype(np.float32)),
            scores=torch.from_numpy(scores[order].astype(np.float32)),
            labels=torch.from_numpy(found_labels[order]),
        )
        true_boxes = boxes.astype(np.float32)
        target = Target(
            boxes=torch.from_numpy(true_boxes),
            labels=torch.from_numpy(labels),
            image_id=torch.tensor(image_id),
            iscrowd=torch.from_numpy(rng.random(num_objects) < 0.01),
            difficult=torch.zeros(num_objects, dtype=torch.bool),
            area=torch.from_numpy((true_boxes[:, 2:] - true_boxes[:, :2]).prod(axis=1) * np.float32(0.6)),
        )
        images.append((prediction, target))
    batches = [images[start : start + BATCH] for start in range(0, num_images, BATCH)]
    return [([prediction for prediction, _ in batch], [target for _, target in batch]) for batch in batches]


def run_ours(batches: Batches, protocols: list[Protocol], engine: Engine = "hotcoco") -> dict[str, float]:
    metric = DetectionMAP([str(c) for c in range(NUM_CLASSES)], protocols, engine)
    for predictions, targets in batches:
        metric.update(predictions, targets)
    return {key: float(value) for key, value in metric.compute().items()}


def run_torchmetrics(batches: Batches, metric: MeanAveragePrecision) -> dict[str, float]:
    for predictions, targets in batches:
        metric.update(predictions, targets)  # type: ignore[arg-type]
    values = metric.compute()
    return {key: float(values[theirs]) for key, theirs in TORCHMETRICS_KEYS.items()}


def exact_torchmetrics() -> MeanAveragePrecision:
    """The metric with COCO's thresholds in f64. By default they are f32, so that a recall of 1 / 10 is below 0.1."""
    thresholds = {
        "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
        "rec_thresholds": np.linspace(0, 1, 101).tolist(),
    }
    return MeanAveragePrecision(backend="faster_coco_eval", **thresholds)


def timed(run: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        values = run()
        return time.perf_counter() - start, values


def hardware() -> str:
    model = "unknown CPU"
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text())
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="of all sides but torchmetrics with its defaults")
    parser.add_argument("--slow-rounds", type=int, default=1, help="of torchmetrics with its defaults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the output to this file")
    options = parser.parse_args()

    batches = make_batches(options.images, options.seed)
    num_objects = sum(len(target["labels"]) for _, targets in batches for target in targets)
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "zoo, COCO": lambda: run_ours(batches, ["coco"]),
        "zoo, COCO + VOC07 + VOC10": lambda: run_ours(batches, ["coco", "voc07", "voc10"]),
        "torchmetrics, faster_coco_eval": lambda: run_torchmetrics(
            batches, MeanAveragePrecision(backend="faster_coco_eval")
        ),
        "torchmetrics, defaults (pycocotools)": lambda: run_torchmetrics(batches, MeanAveragePrecision()),
    }
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    values: dict[str, dict[str, float]] = {}
    for turn in range(max(options.rounds, options.slow_rounds)):
        for name, run in sides.items():
            if turn < (options.slow_rounds if name == names[3] else options.rounds):
                took, values[name] = timed(run)
                seconds[name].append(took)
                print(f"round {turn + 1}: {name}: {took:.2f} s", file=sys.stderr, flush=True)

    checks = {
        "zoo, engine pycocotools": lambda: run_ours(batches, ["coco"], "pycocotools"),
        "torchmetrics, faster_coco_eval, thresholds in f64": lambda: run_torchmetrics(batches, exact_torchmetrics()),
    }
    values |= {name: timed(run)[1] for name, run in checks.items()}

    packages = ("torch", "torchmetrics", "hotcoco", "pycocotools", "faster-coco-eval", "numpy")
    medians = {name: median(took) for name, took in seconds.items() if took}
    lines = [
        "# Evaluation: update and compute at COCO val2017's size",
        "",
        f"{options.images} images, {num_objects} objects, {options.images * DETECTIONS_PER_IMAGE} detections, "
        f"{NUM_CLASSES} classes, batches of {BATCH}; synthetic, seed {options.seed}",
        "",
        f"- hardware: {hardware()}",
        f"- versions: Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}",
        f"- command: `python benchmarks/evaluation.py --images {options.images} --rounds {options.rounds} "
        f"--slow-rounds {options.slow_rounds} --seed {options.seed}`",
        "",
        "| side | rounds | median, s | min, s | max, s | largest difference from zoo's twelve numbers |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in values.items():
        difference = max(abs(found[key] - values[names[0]][key]) for key in TORCHMETRICS_KEYS)
        rounds = seconds.get(name, [])
        times = f"{median(rounds):.3f} | {min(rounds):.3f} | {max(rounds):.3f}" if rounds else "- | - | -"
        lines.append(f"| {name} | {len(rounds) or 'check only'} | {times} | {difference:.1e} |")
    lines += ["", "The defaults of torchmetrics round COCO's thresholds to f32 (see `exact_torchmetrics`)."]
    ours = values[names[1]]
    lines += ["", "  ".join(f"{key} {ours[key]:.4f}" for key in (*TORCHMETRICS_KEYS, "VOC07", "VOC10")), "", "```json"]
    comparisons = [("coco/defaults", names[0], names[3]), ("coco/faster_coco_eval", names[0], names[2])]
    comparisons.append(("all_three_protocols", names[1], names[0]))
    for case, our_name, peer in comparisons:
        if peer in medians:
            line = {
                "case": f"evaluation/{options.images}_images/{case}",
                "ours": round(medians[our_name], 4),
                "peer": round(medians[peer], 4),
                "peer_name": peer if peer.startswith("zoo") else f"{peer} {version('torchmetrics')}",
                "unit": "s",
                "ratio": round(medians[peer] / medians[our_name], 2),
            }
            lines.append(json.dumps(line))
    lines.append("```")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        part = options.out.with_suffix(".part")
        part.write_text(text)
        os.replace(part, options.out)


if __name__ == "__main__":
    main()
