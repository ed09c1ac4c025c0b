"""torchvision's own detectors as the safety net: their weights in ours, then the same losses, boxes, scores, labels.

In float64: among thousands of untrained, crowded boxes, NMS at a threshold turns the last bit of a float32 into a box
more or less, on either side. In float64 nothing lies that close.
"""

import pytest
import torch
import torchvision.models.detection as tv
from torch import Tensor, nn

from zoo.detector import Detector
from zoo.models import faster_rcnn
from zoo.models.faster_rcnn import FasterRCNN
from zoo.models.mask_rcnn import MaskRCNN
from zoo.models.retinanet import RetinaNet
from zoo.nn.frame import FrameConfig
from zoo.ops.paste import paste_masks
from zoo.types import Target
from zoo.weights import load_weights

MIN_SIZE, MAX_SIZE = 96, 150
SIZES = [(120, 181), (160, 117)]  # height, width
FRAME = FrameConfig(min_size=MIN_SIZE, max_size=MAX_SIZE)
EVERY = 10**6  # so many samples an image that nothing is left to chance


def make_images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Blobs rather than noise: white noise averages out to the same features everywhere.
    coarse = [torch.rand(3, 8, 12, generator=generator), torch.rand(3, 11, 8, generator=generator)]
    return [
        (nn.functional.interpolate(c[None], size=s, mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)
        for c, s in zip(coarse, SIZES, strict=True)
    ]


def make_targets() -> list[Target]:
    # Crooked numbers: two anchors that overlap an object alike to the last bit are told apart by rounding alone.
    boxes = [
        [[10.3, 12.9, 61.7, 80.2], [52.1, 30.6, 121.4, 107.8], [3.2, 3.9, 31.3, 20.7]],
        [[20.9, 31.1, 89.6, 151.3]],
    ]
    labels = [[3, 17, 1], [44]]
    return [
        Target(
            boxes=torch.tensor(b),
            labels=torch.tensor(label),
            image_id=torch.tensor(i),
            iscrowd=torch.zeros(len(b), dtype=torch.bool),
            difficult=torch.zeros(len(b), dtype=torch.bool),
            area=torch.ones(len(b)),
            masks=make_masks(b, *size),
        )
        for i, (b, label, size) in enumerate(zip(boxes, labels, SIZES, strict=True))
    ]


def make_masks(boxes: list[list[float]], height: int, width: int) -> Tensor:
    """An ellipse in each box."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    masks = [
        ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1 for x1, y1, x2, y2 in boxes
    ]
    return torch.stack(masks).to(torch.uint8)


def shake(model: nn.Module) -> None:
    """Weights as if trained: batch norm that knows the images' statistics, and class scores far from the prior."""
    generator = torch.Generator().manual_seed(1)
    spreads = {"cls_logits": 0.04, "cls_score": 0.05, "bbox_pred": 0.03, "bbox_reg": 0.004}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.9
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and "head" in name:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        if (spread := spreads.get(name.split(".")[-1])) is not None:
            nn.init.normal_(layer.weight, std=spread, generator=generator)
    with torch.no_grad():
        frames, _ = model.transform([image / 255 for image in make_images()])
        for _ in range(3):
            model.backbone.train()(frames.tensors)


RETINANET_LOSSES = {"class": "classification", "box": "bbox_regression"}
FASTER_RCNN_LOSSES = {
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "roi_class": "loss_classifier",
    "roi_box": "loss_box_reg",
}
FASTER = {"rois_per_image": EVERY, "proposals_before_nms": (200, 200), "proposals_after_nms": (200, 200)}
FASTER_V2 = {"pyramid_norm": True, "rpn_depth": 2, "head_convs": 4, "head_fcs": 1}
MASK_RCNN_LOSSES = FASTER_RCNN_LOSSES | {"mask": "loss_mask"}
# name there -> class here, classes, what to take off their labels, arguments, our loss names to theirs
CASES = {
    "retinanet_resnet50_fpn": (RetinaNet, 91, 0, {"extra_levels": "p6p7_from_pyramid"}, RETINANET_LOSSES),
    "retinanet_resnet50_fpn_v2": (RetinaNet, 91, 0, {"group_norm": True, "box_loss": "giou"}, RETINANET_LOSSES),
    "fasterrcnn_resnet50_fpn": (FasterRCNN, 90, 1, FASTER, FASTER_RCNN_LOSSES),
    "fasterrcnn_resnet50_fpn_v2": (FasterRCNN, 90, 1, FASTER | FASTER_V2, FASTER_RCNN_LOSSES),
    "maskrcnn_resnet50_fpn": (MaskRCNN, 90, 1, FASTER, MASK_RCNN_LOSSES),
    "maskrcnn_resnet50_fpn_v2": (MaskRCNN, 90, 1, FASTER | FASTER_V2 | {"mask_norm": True}, MASK_RCNN_LOSSES),
}


def build_pair(name: str) -> tuple[nn.Module, Detector, int]:
    cls, num_classes, label_shift, arguments, _ = CASES[name]
    torch.manual_seed(0)
    # torchvision keeps boxes that clipping leaves without area, and lets them compete for the last places: so no limit.
    everything = {"detections_per_img": EVERY} if cls is RetinaNet else {"box_detections_per_img": EVERY}
    if cls is not RetinaNet:
        everything |= {"rpn_batch_size_per_image": EVERY, "box_batch_size_per_image": EVERY}
        everything |= {f"rpn_{when}_nms_top_n_{mode}": 200 for when in ("pre", "post") for mode in ("train", "test")}
    theirs = getattr(tv, name)(weights=None, weights_backbone=None, min_size=MIN_SIZE, max_size=MAX_SIZE, **everything)
    shake(theirs)
    theirs = theirs.double()
    ours = cls(
        num_classes, trunk="resnet50", frame=FRAME, score_threshold=0.05, detections_per_image=EVERY, **arguments
    )
    load_weights(ours, theirs.state_dict(), layout="torchvision")
    return theirs, ours.double(), label_shift


# Thousands of masks take a minute; those of single boxes are compared in tests/nn/test_mask_head.py.
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("mask") else name for name in CASES]


@pytest.fixture(scope="module", params=PARAMS)
def pair(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Detector, int]:
    return request.param, *build_pair(request.param)


def test_same_detections(pair: tuple[str, nn.Module, Detector, int]) -> None:
    _, theirs, ours, label_shift = pair
    images = make_images()
    with torch.no_grad():
        expected = theirs.eval()([image.double() / 255 for image in images])
        found = ours.eval()(images)
    for theirs_one, ours_one in zip(expected, found, strict=True):
        sides = theirs_one["boxes"][:, 2:] - theirs_one["boxes"][:, :2]
        keep = (sides > 1e-3).all(dim=1)
        assert keep.sum() >= 20, "a comparison of too few detections says little"
        assert theirs_one["scores"].std() > 0.01, "nor does one of detections that are all alike"
        assert len(ours_one["scores"]) == keep.sum()
        torch.testing.assert_close(ours_one["scores"].double(), theirs_one["scores"][keep], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours_one["boxes"].double(), theirs_one["boxes"][keep], atol=1e-4, rtol=0)
        assert torch.equal(ours_one["labels"], theirs_one["labels"][keep] - label_shift)
        if isinstance(ours, MaskRCNN):
            height, width = theirs_one["masks"].shape[-2:]
            pasted = paste_masks(ours_one["masks"].double(), ours_one["boxes"].double(), height, width)
            expected_masks = theirs_one["masks"][keep, 0]
            assert pasted.sum() > 5000
            assert (pasted != (expected_masks >= 0.5)).sum() < 0.003 * pasted.sum(), "but for edges rounded otherwise"


def test_same_losses(pair: tuple[str, nn.Module, Detector, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate is sampled on both sides, so that chance has no part in it."""
    name, theirs, ours, label_shift = pair
    images, targets = make_images(), make_targets()
    whole = faster_rcnn.sample
    monkeypatch.setattr(
        faster_rcnn, "sample", lambda positive, negative, num, positive_fraction: whole(positive, negative, EVERY, 0.5)
    )
    their_targets = [
        {"boxes": target["boxes"].double(), "labels": target["labels"] + label_shift, "masks": target["masks"]}
        for target in targets
    ]
    with torch.no_grad():
        expected = theirs.train()([image.double() / 255 for image in images], their_targets)
        found = ours.train().compute_raw_losses((images, targets))
    names = CASES[name][4]
    assert set(found) == set(names)
    for our_key, their_key in names.items():
        torch.testing.assert_close(found[our_key].double(), expected[their_key].double(), atol=1e-4, rtol=0)
