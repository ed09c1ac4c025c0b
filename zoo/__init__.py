"""Train and compare object detectors of six eras: same data, same budget, same evaluation, one report."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.inference.results import draw as draw
    from zoo.inference.results import to_supervision as to_supervision
    from zoo.weights import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "draw", "load", "to_supervision"]

_MODULES = {"load": "zoo.weights", "draw": "zoo.inference.results", "to_supervision": "zoo.inference.results"}


def __getattr__(name: str) -> object:
    """Import functions on first use, so that loader workers, which import `zoo.data`, do not import the models."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
