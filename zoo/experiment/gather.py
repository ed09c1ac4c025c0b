"""Find finished runs and external predictions, and combine them into one comparison.

Detectors of other frameworks are compared by their predictions alone (COCO-results json).
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from zoo.data.formats.raw import MaskError
from zoo.data.formats.recognise import data_arguments, is_data_set
from zoo.data.masks import NONE
from zoo.data.module import ANNOTATED, DetectionDataModule
from zoo.data.source import DataWarning
from zoo.data.table import box_areas
from zoo.errors import InputError
from zoo.experiment.run import final_split, read_identity, read_result
from zoo.io.configurations import read_yaml
from zoo.profiling.hardware import list_versions
from zoo.report.benchmark_results import with_benchmark
from zoo.report.results import (
    Results,
    Run,
    read_results,
)
from zoo.training.configuration import build_data

_SAMPLED = 1000  # masks that tell whether they are more than boxes
_FULL = 0.95  # of its box: masks of which half fill more are rectangles


def gather_runs(
    paths: Sequence[Path], out: Path, data: Path | None = None, command: str = ""
) -> tuple[Results, DetectionDataModule]:
    """Finished runs and external predictions as the results of one comparison, not analysed yet.

    Args:
        paths: folders of comparisons, folders of runs, COCO-results files, and folders of such files.
        out: folder of the report; `Run.folder` is relative to it.
        data: a data file or a data set; the data of the runs if not given.
        command: command line shown in the report where those of the runs are not known.

    Raises:
        InputError: nothing usable at a path, runs on different images or classes, or only external predictions and no
            data file.
    """
    found = [folder for path in paths for folder in find_runs(path)]
    if not found:
        raise InputError("no runs; give folders that `zoo compare` wrote, or COCO-results files")
    if len({os.path.realpath(folder) for folder in found}) < len(found):
        raise InputError("a run is given twice", file=paths[0])
    folders = [folder for folder in found if folder.is_dir()]
    section, origin = read_data_config(folders, data)
    module = build_data(yaml.safe_load(section), origin)
    runs = [_read_run(folder, out, module) if folder.is_dir() else _external_run(folder, out) for folder in found]
    previous = [
        read_results(file) for file in dict.fromkeys(_results_file(folder) for folder in folders) if file.exists()
    ]
    check_configurations(runs, found)
    budgets = {read_identity(folder)["budget"] for folder in folders}
    results = Results(
        runs=runs,
        data=describe_data(
            module, data.stem if data is not None else str(previous[0].data["name"]) if previous else "data"
        ),
        classes=list(module.class_names),
        budget=" or ".join(sorted(budgets)),
        command="\n".join(dict.fromkeys(result.command for result in previous)) or command,
        hardware="; ".join(dict.fromkeys(result.hardware for result in previous)),
        versions=previous[0].versions if previous else list_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprints={split: module.table(split).fingerprint() for split in ANNOTATED if split in module.sources},
        configs={run.config: (folder / "config.yaml").read_text() for run, folder in _trained_runs(runs, found)},
        data_config=section,
    )
    return results, module


def find_runs(path: Path) -> list[Path]:
    """Folders of finished or failed runs at a path, or files of external predictions.

    Raises:
        InputError: the path has neither.
    """
    if path.is_file():
        return [path]
    if (path / "result.json").exists():
        return [path]
    folders = sorted(file.parent for file in path.glob("*/result.json"))
    if folders:
        return folders
    predictions = sorted(path.glob("*.json"))
    if not predictions:
        advice = "expected a folder that `zoo compare` wrote, a run in it, or COCO-results json files"
        raise InputError(f"no runs here; {advice}" if path.exists() else f"no such file or folder; {advice}", file=path)
    return predictions


def _read_run(folder: Path, out: Path, module: DetectionDataModule) -> Run:
    run = read_result(folder)
    if run is None:
        raise InputError("is damaged; repeat the run with `zoo compare`", file=folder / "result.json")
    split = final_split(module)
    recorded = read_identity(folder)["annotations"].get(split)
    if recorded != module.table(split).fingerprint():
        raise InputError(
            f"was evaluated on other annotations of the {split} split: fingerprint {recorded}, now"
            f" {module.table(split).fingerprint()}; all runs of a report need the same images and annotations",
            file=folder,
        )
    return replace(with_benchmark(run, folder), folder=os.path.relpath(folder, out))


def _external_run(file: Path, out: Path) -> Run:
    name = file.parent.name if file.stem == "predictions" else file.stem
    return Run(model=name, config=name, seed=0, folder=os.path.relpath(file, out), status="done", is_external=True)


def check_configurations(runs: Sequence[Run], found: Sequence[Path]) -> None:
    """Check that runs with the same name differ only in their seed, since they are averaged.

    Raises:
        InputError: two models or budgets with the same name, or a seed given twice; names the second run.
    """
    known: dict[str, Any] = {}
    seeds: set[tuple[str, int]] = set()
    for run, folder in zip(runs, found, strict=True):
        identity = read_identity(folder) if folder.is_dir() else {}
        described = [identity.get("model"), identity.get("budget")]
        if known.setdefault(run.config, described) != described or (run.config, run.seed) in seeds:
            raise InputError(
                f"another run is also named {run.config}, but is not another seed of the same model and budget;"
                " make separate reports, or rename the models of one comparison (--names)",
                file=folder,
            )
        seeds.add((run.config, run.seed))


def _results_file(folder: Path) -> Path:
    """`results.json` of the comparison that a run folder belongs to; may not exist."""
    return folder.parent / "results.json"


def _trained_runs(runs: Sequence[Run], found: Sequence[Path]) -> Iterator[tuple[Run, Path]]:
    """The runs that have a run folder, with it; external predictions are left out."""
    return ((run, folder) for run, folder in zip(runs, found, strict=True) if folder.is_dir())


def read_data_config(runs: Sequence[Path], data: Path | None) -> tuple[str, Path]:
    """YAML text of the data configuration and the file it comes from: the one given, or that of the first run."""
    if data is not None and is_data_set(data):
        return yaml.safe_dump(data_arguments(data), sort_keys=False), data
    if data is not None:
        read_yaml(data)
        return data.read_text(), data
    if not runs:
        raise InputError("prediction files contain no ground truth; give --data DATA")
    file = runs[0] / "config.yaml"
    config = read_yaml(file)
    if not isinstance(config, dict) or "data" not in config:
        raise InputError("has no `data`; repeat the run with `zoo compare`, or give --data DATA", file)
    return yaml.safe_dump(config["data"], sort_keys=False), file


def train_has_masks(data: Path) -> bool:
    """Whether the training images of a data file or a data set have masks that are more than boxes.

    Some labelling tools write a rectangle into `segmentation`. Warns of masks that cannot be read; then there are none.

    Raises:
        InputError: the data cannot be used.
    """
    section, origin = read_data_config([], data)
    module = build_data(yaml.safe_load(section), origin)
    module.want_masks(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # those of the comparison, which reads the data again
            table = module.table("train")
    except MaskError as error:
        warnings.warn(f"{error}; detectors of masks are left out", DataWarning, stacklevel=2)
        return False
    if table.masks is None or not table.has_masks:
        return False
    rows = np.flatnonzero(table.masks.kinds != NONE)[:_SAMPLED]
    heights, widths = (np.repeat(side, np.diff(table.offsets))[rows] for side in (table.heights, table.widths))
    areas = table.masks.select(rows).areas(heights, widths)
    return bool(np.median(areas / box_areas(table.boxes[rows])) < _FULL)


def describe_data(module: DetectionDataModule, name: str) -> dict[str, str | int]:
    """Name (`name` if the module has none), number of classes, and images of each split."""
    described: dict[str, str | int] = {"name": module.name or name, "classes": module.num_classes}
    return described | {split: len(module.table(split)) for split in ANNOTATED if split in module.sources}
