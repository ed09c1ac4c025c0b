import json

import jsonschema
import pytest
from made_up import make_results

from zoo.report.results import write_results
from zoo.report.schema import SCHEMA_FILE, make_schema


def test_published_schema_matches_the_data_classes():
    assert json.loads(SCHEMA_FILE.read_text()) == make_schema(), "run: python -m zoo.report.schema"


def test_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(make_schema())


def test_written_results_match_the_schema(results, tmp_path):
    for case in (results, make_results(seeds=(0, 1))):  # the first has a failed run, undefined metrics and no analysis
        write_results(case, tmp_path / "results.json")
        jsonschema.validate(json.loads((tmp_path / "results.json").read_text()), make_schema())


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("runs"),
        lambda content: content["runs"][0].update(status="half"),
        lambda content: content["runs"][0]["metrics"].update(AP="high"),
        lambda content: content["pairs"][0]["differences"]["AP"].pop("verdict"),
        lambda content: content["runs"][0]["analysis"]["calibration"].pop("error"),
    ],
)
def test_invalid_results_do_not_match_the_schema(tmp_path, change):
    write_results(make_results(2), tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    change(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, make_schema())
