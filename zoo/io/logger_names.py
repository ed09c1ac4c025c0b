"""Names of the loggers, and the packages that they need; imports nothing of them."""

from collections.abc import Sequence
from importlib.util import find_spec

from zoo.errors import InputError

PACKAGES = {"tensorboard": "tensorboard", "csv": None, "wandb": "wandb", "mlflow": "mlflow"}
"""Name of each logger, and the package that it needs."""

DEFAULT_LOGGERS = ("tensorboard", "csv")


def check_loggers(names: Sequence[str]) -> None:
    """Check names of loggers.

    Raises:
        InputError: an unknown name, or a package is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise InputError(f"--logger {name!r}: expected some of {', '.join(PACKAGES)}")
        package = PACKAGES[name]
        if package is not None and find_spec(package) is None:
            raise InputError(f"--logger {name} needs the package {package}: pip install {package}")
