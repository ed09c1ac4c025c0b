import math

import pytest

from zoo.report.entries import Entry, ranked, run_labels
from zoo.report.number_format import MISSING, format_ap, format_cost
from zoo.report.results import Run
from zoo.report.summary_text import headline
from zoo.report.tables.runs import COLUMNS, class_table, run_table


def column(name: str) -> int:
    return [column.name for column in COLUMNS].index(name)


def test_best_of_each_column_is_marked(make_run):
    runs = [make_run("a", 0.4), make_run("b", 0.5)]
    slow, fast = run_table(runs)
    assert [row[column("AP")].text for row in (slow, fast)] == [".400", ".500"]
    assert [row[column("AP")].best for row in (slow, fast)] == [False, True]
    assert [row[column("Inference")].text for row in (slow, fast)] == ["40.0", "50.0"]
    assert [row[column("Inference")].best for row in (slow, fast)] == [True, False]
    assert [row[column("Parameters")].best for row in (slow, fast)] == [True, True], "equal"


def test_values_that_look_equal_are_all_marked_best(make_run):
    runs = [make_run("a", 0.50001), make_run("b", 0.50002), make_run("c", 0.499)]
    assert [row[column("AP")].best for row in run_table(runs)] == [True, True, False]


def test_undefined_values_are_dashes_and_never_best(make_run):
    runs = [make_run("a", 0.4), make_run("b", 0.5)]
    runs[0].cost.flops = None
    table = run_table(runs)
    for row in table:
        for name in ("APs", "VOC10", "APl"):  # NaN, -1, absent
            assert row[column(name)].text == MISSING
            assert not row[column(name)].best
    assert table[0][column("FLOPs")].text == MISSING
    assert not table[1][column("FLOPs")].best, "nothing to compare with"


def test_class_table_has_classes_in_rows_and_entries_in_columns(make_run):
    entries = [Entry(name, name, name, [make_run(name, ap)]) for name, ap in (("a", 0.4), ("b", 0.5))]
    rows = class_table(entries, ["disc", "absent"])
    assert [[cell.text for cell in row] for row in rows] == [[".500", ".600"], [MISSING, MISSING]]
    assert [cell.best for cell in rows[0]] == [False, True]
    assert rows[0][1].share == pytest.approx(0.6)


def test_ranking(make_run):
    runs = [make_run("a", 0.1), make_run("b", math.nan), make_run("c", 0.3), Run("d", "d", 0, "d", "failed")]
    assert [run.model for run in ranked(runs)] == ["c", "a", "b"]


@pytest.mark.parametrize(("value", "text"), [(0.5124, ".512"), (0.0, ".000"), (1.0, "1.000"), (0.9999, "1.000")])
def test_format_ap(value: float, text: str):
    assert format_ap(value) == text


def test_costs_of_a_column_share_their_decimals():
    assert [format_cost([0.4, 34.0, None])(value) for value in (0.4, 34.0)] == ["0.40", "34.00"]
    assert [format_cost([12.0, 5000.0])(value) for value in (12.0, 5000.0)] == ["12.0", "5,000.0"]
    assert format_cost([400.0])(400.0) == "400"
    assert format_cost([None, 0.0])(0.0) == "0.00"


def test_run_labels_are_as_short_as_unique(make_run):
    runs = [
        make_run("retinanet", 0.1, seed=0),
        make_run("retinanet", 0.1, seed=1),
        make_run("rcnn", 0.1, config="rcnn_a"),
        make_run("rcnn", 0.1, config="rcnn_b"),
        make_run("mine", 0.1),
        make_run("yolov1", 0.1, folder="here"),
        make_run("yolov1", 0.1, folder="there"),
    ]
    assert list(run_labels(runs).values()) == [
        "RetinaNet, seed 0",
        "RetinaNet, seed 1",
        "R-CNN, rcnn_a",
        "R-CNN, rcnn_b",
        "mine",
        "YOLOv1, seed 0, here",
        "YOLOv1, seed 0, there",
    ]


def test_headline_of_two_entries(results):
    assert headline(results) == (
        "On the 10 test images of made-up, RetinaNet leads with AP .500, .100 ahead of Faster R-CNN (.400); "
        "each trained for 3 epochs, seed 0. Failed: 1 of 3 runs."
    )


def test_headline_averages_over_seeds(results, make_run):
    results.runs = [make_run("retinanet", 0.5), make_run("retinanet", 0.3, seed=1), make_run("rcnn", 0.45)]
    assert "R-CNN leads with AP .450, .050 ahead of RetinaNet (.400)" in headline(results)
    assert "mean over seeds 0, 1" in headline(results)


def test_headline_of_one_of_equal_and_of_no_entries(results, make_run):
    results.runs = [make_run("retinanet", 0.5)]
    assert "RetinaNet reaches AP\u00a0.500, trained for 3 epochs" in headline(results)
    results.runs.append(make_run("rcnn", 0.5001))
    assert "R-CNN and RetinaNet lead level with AP .500" in headline(results)
    results.runs = [Run("rcnn", "rcnn", 0, "x", "failed", "no", name="R-CNN")]
    assert headline(results) == "No run on the 10 test images of made-up has an AP to compare. Failed: 1 of 1 runs."


def test_headline_names_the_validation_images_where_there_is_no_test_split(results):
    results.data = {"name": "made-up", "train": 20, "val": 7}
    assert headline(results).startswith("On the 7 validation images of made-up, ")
