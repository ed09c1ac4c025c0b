"""The verbs of the command line: the module and the description of each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verb:
    """A verb, implemented by the function of the same name in `zoo.cli.<module>`."""

    module: Literal["training", "inference", "comparison", "data", "models", "anchors"]
    description: str


VERBS = {
    "fit": Verb("training", "Train a detector."),
    "validate": Verb("training", "Evaluate a checkpoint on the validation split."),
    "test": Verb("training", "Evaluate a checkpoint on the test split."),
    "models": Verb("models", "List the detectors and their configurations: papers, trunks, sizes."),
    "predict": Verb("inference", "Detect objects in image files and folders."),
    "compare": Verb("comparison", "Train and test several detectors under one budget, and write one report."),
    "report": Verb("comparison", "Make a report of finished runs or of external predictions; --verify checks one."),
    "proposals": Verb("data", "Compute and cache the region proposals of a data set, and report their recall."),
    "anchors": Verb("anchors", "Fit YOLOv3's anchors to the objects of a data set, by k-means."),
    "export": Verb("inference", "Export a detector to ONNX, and check the file against PyTorch."),
    "benchmark": Verb("inference", "Measure the cost of checkpoints: parameters, FLOPs, memory, latency, energy."),
    "stats": Verb("data", "Describe a data set: sizes, crowding, balance, overlap, positions."),
    "doctor": Verb("data", "Find errors in a data set, and write a cleaned copy of it."),
    "split": Verb("data", "Divide a data set into train, val and test, by class and by group of images."),
    "evaluate": Verb("data", "Evaluate a predictions file (COCO-results json) by all protocols, and its masks."),
}
