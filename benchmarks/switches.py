"""Effect of channels_last, bf16 and torch.compile on AP, with the same weights.

    python benchmarks/switches.py RUN... [--compile] [--out FILE]

RUN is the folder of a run of `zoo compare`, which is evaluated on the split of its reported metrics; without RUN
nothing is measured. Each row has the AP of float32 without channels_last, and the change of AP by each switch.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from _common import Report
from pytorch_lightning import Trainer

from zoo.callbacks import MeanAveragePrecision, TorchCompile
from zoo.data.module import DetectionDataModule
from zoo.experiment.run import final_split
from zoo.models import load
from zoo.training.configuration import build_data
from zoo.training.trainer import make_inference_trainer, silence_lightning

VARIANTS = {"float32": ("32-true", False), "channels_last": ("32-true", True), "bf16": ("bf16-mixed", True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (minutes per run on a CPU)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.runs:
        print("no runs given, so nothing is measured: benchmarks/switches.py RUN...")
        return
    silence_lightning()
    names = [*list(VARIANTS)[1:], *(["torch.compile"] if options.compile else [])]
    report = Report("Effect of switches on AP", "python benchmarks/switches.py RUN...", ["run", "float32 AP", *names])
    largest = 0.0
    for folder in options.runs:
        data = build_data(yaml.safe_load((folder / "config.yaml").read_text())["data"], folder / "config.yaml")
        found = {name: measure(folder, data, *variant) for name, variant in VARIANTS.items()}
        if options.compile:
            found["torch.compile"] = measure(folder, data, *VARIANTS["channels_last"], compiled=True)
        changes = [found[name] - found["float32"] for name in names]
        largest = max(largest, *map(abs, changes))
        report.row([folder.name, f"{found['float32']:.4f}", *(f"{change:+.4f}" for change in changes)])
    report.line(f"\n{json.dumps({'case': 'largest change of AP', 'ours': round(largest, 4), 'unit': 'AP'})}")
    report.finish(options.out)


def measure(
    folder: Path, data: DetectionDataModule, precision: str, channels_last: bool, compiled: bool = False
) -> float:
    """AP of a run's best checkpoint."""
    checkpoints = folder / "checkpoints"
    best = checkpoints / "best.ckpt"
    detector = load(best if best.exists() else checkpoints / "last.ckpt")
    detector.channels_last = channels_last
    detector.frame.channels_last = channels_last
    detector.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    map_callback = MeanAveragePrecision()
    trainer: Trainer = make_inference_trainer("cpu", precision)
    trainer.callbacks += [map_callback, *([TorchCompile()] if compiled else [])]  # type: ignore[attr-defined]
    split = final_split(data)
    run = trainer.test if split == "test" else trainer.validate
    run(detector, datamodule=data, verbose=False)
    scores = map_callback.scores(split)
    assert scores is not None
    return scores.metrics["AP"]


if __name__ == "__main__":
    main()
