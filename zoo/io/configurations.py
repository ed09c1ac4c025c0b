"""The configurations that come with zoo, found by name.

Nothing here imports torch, so a wrong name is reported at once.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import InputError

BUILT_IN_DATA = "shapes"
"""Name of the data set that is drawn in memory; detectors of `_tiny` are made for it."""

FOR_OTHER_DATA = ("mobilenetv2", "r18")
"""Last part of the names of the configurations for other data: fine-tuned, or else from scratch."""

FASTEST_FIRST = ("yolov1", "retinanet", "ssd", "faster_rcnn", "yolov3", "sliding_window", "cornernet", "fast_rcnn")
"""Detectors in the order of their training times on CPUs, with validation; others come after these."""

NEED_MASKS = ("mask_rcnn",)
"""Detectors that are trained on masks."""


@dataclass(frozen=True)
class ModelSummary:
    """What a model file says of itself.

    Args:
        name: of the file, without .yaml.
        detector: key of the detector in `zoo.models.MODELS`.
        trunk: name of the trunk; "hourglass" for CornerNet's own.
        frame: shorter side of framed images in pixels.
        starts_from: "ImageNet" for pretrained trunks, otherwise "scratch".
        weights: millions, for 20 classes.
    """

    name: str
    detector: str
    trunk: str
    frame: int
    starts_from: str
    weights: float


@cache
def find_configs() -> Path:
    """Folder of the shipped configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def model_files() -> dict[str, Path]:
    """The shipped model files by their names."""
    return {file.stem: file for file in sorted((find_configs() / "models").glob("*.yaml"))}


def detector_names() -> list[str]:
    """Keys of all detectors: each has a configuration for the built-in shapes."""
    return [name.removesuffix("_tiny") for name in model_files() if name.endswith("_tiny")]


def find_model_file(name: str, data: str | Path | None) -> Path:
    """The model file of a path, of the name of a shipped configuration, or of a detector.

    Args:
        name: a path that ends with .yaml or .yml comes back as it is.
        data: value of `--data`, which decides on a detector's configuration; see `default_models`.

    Raises:
        InputError: there is no such configuration or detector.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    files = model_files()
    suffixes = ("tiny",) if is_built_in(data) else FOR_OTHER_DATA
    for candidate in (name, *(f"{name}_{suffix}" for suffix in suffixes)):
        if candidate in files:
            return files[candidate]
    names = [*detector_names(), *files]
    near = get_close_matches(name.lower().replace("-", "_"), names, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"no detector or configuration is named {name!r}; {hint}(see zoo models, or give a .yaml file)")


def is_built_in(data: str | Path | None) -> bool:
    """Whether the value of `--data` stands for the built-in shapes, as None does."""
    return data is None or Path(data).stem == BUILT_IN_DATA


def default_models(data: str | Path | None, has_masks: bool) -> list[Path]:
    """One configuration of each detector: `_tiny` for the built-in shapes, a pretrained trunk for other data.

    The fastest come first, so that a comparison soon has results to show.

    Args:
        data: value of `--data`.
        has_masks: whether the data has masks, which `NEED_MASKS` are trained on.
    """
    names = sorted(detector_names(), key=lambda name: (*FASTEST_FIRST, name).index(name))
    return [find_model_file(name, data) for name in names if has_masks or name not in NEED_MASKS]


def describe_choice(name: str, file: Path) -> str | None:
    """A line that says which file a name stands for; None where it is the file itself."""
    return None if Path(name) == file else f"model {name}: {file}"


def summarise_models() -> list[ModelSummary]:
    """All shipped model files, by detector and number of weights."""
    detectors = sorted(detector_names(), key=len, reverse=True)
    found = []
    for name, file in model_files().items():
        text = file.read_text(encoding="utf-8")
        arguments = yaml.safe_load(text)["init_args"]
        weights = re.search(r"^# (\S+) million weights", text, re.MULTILINE)
        found.append(
            ModelSummary(
                name=name,
                detector=next(key for key in detectors if name.startswith(f"{key}_")),
                trunk=arguments.get("trunk") or "hourglass",
                frame=arguments["frame"]["min_size"],
                starts_from="ImageNet" if arguments.get("pretrained") else "scratch",
                weights=float(weights[1]) if weights else float("nan"),
            )
        )
    return sorted(found, key=lambda summary: (summary.detector, summary.weights))


def paper_of(detector: str) -> str:
    """Name and paper of a detector: the first line of its model file's docstring."""
    source = Path(__file__).parents[1] / "models" / f"{detector}.py"
    return source.read_text(encoding="utf-8").split("\n", 1)[0].strip('" .')


# ------------------------------------------------------------------------------------------------------- command lines

_FILE_FLAGS = ("--config", "-c", "--trainer", "--data", "--model")


def file_values(args: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(position, flag, value) of each flag that takes a file, written with a space or with an equals sign."""
    for position, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        if flag in _FILE_FLAGS and (equals or position + 1 < len(args)):
            yield position, flag, value if equals else args[position + 1]


def yaml_files(args: Sequence[str]) -> dict[str, str]:
    """The YAML files of a command line by their flags: "model", "data", "trainer", "config"."""
    found = {flag: value for _, flag, value in file_values(args) if Path(value).suffix in (".yaml", ".yml")}
    return {flag.lstrip("-"): value for flag, value in found.items()}


def files_first(args: Sequence[str]) -> list[str]:
    """The command line with its files before single values, which they would else replace."""
    files, moved = [], set()
    for position, flag, value in sorted(file_values(args), key=lambda found: _FILE_FLAGS.index(found[1])):
        files.append(f"{flag}={value}")
        moved |= {position} if "=" in args[position] else {position, position + 1}
    rest = [argument for position, argument in enumerate(args) if position not in moved]
    verb = rest[:1] if rest and not rest[0].startswith("-") else []
    return [*verb, *files, *rest[len(verb) :]]


def name_models(args: Sequence[str]) -> list[str]:
    """The command line with the names of detectors and configurations replaced by their files, which are printed.

    Raises:
        InputError: there is no such detector or configuration.
    """
    named = list(args)
    data = next((value for _, flag, value in file_values(args) if flag == "--data"), None)
    for position, flag, value in file_values(args):
        if flag == "--model" and re.fullmatch(r"[a-z0-9_-]+", value):  # others are files, classes or json
            file = find_model_file(value, data)
            print(describe_choice(value, file), file=sys.stderr)
            named[position : position + 1 + ("=" not in args[position])] = [f"--model={file}"]
    return named


def has_own_model(args: Sequence[str]) -> bool:
    """Whether the model of a command line may be of a class that does not come with zoo."""
    classes = {yaml.safe_load(file.read_text(encoding="utf-8"))["class_path"] for file in model_files().values()}
    for _, flag, value in file_values(args):
        if flag in ("--config", "-c"):
            return True
        if flag == "--model" and Path(value).suffix in (".yaml", ".yml"):
            content = read_yaml(value)
            value = content.get("class_path", "") if isinstance(content, dict) else ""
        if flag == "--model" and not re.fullmatch(r"[a-z0-9_-]+", value):
            return value.rpartition(".")[2] not in classes
    return False


def check_files(args: Sequence[str]) -> None:
    """Check the YAML files of a command line; the parser's own errors about them are less specific.

    Raises:
        InputError: a file of `--model`, `--data`, `--trainer` or `--config` is missing or is not valid YAML.
    """
    for file in yaml_files(args).values():
        read_yaml(file)


def read_yaml(file: str | Path) -> Any:
    """Content of a YAML file.

    Raises:
        InputError: the file is missing, cannot be read or is not valid YAML; names line and column.
    """
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(reason, file=file) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = None if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        raise InputError(f"is not valid YAML: {error.problem}", file=file, place=place) from error
    except yaml.YAMLError as error:
        raise InputError(f"is not valid YAML: {' '.join(str(error).split())}", file=file) from error
