import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from made_up import make_examples, make_results

from zoo.report.entries import Entry
from zoo.report.plots.axes import nice_ticks
from zoo.report.plots.learning_curves import HEIGHT, WIDTH, learning_curves
from zoo.report.results import Results
from zoo.report.write import make_report, write_report

VOID = {"meta", "img", "br", "link", "input", "hr", "image", "use", "rect", "path", "circle"}


class Page(HTMLParser):
    """Parsed page: its elements and its text; asserts that elements are properly nested and closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.bold: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "rect":  # holds a title
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "b":
            self.bold.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(results, examples, tmp_path) -> Page:
    write_report(results, tmp_path, examples)
    return Page((tmp_path / "report.html").read_text())


def test_files_of_a_report(results, examples, tmp_path):
    write_report(results, tmp_path / "new", examples)
    names = ["examples.json", "plots", "report.html", "report.md", "results.json"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == names
    plots = ["learning-images.svg", "learning-minutes.svg", "pareto.svg"]
    assert sorted(file.name for file in (tmp_path / "new" / "plots").iterdir()) == plots


def test_plots_of_an_earlier_report_are_removed(results, tmp_path):
    write_report(results, tmp_path, [])
    for run in results.runs:
        run.curve = []
    write_report(results, tmp_path, [])
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["pareto.svg"]


def test_report_is_deterministic_and_can_be_rendered_from_its_files(results, examples, tmp_path):
    write_report(results, tmp_path / "a", examples)
    write_report(results, tmp_path / "b", examples)
    files = ("report.html", "report.md", "results.json", "examples.json")
    first = [(tmp_path / "a" / name).read_bytes() for name in files]
    assert first == [(tmp_path / "b" / name).read_bytes() for name in files]
    (tmp_path / "a" / "report.html").unlink()
    (tmp_path / "a" / "report.md").unlink()
    make_report(tmp_path / "a")
    assert first == [(tmp_path / "a" / name).read_bytes() for name in files]


def test_page_fetches_nothing(page: Page, tmp_path):
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,")), (tag, value)
    text = (tmp_path / "report.html").read_text()
    assert "@import" not in text
    assert "url(" not in text
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert (policies[0] or "").startswith("default-src 'none'")


def test_content_security_policy_allows_only_the_inline_script(page: Page, tmp_path):
    (script,) = re.findall(r"<script>(.*?)</script>", (tmp_path / "report.html").read_text(), flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] or "" for meta in page.all("meta") if meta.get("http-equiv")]
    assert f"script-src 'sha256-{digest}';" in policy
    assert page.all("script") == [{}], "one inline script"


def test_page_contains_every_run_and_class(page: Page, results: Results):
    for name in (
        "RetinaNet",
        "Faster R-CNN",
        "CornerNet",
        *results.classes,
        results.command,
        *results.configs.values(),
    ):
        assert name.strip() in page.text
    for text in (results.hardware, results.budget, "0123abcd", results.created):
        assert text in page.text


def test_failed_run_is_listed_below_the_others(page: Page):
    assert "out of memory at <b>step</b> 12" in page.text
    assert page.text.index("RetinaNet") < page.text.index("out of memory")
    assert ".500" in page.text


@pytest.mark.parametrize(
    ("seeds", "note"),
    [((0,), "which several seeds would show"), ((0, 1), "randomness of training, whatever its interval")],
)
def test_notes_on_pairwise_verdicts(tmp_path, seeds, note):
    write_report(make_results(3, seeds=seeds), tmp_path, [])
    for text in (Page((tmp_path / "report.html").read_text()).text, (tmp_path / "report.md").read_text()):
        assert note in text
        assert "about one comes out better or worse by chance" in text


def test_names_are_escaped(page: Page, tmp_path):
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert "bar & <script>alert(1)</script>" in page.text
    markdown = (tmp_path / "report.md").read_text()
    assert "<script" not in markdown
    assert "&lt;script&gt;" in markdown


def test_best_values_are_bold(page: Page):
    assert ".500" in page.bold
    assert "50.0" not in page.bold, "slower"
    assert "40.0" in page.bold
    assert ".400" not in page.bold[: page.bold.index("40.0")], "less accurate"


def test_every_picture_has_a_text_alternative(page: Page):
    svgs = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in svgs)
    labels = [svg["aria-label"] for svg in svgs]
    assert '"><img src=x>.jpg, Ground truth: 2 objects' in labels
    assert '"><img src=x>.jpg, RetinaNet: 1 of 2 found, 1 false' in labels
    assert '"><img src=x>.jpg, Faster R-CNN: 0 of 2 found, 0 false' in labels
    assert "b, RetinaNet: 0 of 0 found, 0 false" in labels


def test_a_picture_is_embedded_once_for_all_runs(page: Page):
    assert len(page.all("image")) == 2
    assert [use["href"] for use in page.all("use")] == ["#image-1", "#image-1", "#image-2", "#image-2"]


def test_positions_of_drawn_boxes(page: Page):
    found = [rect for rect in page.all("rect") if rect.get("class") == "right" and "stroke" in rect]
    assert [(rect["x"], rect["y"], rect["width"], rect["height"]) for rect in found] == [
        ("11.0", "10.0", "19.0", "20.0")
    ]
    missed = [rect for rect in page.all("rect") if rect.get("class") == "missed" and "stroke" in rect]
    assert len(missed) == 3  # one by RetinaNet, both by Faster R-CNN


def test_shown_score_decides_what_is_drawn(results, examples, tmp_path):
    results.runs[2].shown_score = 0.7
    write_report(results, tmp_path, examples)
    page = Page((tmp_path / "report.html").read_text())
    assert "RetinaNet .70" in page.text
    assert '"><img src=x>.jpg, RetinaNet: 1 of 2 found, 0 false' in [svg.get("aria-label") for svg in page.all("svg")]


@pytest.mark.slow
def test_eighty_classes_seven_models_three_seeds_and_forty_pictures_stay_below_five_megabytes(tmp_path):
    results = make_results(7, seeds=(0, 1, 2), classes=tuple(f"a class of number {at}" for at in range(80)))
    write_report(results, tmp_path, make_examples(results, 40))
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/jpeg") == 40
    assert text.count("a class of number 79") > 20, "all classes are listed"
    assert len(text.encode()) < 5_000_000


def test_table_heads_have_scope(page: Page):
    assert all(head.get("scope") in {"col", "row", "colgroup"} for head in page.all("th"))


def test_report_of_failed_runs_only(results, tmp_path):
    results.runs = [run for run in results.runs if run.status == "failed"]
    write_report(results, tmp_path, [])
    page = Page((tmp_path / "report.html").read_text())
    assert "out of memory" in page.text
    assert "No run on" in page.text


def test_report_without_curves_and_examples(results, tmp_path):
    for run in results.runs:
        run.curve = []
    write_report(results, tmp_path, [])
    page = Page((tmp_path / "report.html").read_text())
    assert "Learning curves" not in page.text
    assert "RetinaNet" in page.text


def test_markdown_tables_have_equal_columns_in_all_rows(results, examples, tmp_path):
    results.classes[0] = "a | b"
    for run in results.runs:
        run.per_class = {"a | b": {"AP": 0.3}}
    write_report(results, tmp_path, examples)
    text = (tmp_path / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(columns) == 1, table
    assert "| RetinaNet | 0 | **.500** |" in text
    assert "[report.html](report.html)" in text


@pytest.mark.parametrize(
    ("highest", "most", "ticks"),
    [
        (0.53, 6, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (20.0, 6, [0, 5, 10, 15, 20]),
        (1.0, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 5, [0, 1]),
    ],
)
def test_nice_ticks(highest: float, most: int, ticks: list[float]):
    assert nice_ticks(highest, most) == pytest.approx(ticks)


def test_learning_curves_keep_order_and_stay_inside(results, make_run):
    runs = [make_run("a", 0.30), make_run("b", 0.31), make_run("c", 0.32), make_run("a", 0.29, seed=1)]
    runs[0].curve[0].AP = math.nan
    entries = [Entry(name, name, name, [run for run in runs if run.model == name]) for name in "abc"]
    by_images, by_minutes = learning_curves(entries)
    assert len(by_images.lines[0].marks) == 2, "a point without AP is left out"
    for panel in (by_images, by_minutes):
        assert [line.series for line in sorted(panel.lines, key=lambda line: line.series)] == [0, 0, 1, 2]
        for line in panel.lines:
            xs = [mark.x for mark in line.marks]
            assert xs == sorted(xs)
            assert all(0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT for mark in line.marks)
        labels = sorted((line for line in panel.lines if line.label), key=lambda line: line.label_y)
        assert [line.label for line in labels] == ["c", "b", "a"], "highest on top, one label for all seeds"
        gaps = [below.label_y - above.label_y for above, below in pairwise(labels)]
        assert min(gaps) >= 16
    # 100 of 300 images, AP of a third of .32 on an axis to .4.
    first = by_images.lines[3].marks[0]
    assert first.x == pytest.approx(by_images.left + (by_images.right - by_images.left) / 3, abs=0.1)
    top = by_images.top + (by_images.bottom - by_images.top) * (1 - 0.32 / 3 / float(by_images.y_ticks[-1].text))
    assert first.y == pytest.approx(top, abs=0.1)
