"""Warnings of a report: intervals that are too narrow, checkpoints chosen on the evaluated images, other notes."""

import pytest
from made_up import make_examples, make_results

from zoo.report.results import Results, read_results, write_results
from zoo.report.warnings import interval_warning, report_warnings, selection_warning
from zoo.report.write import write_report


def make(class_images: list[int], resamples: int = 1000) -> Results:
    results = make_results(2, classes=tuple(f"class {at}" for at in range(len(class_images))))
    results.class_images = dict(zip(results.classes, class_images, strict=True))
    results.resamples = resamples
    return results


@pytest.mark.parametrize(
    ("class_images", "expected"),
    [
        ([20] * 80, ("half of the 80 classes are in at most 20 of the 72 test images", "29%", "77%")),
        ([27] * 80, ("51%", "75%")),  # 80 / 27 is just below 3
        ([81] * 80, ("78%", "88%")),
        ([19] * 20, ("51%", "75%")),
        ([2, 3, 3, 6, 30, 900], ("half of the 6 classes are in at most 4.5 of", "51%", "75%")),
        (
            [5, 5, 5, 0, 0],
            ("half of the 3 classes are in at most 5 of", "78%"),
        ),  # classes without objects
    ],
)
def test_warning_names_numbers_and_lowest_coverage(class_images: list[int], expected: tuple[str, ...]):
    sentence = interval_warning(make(class_images))
    assert sentence.startswith("Intervals are probably too narrow: ")
    for text in expected:
        assert text in sentence


@pytest.mark.parametrize(
    "results",
    [
        pytest.param(make([40] * 10), id="four images of a class per class"),
        pytest.param(make([8, 8]), id="few classes"),
        pytest.param(make([5] * 40, resamples=0), id="no intervals"),
        pytest.param(make([0, 0]), id="no objects"),
        pytest.param(make_results(3), id="results without class_images"),
    ],
)
def test_no_warning_where_intervals_are_valid(results: Results, tmp_path):
    assert interval_warning(results) == ""
    write_report(results, tmp_path, [])
    assert "too narrow" not in (tmp_path / "report.html").read_text() + (tmp_path / "report.md").read_text()


def test_warning_is_below_the_headline(tmp_path):
    results = make([7] * 80)
    write_report(results, tmp_path, make_examples(results, 1, side=64))
    for name, headline, following in (
        ("report.html", '<p class="headline">', '<table class="ranking'),
        ("report.md", "leads with AP", "| Detector | AP |"),
    ):
        text = (tmp_path / name).read_text()
        assert text.index(headline) < text.index("Intervals are probably too narrow: half of") < text.index(following)


def test_class_images_round_trip(tmp_path):
    write_results(make([7, 9]), tmp_path / "results.json")
    assert read_results(tmp_path / "results.json").class_images == {"class 0": 7, "class 1": 9}


def test_checkpoints_chosen_on_the_evaluated_images_are_a_warning(tmp_path):
    results = make_results(2)
    assert selection_warning(results) == ""
    results.data["val"] = results.data.pop("test")
    assert "was chosen by its AP on the same validation images" in selection_warning(results)
    write_report(results, tmp_path, [])
    for name in ("report.html", "report.md"):
        assert "There is no test split" in (tmp_path / name).read_text()
    for run in results.runs:
        run.curve = []
    assert selection_warning(results) == "", "no checkpoint was chosen"


def test_notes_are_shown_and_stored(tmp_path):
    results = make_results(2)
    results.notes = ["An image has 150 objects of one class."]
    assert report_warnings(results) == results.notes
    write_report(results, tmp_path, [])
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json").notes == results.notes
    for name in ("report.html", "report.md"):
        assert results.notes[0] in (tmp_path / name).read_text()
