"""Mask R-CNN: which objects and RoIs its mask loss is computed on, and that it learns masks."""

import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from scenes import make_image, make_target

from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.shapes import Shapes
from zoo.data.images import write_images
from zoo.data.module import DetectionDataModule
from zoo.detector import Recipe
from zoo.errors import InputError
from zoo.models.mask_rcnn import MaskRCNN
from zoo.nn.frame import FrameConfig
from zoo.ops.paste import paste_masks
from zoo.types import RawBatch

FEW = {"rois_per_image": 32, "proposals_before_nms": (200, 100), "proposals_after_nms": (200, 100)}


def small(num_classes: int = 3, **arguments: object) -> MaskRCNN:
    torch.manual_seed(0)
    defaults = {"trunk": "resnet10t", "channels": 32, "head_width": 32, "mask_convs": 2, "mask_width": 32}
    return MaskRCNN(num_classes, frame=FrameConfig(96, 160), **(defaults | FEW | arguments))


def make_batch() -> RawBatch:
    targets = [make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2]), make_target([], [])]
    return [make_image(96, 128, target) for target in targets], targets


@pytest.mark.parametrize("mask_norm", [False, True])
def test_mask_loss_and_gradients(mask_norm: bool) -> None:
    detector = small(mask_norm=mask_norm).train()
    losses = detector.compute_raw_losses(make_batch())
    assert list(losses) == ["objectness", "rpn_box", "roi_class", "roi_box", "mask"]
    losses["mask"].backward()
    for name, parameter in detector.mask_head.named_parameters():
        assert parameter.grad is not None
        if name.startswith("output"):
            # Only the masks of the classes of the two objects count.
            assert (
                (parameter.grad.flatten(1).abs().sum(dim=1) > 0).tolist() == [True, False, True]
                if (parameter.ndim > 1)
                else (parameter.grad != 0).tolist() == [True, False, True]
            )


def test_objects_without_a_mask_have_no_mask_loss() -> None:
    detector = small().eval()
    images, targets = make_batch()
    torch.manual_seed(0)
    with torch.no_grad():
        whole = detector.compute_raw_losses((images, targets))["mask"]
        targets[0]["masks"][1] = 0
        part = detector.compute_raw_losses((images, targets))["mask"]
        targets[0]["masks"][0] = 0
        nothing = detector.compute_raw_losses((images, targets))
    assert whole.item() != pytest.approx(part.item(), abs=1e-6)
    assert part.item() > 0
    assert nothing["mask"].item() == 0
    assert all(math.isfinite(float(loss)) for loss in nothing.values())


def test_batches_without_masks_are_refused_unless_they_have_no_objects() -> None:
    images, targets = make_batch()
    del targets[0]["masks"]
    del targets[1]["masks"]
    with pytest.raises(ValueError, match="this batch has no masks"):
        small().compute_raw_losses((images[:1], targets[:1]))
    assert small().compute_raw_losses((images[1:], targets[1:]))["mask"].item() == 0


def test_detections_have_masks_also_where_there_are_none() -> None:
    detector = small(score_threshold=1e-4).eval()
    found = detector(make_batch()[0])
    assert all(prediction["masks"].shape == (len(prediction["scores"]), 28, 28) for prediction in found)
    kept = detector(make_batch()[0], score=0.35)
    assert all(prediction["masks"].shape[0] == len(prediction["scores"]) for prediction in kept)
    detector.score_threshold = 1.0
    assert detector(make_batch()[0])[0]["masks"].shape == (0, 28, 28)


def test_the_data_module_reads_masks_for_it_and_needs_some(tmp_path: Path) -> None:
    detector = small(6, recipe=Recipe("adamw", lr=1e-4, warmup_steps=0))
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    data = DetectionDataModule(Shapes(4, seed=0), Shapes(2, seed=1), batch_size=2, num_workers=0)
    assert data.table("train").masks is None
    trainer = Trainer(max_steps=2, **quiet)
    trainer.fit(detector, data)
    assert trainer.global_step == 2
    assert data.table("train").masks is not None

    table = Shapes(4, seed=0).read()
    write_coco(table, tmp_path / "train.json")
    write_images(table, Shapes(4, seed=0), tmp_path)
    boxes_only = DetectionDataModule(Coco(str(tmp_path / "train.json"), str(tmp_path)), batch_size=2, num_workers=0)
    with (
        pytest.warns(UserWarning, match="objects have no mask"),
        pytest.raises(InputError, match="no object of the train"),
    ):
        Trainer(max_steps=1, **quiet).fit(detector, boxes_only)


@pytest.mark.slow
def test_it_learns_the_masks_of_one_image() -> None:
    """A disc and the lower right half of a square: after 150 steps IoU of both masks is above 0.8."""
    target = make_target([[10, 12, 58, 60], [70, 20, 120, 70]], [0, 2])
    image = make_image(96, 128, target)
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    target["masks"][0] = (x - 34) ** 2 + (y - 36) ** 2 < 24**2
    target["masks"][1] *= (x - 70 + y - 20 > 50).to(torch.uint8)
    detector = small().train()
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 0.05 + 0.95 * (150 - step) / 50)
        optimizer.zero_grad()
        sum(detector.compute_raw_losses(([image] * 2, [target] * 2)).values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    found = detector.eval()(image)
    assert sorted(found["labels"][:2].tolist()) == [0, 2]
    pasted = paste_masks(found["masks"][:2], found["boxes"][:2], 96, 128)
    for label, mask in zip(found["labels"].tolist(), pasted, strict=False):
        truth = target["masks"][0 if label == 0 else 1].bool()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.8
