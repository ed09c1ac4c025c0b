"""Train and compare object detectors of six eras: same data, same budget, same evaluation, one report."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.models import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import `zoo.load` on first use, so that loader workers, which import `zoo.data`, do not import the models."""
    if name == "load":
        from zoo.models import load

        return load
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
