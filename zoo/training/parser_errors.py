"""Errors of jsonargparse in the words of a user: what was given, what is allowed, what was probably meant."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

from pytorch_lightning import Callback, Trainer

from zoo.data.module import DetectionDataModule
from zoo.data.source import Source
from zoo.detector import Detector
from zoo.errors import InputError

# The class whose subclasses an argument takes, by the argument's name without its prefix (`data.train`).
_BASES: dict[str, type] = {"model": Detector, "train": Source, "val": Source, "test": Source, "callbacks": Callback}
_PARTS: dict[str, type] = {"trainer": Trainer, "data": DetectionDataModule}
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "tuple": "a list"}


def describe_parser_error(message: str, files: Mapping[str, str] = MappingProxyType({})) -> InputError:
    """The error of a parser's message, in one line.

    Args:
        message: of jsonargparse.
        files: the YAML files of the command line by what they configure: "model", "data", "trainer".
    """
    loaded = re.findall(r"Unable to load config '([^']*)'", message)
    place = _find_place(message)
    unknown = re.search(r"(?:(?:Group|Subcommand) '([^']+)' does not accept option|Option) '([^']+)'", message)
    name = place if unknown is None else unknown[2]
    file = loaded[-1] if loaded else _find_file(name, place or (unknown and unknown[1]) or name, files)
    if unknown is not None:
        return _describe_unknown_name(message, place, unknown[1] or "", unknown[2], file)
    if "Expected a dot import path string:" in message:
        return _describe_unknown_class(message, place, file)
    several = re.search(r"Multiple subclasses with name (\w+)\..*ambiguity: (.*)\.", message)
    if several is not None:
        return InputError(
            f"several classes are named {several[1]}; give the full class path: {several[2]}", file, place
        )
    if "Not a valid subclass of" in message:
        base = _BASES.get(place.rpartition(".")[2], Detector)
        return InputError(f"must name a class, as in class_path: {next(_subclass_names(base))}", file, place)
    expected = list(dict.fromkeys(_describe_types(message)))
    if expected:
        # The outer of several unions has been given the parser's own object that holds the value.
        given = re.findall(r"Got value: (.*)", message) or re.findall(r"Given value: (?!NestedArg\()(.*)", message)
        value = f"is {given[-1]!r}; it " if given else ""
        return InputError(f"{value}must be {' or '.join(expected)}", file, place)
    if file is not None and message.rstrip().endswith(f'Unable to load config "{file}"'):
        return InputError("no such file or folder", file)
    return InputError(one_line(message))


# Lines of a message that do not help a user.
_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
)


def one_line(message: str) -> str:
    """A message of several lines as one line, without `_NOISE`."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_NOISE)) or "cannot be used"


def _find_place(message: str) -> str:
    """Name of the value, such as `model.frame.min_size`; keys inside a class are relative to it."""
    place = ""
    for key in re.findall(r'Parser key "([^"]+)"', message):
        place = key if not place or key == place or key.startswith(f"{place}.") else f"{place}.{key}"
    return place


def _find_file(name: str, place: str, files: Mapping[str, str]) -> str | None:
    """The file that has this name in the part of the configuration that the place is in; None where none has."""
    file = files.get(place.partition(".")[0])
    last = name.rpartition(".")[2]
    return file if file is not None and re.search(rf"\b{re.escape(last)}\s*:", Path(file).read_text()) else None


def _describe_unknown_name(message: str, place: str, group: str, name: str, file: str | None) -> InputError:
    found = re.findall(r"Problem with given class_path '([^']+)'", message)
    if found:
        name = f"{group}.{name}" if group else name
        names = list(parameter_names(resolve_name(found[0])))
        whose = f"{resolve_name(found[0]).__name__} has no {name!r}"
    else:
        name = name if name.partition(".")[0] in _PARTS else f"{group}.{name}"
        part, _, name = name.partition(".")
        place = part
        names = list(parameter_names(_PARTS[part])) if part in _PARTS else []
        whose = f"there is no {name!r}"
    near = get_close_matches(name, names, n=1) or get_close_matches(name.partition(".")[0], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(names)}"
    return InputError(f"{whose}; {hint}", file, place)


def _describe_unknown_class(message: str, place: str, file: str | None) -> InputError:
    given = re.search(r"Expected a dot import path string: (.*)", message)
    assert given is not None
    base = _BASES.get(place.rpartition(".")[2])
    names = sorted(set(_subclass_names(base))) if base else []
    near = get_close_matches(given[1], names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    choice = f"{hint}give one of {', '.join(names)}, or the full path of a class of your own"
    return InputError(f"no class is named {given[1]!r}; {choice}", file, place)


def _describe_types(message: str) -> Iterator[str]:
    """What is allowed, in words, without None."""
    choices: list[str] = []
    for expected in re.findall(r"Expected an? (.*?)(?:\. Got value: .*)?$", message, re.MULTILINE):
        literal = re.fullmatch(r"typing\.Literal(\[.*\])", expected)
        cls = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", expected)
        if literal:
            choices += [str(choice) for choice in ast.literal_eval(literal[1])]
        elif cls and cls[1] != "NoneType":
            yield _TYPES.get(cls[1], f"a {cls[1]}")
        elif not cls and not expected.startswith("path but"):
            yield f"a {expected}".replace("tuple with", "list of").replace("elements", "values")
    if choices:
        yield f"one of {', '.join(dict.fromkeys(choices))}"


def parameter_names(cls: Any) -> Iterator[str]:
    """Names of a class's constructor arguments, and of the fields of those that are dataclasses."""
    for name, parameter in inspect.signature(cls).parameters.items():
        if issubclass(cls, Detector) and name in ("num_classes", "class_names"):
            continue  # of the data
        yield name
        if is_dataclass(parameter.default):
            yield from (f"{name}.{field.name}" for field in fields(parameter.default))


def _subclass_names(base: type) -> Iterator[str]:
    """Names of the classes that can be given, of this project or, without one, of Lightning."""
    cls: type
    for cls in base.__subclasses__():
        if not (inspect.isabstract(cls) or cls.__name__.startswith("_")):
            yield cls.__name__
        yield from _subclass_names(cls)
