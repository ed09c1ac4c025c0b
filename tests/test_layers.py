"""Imports run downwards only: reads every import of zoo/ and fails on any that runs upwards or sideways."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> the rooms that it may import from, all others are above it or beside it. `errors` and `types` are everybody's.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "ops": set(),
    "nn": {"ops"},
    "proposals": {"ops"},
    "data": {"proposals"},
    "evaluation": {"ops", "data.table"},
    "callbacks": {"ops", "evaluation"},
    "report": {"evaluation"},
    "detector": {"ops", "nn", "proposals"},
    "models": {"ops", "nn", "proposals", "detector"},
    "weights": {"ops", "nn", "detector", "models"},
    "recall": {"ops", "proposals", "data"},
    "cost": {"nn", "detector"},
    "energy": set(),
    "speed": {"proposals", "detector", "report.results", "cost", "energy"},
    "hardware": set(),
    "checkpoints": set(),
    "sync_norms": set(),
    "configuration": {"data", "detector"},
    "run": {"data", "proposals", "callbacks", "checkpoints", "sync_norms", "configuration", "detector", "models"},
    "translations": {"ops"},
    "export": {"detector", "models", "hardware", "translations"},
    "predict": {"ops", "data", "evaluation", "report", "models", "run"},
    "training_cli": {"data", "evaluation", "callbacks", "report", "configuration", "detector", "models", "run"},
    "trial": {
        "data",
        "evaluation",
        "callbacks",
        "report",
        "detector",
        "models",
        "ceilings",
        "cost",
        "energy",
        "speed",
        "hardware",
        "configuration",
        "run",
    },
    "benchmark": {"data", "report", "detector", "models", "hardware", "speed", "configuration", "run", "trial"},
    "ceilings": {"ops", "nn", "proposals", "data", "recall", "detector", "models", "report.results"},
    "data_report": {"data", "report"},
    "data_cli": {"data", "report", "configuration", "data_report"},
    "analysis": {"data", "evaluation", "report", "ceilings", "hardware", "configuration", "trial"},
    "launch": {"trial"},
    "compare": {"data", "report", "detector", "hardware", "configuration", "run", "trial", "analysis", "launch"},
    "array": {"data", "report", "trial", "analysis", "compare"},
    # The package itself offers `zoo.load`, and nothing below the front door imports the package.
    "": {"models"},
}
ABOVE_ALL = "cli"


def modules() -> dict[str, Path]:
    """Dotted name below zoo -> file; "" is the package itself."""
    found = {}
    for file in sorted((ROOT / "zoo").rglob("*.py")):
        parts = file.relative_to(ROOT / "zoo").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name below zoo) of everything from zoo that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["zoo", *filter(None, module.split("."))]
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *filter(None, [node.module])])
            # `from zoo.data import table` names a module, `from zoo.data.table import X` what is in one
            names = [
                full if (full := f"{base}.{alias.name}").removeprefix("zoo.") in known else base for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name == "zoo" or name.startswith("zoo."):
                yield node.lineno, name.removeprefix("zoo").removeprefix(".")


def room(module: str) -> str:
    return module.split(".")[0]


def is_allowed(module: str, imported: str) -> bool:
    here, there = room(module), room(imported)
    if here == ABOVE_ALL or there in ("errors", "types"):
        return there != ABOVE_ALL or here == ABOVE_ALL
    if imported == "":
        return False
    if here == there:
        # Model files never import each other: only the package lists them all.
        return here != "models" or module == "models"
    return there in FLOORS[here] or imported in FLOORS[here]


@pytest.mark.parametrize("module", modules())
def test_imports_run_downwards(module: str) -> None:
    file, known = modules()[module], set(modules())
    assert room(module) == ABOVE_ALL or room(module) in FLOORS, f"{file} is in no room: give it a floor"
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports zoo.{imported}"
        for line, imported in imports(file.read_text(), module, file.name == "__init__.py", known)
        if not is_allowed(module, imported)
    ]
    assert not wrong, "\n".join(wrong)


def test_evaluation_imports_no_lightning() -> None:
    for module, file in modules().items():
        if room(module) in ("evaluation", "types", "errors", "ops"):
            assert "pytorch_lightning" not in file.read_text(), file


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("ops.boxes", "from zoo.nn.frame import Frame", ["nn.frame"]),
        ("ops.boxes", "from ..nn import frame", ["nn.frame"]),
        ("ops.boxes", "from .coding import encode\nfrom zoo.types import Batch", []),
        ("nn.fpn", "import zoo.models.retinanet", ["models.retinanet"]),
        ("models.retinanet", "from zoo.models.faster_rcnn import FasterRCNN", ["models.faster_rcnn"]),
        ("models.retinanet", "def f():\n    from zoo.data import table", ["data.table"]),
        ("models.retinanet", "from zoo.detector import Detector\nfrom zoo.ops import boxes", []),
        ("data.coco", "import zoo.evaluation.coco", ["evaluation.coco"]),
        ("evaluation.coco", "from zoo.data.table import AnnotationTable", []),
        ("evaluation.coco", "from zoo.data.module import DetectionDataModule", ["data.module"]),
        ("compare", "from zoo.cli.main import main", ["cli"]),
        ("nn.fpn", "from zoo import load", [""]),
        ("cli", "from zoo import __version__\nfrom zoo.experiment.comparison import compare", []),
    ],
)
def test_the_reader_of_imports_sees_what_it_should(module: str, source: str, wrong: list[str]) -> None:
    known = {"nn.frame", "ops.boxes", "ops.coding", "data.table", "data.coco", "evaluation.coco", "compare"}
    found = imports(source, module, False, known)
    assert [imported for _, imported in found if not is_allowed(module, imported)] == wrong
