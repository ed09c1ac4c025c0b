"""Effect of channels_last, bf16, torch.compile, and choices of post-processing on AP, with the same weights.

    python benchmarks/switches.py RUN... [--compile] [--split val] [--out FILE]

RUN is the folder of a run of `zoo compare`, which is evaluated on the split of its reported metrics, or on the
validation images, for choices that are made by it; without RUN nothing is measured. Each row has the AP of float32
without channels_last, and the change of AP by each switch.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from _common import Report
from pytorch_lightning import Trainer

from zoo.callbacks import MeanAveragePrecision, TorchCompile
from zoo.data.module import DetectionDataModule
from zoo.experiment.run import FinalSplit, final_split
from zoo.training.configuration import build_data
from zoo.training.trainer import make_inference_trainer, silence_lightning
from zoo.weights import load


@dataclass(frozen=True)
class Variant:
    """Settings to evaluate with.

    Args:
        precision: Lightning's name.
        channels_last: memory format.
        compiled: by torch.compile.
        attributes: of the detector, which replace those of the checkpoint; detectors without them are not measured.
    """

    precision: str = "32-true"
    channels_last: bool = False
    compiled: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "channels_last": Variant(channels_last=True),
    "bf16": Variant("bf16-mixed", channels_last=True),
    "score_threshold 0.05": Variant(attributes={"score_threshold": 0.05}),
    "merging": Variant(attributes={"suppression": "merging"}),
}
COMPILED = {"torch.compile": Variant(channels_last=True, compiled=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (minutes per run on a CPU)")
    parser.add_argument("--split", choices=("val", "test"), help="default: that of the reported metrics")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.runs:
        print("no runs given, so nothing is measured: benchmarks/switches.py RUN...")
        return
    silence_lightning()
    variants = VARIANTS | (COMPILED if options.compile else {})
    command = f"python benchmarks/switches.py RUN...{f' --split {options.split}' if options.split else ''}"
    report = Report("Effect of switches on AP", command, ["run", "split", "float32 AP", *variants])
    largest = 0.0
    for folder in options.runs:
        data = build_data(yaml.safe_load((folder / "config.yaml").read_text())["data"], folder / "config.yaml")
        split = options.split or final_split(data)
        reference = measure(folder, data, split, Variant())
        assert reference is not None
        found = {name: measure(folder, data, split, variant) for name, variant in variants.items()}
        changes = {name: ap - reference for name, ap in found.items() if ap is not None}
        largest = max(largest, *(abs(change) for name, change in changes.items() if not variants[name].attributes))
        cells = [f"{changes[name]:+.4f}" if name in changes else "" for name in variants]
        report.row([folder.name, split, f"{reference:.4f}", *cells])
    case = "largest change of AP by precision, memory format and compilation"
    report.line(f"\n{json.dumps({'case': case, 'ours': round(largest, 4), 'unit': 'AP'})}")
    report.finish(options.out)


def measure(folder: Path, data: DetectionDataModule, split: FinalSplit, variant: Variant) -> float | None:
    """AP of a run's best checkpoint; None for a detector without an attribute of the variant."""
    checkpoints = folder / "checkpoints"
    best = checkpoints / "best.ckpt"
    detector = load(best if best.exists() else checkpoints / "last.ckpt")
    for name, value in variant.attributes.items():
        if not hasattr(detector, name):
            return None
        setattr(detector, name, value)
    detector.channels_last = detector.frame.channels_last = variant.channels_last
    detector.to(memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format)
    map_callback = MeanAveragePrecision()
    trainer: Trainer = make_inference_trainer("cpu", variant.precision)
    trainer.callbacks += [map_callback, *([TorchCompile()] if variant.compiled else [])]  # type: ignore[attr-defined]
    run = trainer.test if split == "test" else trainer.validate
    run(detector, datamodule=data, verbose=False)
    scores = map_callback.scores(split)
    assert scores is not None
    return scores.metrics["AP"]


if __name__ == "__main__":
    main()
