"""Load detectors from checkpoints and from published files; one module for each layout of parameters."""

from zoo.weights.load import find_published, load, load_weights
from zoo.weights.start import Start, start_from
from zoo.weights.state import Layout

__all__ = ["Layout", "Start", "find_published", "load", "load_weights", "start_from"]
