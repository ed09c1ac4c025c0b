"""What a comparison found out: the form of `results.json`, and reading and writing it.

A figure that is not defined (AP of small objects where there are none) is NaN here and null in the file;
a cost that was not measured is None here and null in the file.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from zoo.errors import InputError
from zoo.io.files import convert_json, decode_json, encode_json, write_atomically

_ADVICE = "expected a file that `zoo compare` wrote"


@dataclass
class CurvePoint:
    """One validation during training."""

    epoch: int
    images_seen: int
    minutes: float
    AP: float
    AP50: float
    loss: float


Part: TypeAlias = Literal["decode", "proposals", "frame", "network", "post-processing", "total"]


@dataclass
class Timing:
    """Milliseconds an image in one part of the way, at one batch size.

    "decode" is there where images are files, "proposals" (selective search) where the detector asks for some; "total"
    is all of the others together, batch by batch.
    """

    batch: int
    part: Part
    median: float
    p95: float
    batches: int = 0  # that were timed


@dataclass
class Cost:
    """What a detector costs; None where it was not measured."""

    parameters: int | None = None
    flops: float | None = None  # multiply-adds counted as 2, one image framed as in `flops_input`
    flops_input: str | None = None  # e.g. "640x480 framed to 427x320"
    train_images_per_s: float | None = None
    train_minutes: float | None = None
    ms_per_image: float | None = None  # batch 1, from an image in memory, region proposals included; median
    peak_memory_mb: float | None = None  # MB that tensors held at once at batch 1, weights included
    proposals: int | None = None  # that a two-stage detector's second stage looked at while FLOPs were counted
    joules_per_image: float | None = None  # where the device tells
    timings: list[Timing] = field(default_factory=list)


@dataclass
class Interval:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass
class Threshold:
    """The score from which on a class's detections are taken for their best F1 at IoU 0.5."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass
class Slice:
    """AP on some of the objects; the others count neither way."""

    name: str  # "wide: width over height above 2"
    objects: int
    AP: float
    AP50: float


@dataclass
class ReliabilityBin:
    """Detections of one range of scores: how sure they were, and how many of them were right at IoU 0.5."""

    confidence: float  # mean score
    precision: float
    count: int


@dataclass
class Calibration:
    """Whether a score of 0.7 means seven right out of ten."""

    error: float  # expected calibration error, 0..1
    bins: list[ReliabilityBin] = field(default_factory=list)  # those that hold detections


@dataclass
class Ceiling:
    """Objects that a detector's representation cannot give, or has little to learn from; found without training.

    Where box regression can reach them in spite of it, `meaning` says so, and a detector can do better than 1 - share.
    """

    limit: str  # in a few words: "no anchor matches"
    share: float  # of the objects of the measured split, 0..1
    objects: int  # as a number
    meaning: str  # one sentence


@dataclass
class Analysis:
    """What one run gets wrong, and how sure its figures are; every part is empty or None where it was not looked at."""

    intervals: dict[str, Interval] = field(default_factory=dict)  # AP AP50 AP75 APs APm APl -> over test images
    class_intervals: dict[str, Interval] = field(default_factory=dict)  # class name -> its AP
    errors: dict[str, float] = field(default_factory=dict)  # TIDE: Cls Loc Both Dupe Bkg Miss FP FN -> AP50 lost, 0..1
    curves: dict[str, list[float]] = field(
        default_factory=dict
    )  # class name -> precision at recall 0, .01 .. 1, IoU .5
    confusion: list[list[int]] = field(default_factory=list)  # [true][said], background last, at IoU .5, best F1 score
    slices: dict[str, list[Slice]] = field(default_factory=dict)  # "size" "aspect" "crowding" -> parts
    calibration: Calibration | None = None
    thresholds: dict[str, Threshold] = field(default_factory=dict)  # class name -> ready to paste
    ceilings: list[Ceiling] = field(default_factory=list)


@dataclass
class Difference:
    """A figure of the first less that of the second, on the same resampled images."""

    value: float
    low: float  # 95% interval
    high: float
    verdict: Literal["better", "worse", "tie"]  # the first; a tie where the interval holds 0


@dataclass
class Pair:
    """Two configurations held against each other, seeds averaged."""

    first: str  # Run.config
    second: str
    differences: dict[str, Difference]  # AP AP50 AP75 APs APm APl
    class_differences: dict[str, Difference]  # class name -> of its AP


@dataclass
class Run:
    """One model trained and tested with one seed."""

    model: str  # a key of zoo.models.MODELS
    config: str  # name of the model file without .yaml
    seed: int
    folder: str  # relative to results.json; names the run, so no two runs share it
    status: Literal["done", "failed"]
    error: str | None = None
    metrics: dict[str, float] = field(
        default_factory=dict
    )  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl VOC07 VOC10
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)  # class name -> AP AP50 VOC07 VOC10
    cost: Cost = field(default_factory=Cost)
    curve: list[CurvePoint] = field(default_factory=list)
    shown_score: float | None = None  # pictures show detections from here up: where F1 is best; None means 0.5
    analysis: Analysis = field(default_factory=Analysis)
    hardware: str | None = None  # that it was trained and timed on; None where that is not known


@dataclass
class Results:
    """A whole comparison."""

    runs: list[Run]
    data: dict[str, str | int]  # "name", number of images by split ("train", "val", "test"), "classes" (their number)
    classes: list[str]
    budget: str  # in words: "30 epochs", "20000 images", "20 minutes"
    command: str
    hardware: str
    versions: dict[str, str]
    created: str  # ISO 8601
    fingerprints: dict[str, str] = field(default_factory=dict)  # split -> hash of its annotations and images
    configs: dict[str, str] = field(default_factory=dict)  # name of a configuration file -> its text as used
    data_config: str = ""  # text of the data's configuration, from which annotations and images are read again
    pairs: list[Pair] = field(default_factory=list)  # every two configurations once
    class_images: dict[str, int] = field(default_factory=dict)  # class name -> measured images that hold some of it
    resamples: int = 0  # of the bootstrap that intervals and verdicts come from; 0 where there was none


def write_results(results: Results, path: str | Path) -> None:
    """Write `results.json`: whole or not at all, the same bytes for the same results."""
    write_atomically(Path(path), encode_json(results))


def read_results(path: str | Path) -> Results:
    """Read a `results.json`.

    Raises:
        InputError: the file is missing, is no json, or is not of this form; names the file and the place.
    """
    path = Path(path)
    content = decode_json(path, _ADVICE)
    runs = content.get("runs") if isinstance(content, dict) else None
    for run in runs if isinstance(runs, list) else []:
        _restore_undefined(run)
    if isinstance(content, dict) and "pairs" in content:
        content["pairs"] = _nan_for_null(content["pairs"])
    results = convert_json(content, Results, path, _ADVICE)
    for folder, count in Counter(run.folder for run in results.runs).items():
        if count > 1:
            raise InputError(f"{count} runs have the folder {folder!r}; each needs its own", file=path, place="runs")
    return results


def write_run(run: Run, path: str | Path) -> None:
    """Write one run apart, in the form that it has in `results.json`."""
    write_atomically(Path(path), encode_json(run))


def read_run(path: str | Path) -> Run:
    """Read what `write_run` wrote.

    Raises:
        InputError: the file is missing, is no json, or is not of this form; names the file and the place.
    """
    path = Path(path)
    content = decode_json(path, _ADVICE)
    _restore_undefined(content)
    return convert_json(content, Run, path, _ADVICE)


def _restore_undefined(run: Any) -> None:
    """Put NaN where a decoded run has null for an undefined figure; whatever else is in it is left to the types."""
    if isinstance(run, dict):
        for key in run.keys() & {"metrics", "per_class", "curve"}:
            run[key] = _nan_for_null(run[key])
        analysis = run.get("analysis")
        if isinstance(analysis, dict):
            for key in analysis.keys() - {"calibration"}:  # null there says that nobody looked
                analysis[key] = _nan_for_null(analysis[key])


def _nan_for_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_for_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return float("nan") if value is None else value
