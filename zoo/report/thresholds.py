"""Score thresholds of each class: those of best F1 from a report, or from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.errors import InputError
from zoo.io.configurations import read_yaml
from zoo.report.results import Results, read_results

RESULTS = "results.json"


def read_thresholds(path: Path, class_names: Sequence[str]) -> list[float]:
    """The score threshold of each class.

    Args:
        path: the folder of a run in a comparison, or of a comparison of one run, whose report has the thresholds of
            best F1; or a YAML or JSON file with a score for each class name.
        class_names: of the detector.

    Raises:
        InputError: there are no thresholds, or none for one of the classes, or one that is not a score.
    """
    known = _read_file(path) if path.is_file() and path.name != RESULTS else _read_report(path)
    missing = [name for name in class_names if name not in known]
    if missing:
        raise InputError(f"has no threshold for class {missing[0]!r}; it has {', '.join(known) or 'none'}", path)
    return [known[name] for name in class_names]


def _read_file(path: Path) -> dict[str, float]:
    content = read_yaml(path)  # JSON is YAML
    if not isinstance(content, Mapping):
        raise InputError("must have a score for each class name", path)
    for name, score in content.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise InputError(f"is {score!r}; it must be a score from 0 to 1", path, str(name))
    return {str(name): float(score) for name, score in content.items()}


def _read_report(path: Path) -> dict[str, float]:
    folder = path.parent if path.name == RESULTS else path
    if (folder / RESULTS).is_file():
        results, runs = read_results(folder / RESULTS), None
    elif (folder.parent / RESULTS).is_file():
        results, runs = read_results(folder.parent / RESULTS), folder.name
    else:
        raise InputError("has no results.json, and the folder above has none; give a run of a comparison", path)
    return _thresholds_of_run(results, runs, path)


def _thresholds_of_run(results: Results, name: str | None, path: Path) -> dict[str, float]:
    found = [run for run in results.runs if name is None or Path(run.folder).name == name]
    if len(found) != 1:
        folders = ", ".join(run.folder for run in results.runs)
        raise InputError(f"has the runs {folders}; give the folder of one of them", path)
    return {label: threshold.score for label, threshold in found[0].analysis.thresholds.items()}
