import json
import math

import pytest

from zoo.errors import InputError
from zoo.experiment.run import read_result
from zoo.report.results import Ceiling, Results, read_results, read_run, write_results, write_run


def test_results_round_trip(results: Results, tmp_path):
    write_results(results, tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    for run in (*results.runs, *again.runs):
        run.metrics = {name: "undefined" if math.isnan(value) else value for name, value in run.metrics.items()}
    assert again == results


def test_undefined_metric_is_null_in_the_file_and_nan_in_memory(results: Results, tmp_path):
    path = tmp_path / "results.json"
    results.runs[0].curve[0].AP = math.nan
    write_results(results, path)
    assert json.loads(path.read_text())["runs"][0]["metrics"]["APs"] is None
    again = read_results(path).runs[0]
    assert math.isnan(again.metrics["APs"])
    assert math.isnan(again.curve[0].AP)
    assert read_results(path).runs[1].cost.flops is None


def test_writing_is_deterministic_and_leaves_no_temporary_files(results: Results, tmp_path):
    write_results(results, tmp_path / "a.json")
    for run in results.runs:
        run.metrics = dict(reversed(run.metrics.items()))
    write_results(results, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_run_round_trip(results: Results, tmp_path):
    write_run(results.runs[0], tmp_path / "result.json")
    again = read_run(tmp_path / "result.json")
    assert again.cost == results.runs[0].cost
    assert math.isnan(again.metrics["APs"])


def test_finished_run_with_undefined_metric_is_read_back(results: Results, tmp_path):
    run = results.runs[0]
    run.analysis.ceilings = [Ceiling("no anchor", math.nan, 0, "of no objects")]
    write_run(run, tmp_path / "result.json")
    again = read_result(tmp_path)
    assert again is not None
    assert math.isnan(again.analysis.ceilings[0].share)
    (tmp_path / "result.json").write_text("{")
    assert read_result(tmp_path) is None


def broken(change) -> str:
    run = {"model": "m", "config": "c", "seed": 0, "folder": "f", "status": "done"}
    text = {"data": {}, "classes": [], "budget": "", "command": "", "hardware": "", "versions": {}, "created": ""}
    content = {"runs": [run], **text}
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"runs": [\n  }', ["line 2, column 3"]),
        ('{"runs": [', ["line 1", "truncated"]),
        ("[]", ["array"]),
        ("\xff", ["line 1"]),
        (broken(lambda content: content.pop("classes")), ["missing", "classes"]),
        (broken(lambda content: content["runs"][0].update(seed="x")), ["runs[0].seed", "int"]),
        (broken(lambda content: content["runs"][0].update(status="half")), ["runs[0].status", "half"]),
        (broken(lambda content: content["runs"][0].update(metrics={"AP": "high"})), ["runs[0].metrics", "float"]),
        (broken(lambda content: content["runs"].append(content["runs"][0])), ["2 runs", "'f'"]),
    ],
)
def test_malformed_results_name_file_and_place(tmp_path, text: str, words: list[str]):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        read_results(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_results(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_results(tmp_path / "results.json")
