"""Pairs of detectors, ours and torchvision's, with the same weights; used by train_step.py and inference.py."""

from statistics import median
from typing import Any

import torch
import torchvision.models.detection as tv
from _common import Report, Timing, spread
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from zoo.detector import Detector
from zoo.models import MODELS
from zoo.nn.frame import FrameConfig
from zoo.profiling.hardware import list_versions
from zoo.types import Target
from zoo.weights import load_weights

TRUNKS = {"resnet18": "r18", "resnet50": "r50"}
SLOTS = 91  # torchvision's class slots for COCO
BOX_MODELS = ("retinanet", "faster_rcnn")
MODEL_NAMES = (*BOX_MODELS, "mask_rcnn")
THEIRS = {"retinanet": tv.RetinaNet, "faster_rcnn": tv.FasterRCNN, "mask_rcnn": tv.MaskRCNN}


def make_images(count: int, height: int, width: int, device: str) -> list[Tensor]:
    """Smooth random blobs as uint8 [3, H, W]; the features of white noise would be nearly uniform."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 16, generator=generator)
    images = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 255
    return list(images.to(torch.uint8).to(device))


def make_targets(count: int, height: int, width: int, device: str) -> list[Target]:
    """7 objects per image (COCO's mean) with sides of 1/50 to 2/3 of the image's; their masks fill their boxes."""
    generator = torch.Generator().manual_seed(1)
    targets = []
    for index in range(count):
        size = torch.exp(torch.rand(7, 2, generator=generator) * 3.5 - 3.9) * torch.tensor([width, height])
        corner = torch.rand(7, 2, generator=generator) * (torch.tensor([width, height]) - size)
        boxes = torch.cat((corner, corner + size), dim=1).to(device)
        targets.append(
            Target(
                boxes=boxes,
                labels=torch.randint(0, SLOTS - 1, (7,), generator=generator).to(device),
                image_id=torch.tensor(index, device=device),
                iscrowd=torch.zeros(7, dtype=torch.bool, device=device),
                difficult=torch.zeros(7, dtype=torch.bool, device=device),
                area=(boxes[:, 2:] - boxes[:, :2]).prod(dim=1),
                masks=_fill(boxes, height, width),
            )
        )
    return targets


def _fill(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks uint8 [M, H, W] of boxes."""
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None]
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(dim=1)
    return ((rows >= y1) & (rows < y2) & (columns >= x1) & (columns < x2)).to(torch.uint8)


def build_pair(
    name: str, min_size: int, max_size: int, device: str, trunk: str = "resnet18"
) -> tuple[nn.Module, Detector]:
    """A torchvision detector and ours, with the same weights.

    ResNet-18 is trained whole, with its batch norms. In ResNet-50 batch norms are frozen and the stem and the first
    stage are not trained, as in torchvision's recipe for detectors of pretrained trunks.
    """
    torch.manual_seed(0)
    is_retinanet = name == "retinanet"
    is_frozen = trunk == "resnet50"
    backbone = resnet_fpn_backbone(
        backbone_name=trunk,
        weights=None,
        norm_layer=FrozenBatchNorm2d if is_frozen else nn.BatchNorm2d,
        trainable_layers=3 if is_frozen else 5,
        returned_layers=[2, 3, 4] if is_retinanet else None,
        extra_blocks=LastLevelP6P7(256, 256) if is_retinanet else None,
    )
    sizes = {"min_size": min_size, "max_size": max_size}
    anchors = {"anchor_generator": tv.retinanet._default_anchorgen()} if is_retinanet else {}
    theirs = THEIRS[name](backbone, SLOTS, **anchors, **sizes)
    if is_frozen:
        fit_frozen_norms(theirs.backbone.body, trunk)
    arguments: dict[str, Any] = {"score_threshold": 0.05}  # torchvision's
    arguments |= {"extra_levels": "p6p7_from_pyramid"} if is_retinanet else {}
    arguments |= {"norm": "frozen", "frozen_stages": 2} if is_frozen else {}
    ours = MODELS[name](
        num_classes=SLOTS if is_retinanet else SLOTS - 1, trunk=trunk, frame=FrameConfig(**sizes), **arguments
    )
    load_weights(ours, theirs.state_dict(), layout="torchvision")
    ours.configure_model()
    return theirs.to(device), ours.to(device)


@torch.no_grad()
def fit_frozen_norms(body: nn.Module, trunk: str) -> None:
    """Weights and statistics of a trunk that has normalised four images; statistics of 0 and 1 let activations grow."""
    network = get_model(trunk, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.stack(make_images(4, 224, 224, "cpu")) / 255
    network((images - 0.45) / 0.22)
    body.load_state_dict(network.state_dict(), strict=False)  # without the classifier


def start_report(title: str, command: str, device: str) -> Report:
    """A report with the columns of `add_rates`."""
    columns = ["case", "ours, median (min to max)", "peer, median (min to max)", "unit", "ratio", "goal"]
    return Report(title, command, columns, device)


def add_rates(
    report: Report, case: str, timing: Timing, images: int, goal: float | None, peer_name: str | None = None
) -> None:
    """Add a case in images per second, with `images` images per call; the peer is torchvision unless named."""
    ours, peer = ([images / seconds for seconds in side] for side in (timing.ours, timing.peer))
    report.row([case, spread(ours), spread(peer), "images/s", f"{timing.ratio:.2f}", str(goal or "")])
    peer_name = peer_name or f"torchvision {list_versions()['torchvision']}"
    report.case(case, median(ours), median(peer), peer_name, "images/s", timing.ratio)
