"""Lightning callbacks: mean AP, learning curve, progress, preemption, exact resume, moving average, and others.

Each callback works with every detector, and with any LightningModule whose validation and test steps return
`{"loss": ..., "predictions": list[Prediction]}` for batches of `(images, targets)`. Lightning runs ModelCheckpoint
after all other callbacks, and both it and EarlyStopping read the metrics logged until `on_validation_epoch_end`, so
they can monitor `val/AP`, on every process.
"""

from zoo.callbacks.finite_loss import StopOnNonFiniteLoss
from zoo.callbacks.learning_curve import LearningCurve
from zoo.callbacks.logger_runs import LoggerRuns
from zoo.callbacks.mean_average_precision import MeanAveragePrecision
from zoo.callbacks.metrics_file import KeepMetricsFile
from zoo.callbacks.moving_average import MovingAverage
from zoo.callbacks.preemption import Preemption
from zoo.callbacks.progress import ProgressLines
from zoo.callbacks.resumption import Resumption
from zoo.callbacks.step_seeds import StepSeeds
from zoo.callbacks.torch_compile import TorchCompile

__all__ = [
    "KeepMetricsFile",
    "LearningCurve",
    "LoggerRuns",
    "MeanAveragePrecision",
    "MovingAverage",
    "Preemption",
    "ProgressLines",
    "Resumption",
    "StepSeeds",
    "StopOnNonFiniteLoss",
    "TorchCompile",
]
