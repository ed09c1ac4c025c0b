"""Data classes of `results.json`, and reading and writing it.

An undefined metric (AP of small objects where there are none) is NaN here and null in the file; a cost that was not
measured is None here and null in the file.
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
    """Metrics of one validation during training."""

    epoch: int
    images_seen: int
    minutes: float
    AP: float
    AP50: float
    loss: float


Part: TypeAlias = Literal["decode", "proposals", "frame", "network", "post-processing", "total"]


@dataclass
class Timing:
    """Milliseconds per image of one part of inference at one batch size.

    "decode" exists where images are files, "proposals" (selective search) where the detector needs them; "total" is
    the sum of the other parts, taken batch by batch.
    """

    batch: int
    part: Part
    median: float
    p95: float
    batches: int = 0  # number of timed batches


@dataclass
class Cost:
    """Size, speed, memory and energy of a detector; None where it was not measured."""

    parameters: int | None = None
    flops: float | None = None  # multiply-adds counted as 2, one image framed as in `flops_input`
    flops_input: str | None = None  # e.g. "640x480 framed to 427x320"
    train_images_per_s: float | None = None
    train_minutes: float | None = None
    ms_per_image: float | None = None  # median at batch 1, from an image in memory, region proposals included
    peak_memory_mb: float | None = None  # peak MB allocated by tensors at batch 1, weights included
    proposals: int | None = None  # processed by a two-stage detector's second stage while FLOPs were counted
    joules_per_image: float | None = None  # where the device measures energy
    timings: list[Timing] = field(default_factory=list)


@dataclass
class Interval:
    """A metric with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass
class Threshold:
    """Score threshold of a class with the best F1 at IoU 0.5, and precision, recall and F1 at it."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass
class Slice:
    """AP on a subset of the objects; the other objects are ignored."""

    name: str  # "wide: width over height above 2"
    objects: int
    AP: float
    AP50: float


@dataclass
class ReliabilityBin:
    """Mean score, precision at IoU 0.5 and number of the detections in one range of scores."""

    confidence: float
    precision: float
    count: int


@dataclass
class Calibration:
    """Expected calibration error and reliability diagram of a run."""

    error: float  # 0..1
    bins: list[ReliabilityBin] = field(default_factory=list)  # non-empty bins


@dataclass
class Ceiling:
    """Share of objects that a detector cannot represent, or has few training samples for; computed without training.

    Where box regression can still reach these objects, `meaning` says so, and recall can exceed 1 - share.
    """

    limit: str  # short name: "no anchor matches"
    share: float  # of the objects of the evaluated split, 0..1
    objects: int  # number of affected objects
    meaning: str  # one sentence


@dataclass
class Analysis:
    """Intervals, errors, curves, slices, calibration and ceilings of one run; empty or None where not computed."""

    intervals: dict[str, Interval] = field(default_factory=dict)  # AP AP50 AP75 APs APm APl, mask_AP ... -> over images
    class_intervals: dict[str, Interval] = field(default_factory=dict)  # class name -> interval of its AP
    errors: dict[str, float] = field(default_factory=dict)  # TIDE: Cls Loc Both Dupe Bkg Miss FP FN -> AP50 lost, 0..1
    mask_errors: dict[str, float] = field(default_factory=dict)  # the same by IoU of masks
    curves: dict[str, list[float]] = field(
        default_factory=dict
    )  # class name -> precision at recall 0, .01 .. 1, IoU .5
    confusion: list[list[int]] = field(default_factory=list)  # [true][predicted], background last, IoU .5, at best F1
    slices: dict[str, list[Slice]] = field(default_factory=dict)  # "size" "aspect" "crowding" -> slices
    calibration: Calibration | None = None
    thresholds: dict[str, Threshold] = field(default_factory=dict)  # class name -> threshold
    ceilings: list[Ceiling] = field(default_factory=list)


@dataclass
class Difference:
    """Metric of the first configuration minus that of the second, on the same resampled images."""

    value: float
    low: float  # 95% interval
    high: float
    verdict: Literal["better", "worse", "tie"]  # of the first; tie: the interval contains 0


@dataclass
class Pair:
    """Metric differences of two configurations, seeds averaged."""

    first: str  # Run.config
    second: str
    differences: dict[str, Difference]  # AP AP50 AP75 APs APm APl, and mask_AP ... where both have masks
    class_differences: dict[str, Difference]  # class name -> difference in its AP


@dataclass
class Combination:
    """Detections of two configurations combined seed by seed; values are means over seeds."""

    first: str  # Run.config
    second: str
    method: Literal["rescored", "fused"]  # the first's boxes, scores raised by the second; weighted boxes fusion
    metrics: dict[str, float]  # AP AP50 AP75
    oracle: float  # AP of the better box of the two for each object, without false positives
    intervals: dict[str, Interval] = field(default_factory=dict)  # AP -> over test images; empty without a bootstrap
    differences: dict[str, Difference] = field(default_factory=dict)  # part -> AP of the combination minus its AP


@dataclass
class Run:
    """One model trained and tested with one seed."""

    model: str  # a key of zoo.models.MODELS
    config: str  # name of the model file without .yaml
    seed: int
    folder: str  # relative to results.json; unique, identifies the run
    status: Literal["done", "failed"]
    error: str | None = None
    name: str = ""  # of the detector in reports; where it is empty, `model` is shown
    is_external: bool = False  # predictions of another program, of whose training nothing is known
    metrics: dict[str, float] = field(
        default_factory=dict
    )  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl VOC07 VOC10, mask_AP mask_AP50 ...
    per_class: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # class name -> AP AP50 VOC07 VOC10, mask_AP mask_AP50
    cost: Cost = field(default_factory=Cost)
    curve: list[CurvePoint] = field(default_factory=list)
    shown_score: float | None = None  # pictures show detections from this score on (best F1); None means 0.5
    analysis: Analysis = field(default_factory=Analysis)
    hardware: str | None = None  # used for training and timing; None if unknown


@dataclass
class Results:
    """All runs of a comparison, with the data, budget, command and versions that made them."""

    runs: list[Run]
    data: dict[str, str | int]  # "name"; images per split ("train", "val", "test"); number of "classes"
    classes: list[str]
    budget: str  # "30 epochs", "20000 images", "20 minutes"; empty where no run was trained by zoo
    command: str
    hardware: str  # empty if unknown
    versions: dict[str, str]
    created: str  # ISO 8601
    fingerprints: dict[str, str] = field(default_factory=dict)  # split -> hash of its annotations and image names
    configs: dict[str, str] = field(default_factory=dict)  # name of a configuration file -> its text as used
    data_config: str = ""  # text of the data configuration, from which annotations and images can be read again
    pairs: list[Pair] = field(default_factory=list)  # each pair of configurations once
    combinations: list[Combination] = field(default_factory=list)  # `zoo report --combine`
    class_images: dict[str, int] = field(default_factory=dict)  # class name -> number of evaluated images with it
    resamples: int = 0  # of the bootstrap behind intervals and verdicts; 0 if there was none
    notes: list[str] = field(default_factory=list)  # limits of the metrics on these images, a sentence each


def write_results(results: Results, path: str | Path) -> None:
    """Write `results.json` atomically; equal results give the same bytes."""
    write_atomically(Path(path), encode_json(results))


def read_results(path: str | Path) -> Results:
    """Read a `results.json`.

    Raises:
        InputError: the file is missing, is not JSON, or does not match the schema; names the file and the place.
    """
    path = Path(path)
    content = decode_json(path, _ADVICE)
    runs = content.get("runs") if isinstance(content, dict) else None
    for run in runs if isinstance(runs, list) else []:
        _restore_undefined(run)
    for key in content.keys() & {"pairs", "combinations"} if isinstance(content, dict) else ():
        content[key] = _nan_for_null(content[key])
    results = convert_json(content, Results, path, _ADVICE)
    for folder, count in Counter(run.folder for run in results.runs).items():
        if count > 1:
            raise InputError(f"{count} runs have the folder {folder!r}; each needs its own", file=path, place="runs")
    return results


def write_run(run: Run, path: str | Path) -> None:
    """Write one run to its own file, in the form that it has in `results.json`."""
    write_atomically(Path(path), encode_json(run))


def read_run(path: str | Path) -> Run:
    """Read a run written by `write_run`.

    Raises:
        InputError: the file is missing, is not JSON, or does not match the schema; names the file and the place.
    """
    path = Path(path)
    content = decode_json(path, _ADVICE)
    _restore_undefined(content)
    return convert_json(content, Run, path, _ADVICE)


def _restore_undefined(run: Any) -> None:
    """Replace null by NaN in the metrics of a decoded run; everything else is checked by the types."""
    if isinstance(run, dict):
        for key in run.keys() & {"metrics", "per_class", "curve"}:
            run[key] = _nan_for_null(run[key])
        analysis = run.get("analysis")
        if isinstance(analysis, dict):
            for key in analysis.keys() - {"calibration"}:  # null there means not computed
                analysis[key] = _nan_for_null(analysis[key])


def _nan_for_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_for_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return float("nan") if value is None else value
