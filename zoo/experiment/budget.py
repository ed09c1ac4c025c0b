"""Length of the trainings of a comparison, the same for all."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from zoo.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Length of each training; exactly one of the four is set. Learning rate schedules are scaled to it.

    Args:
        epochs: passes over the training images.
        images: training images seen, repetitions included; rounded up to whole batches.
        minutes: wall-clock time, including the validations during the training.
        steps: optimizer steps.
    """

    epochs: int | None = None
    images: int | None = None
    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.epochs, self.images, self.minutes, self.steps) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise InputError("give exactly one of --epochs, --images, --minutes and --steps, above 0")

    def trainer_arguments(self, batch_size: int) -> dict[str, Any]:
        """The budget as Trainer arguments; `batch_size` is the number of images of an optimizer step."""
        if self.epochs is not None:
            return {"max_epochs": self.epochs, "max_steps": -1, "max_time": None}
        if self.minutes is None:
            steps = self.steps if self.images is None else math.ceil(self.images / batch_size)
            return {"max_epochs": -1, "max_steps": steps, "max_time": None}
        minutes, seconds = divmod(round(self.minutes * 60), 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        # A text, since a dict would come back from a configuration file as the text of a dict.
        return {"max_epochs": -1, "max_steps": -1, "max_time": f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"}

    def __str__(self) -> str:
        name, value = next((name, value) for name, value in asdict(self).items() if value is not None)
        return f"{value:g} {name if value != 1 else name.removesuffix('s')}"


# The budget of `zoo compare` without arguments: about 16 minutes for all nine detectors on two CPU cores. One epoch of
# the built-in shapes.
DEFAULT_BUDGET = Budget(images=3504)

FINE_TUNING_BUDGET = Budget(images=4000)
"""The budget of `zoo compare` on other data where there is no GPU: 7 minutes of a RetinaNet's steps on two cores."""

MIN_VALIDATIONS = 3
"""Points of a learning curve that a comparison has at least, also where it is shorter than that many epochs."""

DEFAULT_FIT_BUDGET = Budget(epochs=30)
"""The budget of `zoo fit` where neither its command line nor its configuration has one."""


def validation_interval(num_batches: int, epoch_batches: int) -> int | None:
    """Batches from one validation to the next within an epoch; None where the epochs are many enough.

    Args:
        num_batches: of the whole training.
        epoch_batches: of an epoch.
    """
    if num_batches >= MIN_VALIDATIONS * epoch_batches:
        return None
    length = min(num_batches, epoch_batches)
    validations = math.ceil(MIN_VALIDATIONS * length / num_batches)  # in an epoch
    return math.ceil(length / validations)
