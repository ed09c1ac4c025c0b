import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_data import model_config, write_files, write_yaml
from tiny_detector import TinyDetector

import zoo.experiment.comparison
import zoo.models
from zoo.cli.main import main
from zoo.experiment import run as run_module
from zoo.report.results import Results, read_results


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison of two models with two seeds, done once, in this process; its data files hold absolute paths."""
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
    """A copy of the comparison, for a test to change."""
    shutil.copytree(compared, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def read(folder: Path) -> Results:
    return read_results(folder / "results.json")


def without_times(file: Path) -> dict[str, object]:
    content = json.loads(file.read_text())
    content.pop("created")
    return content


def test_a_comparison_ends_in_intervals_verdicts_and_errors(folder: Path) -> None:
    results = read(folder / "out")
    assert results.resamples == 1000
    assert results.class_images == dict.fromkeys(results.classes, 3)  # the last of four images holds nothing
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


def test_the_report_is_made_again_from_the_kept_files_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = without_times(folder / "out/results.json")
    for file in ("report.html", "report.md", "examples.json"):  # results.json says which command it was
        (folder / "out" / file).unlink()
    assert main(["report", "out"]) == 0
    assert without_times(folder / "out/results.json") == before
    assert (folder / "out/report.html").exists()
    assert main(["report", "out", "--verify"]) == 0
    assert "as they are in" in capsys.readouterr().out


def test_verify_finds_a_figure_that_does_not_come_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_detectors_of_other_frameworks_take_part_by_their_predictions(folder: Path) -> None:
    (folder / "theirs").mkdir()
    entries = json.loads((folder / "out/model_seed0/predictions.json").read_text())
    entries.sort(key=lambda entry: entry["score"])  # theirs may come in any order, here the least sure first
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
    # and alone, where a data file says what is true
    assert main(["report", "theirs/detr.json", "--data", "data.yaml", "--out", "alone"]) == 0
    assert read(folder / "alone").runs[0].metrics == ours.metrics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["theirs.json", "--out", "x"], "give --data FILE"),
        (["theirs.json", "--data", "data.yaml"], "give --out DIR"),
        (["out/model_seed0", "out", "--out", "x"], "a run is given twice"),
        (["checkpoints", "--out", "x"], "no runs here"),
        (["out/model_seed0", "out/wide_seed0", "--verify"], "one report"),
    ],
)
def test_what_cannot_be_reported_on_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (folder / "theirs.json").write_text("[]")
    (folder / "checkpoints").mkdir()
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "x").exists()


def test_runs_of_one_name_that_are_not_seeds_of_one_model_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would be averaged."""
    shutil.copytree(folder / "out/model_seed0", folder / "again/model_seed0")
    assert main(["report", "out", "again", "--out", "both"]) == 2
    assert "another run is called model" in capsys.readouterr().err
    file = folder / "again/model_seed0/run.json"
    file.write_text(file.read_text().replace('"2 epochs"', '"3 epochs"'))
    shutil.move(folder / "out/model_seed0", folder / "aside")
    assert main(["report", "out", "again", "--out", "both"]) == 2
    assert "not another seed of the same model and budget" in capsys.readouterr().err
    (folder / "wide.json").write_bytes((folder / "out/wide_seed0/predictions.json").read_bytes())
    assert main(["report", "out", "wide.json", "--out", "both"]) == 2
    assert "another run is called wide" in capsys.readouterr().err
    assert not (folder / "both").exists()


def test_runs_on_other_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "out/wide_seed1/run.json"
    content = json.loads(file.read_text())
    content["annotations"]["test"] = "0" * 16
    file.write_text(json.dumps(content))
    assert main(["report", "out"]) == 2
    assert "other annotations of the test split" in capsys.readouterr().err
