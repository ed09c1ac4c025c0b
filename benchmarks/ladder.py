"""The ladder that the papers climbed: R-CNN, Fast R-CNN, Faster R-CNN, YOLOv1 on one trunk and one size of image.

    python benchmarks/ladder.py                          # ResNet-18, images of 500x375, bf16, on the CPU
    python benchmarks/ladder.py --device cuda --trunk vgg16_bn

Seconds for one image in three parts: region proposals (selective search; the RPN's part of the post-processing; YOLOv1
has none), network (framing, trunk and heads) and post-processing (scores, boxes, NMS). Batch 1, each detector once a
round, every second round the other way round. Weights are untrained; each detector's score threshold is set so that
about 100 detections of the first image pass it. No other project has all four, so the peer of each rung is the rung
below it, beside what the papers say of theirs.
"""

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from _common import Report, seconds_of, spread
from torch import Tensor, nn

import zoo.detector
import zoo.models.fast_rcnn
import zoo.models.faster_rcnn
import zoo.models.rcnn
from zoo.detector import Detector
from zoo.models.fast_rcnn import FastRCNN
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.rcnn import RCNN
from zoo.models.yolov1 import YOLOv1
from zoo.nn.frame import FrameConfig
from zoo.proposals import SelectiveSearch

NUM_CLASSES = 20
WIDTH, HEIGHT = 500, 375
DETECTIONS = 100

SEARCH = SelectiveSearch("fast", limit=2000, width=500)
FRAME = FrameConfig(min_size=HEIGHT, max_size=WIDTH)

# Fast R-CNN, table 4 (VGG-16, K40, proposals not counted): R-CNN 47 s, Fast R-CNN .32 s, with truncated SVD .22 s.
# Faster R-CNN, table 5 (VGG-16, K40): selective search + Fast R-CNN 1.83 s, Faster R-CNN .198 s.
# YOLO, table 1 (Titan X): Faster R-CNN VGG-16 7 images/s, YOLO 45.
PAPERS = {
    "fast_rcnn": "146x R-CNN, 213x with truncated SVD (proposals not counted)",
    "faster_rcnn": "9.2x Fast R-CNN with selective search; 5 to 7 images/s",
    "yolov1": "6.4x Faster R-CNN; 45 images/s",
}


@dataclass
class Rung:
    """A detector, and the functions whose time is the proposals' and the post-processing's."""

    name: str
    detector: Detector
    proposing: tuple[object, str] | None
    selecting: tuple[object, str]
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def build_rungs(trunk: str, device: str) -> list[Rung]:
    """The four, as their papers have them but for the trunk."""
    torch.manual_seed(0)
    searching = (zoo.detector, "propose")
    one_level = {"trunk": trunk, "pyramid": False, "pooling": "pool", "frame": FRAME}
    rcnn = RCNN(NUM_CLASSES, trunk=trunk, crop_size=227, proposals=SEARCH, frame=FRAME)
    fast = FastRCNN(NUM_CLASSES, proposals=SEARCH, **one_level)
    faster = FasterRCNN(
        NUM_CLASSES,
        anchor_scales=(8.0, 16.0, 32.0),
        proposals_before_nms=(6000, 6000),
        proposals_after_nms=(300, 300),
        **one_level,
    )
    yolo = YOLOv1(NUM_CLASSES, trunk=trunk, neck=(1024, 1024), head="fc", grid=7)
    rungs = [
        Rung("rcnn", rcnn, searching, (zoo.models.rcnn, "window_predictions")),
        Rung("fast_rcnn", fast, searching, (zoo.models.fast_rcnn, "roi_predictions")),
        Rung("faster_rcnn", faster, (FasterRCNN, "propose"), (zoo.models.faster_rcnn, "roi_predictions")),
        Rung("yolov1", yolo, None, (YOLOv1, "compute_predictions")),
    ]
    for rung in rungs:
        rung.detector.configure_model()
        rung.detector.to(device).eval()
    return rungs


@contextlib.contextmanager
def timed(place: tuple[object, str] | None, device: str, seconds: list[float]) -> Iterator[None]:
    """While this is entered, the seconds of each call of that function are put down."""
    if place is None:
        yield
        return
    function: Callable[..., object] = getattr(*place)

    def timed_function(*args: object, **kwargs: object) -> object:
        result: list[object] = []
        seconds.append(seconds_of(lambda: result.append(function(*args, **kwargs)), device))
        return result[0]

    with patch.object(*place, timed_function):
        yield


def run(rung: Rung, image: Tensor, device: str, bf16: bool) -> None:
    """One image through a detector, its parts put down."""
    proposing: list[float] = []
    selecting: list[float] = []
    with (
        torch.inference_mode(),
        torch.autocast(device, torch.bfloat16, enabled=bf16),
        timed(rung.proposing, device, proposing),
        timed(rung.selecting, device, selecting),
    ):
        total = seconds_of(lambda: rung.detector([image]), device)
    post = sum(selecting)
    parts = {"proposals": sum(proposing), "post-processing": post, "network": total - sum(proposing) - post}
    for part, value in (parts | {"total": total}).items():
        rung.seconds[part].append(value)


@torch.inference_mode()
def set_threshold(detector: Detector, image: Tensor) -> None:
    """So that about DETECTIONS of the image pass, as from a trained detector."""
    assert hasattr(detector, "score_threshold")
    detector.score_threshold = 1e-6
    detector.score_threshold = float(detector([image])[0]["scores"][:DETECTIONS].min())


def make_images(count: int) -> list[Tensor]:
    """Coarse blobs with finer ones on them: selective search finds its 2,000 regions there."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, HEIGHT, WIDTH)
    for cells, share in ((6, 0.5), (24, 0.3), (96, 0.2)):
        coarse = torch.rand(count, 3, cells, cells * 4 // 3, generator=generator)
        total += share * nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic")
    return list((total.clamp(0, 1) * 255).to(torch.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--trunk", default="resnet18")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    device, bf16 = arguments.device, arguments.precision == "bf16"
    report = Report(
        f"From R-CNN to YOLOv1, {arguments.trunk}, images of {WIDTH}x{HEIGHT}, {arguments.precision}, batch 1",
        f"python benchmarks/ladder.py {' '.join(sys.argv[1:])}".strip(),
        ["detector", "proposals, s", "network, s", "post-processing, s", "total, s", "images/s", "faster", "papers"],
        device,
    )
    rungs = build_rungs(arguments.trunk, device)
    images = [image.to(device) for image in make_images(arguments.rounds)]
    for rung in rungs:
        set_threshold(rung.detector, images[0])
    for number, image in enumerate(images):
        for rung in rungs if number % 2 else rungs[::-1]:
            run(rung, image, device, bf16)
    below: Rung | None = None
    for rung in rungs:
        total = median(rung.seconds["total"])
        parts = [spread(rung.seconds[part], 3) for part in ("proposals", "network", "post-processing", "total")]
        faster = "" if below is None else ratios(rung, below)
        report.row([rung.name, *parts, f"{1 / total:.2f}", faster, PAPERS.get(rung.name, "")])
        if below is not None:
            ratio = ratio_of(rung.seconds["total"], below.seconds["total"])
            slower = median(below.seconds["total"])
            report.case(f"ladder/{rung.name}/total", 1 / total, 1 / slower, below.name, "images/s", ratio)
        below = rung
    report.finish(arguments.out)


def ratios(rung: Rung, below: Rung) -> str:
    """How many times as fast as the rung below, in all and without the proposals."""
    own, other = (
        [total - proposals for total, proposals in zip(one["total"], one["proposals"], strict=True)]
        for one in (rung.seconds, below.seconds)
    )
    in_all = ratio_of(rung.seconds["total"], below.seconds["total"])
    return f"{in_all:.1f}x {below.name}, {ratio_of(own, other):.1f}x without proposals"


def ratio_of(own: list[float], other: list[float]) -> float:
    """Median over rounds, each of which had both."""
    return median(b / a for a, b in zip(own, other, strict=True))


if __name__ == "__main__":
    main()
