"""What a training step does on the device: kernels, copies, time of each operation, and time that the device waits.

    python benchmarks/step_profile.py --device cuda --size 800 --batch 16 --models retinanet

The step is that of our configurations (bf16 autocast, channels_last), as in train_step.py.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch
from _common import Report, seconds_of
from _torchvision_pairs import BOX_MODELS, TRUNKS, build_pair, make_images, make_targets
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from train_step import our_step

STEPS = 3
ROWS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=320, help="shorter side of the images; the longer is 4/3 of it")
    parser.add_argument("--trunk", choices=TRUNKS, default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--models", choices=BOX_MODELS, nargs="+", default=BOX_MODELS)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    height, width = arguments.size, arguments.size * 4 // 3 + (arguments.size == 320)
    device, is_cuda = arguments.device, arguments.device == "cuda"
    report = Report(
        f"A training step by operation, {arguments.batch} images of {width}x{height}, {arguments.trunk} FPN",
        f"python benchmarks/step_profile.py {' '.join(sys.argv[1:])}".strip(),
        ["model", "operation", "calls a step", "ms a step", "share"],
        device,
    )
    images, targets = (make(arguments.batch, height, width, device) for make in (make_images, make_targets))
    for name in arguments.models:
        _, ours = build_pair(name, height, 2 * width, device, arguments.trunk)
        step = our_step(ours, images, targets, device, bf16=True)
        for _ in range(3):
            step()
        wall = min(seconds_of(step, device) for _ in range(5)) * 1000
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
        with profile(activities=activities) as recorded:
            for _ in range(STEPS):
                step()
            if is_cuda:
                torch.cuda.synchronize()
        calls: Counter[str] = Counter()
        milliseconds: defaultdict[str, float] = defaultdict(float)
        for event in recorded.key_averages():
            on_device = event.device_type == DeviceType.CUDA
            if on_device != is_cuda:
                continue
            calls[event.key] += event.count
            milliseconds[event.key] += (event.self_device_time_total if is_cuda else event.self_cpu_time_total) / 1000
        total = sum(milliseconds.values())
        for key in sorted(milliseconds, key=lambda key: -milliseconds[key])[:ROWS]:
            share = f"{100 * milliseconds[key] / total:.0f}%"
            report.row([name, f"`{key[:110]}`", f"{calls[key] / STEPS:.0f}", f"{milliseconds[key] / STEPS:.2f}", share])
        count = sum(calls.values()) / STEPS
        report.line(
            f"| {name} | all | {count:.0f} | {total / STEPS:.1f} | a step takes {wall:.1f} ms; "
            f"{'; '.join(f'{key} {value / STEPS:.0f}' for key, value in _runtime_calls(recorded).items())} |"
        )
    report.finish(arguments.out)


def _runtime_calls(recorded: profile) -> dict[str, int]:
    """Calls of CUDA's runtime that start work or wait for the device."""
    names = ("cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize")
    return {event.key: event.count for event in recorded.key_averages() if event.key in names}


if __name__ == "__main__":
    main()
