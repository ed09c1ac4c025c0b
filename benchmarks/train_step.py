"""Time of a training step, ours and torchvision's, with the same weights, images and targets, in alternating order.

    python benchmarks/train_step.py                          # ResNet-18 FPN, 8 images of 427x320, on the CPU
    python benchmarks/train_step.py --device cuda --size 800 # 8 images of 1066x800

A step is everything from a batch of the loader to updated weights: framing, network, losses, backward, SGD. "default"
compares the defaults of our configurations (bf16 autocast, channels_last) with those of torchvision (float32,
contiguous). In "fp32" our memory is channels_last and torchvision's is contiguous; in "bf16" both are channels_last.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _common import time_in_turn
from _torchvision_pairs import MODEL_NAMES, add_rates, build_pair, make_images, make_targets, start_report
from torch import Tensor, nn

from zoo.detector import Detector
from zoo.types import Target

BATCH = 8
# case -> (bf16 in ours, bf16 and channels_last in theirs, goal of the ratio on a CPU by model)
PRECISIONS: dict[str, tuple[bool, bool, dict[str, float]]] = {
    "fp32": (False, False, {"retinanet": 1.0, "faster_rcnn": 1.0}),
    "bf16": (True, True, {"retinanet": 1.2, "faster_rcnn": 1.2}),
    "default": (True, False, {"retinanet": 4.0, "faster_rcnn": 2.5}),
}


def make_step(
    model: nn.Module, compute: Callable[[], dict[str, Tensor]], device: str, bf16: bool
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model.train()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = sum(compute().values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(detector: Detector, images: list[Tensor], targets: list[Target], device: str, bf16: bool) -> Callable:
    return make_step(detector, lambda: detector.compute_raw_losses((images, targets)), device, bf16)


def their_step(model: nn.Module, images: list[Tensor], targets: list[Target], device: str, bf16: bool) -> Callable:
    model.to(memory_format=torch.channels_last if bf16 else torch.contiguous_format)
    # Its loader yields floats, so the conversion is not timed.
    floats = [image / 255 for image in images]
    labelled = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
    return make_step(model, lambda: model(floats, labelled), device, bf16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=320, help="shorter side of the images; the longer is 4/3 of it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    height, width = arguments.size, arguments.size * 4 // 3 + (arguments.size == 320)
    device = arguments.device
    report = start_report(
        f"Training step, {BATCH} images of {width}x{height}, ResNet-18 FPN",
        f"python benchmarks/train_step.py {' '.join(sys.argv[1:])}".strip(),
        device,
    )
    images, targets = (make(BATCH, height, width, device) for make in (make_images, make_targets))
    for name in MODEL_NAMES:
        for precision, (our_bf16, their_bf16, goals) in PRECISIONS.items():
            theirs, ours = build_pair(name, height, 2 * width, device)
            timing = time_in_turn(
                our_step(ours, images, targets, device, our_bf16),
                their_step(theirs, images, targets, device, their_bf16),
                arguments.rounds,
                device,
            )
            add_rates(report, f"{name}_r18/train/{precision}", timing, BATCH, goals[name] if device == "cpu" else None)
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
