"""Images and classes of predictions files of any program are matched to those of the data set, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import SHARED_CASES

from zoo.cli.main import main
from zoo.data.formats.recognise import recognise
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation import GroundTruth, evaluate, read_predictions
from zoo.evaluation.identity import write_predictions

NAMES = ["a/one.jpg", "a/two.jpg", "b/two.jpg", "b/7.jpg", "12.jpg", "x/9.jpg"]
CLASSES = ("nut", "bolt", "gear")
CLASS_IDS = [3, 4, 8]


def make_table(names: list[str] = NAMES, image_ids: list[int] | None = None) -> AnnotationTable:
    """Two objects in each image, at other places in each."""
    starts = np.repeat(np.arange(len(names)) * 30.0, 2) + np.tile([0.0, 12.0], len(names))
    return AnnotationTable.from_rows(
        classes=CLASSES,
        class_ids=np.array(CLASS_IDS),
        image_ids=np.array(image_ids or range(1, len(names) + 1)),
        widths=np.full(len(names), 400),
        heights=np.full(len(names), 100),
        file_names=names,
        image_index=np.repeat(np.arange(len(names)), 2),
        boxes=np.stack([starts, np.full(len(starts), 20.0), starts + 10, np.full(len(starts), 40.0)], axis=1),
        labels=np.arange(2 * len(names)) % 3,
    )


def entries(table: AnnotationTable) -> list[dict[str, Any]]:
    """The objects as detections with the ids of the data set and no names."""
    images = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    return [
        {
            "image_id": int(table.image_ids[image]),
            "category_id": int(table.class_ids[label]),
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": 0.9,
        }
        for image, label, box in zip(images.tolist(), table.labels.tolist(), table.boxes.tolist(), strict=True)
    ]


def renamed(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """Entries with keys replaced by functions of their index; None removes a key."""
    new = [row | {key: change(index) for key, change in changes.items()} for index, row in enumerate(rows)]
    return [{key: value for key, value in row.items() if value is not None} for row in new]


def read(tmp_path: Path, content: object, table: AnnotationTable) -> tuple[float, list[str], list[str]]:
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(content))
    matched = read_predictions(file, table)
    ap = evaluate(GroundTruth.from_table(table), matched.predictions, ["coco"]).metrics["AP"]
    return ap, matched.notes, matched.warnings


def test_ids_of_the_data_set(tmp_path: Path) -> None:
    table = make_table(image_ids=[50, 40, 30, 20, 10, 60])
    ap, notes, warnings = read(tmp_path, entries(table), table)
    assert (ap, warnings) == (pytest.approx(1), [])
    assert notes == [
        "images matched by `image_id` as an id of the data set: 6 of 6 images, 12 of 12 detections",
        "categories matched by `category_id` as an id of the data set: 3 of 3 categories, 12 of 12 detections",
    ]


@pytest.mark.parametrize(
    "file_name",
    [lambda name: name, lambda name: f"/home/me/data/{name}", lambda name: "D:\\data\\" + name.replace("/", "\\")],
    ids=["relative", "another computer's", "Windows"],
)
def test_file_names_come_before_ids(tmp_path: Path, file_name: Any) -> None:
    table = make_table()
    rows = renamed(entries(table), file_name=lambda i: file_name(NAMES[i // 2]), image_id=lambda i: 6 - i // 2)
    rows = renamed(rows, category_name=lambda i: CLASSES[i % 3], category_id=lambda i: 7)
    ap, notes, _ = read(tmp_path, rows, table)
    assert ap == pytest.approx(1)
    assert [note.partition(":")[0] for note in notes] == [
        "images matched by `file_name`",
        "categories matched by `category_name`",
    ]


def test_base_names_are_used_where_they_are_unique(tmp_path: Path) -> None:
    """two.jpg is in two folders, so its detections match no image."""
    table = make_table()
    rows = renamed(entries(table), file_name=lambda i: Path(NAMES[i // 2]).name)
    ap, notes, _ = read(tmp_path, rows, table)
    assert ap < 0.9
    assert notes[0] == "images matched by `file_name`: 4 of 5 images, 8 of 12 detections"


def test_lists_of_images_and_categories(tmp_path: Path) -> None:
    table = make_table()
    rows = renamed(entries(table), image_id=lambda i: 100 + i // 2, category_id=lambda i: f"c{i % 3}")
    document = {
        "images": [{"id": 100 + index, "file_name": name, "width": 400} for index, name in enumerate(NAMES)],
        "categories": [{"id": f"c{label}", "name": name} for label, name in enumerate(CLASSES)],
        "annotations": rows,
    }
    ap, notes, _ = read(tmp_path, document, table)
    assert ap == pytest.approx(1)
    assert [note.partition(":")[0] for note in notes] == [
        "images matched by the file's list `images`",
        "categories matched by the file's list `categories`",
    ]


@pytest.mark.parametrize("form", [str, int, float], ids=["text", "int", "float"])
def test_stems_as_image_ids(tmp_path: Path, form: Any) -> None:
    names = [f"{number:03d}.jpg" for number in (30, 10, 20)]
    table = make_table(names)
    rows = renamed(entries(table), image_id=lambda i: form(names[i // 2].removesuffix(".jpg")))
    ap, notes, _ = read(tmp_path, rows, table)
    assert ap == pytest.approx(1)
    assert notes[0].startswith("images matched by `image_id` as the stem of a file name: 3 of 3 images")


@pytest.mark.parametrize("is_stem", [True, False])
def test_where_stems_and_ids_match_all_the_better_fit_is_used(tmp_path: Path, is_stem: bool) -> None:
    table = make_table(["1.jpg", "10.jpg", "2.jpg", "3.jpg"], image_ids=[1, 2, 3, 10])
    rows = entries(table)
    if is_stem:
        rows = renamed(rows, image_id=lambda i: [1, 10, 2, 3][i // 2])
    ap, notes, _ = read(tmp_path, rows, table)
    assert ap == pytest.approx(1)
    assert ("as the stem of a file name (several rules match all" in notes[0]) == is_stem
    assert ("as an id of the data set (several rules match all" in notes[0]) != is_stem


def test_another_numbering_is_refused(tmp_path: Path) -> None:
    """Positions from 0, of which all but the first are ids of the data set as well."""
    table = make_table()
    rows = renamed(entries(table), image_id=lambda i: i // 2)
    with pytest.raises(InputError, match=r"image ids do not fit .* if all ids were larger by one; write `file_name`"):
        read(tmp_path, rows, table)


def test_mostly_unmatched_entries_are_refused(tmp_path: Path) -> None:
    table = make_table()
    with pytest.raises(InputError, match=r"entry 2: only 2 of 12 detections have the image .* write `file_name`"):
        read(tmp_path, renamed(entries(table), image_id=lambda i: 1 + 100 * (i // 2)), table)
    with pytest.raises(InputError, match=r"only 0 of 12 detections have the category .* write `category_name`"):
        read(tmp_path, renamed(entries(table), category_id=lambda i: "unknown"), table)


def test_category_ids_shifted_by_one_are_a_warning(tmp_path: Path) -> None:
    table = make_table()
    rows = [row for row in entries(table) if row["category_id"] == 3]
    _, _, warnings = read(tmp_path, renamed(rows, category_id=lambda i: 4), table)
    assert len(warnings) == 1
    assert warnings[0].startswith("category ids do not fit the data set: 0 detections")
    assert "smaller by one" in warnings[0]


def test_boxes_that_are_not_in_pixels_are_a_warning(tmp_path: Path) -> None:
    table = make_table()
    small = renamed(entries(table), bbox=lambda i: [0.1, 0.2, 0.3, 0.4])
    assert "smaller than a pixel" in read(tmp_path, small, table)[2][0]
    far = renamed(entries(table), bbox=lambda i: [390.0, 90.0, 400.0, 100.0])
    assert "end outside their image" in read(tmp_path, far, table)[2][0]
    assert read(tmp_path, [], table)[2] == []


@pytest.mark.parametrize(("factor", "noted"), [(1.0, False), (100.0, True), (-1.0, True)])
def test_scores_that_are_not_probabilities_are_noted(tmp_path: Path, factor: float, noted: bool) -> None:
    table = make_table()
    rows = entries(table)
    scaled = [row | {"score": row["score"] * factor} for row in rows]
    ap, notes, warnings = read(tmp_path, scaled, table)
    assert any("not 0 to 1: metrics use their order" in note for note in notes) is noted
    assert warnings == []
    if factor > 0:
        assert ap == read(tmp_path, rows, table)[0]


def test_written_predictions_have_names(tmp_path: Path) -> None:
    table = make_table()
    file = tmp_path / "p.json"
    file.write_text(json.dumps(entries(table)))
    predictions = read_predictions(file, table).predictions
    write_predictions(predictions, file, table)
    rows = json.loads(file.read_text())
    assert (rows[2]["file_name"], rows[2]["category_name"]) == ("a/two.jpg", "gear")
    reordered = make_table(NAMES, image_ids=[6, 5, 4, 3, 2, 1])
    again = read_predictions(file, reordered).predictions
    assert evaluate(GroundTruth.from_table(reordered), again, ["coco"]).metrics["AP"] == pytest.approx(1)


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="../shared/cases is absent")
@pytest.mark.parametrize(
    ("case", "file", "expected"),
    [
        ("c75_predict_then_evaluate", "predictions_ids_from_1.json", 0.911),
        ("c75_predict_then_evaluate", "predictions.json", None),
        ("p01_ultralytics_int_stems", "predictions.json", 1.0),
        ("p01_ultralytics_int_stems", "predictions_with_file_name.json", 1.0),
        ("p01_ultralytics_int_stems", "predictions_mapped_by_name.json", 1.0),
    ],
)
def test_shared_cases(case: str, file: str, expected: float | None) -> None:
    table = recognise(SHARED_CASES / case)["val"].read()
    path = SHARED_CASES / case / file
    if expected is None:
        with pytest.raises(InputError, match="larger by one"):
            read_predictions(path, table)
        return
    predictions = read_predictions(path, table).predictions
    metrics = evaluate(GroundTruth.from_table(table), predictions, ["coco"]).metrics
    assert metrics["AP"] == pytest.approx(expected, abs=5e-4)


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="../shared/cases is absent")
def test_shared_case_of_more_objects_than_coco_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SHARED_CASES / "m05_150_objects"
    arguments = ["--predictions", str(folder / "dets.json"), "--data", str(folder), "--split", "val"]
    assert main(["evaluate", *arguments]) == 0
    captured = capsys.readouterr()
    assert "at most 100 detections of a class in an image: perfect detections have AP 0.663" in captured.err
    assert "0.663" in captured.out
