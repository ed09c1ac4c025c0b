"""Masks in reports: outlines, drawings, tables, and a report of predictions with masks from file to page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from PIL import ImageDraw
from shaken import shaken

from zoo.cli.main import main
from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.evaluation import Predictions
from zoo.evaluation.identity import write_predictions
from zoo.experiment.analysis import analyse, read_run_predictions
from zoo.experiment.verify import verify_report
from zoo.report.pictures.draw import class_color, draw_boxes
from zoo.report.pictures.examples import make_example, read_examples, write_examples
from zoo.report.pictures.outlines import trace
from zoo.report.results import Run, read_results, write_results

NUM_IMAGES = 16


def fill(path: str, height: int, width: int, factor: int = 8) -> np.ndarray:
    """Share of each pixel inside SVG path data, by the even-odd rule."""
    inside = np.zeros((height * factor, width * factor), bool)
    for part in path.split("M")[1:]:
        points = [tuple(float(number) * factor for number in pair.split()) for pair in part.rstrip("Z").split("L")]
        canvas = PillowImage.new("1", (width * factor, height * factor))
        ImageDraw.Draw(canvas).polygon(points, fill=1)
        inside ^= np.array(canvas)
    return inside.reshape(height, factor, width, factor).mean(axis=(1, 3))


def test_an_outline_filled_again_is_the_mask_with_its_hole() -> None:
    rows, columns = np.mgrid[:40, :60]
    distance = np.hypot(rows - 19.5, columns - 29.5)
    ring = (distance < 18) & (distance > 7)
    filled = fill(trace(ring, 1.0), 40, 60)
    assert ((filled > 0.5) != ring).sum() <= 24  # of 860, at edges that were simplified
    assert filled[20, 30] == 0
    half = fill(trace(ring, 0.5), 20, 30)
    assert half.sum() == pytest.approx(ring.sum() / 4, rel=0.05)


def test_an_empty_mask_has_no_outline_and_one_pixel_has_one() -> None:
    assert trace(np.zeros((4, 4), bool), 1.0) == ""
    one = np.zeros((4, 4), np.uint8)
    one[1, 2] = 1
    assert fill(trace(one, 1.0), 4, 4)[1, 2] >= 0.2


def test_pixels_of_masks_are_tinted_and_the_first_lies_on_top() -> None:
    image = torch.full((3, 480, 480), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 480, 480, dtype=torch.bool)
    masks[0, 200:300, 200:300] = masks[1, 200:300, 200:400] = True
    box = torch.tensor([[0.0, 0, 480, 480]]).repeat(2, 1)
    drawn = draw_boxes(image, box, torch.tensor([0, 1]), ["a", "b"], None, masks)
    second = 100 * 0.55 + 0.45 * np.array(PillowImage.new("RGB", (1, 1), class_color(1)))[0, 0]
    np.testing.assert_allclose(drawn[:, 250, 350], second, atol=1)
    both = second * 0.55 + 0.45 * np.array(PillowImage.new("RGB", (1, 1), class_color(0)))[0, 0]
    np.testing.assert_allclose(drawn[:, 250, 250], both, atol=2)
    assert (drawn[:, 100, 100] == 100).all()
    assert (image == 100).all()


def test_masks_of_examples_are_scaled_with_their_picture_and_kept_in_their_file(
    make_target, make_prediction, tmp_path: Path
) -> None:
    mask = np.zeros((960, 960), bool)
    mask[200:400, 100:500] = True
    example = make_example(
        "a",
        torch.zeros(3, 960, 960, dtype=torch.uint8),
        make_target([[100.0, 200, 500, 400]], [0]),
        {"run": make_prediction([[100.0, 200, 500, 400], [0, 0, 9, 9]], [0, 0], [0.9, 0.1])},
        truth_masks=[mask],
        masks={"run": [mask]},
    )
    assert fill(example.truth.masks[0], 480, 480, 2).sum() == pytest.approx(100 * 200, rel=0.02)
    assert example.predictions["run"].masks == example.truth.masks
    write_examples(tmp_path / "examples.json", [example])
    assert read_examples(tmp_path / "examples.json") == [example]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two files with masks and one without, on the built-in shapes."""
    folder = tmp_path_factory.mktemp("reported")
    shapes = f"{{class_path: Shapes, init_args: {{num_images: {NUM_IMAGES}, seed: 3}}}}"
    (folder / "data.yaml").write_text(f"name: small\ntrain: {shapes}\ntest: {shapes}\n")
    table = Shapes(NUM_IMAGES, seed=3).read(with_masks=True)
    for name, seed in (("first", 0), ("second", 1), ("boxes", 2)):
        write_predictions(shaken(table, seed), folder / f"{name}.json", table)
    entries = json.loads((folder / "boxes.json").read_text())
    for entry in entries:
        del entry["segmentation"]
    (folder / "boxes.json").write_text(json.dumps(entries))
    files = [str(folder / f"{name}.json") for name in ("first", "second", "boxes")]
    arguments = ["--data", str(folder / "data.yaml"), "--out", str(folder / "out"), "--resamples", "200"]
    assert main(["report", *files, *arguments]) == 0
    return folder


def test_a_report_of_predictions_with_masks_has_their_metrics_intervals_and_differences(reported: Path) -> None:
    results = read_results(reported / "out/results.json")
    runs = {run.config: run for run in results.runs}
    for name in ("first", "second"):
        run = runs[name]
        assert 0 < run.metrics["mask_AP"] < 1
        assert run.metrics["mask_AP"] != run.metrics["AP"]
        interval = run.analysis.intervals["mask_AP"]
        assert interval.low < interval.value < interval.high
        assert interval.value == pytest.approx(run.metrics["mask_AP"])
        assert run.analysis.mask_errors.keys() == run.analysis.errors.keys()
        assert run.analysis.mask_errors != run.analysis.errors
    assert "mask_AP" not in runs["boxes"].metrics
    assert not runs["boxes"].analysis.mask_errors
    measured = {(pair.first, pair.second): "mask_AP" in pair.differences for pair in results.pairs}
    assert measured == {("first", "second"): True, ("first", "boxes"): False, ("second", "boxes"): False}
    (pair,) = (pair for pair in results.pairs if "mask_AP" in pair.differences)
    expected = runs["first"].metrics["mask_AP"] - runs["second"].metrics["mask_AP"]
    assert pair.differences["mask_AP"].value == pytest.approx(expected)


def test_verifying_a_report_compares_masks_again(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(reported / "out"), "--verify"]) == 0
    counted, total = (int(word) for word in capsys.readouterr().out.split()[:3:2])
    assert counted == total


def test_more_detections_than_are_drawn_and_none_at_all(reported: Path) -> None:
    """A seed that detected nothing has mask AP 0, and counts in the mean."""
    table = Shapes(NUM_IMAGES, seed=3).read(with_masks=True)
    entries = json.loads((reported / "first.json").read_text())
    (reported / "many.json").write_text(json.dumps([entry for entry in entries for _ in range(150)]))
    arguments = ["--data", str(reported / "data.yaml"), "--out", str(reported / "more"), "--resamples", "0"]
    assert main(["report", str(reported / "many.json"), *arguments]) == 0
    examples = read_examples(reported / "more/examples.json")
    assert max(len(found.masks) for example in examples for found in example.predictions.values()) == 100
    full = shaken(table, 0)
    none = Predictions(full.image_ids[:0], full.boxes[:0], full.scores[:0], full.labels[:0])
    runs = [Run("mask_rcnn", "mask", seed, f"seed{seed}", "done") for seed in (0, 1)]
    results = replace(read_results(reported / "out/results.json"), runs=runs)
    for run, found in zip(runs, (full, none), strict=True):
        (reported / run.folder).mkdir()
        write_predictions(found, reported / run.folder / "predictions.json", table)
    module = DetectionDataModule(test=Shapes(NUM_IMAGES, seed=3))
    read, predictions = read_run_predictions(results, module, reported, print)
    analyse(results, predictions, read, resamples=20)
    assert runs[0].metrics["mask_AP"] > 0
    assert runs[1].metrics["mask_AP"] == 0
    assert "mask_AP" in runs[1].analysis.intervals


def test_a_run_without_detections_has_mask_metrics_again_when_it_is_verified(reported: Path) -> None:
    folder = reported / "empty"
    (folder / "run").mkdir(parents=True)
    (folder / "run/predictions.json").write_text("[]")
    run = Run("mask_rcnn", "mask", 0, "run", "done", metrics={"mask_AP": 0.0})  # as its result.json has them
    results = replace(read_results(reported / "out/results.json"), runs=[run], pairs=[])
    module = DetectionDataModule(test=Shapes(NUM_IMAGES, seed=3))
    table, predictions = read_run_predictions(results, module, folder, print)
    analyse(results, predictions, table, resamples=20)
    results.resamples = 20
    write_results(results, folder / "results.json")
    assert verify_report(folder).different == []


def test_page_and_markdown_show_masks_and_leave_out_those_without(reported: Path) -> None:
    page, text = ((reported / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count('<input type="checkbox" class="masks" checked>') == 1
    assert page.count('<path class="mask"') > NUM_IMAGES
    section = page[page.index('id="masks-title"') : page.index('id="errors"')]
    assert '<th scope="row">first</th>' in section
    assert '<th scope="row">boxes</th>' not in section
    rows = text[text.index("## Masks") : text.index("## AP by class")].splitlines()
    assert sum(row.startswith("| first ") for row in rows) == 2  # metrics and errors
    assert not any(row.startswith("| boxes ") for row in rows)
    assert (reported / "out/plots/tide_masks.svg").exists()
    examples = read_examples(reported / "out/examples.json")
    assert all(len(example.truth.masks) == len(example.truth.boxes) for example in examples)
    masks = {
        folder: [kept.masks for kept in (e.predictions[folder] for e in examples)] for folder in examples[0].predictions
    }
    assert {Path(folder).stem: any(map(any, of_run)) for folder, of_run in masks.items()} == {
        "first": True,
        "second": True,
        "boxes": False,
    }


def test_a_report_without_masks_does_not_speak_of_them(reported: Path) -> None:
    arguments = ["--data", str(reported / "data.yaml"), "--out", str(reported / "plain"), "--resamples", "0"]
    assert main(["report", str(reported / "boxes.json"), *arguments]) == 0
    page, text = ((reported / "plain" / name).read_text() for name in ("report.html", "report.md"))
    assert 'class="masks"' not in page
    assert 'id="masks"' not in page
    assert "## Masks" not in text
    assert not (reported / "plain/plots/tide_masks.svg").exists()


def test_evaluate_prints_the_metrics_of_masks(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--predictions", str(reported / "first.json"), "--data", str(reported / "data.yaml")]
    assert main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    run = next(run for run in read_results(reported / "out/results.json").runs if run.config == "first")
    assert "mask_AP" in printed
    assert f"{run.metrics['mask_AP']:.3f}" in printed
    assert main(["evaluate", "--predictions", str(reported / "boxes.json"), *arguments[2:]]) == 0
    assert "mask_AP" not in capsys.readouterr().out
