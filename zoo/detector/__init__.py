"""The base class of all detectors, and their training recipes."""

from zoo.detector.base import SCORE_THRESHOLD, Detector, StepOutput, above_score, plain_arguments
from zoo.detector.recipe import Recipe, build_optimizer

__all__ = ["SCORE_THRESHOLD", "Detector", "Recipe", "StepOutput", "above_score", "build_optimizer", "plain_arguments"]
