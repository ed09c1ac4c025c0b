"""`zoo report` on a finished comparison: analysis, verification, external predictions, and refused input."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_data import model_config, write_files, write_yaml
from tiny_detector import TinyDetector

import zoo.experiment.comparison
import zoo.models
from zoo.cli.main import main
from zoo.evaluation import read_coco_results
from zoo.evaluation.ensembles import rescore
from zoo.experiment import run as run_module
from zoo.report.results import Results, read_results


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison of two models with two seeds, run once in this process; its data files contain absolute paths."""
    folder = tmp_path_factory.mktemp("compared")
    write_files(folder)
    write_yaml(folder / "wide.yaml", model_config(width=9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
        patch.setattr(zoo.experiment.comparison, "launch_fork", run_module.main)
        patch.setattr(zoo.experiment.comparison, "warm_up", lambda: None)
        patch.setattr(run_module, "LATENCY_SECONDS", 0.02)
        patch.chdir(folder)
        files = ["--models", "model.yaml", "wide.yaml", "--data", "data.yaml", "--trainer", "trainer.yaml"]
        assert main(["compare", *files, "--out", "out", "--seeds", "0", "1"]) == 0
        yield folder


@pytest.fixture
def folder(compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the comparison that a test may modify."""
    shutil.copytree(compared, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def read(folder: Path) -> Results:
    return read_results(folder / "results.json")


def without_creation_time(file: Path) -> dict[str, object]:
    content = json.loads(file.read_text())
    content.pop("created")
    return content


def test_a_comparison_has_intervals_differences_and_errors(folder: Path) -> None:
    results = read(folder / "out")
    assert results.resamples == 1000
    assert results.class_images == dict.fromkeys(results.classes, 3)  # the last of four images has no objects
    (pair,) = results.pairs
    assert (pair.first, pair.second) == ("model", "wide")
    assert pair.differences["AP"].low <= pair.differences["AP"].value <= pair.differences["AP"].high
    first, second = (
        [run.metrics["AP"] for run in results.runs if run.config == config] for config in ("model", "wide")
    )
    assert pair.differences["AP"].value == pytest.approx(sum(first) / 2 - sum(second) / 2)
    for run in results.runs:
        assert run.analysis.intervals["AP"].value == pytest.approx(run.metrics["AP"])
        assert run.analysis.class_intervals.keys() == {"box", "bar"}
        assert run.analysis.errors.keys() == {"Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN"}
        assert run.analysis.curves.keys() == {"box", "bar"}
        assert len(run.analysis.confusion) == 3
        assert run.analysis.slices.keys() == {"size", "aspect", "crowding"}
        assert run.analysis.calibration is not None


def test_a_report_made_again_has_the_same_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = without_creation_time(folder / "out/results.json")
    for file in ("report.html", "report.md", "examples.json"):  # not results.json, which has the original command
        (folder / "out" / file).unlink()
    assert main(["report", "out"]) == 0
    assert without_creation_time(folder / "out/results.json") == before
    assert (folder / "out/report.html").exists()
    assert main(["report", "out", "--verify"]) == 0
    assert "values are the same as in" in capsys.readouterr().out


def test_verify_detects_a_changed_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "out/results.json"
    content = json.loads(file.read_text())
    content["runs"][1]["metrics"]["AP75"] += 0.001
    file.write_text(json.dumps(content))
    assert main(["report", "out", "--verify"]) == 1
    printed = capsys.readouterr().out
    assert "model_seed1.metrics.AP75" in printed
    assert printed.count(" now") == 1


def test_verify_refuses_other_annotations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "out/results.json"
    content = json.loads(file.read_text())
    content["fingerprints"]["test"] = "0" * 16
    file.write_text(json.dumps(content))
    assert main(["report", "out", "--verify"]) == 2
    assert "annotations of the test split" in capsys.readouterr().err


def test_external_predictions_are_evaluated_like_runs(folder: Path) -> None:
    (folder / "theirs").mkdir()
    entries = json.loads((folder / "out/model_seed0/predictions.json").read_text())
    entries.sort(key=lambda entry: entry["score"])  # external predictions may come in any order
    (folder / "theirs/detr.json").write_text(json.dumps(entries))
    assert main(["report", "out", "theirs", "--out", "both"]) == 0
    results = read(folder / "both")
    ours = next(run for run in results.runs if run.folder.endswith("model_seed0"))
    (theirs,) = (run for run in results.runs if run.config == "detr")
    assert theirs.metrics == ours.metrics
    assert theirs.analysis.errors == ours.analysis.errors
    assert theirs.analysis.confusion == ours.analysis.confusion
    assert theirs.shown_score == ours.shown_score
    assert len(results.pairs) == 3
    assert main(["report", "both", "--verify"]) == 0
    # External predictions alone need a data file for the ground truth.
    assert main(["report", "theirs/detr.json", "--data", "data.yaml", "--out", "alone"]) == 0
    assert read(folder / "alone").runs[0].metrics == ours.metrics


def test_a_report_names_runs_and_says_nothing_of_a_training_it_does_not_know(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs/detr.json").write_bytes((folder / "out/model_seed0/predictions.json").read_bytes())
    command = ["report", "theirs/detr.json", "--data", "data.yaml", "--out", "alone"]
    assert main(command) == 0
    output, progress = capsys.readouterr()
    assert "errors of detr\n" in progress
    assert not any(text in progress for text in ("..", "theirs", "Warning"))
    assert output.splitlines()[0].rstrip() == read(folder / "alone").data["name"]
    assert not any(text in output for text in ("unknown", "cost", "ms/image"))
    text = (folder / "alone/report.md").read_text()
    assert not any(word in text for word in ("unknown", "trained for", "seed 0"))
    assert f"zoo {' '.join(command)}" in text
    assert "predictions of another program" in (folder / "alone/report.html").read_text()

    assert main(["report", "out/model_seed0", "theirs", "--out", "both"]) == 0
    results = read(folder / "both")
    assert results.budget
    headline = (folder / "both/report.md").read_text().splitlines()[2]
    assert f"each trained for {results.budget}, seed 0, except detr, of which only predictions are known." in headline


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["theirs.json", "--out", "x"], "give --data DATA"),
        (["theirs.json", "--data", "data.yaml"], "give --out DIR"),
        (["out/model_seed0", "out", "--out", "x"], "a run is given twice"),
        (["checkpoints", "--out", "x"], "no runs here"),
        (["out/model_seed0", "out/wide_seed0", "--verify"], "one report"),
    ],
)
def test_bad_input_of_report_gives_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "theirs.json").write_text("[]")
    (folder / "checkpoints").mkdir()
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "x").exists()


def test_runs_of_different_models_with_the_same_name_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs with the same name are averaged."""
    shutil.copytree(folder / "out/model_seed0", folder / "again/model_seed0")
    assert main(["report", "out", "again", "--out", "both"]) == 2
    assert "another run is also named model" in capsys.readouterr().err
    file = folder / "again/model_seed0/run.json"
    file.write_text(file.read_text().replace('"2 epochs"', '"3 epochs"'))
    shutil.move(folder / "out/model_seed0", folder / "aside")
    assert main(["report", "out", "again", "--out", "both"]) == 2
    assert "not another seed of the same model and budget" in capsys.readouterr().err
    (folder / "wide.json").write_bytes((folder / "out/wide_seed0/predictions.json").read_bytes())
    assert main(["report", "out", "wide.json", "--out", "both"]) == 2
    assert "another run is also named wide" in capsys.readouterr().err
    assert not (folder / "both").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("run.json", None), ("run.json", "{"), ("run.json", "[]"), ("config.yaml", "model: {}")]
)
def test_damaged_run_folders_give_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None
) -> None:
    file = folder / "out/model_seed0" / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert main(["report", "out/model_seed0", "--out", "x"]) == 2
    error = capsys.readouterr().err
    assert f"model_seed0/{name}" in error
    assert error.count("\n") == 1


def test_runs_on_other_annotations_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "out/wide_seed1/run.json"
    content = json.loads(file.read_text())
    content["annotations"]["test"] = "0" * 16
    file.write_text(json.dumps(content))
    assert main(["report", "out"]) == 2
    assert "other annotations of the test split" in capsys.readouterr().err


def test_combinations_are_reported_beside_their_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "out", "--out", "both", "--combine", "wide", "model"]) == 0
    results = read(folder / "both")
    assert [(item.first, item.method, item.second) for item in results.combinations] == [
        ("wide", "rescored", "model"),
        ("model", "rescored", "wide"),
        ("wide", "fused", "model"),
    ]
    combined = read_coco_results(
        folder / "both/combined/wide_rescored_model_seed0.json", np.arange(10, 14), np.array([3, 6])
    )
    parts = [
        read_coco_results(folder / f"out/{name}_seed0/predictions.json", np.arange(10, 14), np.array([3, 6]))
        for name in ("wide", "model")
    ]
    np.testing.assert_allclose(combined.scores, rescore(*parts).scores, rtol=1e-6)
    alone = {
        config: sum(run.metrics["AP"] for run in results.runs if run.config == config) / 2
        for config in ("wide", "model")
    }
    for item in results.combinations:
        assert item.intervals["AP"].value == pytest.approx(item.metrics["AP"])
        assert item.oracle >= max(alone.values())
        for part, difference in item.differences.items():
            assert difference.value == pytest.approx(item.metrics["AP"] - alone[part])
    assert "## Combinations" in (folder / "both/report.md").read_text()
    assert 'id="combinations"' in (folder / "both/report.html").read_text()
    assert main(["report", "both", "--verify"]) == 0
    assert 'id="combinations"' not in (folder / "out/report.html").read_text()
    assert main(["report", "out", "--out", "all", "--combine", "all", "--resamples", "0"]) == 0
    (first, *_) = read(folder / "all").combinations
    assert (first.intervals, first.differences) == ({}, {})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model"], "--combine needs two detectors or more, or all; this report has model, wide"),
        (["model", "model"], "--combine needs two detectors or more"),
        (["model", "detr"], "--combine detr: no such detector in this report; choose from model, wide, or all"),
    ],
)
def test_combinations_of_unknown_detectors(
    folder: Path, names: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "out", "--out", "both", "--combine", *names]) == 2
    assert message in capsys.readouterr().err
    assert not Path("both").exists()
