"""Inference time of R-CNN, Fast R-CNN, Faster R-CNN, YOLOv1, SSD300 and YOLOv3-320 with the same trunk and images.

    python benchmarks/rcnn_to_yolo.py                          # ResNet-18, images of 500x375, bf16, on the CPU
    python benchmarks/rcnn_to_yolo.py --device cuda --trunk vgg16_bn

Seconds per image in three parts: region proposals (selective search, or the RPN's selection of boxes), network
(framing, trunk and heads) and post-processing (scores, boxes, NMS). Batch 1, each detector once per round, in
reversed order in every second round. Weights are untrained; each detector's score threshold is set so that about 100
detections of the first image are above it. No other project has all of them, so the peer of each detector is the one
before it in this list; the speed-ups of the papers are printed beside the measured ones.
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

import zoo.detector.base
import zoo.models.fast_rcnn
import zoo.models.faster_rcnn
import zoo.models.rcnn
from zoo.detector import Detector
from zoo.models.fast_rcnn import FastRCNN
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.rcnn import RCNN
from zoo.models.ssd import SSD
from zoo.models.yolov1 import YOLOv1
from zoo.models.yolov3 import YOLOv3
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
# SSD, table 7 (Titan X): SSD300 46 images/s at batch 1, 59 at batch 8. YOLOv3, figure 1 (Titan X): 22 ms at 320 pixels.
PAPERS = {
    "fast_rcnn": "146x R-CNN, 213x with truncated SVD (proposals not counted)",
    "faster_rcnn": "9.2x Fast R-CNN with selective search; 5 to 7 images/s",
    "yolov1": "6.4x Faster R-CNN; 45 images/s",
    "ssd": "46 images/s, 59 at batch 8",
    "yolov3": "45 images/s",
}


@dataclass
class Entry:
    """A detector, and the functions that are timed as its region proposals and its post-processing."""

    name: str
    detector: Detector
    proposal_function: tuple[object, str] | None  # object and name of its attribute
    postprocessing_function: tuple[object, str]
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def build_entries(trunk: str, device: str) -> list[Entry]:
    """The detectors as in their papers, except for the trunk."""
    torch.manual_seed(0)
    selective_search = (zoo.detector.base, "propose")
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
    ssd = SSD(NUM_CLASSES, trunk=trunk, strides=(8, 16))
    yolov3 = YOLOv3(NUM_CLASSES, trunk=trunk, frame=FrameConfig(320, 320, letterbox=True))
    entries = [
        Entry("rcnn", rcnn, selective_search, (zoo.models.rcnn, "window_predictions")),
        Entry("fast_rcnn", fast, selective_search, (zoo.models.fast_rcnn, "roi_predictions")),
        Entry("faster_rcnn", faster, (FasterRCNN, "propose"), (zoo.models.faster_rcnn, "roi_predictions")),
        Entry("yolov1", yolo, None, (YOLOv1, "compute_predictions")),
        Entry("ssd", ssd, None, (SSD, "compute_predictions")),
        Entry("yolov3", yolov3, None, (YOLOv3, "compute_predictions")),
    ]
    for entry in entries:
        entry.detector.configure_model()
        entry.detector.to(device).eval()
    return entries


@contextlib.contextmanager
def timed(target: tuple[object, str] | None, device: str, seconds: list[float]) -> Iterator[None]:
    """Append the seconds of each call of a function to `seconds` inside this context."""
    if target is None:
        yield
        return
    function: Callable[..., object] = getattr(*target)

    def timed_function(*args: object, **kwargs: object) -> object:
        result: list[object] = []
        seconds.append(seconds_of(lambda: result.append(function(*args, **kwargs)), device))
        return result[0]

    with patch.object(*target, timed_function):
        yield


def run(entry: Entry, image: Tensor, device: str, bf16: bool) -> None:
    """Run a detector on an image, and add the seconds of its parts to `entry.seconds`."""
    proposal_seconds: list[float] = []
    postprocessing_seconds: list[float] = []
    with (
        torch.inference_mode(),
        torch.autocast(device, torch.bfloat16, enabled=bf16),
        timed(entry.proposal_function, device, proposal_seconds),
        timed(entry.postprocessing_function, device, postprocessing_seconds),
    ):
        total = seconds_of(lambda: entry.detector([image]), device)
    proposals, post = sum(proposal_seconds), sum(postprocessing_seconds)
    parts = {"proposals": proposals, "post-processing": post, "network": total - proposals - post}
    for part, value in (parts | {"total": total}).items():
        entry.seconds[part].append(value)


@torch.inference_mode()
def set_threshold(detector: Detector, image: Tensor) -> None:
    """Set the score threshold so that about DETECTIONS of the image are above it, as with a trained detector."""
    assert hasattr(detector, "score_threshold")
    detector.score_threshold = 1e-6
    detector.score_threshold = float(detector([image])[0]["scores"][:DETECTIONS].min())


def make_images(count: int) -> list[Tensor]:
    """Blobs at three scales, enough for selective search to find 2,000 regions."""
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
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    device, bf16 = arguments.device, arguments.precision == "bf16"
    report = Report(
        f"From R-CNN to YOLOv3, {arguments.trunk}, images of {WIDTH}x{HEIGHT}, {arguments.precision}, batch 1",
        f"python benchmarks/rcnn_to_yolo.py {' '.join(sys.argv[1:])}".strip(),
        ["detector", "proposals, s", "network, s", "post-processing, s", "total, s", "images/s", "speed-up", "papers"],
        device,
    )
    entries = build_entries(arguments.trunk, device)
    images = [image.to(device) for image in make_images(arguments.rounds)]
    for entry in entries:
        set_threshold(entry.detector, images[0])
    for number, image in enumerate(images):
        for entry in entries if number % 2 else entries[::-1]:
            run(entry, image, device, bf16)
    previous: Entry | None = None
    for entry in entries:
        total = median(entry.seconds["total"])
        parts = [spread(entry.seconds[part], 3) for part in ("proposals", "network", "post-processing", "total")]
        speed_up = "" if previous is None else describe_speed_up(entry, previous)
        report.row([entry.name, *parts, f"{1 / total:.2f}", speed_up, PAPERS.get(entry.name, "")])
        if previous is not None:
            ratio = median_ratio(entry.seconds["total"], previous.seconds["total"])
            previous_total = median(previous.seconds["total"])
            report.case(
                f"rcnn_to_yolo/{entry.name}/total", 1 / total, 1 / previous_total, previous.name, "images/s", ratio
            )
        previous = entry
    report.finish(arguments.out)


def describe_speed_up(entry: Entry, previous: Entry) -> str:
    """Speed-up over the previous detector, in total and without region proposals."""
    own, other = (
        [total - proposals for total, proposals in zip(one["total"], one["proposals"], strict=True)]
        for one in (entry.seconds, previous.seconds)
    )
    in_total = median_ratio(entry.seconds["total"], previous.seconds["total"])
    return f"{in_total:.1f}x {previous.name}, {median_ratio(own, other):.1f}x without proposals"


def median_ratio(own: list[float], other: list[float]) -> float:
    """Median over the rounds of other / own."""
    return median(b / a for a, b in zip(own, other, strict=True))


if __name__ == "__main__":
    main()
