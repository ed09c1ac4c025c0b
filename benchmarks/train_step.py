"""Time of a training step, ours and torchvision's, with the same weights, images and targets, in alternating order.

    python benchmarks/train_step.py                # ResNet-18 FPN, 8 images of 427x320, on the CPU
    python benchmarks/train_step.py --device cuda --trunk resnet50 --size 800 --batch 16 --ladder

A step is everything from a batch of the loader to updated weights: framing, network, losses, backward, SGD. "default"
compares the defaults of our configurations (bf16 autocast, channels_last) with those of torchvision (float32,
contiguous). In "fp32" our memory is channels_last and torchvision's is contiguous; in "bf16" both are channels_last.

--ladder goes from torchvision's defaults to our fastest step, each rung timed in turn with the one before it.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _common import Report, time_in_turn
from _torchvision_pairs import MODEL_NAMES, TRUNKS, add_rates, build_pair, make_images, make_targets, start_report
from torch import Tensor, nn

from zoo.callbacks.torch_compile import modules_to_compile
from zoo.detector import Detector
from zoo.profiling.flops import peak_allocated
from zoo.profiling.hardware import list_versions
from zoo.types import Target

# case -> (bf16 in ours, bf16 and channels_last in theirs, goal of the ratio on a CPU by model)
PRECISIONS: dict[str, tuple[bool, bool, dict[str, float]]] = {
    "fp32": (False, False, {"retinanet": 1.0, "faster_rcnn": 1.0, "mask_rcnn": 1.0}),
    "bf16": (True, True, {"retinanet": 1.2, "faster_rcnn": 1.2, "mask_rcnn": 1.0}),
    "default": (True, False, {"retinanet": 4.0, "faster_rcnn": 2.5, "mask_rcnn": 1.0}),
}


def make_step(
    model: nn.Module, compute: Callable[[], dict[str, Tensor]], device: str, bf16: bool
) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
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
    labelled = [
        {key: target[key] for key in ("boxes", "masks") if key in target} | {"labels": target["labels"] + 1}
        for target in targets
    ]
    return make_step(model, lambda: model(floats, labelled), device, bf16)


def contiguous(detector: Detector) -> Detector:
    """A copy with the default memory format of torch."""
    detector = copy.deepcopy(detector).to(memory_format=torch.contiguous_format)
    detector.channels_last = detector.frame.channels_last = False
    return detector


def compiled(detector: Detector) -> Detector:
    """A copy whose parts are compiled, as by the callback TorchCompile."""
    detector = copy.deepcopy(detector)
    for part in modules_to_compile(detector):
        part.compile()
    return detector


def measure_ladder(
    report: Report, case: str, pair: tuple[nn.Module, Detector], batch: tuple[list[Tensor], list[Target]], rounds: int
) -> None:
    theirs, ours = pair
    device = ours.device.type
    rungs: dict[str, Callable[[], Callable[[], None]]] = {
        "torchvision fp32": lambda: their_step(theirs, *batch, device, False),
        "ours fp32": lambda: our_step(contiguous(ours), *batch, device, False),
        "+ bf16": lambda: our_step(contiguous(ours), *batch, device, True),
        "+ channels_last": lambda: our_step(ours, *batch, device, True),
        "+ compile": lambda: our_step(compiled(ours), *batch, device, True),
    }
    before, step_before = None, None
    for rung, build in rungs.items():
        step = build()
        if step_before is not None:
            timing = time_in_turn(step, step_before, rounds, device)
            add_rates(report, f"{case}/ladder/{rung}", timing, len(batch[0]), None, peer_name=before)
        before, step_before = rung, step


def add_memory(
    report: Report, case: str, ours: Callable[[], None], theirs: Callable[[], None], device: torch.device
) -> None:
    """Add the memory that a step allocates at its peak, beyond weights and the optimizer's state."""
    own, peer = (float(peak_allocated(step, device) or 0) / 1e6 for step in (ours, theirs))
    report.row([case, f"{own:.0f}", f"{peer:.0f}", "MB", f"{peer / own:.2f}", ""])
    report.case(case, own, peer, f"torchvision {list_versions()['torchvision']}", "MB", peer / own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=320, help="shorter side of the images; the longer is 4/3 of it")
    parser.add_argument("--trunk", choices=TRUNKS, default="resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--models", choices=MODEL_NAMES, nargs="+", default=MODEL_NAMES)
    parser.add_argument("--ladder", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    height, width = arguments.size, arguments.size * 4 // 3 + (arguments.size == 320)
    device = arguments.device
    report = start_report(
        f"Training step, {arguments.batch} images of {width}x{height}, {arguments.trunk} FPN",
        f"python benchmarks/train_step.py {' '.join(sys.argv[1:])}".strip(),
        device,
    )
    images, with_masks = (make(arguments.batch, height, width, device) for make in (make_images, make_targets))
    without = [{key: value for key, value in target.items() if key != "masks"} for target in with_masks]
    for name in arguments.models:
        targets = with_masks if name == "mask_rcnn" else without
        case = f"{name}_{TRUNKS[arguments.trunk]}"
        for precision, (our_bf16, their_bf16, goals) in PRECISIONS.items():
            theirs, ours = build_pair(name, height, 2 * width, device, arguments.trunk)
            step = our_step(ours, images, targets, device, our_bf16)
            their = their_step(theirs, images, targets, device, their_bf16)
            timing = time_in_turn(step, their, arguments.rounds, device)
            goal = goals[name] if device == "cpu" else None
            add_rates(report, f"{case}/train/{precision}", timing, arguments.batch, goal)
            add_memory(report, f"{case}/memory/{precision}", step, their, ours.device)
        if arguments.ladder:
            pair = build_pair(name, height, 2 * width, device, arguments.trunk)
            measure_ladder(report, case, pair, (images, targets), arguments.rounds)
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
