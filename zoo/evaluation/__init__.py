"""Evaluation of detections: columns in, metrics out. Independent of Lightning and of models."""

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.identity import read_predictions
from zoo.evaluation.metric import DetectionMAP
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.results_file import read_coco_results, write_coco_results
from zoo.evaluation.scores import PROTOCOLS, Scores, evaluate, format_scores, scores_table

__all__ = [
    "PROTOCOLS",
    "DetectionMAP",
    "GroundTruth",
    "Predictions",
    "Scores",
    "evaluate",
    "format_scores",
    "read_coco_results",
    "read_predictions",
    "scores_table",
    "write_coco_results",
]
