import json
import math

import pytest
import yaml
from made_up import make_results

from zoo.report.entries import find_entries, run_labels
from zoo.report.results import Slice
from zoo.report.tables.breakdown import ceiling_rows, confusions, slice_groups, threshold_tables
from zoo.report.tables.runs import cost_table, entry_table, time_table


def test_confusions_are_summed_over_seeds():
    results = make_results(1, seeds=(0, 1))
    for run in results.runs:
        run.analysis.confusion = [[6, 1, 1], [0, 4, 0], [2, 0, 0]]
    (confusion,) = confusions(find_entries(results), results.classes)
    assert confusion.names == ["disc", "ring", "background"]
    assert [[cell.text for cell in row] for row in confusion.rows] == [
        ["12", "2", "2"],
        ["0", "8", "0"],
        ["4", "0", "\u2013"],
    ]
    assert confusion.rows[0][0].share == pytest.approx(0.75)
    assert [confusion.rows[true][predicted].kind for true, predicted in ((0, 0), (0, 1), (2, 2))] == [
        "right",
        "wrong",
        "none",
    ]
    assert confusion.rows[0][2].sentence == "disc missed: 2 of 16"
    assert confusion.rows[2][0].sentence == "disc predicted on background: 4 of 4"


def test_only_the_largest_confusions_of_many_classes_are_listed():
    names = tuple(f"c{at}" for at in range(30))
    results = make_results(1, classes=names)
    matrix = [[0] * 31 for _ in range(31)]
    matrix[3][4], matrix[3][3], matrix[5][30], matrix[30][6] = 5, 15, 99, 99
    results.runs[0].analysis.confusion = matrix
    (confusion,) = confusions(find_entries(results), results.classes)
    assert confusion.largest == [("c3", "c4", 5, "25.0%")]
    assert confusion.rows == []


def test_confusion_matrix_of_wrong_size_is_left_out():
    results = make_results(1)
    results.runs[0].analysis.confusion = [[1, 2], [3, 4]]
    assert confusions(find_entries(results), results.classes) == []


def test_slice_groups_start_with_sizes_with_intervals():
    results = make_results(2)
    sizes, aspect, crowding = slice_groups(find_entries(results))
    assert [row.name.split(":")[0] for row in sizes] == ["small", "medium", "large"]
    assert sizes[0].cells[0].low == pytest.approx(0.61 - 0.12 - 0.035)
    assert [row.name for row in aspect] == ["wide: above 2", "square: 1/2 to 2"]
    assert [row.objects for row in crowding] == ["300", "140"]
    assert [cell.best for cell in aspect[0].cells] == [True, False]


def test_sizes_without_intervals_are_slices_of_the_runs():
    results = make_results(1)
    results.runs[0].analysis.intervals = {}
    results.runs[0].analysis.slices = {"size": [Slice("tiny", 3, math.nan, 0.1)], "aspect": []}
    (sizes,) = [group for group in slice_groups(find_entries(results)) if group]
    assert [(row.name, row.objects, row.cells[0].text) for row in sizes] == [("tiny", "3", "\u2013")]


def test_thresholds_as_yaml_and_json():
    results = make_results(1, classes=("a: b", "no"))  # names that need quotes in YAML
    (table,) = threshold_tables(find_entries(results), run_labels(results.runs), results.classes)
    assert yaml.safe_load(table.yaml) == json.loads(table.json) == {"a: b": 0.422, "no": 0.422}
    results.runs[0].analysis.thresholds["no"].score = math.nan
    (table,) = threshold_tables(find_entries(results), run_labels(results.runs), results.classes)
    assert json.loads(table.json) == {"a: b": 0.422}


def test_one_ceiling_row_for_all_seeds():
    (row,) = ceiling_rows(find_entries(make_results(1, seeds=(0, 1))))
    assert (row.share, row.objects, row.ap50.text, row.recall.text) == ("1.2%", 5, ".884", ".690")
    assert row.reach == pytest.approx(0.988)


def test_unmeasured_costs_have_no_column():
    results = make_results(2)
    for run in results.runs:
        run.cost.joules_per_image = None
        run.cost.peak_memory_mb = None
    heads, rows = cost_table(find_entries(results))
    assert [name for name, _ in heads] == ["Parameters", "FLOPs", "Proposals"]
    assert [cell.text for cell in rows[0]] == ["4.00", "3.00", "300"]
    assert [cell.best for cell in rows[0]] == [True, True, False]
    assert rows[1][2].text == "\u2013"
    assert cost_table([]) == ([], [])


def test_times_are_averaged_over_seeds():
    results = make_results(1, seeds=(0, 1))
    for run, ms in zip(results.runs, (10.0, 20.0), strict=True):
        for timing in run.cost.timings:
            timing.median, timing.p95 = ms, 2 * ms
    assert time_table(find_entries(results), 8, ["network", "total", "proposals"]) == [
        ["15.0 (30.0)", "15.0 (30.0)", "\u2013"]
    ]


def test_entry_table_has_mean_and_spread_over_seeds():
    (row,) = entry_table(find_entries(make_results(1, seeds=(0, 1))))
    assert (row[0].text, row[0].spread) == (".610", ".605\u2013.615")
    assert row[8].spread == "", "all seeds have the same number of parameters"
