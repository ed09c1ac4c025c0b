import math

import pytest
from made_up import make_results

from zoo.report.entries import find_entries
from zoo.report.results import Difference, Interval, Results
from zoo.report.summary_text import headline, join_words
from zoo.report.tables.pairwise import find_difference, head_to_head, pair_matrices


def headline_of_pair(results: Results, ap: Difference) -> str:
    results.pairs[0].differences["AP"] = ap
    return headline(results).replace("\u00a0", " ")


def test_difference_of_swapped_pair_has_opposite_sign():
    results = make_results(2)
    first, second = find_entries(results)
    forward, swapped = (
        find_difference(results.pairs, first, second, "AP"),
        find_difference(results.pairs, second, first, "AP"),
    )
    assert forward is not None
    assert swapped is not None
    assert (swapped.value, swapped.low, swapped.high) == (-forward.value, -forward.high, -forward.low)
    results.pairs[0].differences["AP"] = Difference(0.1, 0.05, 0.2, "better")
    swapped = find_difference(results.pairs, second, first, "AP")
    assert swapped == Difference(-0.1, -0.2, -0.05, "worse")


def test_class_named_like_a_metric():
    results = make_results(2, classes=("AP", "ring"))
    results.pairs[0].class_differences["AP"] = Difference(0.3, 0.2, 0.4, "better")
    first, second = find_entries(results)
    assert find_difference(results.pairs, first, second, "AP") == results.pairs[0].differences["AP"]
    assert find_difference(results.pairs, first, second, "class AP") == results.pairs[0].class_differences["AP"]


def test_matrices_contain_every_ordered_pair():
    results = make_results(4)
    entries = find_entries(results)
    matrices = pair_matrices(results.pairs, entries, results.classes)
    assert [(matrix.name, matrix.is_class) for matrix in matrices] == [
        ("AP", False),
        ("AP50", False),
        ("AP of small objects", False),
        ("disc", True),
        ("ring", True),
    ]
    cells = matrices[0].cells
    assert [cells[at][at] for at in range(4)] == [None] * 4
    # .61 against .60, .52, .50, intervals of .03 to each side.
    assert [cell and cell.verdict for cell in cells[0]] == [None, "tie", "better", "better"]
    assert [row[0] and row[0].verdict for row in cells] == [None, "tie", "worse", "worse"]
    assert cells[0][2] is not None
    assert cells[0][2].difference == "+.090"
    assert cells[0][2].interval == "[+.060, +.120]"
    assert cells[0][2].sentence == "Faster R-CNN is better than CornerNet: AP +.090, 95% interval [+.060, +.120]"


def test_undefined_differences_are_left_out():
    results = make_results(2)
    results.pairs[0].differences["AP"] = Difference(math.nan, math.nan, math.nan, "tie")
    entries = find_entries(results)
    assert find_difference(results.pairs, *entries, "AP") is None
    assert head_to_head(results.pairs, entries, results.classes)[0].name == "AP50"
    assert pair_matrices([], entries, results.classes) == []
    assert head_to_head([], entries, []) == []


def test_head_to_head_shares_one_axis_with_zero_in_the_middle():
    results = make_results(2)
    results.pairs[0].differences = {"AP": Difference(0.1, -0.1, 0.2, "tie")}
    results.pairs[0].class_differences = {"disc": Difference(-0.4, -0.4, -0.4, "worse")}
    rows = head_to_head(results.pairs, find_entries(results), results.classes)
    assert [(row.name, row.is_class) for row in rows] == [("AP", False), ("disc", True)]
    assert (rows[0].low, rows[0].at, rows[0].high) == pytest.approx((0.375, 0.625, 0.75))
    assert rows[1].at == 0.0


def test_headline_of_two_entries():
    results = make_results(2)
    results.runs[0].metrics["AP"], results.runs[1].metrics["AP"] = 0.609, 0.578
    results.runs[0].analysis.intervals["AP"] = Interval(0.609, 0.572, 0.641)
    assert headline_of_pair(results, Difference(0.031, 0.012, 0.05, "better")) == (
        "On the 72 test images of made-up, Faster R-CNN leads with AP .609 [.57, .64], "
        "better than RetinaNet by .031 [.012, .050]; each trained for 8000 images, seed 0."
    )
    tie = headline_of_pair(results, Difference(0.031, -0.01, 0.07, "tie"))
    assert "leads with AP .609 [.57, .64], a tie with RetinaNet (.578, behind by .031 [\u2212.010, .070]);" in tie


def test_headline_of_many_entries_names_ties_and_the_nearest_of_the_rest():
    assert (
        "leads with AP .610 [.57, .64], a tie with RetinaNet (.600, behind by .010 [\u2212.020, .040]), "
        "and better than the other 5, the nearest of them CornerNet, by .090 [.060, .120];"
    ) in headline(make_results(7)).replace("\u00a0", " ")
    results = make_results(3)
    results.pairs[0].differences["AP"] = Difference(0.01, 0.002, 0.02, "better")
    assert "better than all others, the nearest of them RetinaNet, by .010 [.002, .020];" in headline(results).replace(
        "\u00a0", " "
    )


def test_join_words():
    assert [join_words(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
