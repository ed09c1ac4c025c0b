"""A training step and an evaluation of each detector on real images of three data sets."""

from inspect import signature
from pathlib import Path

import pytest
import torch
from paths import SHARED_DATA
from pytorch_lightning import Trainer

from zoo.callbacks import MeanAveragePrecision
from zoo.data.formats.coco import Coco
from zoo.data.formats.voc import Voc
from zoo.data.module import DetectionDataModule
from zoo.data.source import Source
from zoo.detector import Recipe
from zoo.models import MODELS
from zoo.nn.frame import FrameConfig
from zoo.proposals import SelectiveSearch

RECIPE = Recipe("adamw", lr=1e-3, warmup_steps=0)
# Arguments in place of the papers' defaults, for small images and a small trunk.
SMALL: dict[str, dict[str, object]] = {
    "sliding_window": {
        "stride": 16,
        "window_side": 32,
        "window_shapes": ((32.0, 32.0), (64.0, 64.0)),
        "head_kernel": 1,
        "head_dilation": 1,
        "class_widths": (32,),
        "box_widths": (32,),
    },
    "rcnn": {"crop_size": 32, "context": 2, "fit_images": 4},
    "yolov1": {
        "frame": FrameConfig(128, 128, stretch=True),
        "neck": (32,),
        "head": "conv",
        "head_widths": (),
        "grid": 4,
    },
    "ssd": {
        "frame": FrameConfig(288, 288, stretch=True),
        "strides": (8, 16, 32),
        "extra_levels": "separable",
    },
    "yolov3": {"frame": FrameConfig(128, 128, letterbox=True), "widths": (16, 16, 16), "depths": (1, 1, 1)},
    "cornernet": {"channels": 32, "pooled_channels": 16},
}


def sources(name: str) -> tuple[Source, Source]:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the images of {name} are not at ../shared/data")
    if name == "coco_mini":
        annotations = folder / "annotations"
        return (
            Coco(str(annotations / "instances_train2017.json"), str(folder / "train2017")),
            Coco(str(annotations / "instances_val2017.json"), str(folder / "val2017")),
        )
    return Voc([str(folder)], "train"), Voc([str(folder)], "val")


@pytest.mark.filterwarnings("ignore::zoo.data.source.DataWarning")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "num_classes"), [("bccd", 3), ("voc100", 20), ("coco_mini", 80)])
def test_training_step_and_evaluation(name: str, num_classes: int, model: str, tmp_path: Path) -> None:
    train, val = sources(name)
    if MODELS[model].mask_side and name != "coco_mini":
        pytest.skip(f"{name} has no masks here")
    data = DetectionDataModule(train, val, batch_size=2, num_workers=0)
    assert data.num_classes == num_classes
    torch.manual_seed(0)
    arguments: dict[str, object] = {"frame": FrameConfig(96, 160), "recipe": RECIPE} | SMALL.get(model, {})
    if "proposals" in signature(MODELS[model]).parameters:
        arguments["proposals"] = SelectiveSearch("single", width=160, min_side=8, limit=100)
    detector = MODELS[model](num_classes, data.class_names, "resnet10t", **arguments)
    before = next(detector.parameters()).clone()
    map_callback = MeanAveragePrecision(log_classes=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        callbacks=[map_callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(detector, data)
    assert not torch.equal(before, next(detector.parameters()))
    trainer.validate(detector, data, verbose=False)
    scores = map_callback.scores("val")
    assert scores is not None
    assert 0 <= scores.metrics["AP"] <= scores.metrics["AP50"] <= 1
    assert len(scores.per_class) == num_classes
