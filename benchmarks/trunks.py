"""Training speed of pretrained trunks in a RetinaNet, by precision and memory order, in alternating order.

    python benchmarks/trunks.py --out benchmarks/results/trunks.md

A call is the losses and gradients of 8 images of 640x480, framed to 341x256, of a RetinaNet with 128 channels; the
optimizer's step is left out. ResNet-18 is the trunk of the `_r18` configurations, trained whole from scratch. "frozen"
trunks have fixed norms, and their first two stages are not trained. Each is compared with its own float32 in NCHW
order.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _common import Report, time_in_turn
from _torchvision_pairs import SLOTS, add_rates, make_images, make_targets, start_report

from zoo.models import RetinaNet
from zoo.nn.frame import FrameConfig

BATCH = 8
TRUNKS: dict[str, dict[str, object]] = {
    "resnet18": {},
    "mobilenetv2_100": {"pretrained": True},
    "mobilenetv2_100, frozen": {"pretrained": True, "norm": "frozen", "frozen_stages": 2},
    "tf_efficientnet_lite0, frozen": {"pretrained": True, "norm": "frozen", "frozen_stages": 2},
}


def make_step(trunk: str, bf16: bool, channels_last: bool) -> Callable[[], None]:
    """A training step without the optimizer's."""
    torch.manual_seed(0)
    frame = FrameConfig(min_size=256, max_size=512)
    arguments = {"channels": 128, "head_depth": 2, "frame": frame, "channels_last": channels_last, **TRUNKS[trunk]}
    detector = RetinaNet(SLOTS, trunk=trunk.split(",")[0], **arguments).train()  # type: ignore[arg-type]
    detector.configure_model()
    batch = make_images(BATCH, 480, 640, "cpu"), make_targets(BATCH, 480, 640, "cpu")

    def step() -> None:
        detector.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = detector.compute_raw_losses(batch)
        torch.stack(list(losses.values())).sum().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    command = f"python benchmarks/trunks.py {' '.join(sys.argv[1:])}".strip()
    report: Report = start_report("Training steps of trunks in RetinaNet, 8 images framed to 341x256", command, "cpu")
    for trunk in TRUNKS:
        plain = make_step(trunk, bf16=False, channels_last=False)
        for bf16, channels_last in ((False, True), (True, False), (True, True)):
            timing = time_in_turn(make_step(trunk, bf16, channels_last), plain, arguments.rounds, "cpu")
            name = f"{trunk}/{'bf16' if bf16 else 'fp32'}/{'NHWC' if channels_last else 'NCHW'}"
            add_rates(report, name, timing, BATCH, None, "fp32 NCHW")
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
