"""Score thresholds by class, from a report and from a file."""

import json
from pathlib import Path

import pytest
import torch
from tiny_data import write_yaml

from zoo.detector import above_score
from zoo.errors import InputError
from zoo.report.results import Results, Threshold, write_results
from zoo.report.thresholds import read_thresholds
from zoo.types import Prediction

CLASSES = ("cell", "platelet")


@pytest.fixture
def comparison(tmp_path: Path, results: Results) -> Path:
    """A comparison of two runs with thresholds .3 and .6, and .4 and .7."""
    del results.runs[2:]
    for offset, run in zip((0.0, 0.1), results.runs, strict=True):
        scores = {"platelet": 0.6 + offset, "cell": 0.3 + offset}
        run.analysis.thresholds = {name: Threshold(score, 1.0, 1.0, 1.0) for name, score in scores.items()}
        (tmp_path / run.folder).mkdir()
    write_results(results, tmp_path / "results.json")
    return tmp_path


def test_thresholds_of_a_run_are_in_the_order_of_the_classes(comparison: Path, results: Results) -> None:
    assert read_thresholds(comparison / results.runs[0].folder, CLASSES) == pytest.approx([0.3, 0.6])
    assert read_thresholds(comparison / results.runs[1].folder, CLASSES[::-1]) == pytest.approx([0.7, 0.4])


@pytest.mark.parametrize("name", ["", "results.json"])
def test_a_comparison_of_several_runs_does_not_say_which(comparison: Path, results: Results, name: str) -> None:
    with pytest.raises(InputError, match=f"{results.runs[0].folder}, {results.runs[1].folder}; give the folder of one"):
        read_thresholds(comparison / name, CLASSES)


def test_a_class_without_a_threshold_is_named(comparison: Path, results: Results) -> None:
    with pytest.raises(InputError, match="has no threshold for class 'egg'; it has cell, platelet"):
        read_thresholds(comparison / results.runs[0].folder, ["cell", "egg"])


def test_files_of_a_user(tmp_path: Path) -> None:
    write_yaml(tmp_path / "t.yaml", {"platelet": 0.5, "cell": 1, "other": 0})
    (tmp_path / "t.json").write_text(json.dumps({"cell": 0.2, "platelet": 0.7}))
    assert read_thresholds(tmp_path / "t.yaml", CLASSES) == [1.0, 0.5]
    assert read_thresholds(tmp_path / "t.json", CLASSES) == [0.2, 0.7]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"cell": 30, "platelet": 0.5}, "cell: is 30; it must be a score from 0 to 1"),
        ({"cell": "high"}, "cell: is 'high'; it must be a score"),
        (["cell"], "must have a score for each class name"),
    ],
)
def test_wrong_files_are_said(tmp_path: Path, content: object, said: str) -> None:
    write_yaml(tmp_path / "t.yaml", content)
    with pytest.raises(InputError, match=said):
        read_thresholds(tmp_path / "t.yaml", CLASSES)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no results.json, and the folder above has none"):
        read_thresholds(tmp_path / "run", CLASSES)


def test_detections_are_kept_by_the_threshold_of_their_class() -> None:
    found = Prediction(
        boxes=torch.arange(16.0).view(4, 4),
        scores=torch.tensor([0.9, 0.5, 0.45, 0.2]),
        labels=torch.tensor([0, 1, 0, 1]),
    )
    assert above_score(found, torch.tensor([0.4, 0.6]))["scores"].tolist() == pytest.approx([0.9, 0.45])
    assert above_score(found, 0.45)["labels"].tolist() == [0, 1, 0]
