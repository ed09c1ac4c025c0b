"""Length of the trainings of a comparison, the same for all."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from zoo.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Length of each training; exactly one of the three is set. Learning rate schedules are scaled to it.

    Args:
        epochs: passes over the training images.
        images: training images seen, repetitions included; rounded up to whole batches.
        minutes: wall-clock time, including the validations during the training.
    """

    epochs: int | None = None
    images: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.epochs, self.images, self.minutes) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise InputError("give exactly one of --epochs, --images and --minutes, above 0")

    def trainer_arguments(self, batch_size: int) -> dict[str, Any]:
        """The budget as Trainer arguments; `batch_size` is the number of images of an optimizer step."""
        if self.epochs is not None:
            return {"max_epochs": self.epochs, "max_steps": -1, "max_time": None}
        if self.images is not None:
            return {"max_epochs": -1, "max_steps": math.ceil(self.images / batch_size), "max_time": None}
        assert self.minutes is not None
        seconds = round(self.minutes * 60)
        return {"max_epochs": -1, "max_steps": -1, "max_time": {"seconds": seconds}}

    def __str__(self) -> str:
        name, value = next((name, value) for name, value in asdict(self).items() if value is not None)
        return f"{value:g} {name if value != 1 else name.removesuffix('s')}"


# The budget of `zoo compare` without arguments: about 10 minutes for all seven detectors on two CPU cores.
DEFAULT_BUDGET = Budget(images=3500)
