"""The report page in headless Chromium: no errors, no requests, all plots drawn, all controls working.

The tests are skipped where Chromium, its driver or their Python packages are absent.
"""

import base64
from pathlib import Path

import pytest
from browser import Browser, browser
from made_up import make_examples, make_results

from zoo.report.results import Results, Slice
from zoo.report.write import write_report

__all__ = ["browser"]  # a fixture

# The page's policy allows one script by its hash; scripts run by the driver are exempt.
_DRAWN = """
return [...document.querySelectorAll('svg.plot')].map(svg => {
  const shapes = [...svg.querySelectorAll('path, circle, rect, text')];
  const choice = svg.closest('.choice');
  const hidden = choice && choice.hidden;
  if (hidden) choice.hidden = false;
  const box = svg.getBoundingClientRect(), inner = svg.getBBox();
  if (hidden) choice.hidden = true;
  return {label: svg.getAttribute('aria-label'),
          width: box.width, height: box.height, inner: [inner.width, inner.height],
          series: svg.querySelectorAll('.line, rect.block').length,
          bad: shapes.filter(s => /NaN|Infinity|undefined/.test(s.outerHTML)).length};
});
"""
_PICTURES = "[...document.querySelectorAll('.picture')].filter(p => !p.hidden).map(p => p.dataset.name)"
_VIEWS = (
    "[...document.querySelectorAll('.picture:not([hidden]) .view')].filter(v => !v.hidden).map(v => v.dataset.name)"
)
_BIG = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Report with seven models and forty pictures."""
    results = make_results()
    out = tmp_path_factory.mktemp("report")
    write_report(results, out, make_examples(results, 40))
    return out / "report.html"


@pytest.fixture(scope="module")
def small_report(tmp_path_factory) -> Path:
    """Small report with every section: two seeds, three pictures."""
    results = make_results(3, seeds=(0, 1))
    out = tmp_path_factory.mktemp("small")
    write_report(results, out, make_examples(results, 6, side=64)[3:])
    return out / "report.html"


def test_seven_models_and_forty_pictures_stay_below_five_megabytes(report: Path):
    text = report.read_text()
    assert text.count("data:image/jpeg") == 40
    assert len(text.encode()) < _BIG


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_no_errors_no_requests_no_horizontal_overflow(browser: Browser, report: Path, width: int, scheme: str):
    browser.open(report, width, scheme=scheme)
    assert browser.errors() == []
    assert browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    for selector in ("#difference select", ".category"):  # parts hidden at first are not fetched either
        browser.choose(selector, 2)
    browser.run("document.querySelectorAll('.names button')[3].click()")
    assert browser.requests() == [report.as_uri()]
    assert browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_requests_finds_requests(browser: Browser, tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text(
        '<img src="picture.png"><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'
        "<script>new WebSocket('ws://127.0.0.1:9/')</script>"
    )
    browser.open(page)
    picture = (tmp_path / "picture.png").as_uri()
    assert sorted(browser.requests()) == sorted([page.as_uri(), picture, "ws://127.0.0.1:9/"])


def test_tables_of_seven_detectors_fit_a_laptop_screen(browser: Browser, tmp_path: Path):
    results = make_results()
    for run in results.runs:
        run.analysis.slices = {"crowding": [Slice("few: up to 4 objects in the image", 1535, 0.1234, 0.5)]}
    write_report(results, tmp_path, [])
    browser.open(tmp_path / "report.html", 1400)
    cut = "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth)"
    assert browser.run(f"{cut}.map(s => s.innerText)") == []


def test_every_plot_is_drawn(browser: Browser, report: Path):
    browser.open(report)
    plots = browser.run(_DRAWN)
    assert len(plots) == 1 + 1 + 3 + 7 + 3 + 2, "Pareto, errors, precision, reliability, times, learning"
    for plot in plots:
        assert plot["bad"] == 0, plot
        assert min(plot["width"], plot["height"], *plot["inner"]) > 100, plot
        assert plot["series"] > 0, plot


def test_tables_sort_by_column(browser: Browser, report: Path):
    browser.open(report)
    column = "return [...document.querySelectorAll('.ranking tbody tr')].map(row => row.cells[arguments[0]].innerText)"
    head = "document.querySelectorAll('.ranking thead th')[arguments[0]]"
    assert [text.split()[0] for text in browser.run(column, 1)][:3] == [".610", ".600", ".520"]
    browser.run(f"{head}.querySelector('button').click()", 4)  # milliseconds: lowest first
    assert browser.run(column, 4) == ["11.0", "29.0", "31.0", "52.0", "88.0", "140.0", "900.0"]
    assert browser.run(f"return {head}.getAttribute('aria-sort')", 4) == "ascending"
    browser.run(f"{head}.querySelector('button').click()", 4)
    assert browser.run(column, 4)[0] == "900.0"
    browser.run(f"{head}.querySelector('button').click()", 1)  # AP: highest first
    assert browser.run(column, 1)[0].split()[0] == ".610"
    assert browser.run(f"return {head}.getAttribute('aria-sort')", 4) is None
    browser.run(f"{head}.querySelector('button').click()", 2)  # difference to the first, empty in its own row
    values = browser.run(column, 2)
    assert values[0].split()[0] == "\u2212.010"
    assert values[-1] == ""


def test_choices_show_one_at_a_time(browser: Browser, report: Path):
    browser.open(report)
    shown = (
        "return [...document.querySelectorAll('#difference .choice')].filter(c => !c.hidden).map(c => c.dataset.name)"
    )
    assert browser.run(shown) == ["AP"]
    browser.choose("#difference select", 3)
    assert browser.run(shown) == ["AP of disc"]
    assert browser.run("return document.querySelector('#difference .choice:not([hidden]) td').offsetHeight") > 0


def test_tooltips_by_pointer_and_by_key(browser: Browser, report: Path):
    browser.open(report)
    point = """
    const svg = document.querySelector(arguments[0]), at = svg.getBoundingClientRect();
    const place = {clientX: at.x + at.width * arguments[1], clientY: at.y + at.height * arguments[2], bubbles: true};
    svg.dispatchEvent(new PointerEvent('pointermove', place));
    return svg.parentElement.querySelector('.tip').textContent;
    """
    tooltip = browser.run(point, "#precision-recall .choice:not([hidden]) svg.plot", 0.08, 0.5)
    # At recall 0 the made-up curves begin at .6 + .4 AP.
    assert tooltip.split("\n")[:3] == ["at recall .00", "Faster R-CNN .84", "RetinaNet .84"]
    browser.run("document.querySelector('#ranking .tooltips').focus()")
    browser.press("\ue014", "\ue014")  # right
    tip = "return document.querySelector('#ranking .tip').textContent"
    assert browser.run(tip).startswith("RetinaNet: AP .600 [.56, .63], 52 ms")
    browser.press("\ue00c")  # escape
    assert browser.run("return document.querySelector('#ranking .tip').hidden") is True


def test_pictures_switch_by_click_and_by_key(browser: Browser, report: Path):
    browser.open(report)
    shown = f"return {{pictures: {_PICTURES}, views: {_VIEWS}}}"
    first = browser.run(shown)
    assert len(first["pictures"]) == 1
    assert first["views"] == ["Ground truth", "Faster R-CNN"]
    browser.run("document.querySelectorAll('.names button')[3].click()")
    assert browser.run(shown)["views"] == ["Ground truth", "CornerNet"]
    browser.run("document.querySelector('.stage').focus()")
    browser.press("\ue015")  # down: the next detector
    assert browser.run(shown)["views"] == ["Ground truth", "Fast R-CNN"]
    browser.press("\ue014")  # right: the next picture
    second = browser.run(shown)
    assert second["pictures"] != first["pictures"]
    assert second["views"] == ["Ground truth", "Fast R-CNN"], "the detector stays"
    browser.press("\ue012")  # left
    assert browser.run(shown)["pictures"] == first["pictures"]
    drawn = browser.run(
        "return document.querySelector('.picture:not([hidden]) .view:not([hidden]) svg').getBBox().width"
    )
    assert drawn >= 400


def test_a_thumb_scrolls_tables_and_switches_pictures(browser: Browser, report: Path):
    browser.open(report, width=390)
    touch = "Emulation.setTouchEmulationEnabled"
    browser.driver.execute_cdp_cmd(touch, {"enabled": True})
    try:
        browser.run("document.querySelectorAll('.scroll').forEach((e, i) => (e.id = e.id || `scroll${i}`))")
        wide = browser.run(
            "return [...document.querySelectorAll('.scroll')]"
            ".filter(e => e.clientHeight && e.scrollWidth > e.clientWidth).map(e => e.id)"
        )
        assert len(wide) >= 10
        for name in wide:
            browser.swipe(f"#{name}", -150, 0)
            browser.wait_for(f"document.getElementById('{name}').scrollLeft > 0")
        browser.swipe(".film", -150, 0)
        browser.wait_for("document.querySelector('.film').scrollLeft > 0")

        (first,) = browser.run(f"return {_PICTURES}")
        browser.swipe(".stage", -150, 0)
        browser.wait_for("document.querySelector('.where').textContent.startsWith('Picture 2 ')")
        browser.swipe(".stage", 150, 0)
        browser.wait_for("document.querySelector('.where').textContent.startsWith('Picture 1 ')")
        assert browser.run(f"return {_PICTURES}") == [first]
        browser.swipe(".stage", 0, 0)  # puts it in the middle of the window
        before = browser.run("return scrollY")
        browser.swipe(".stage", 10, -150)
        browser.wait_for(f"scrollY > {before}")
        assert browser.run(f"return {_PICTURES}") == [first]
        small = browser.run(
            "return [...document.querySelectorAll('.browser button, select, .copy')]"
            ".filter(e => e.offsetHeight && e.offsetHeight < 44).length"
        )
        assert small == 0
    finally:
        browser.driver.execute_cdp_cmd(touch, {"enabled": False})


def test_categories_of_pictures(browser: Browser, report: Path):
    browser.open(report)
    names = browser.run("return [...document.querySelectorAll('.category option')].map(o => o.textContent)")
    assert names[0] == "All pictures (40)"
    at = next(at for at, name in enumerate(names) if name.startswith("Faster R-CNN correct, Sliding window not"))
    browser.choose(".category", at)
    thumbs = browser.run("return [...document.querySelectorAll('.film button')].filter(b => !b.hidden).length")
    assert f"({thumbs})" in names[at]
    assert browser.run("return document.querySelector('.where').textContent") == f"Picture 1 of {thumbs}"
    assert sorted(browser.run(f"return {_VIEWS}")) == ["Faster R-CNN", "Sliding window"]
    marked = "document.querySelectorAll('.picture:not([hidden]) rect.focus')"
    assert browser.run(f"return [...{marked}].some(rect => rect.style.display === '')"), (
        "the boxes of the reason are marked"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_accessibility_violation(browser: Browser, small_report: Path, scheme: str):
    browser.open(small_report, scheme=scheme)
    assert browser.violations() == []


def test_masks_are_shown_and_can_be_switched_off(browser: Browser, tmp_path: Path):
    results = make_results(2)
    examples = make_examples(results, 3, side=64)
    for example in examples:
        for part in (example.truth, *example.predictions.values()):
            part.masks = ["M5 5L50 5L50 40Z"] * min(len(part.boxes), 2)
    write_report(results, tmp_path, examples)
    browser.open(tmp_path / "report.html")
    browser.run("document.querySelectorAll('.film button')[1].click()")
    visible = "return [...document.querySelectorAll('path.mask')].filter(e => e.getClientRects().length > 0).length"
    shown = browser.run(visible)
    assert shown > 0
    browser.run("document.querySelector('input.masks').click()")
    assert browser.run(visible) == 0
    browser.run("document.querySelector('input.masks').click()")
    assert browser.run(visible) == shown
    assert browser.errors() == []


def test_print_has_no_controls_and_only_sampled_pictures(browser: Browser, report: Path):
    browser.open(report, 800, media="print")
    visible = "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length > 0).length"
    assert browser.run(visible, "nav, .chooser, .film, .names, .controls, .copying") == 0
    sampled = browser.run("return document.querySelectorAll('.picture.sampled').length")
    assert 0 < sampled < 40
    assert browser.run(visible, ".picture") == sampled
    assert browser.run(visible, ".picture .view") == sampled * 8
    assert browser.run(visible, "svg.plot") >= 12


def test_configurations_are_compact_in_print(browser: Browser, tmp_path: Path):
    results = make_results(7)
    results.configs = dict.fromkeys(results.configs, "key: value\n" * 180)
    write_report(results, tmp_path, make_examples(results, 8, side=64))
    browser.open(tmp_path / "report.html", 800, media="print")
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    pages = base64.b64decode(printed["data"]).count(b"/Type /Page\n")
    assert 5 < pages <= 15, "seven times 180 lines in one column would fill twenty pages"


def test_page_without_script_shows_everything(browser: Browser, report: Path):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(report)
        visible = (
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length > 0).length"
        )
        # Scripts of the driver still run. Enabling page scripts before loading ends would start them.
        assert browser.run(visible, ".choice") == browser.run("return document.querySelectorAll('.choice').length")
        assert browser.run(visible, ".picture") == 40
        assert browser.run(visible, "button, select") == 0
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def _strip(results: Results) -> Results:
    for run in results.runs:
        run.analysis = type(run.analysis)()
        run.curve, run.metrics, run.per_class = [], {"AP": float("nan"), "AP50": -1.0}, {}
        run.cost = type(run.cost)()
    results.pairs = []
    return results


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lambda: make_results(1, classes=("one",)), id="one model, one class"),
        pytest.param(lambda: make_results(7, seeds=(0, 1, 2)), id="21 runs"),
        pytest.param(lambda: _strip(make_results(3)), id="no metrics"),
        pytest.param(
            lambda: make_results(2, classes=tuple(f"a class of a very long name {at}" for at in range(80))),
            id="80 classes",
        ),
    ],
)
def test_pages_of_other_comparisons(browser: Browser, tmp_path: Path, case):
    results = case()
    write_report(results, tmp_path, make_examples(results, 2, side=64))
    for width in (1400, 390):
        browser.open(tmp_path / "report.html", width)
        assert browser.errors() == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
    assert all(plot["bad"] == 0 and plot["width"] > 0 for plot in browser.run(_DRAWN))
    assert "nan" not in str(browser.run("return document.body.innerText")).lower().replace("retinanet", "")
