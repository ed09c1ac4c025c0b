"""Class names and label rows as tools write them."""

import json

import pytest
from yolo_folders import NAMES, ROW, add_split, picture, roboflow

from zoo.data.formats.recognise import recognise
from zoo.data.formats.yolo import Yolo, write_yolo
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import count_kinds
from zoo.data.source import DataWarning
from zoo.errors import InputError


def test_names_are_texts_as_written(tmp_path):
    roboflow(tmp_path)
    text = (
        "train: train/images\ntest: null\nval: ~\nnames: [no, yes, on, null, 1.50, 2024-01-01, 0x1F, 'a b', 1e3, ~]\n"
    )
    (tmp_path / "data.yaml").write_text("\ufeff" + text, "utf-8")
    assert list(recognise(tmp_path)) == ["train"]
    names = ("no", "yes", "on", "null", "1.50", "2024-01-01", "0x1F", "a b", "1e3", "~")
    table = Yolo(str(tmp_path / "data.yaml")).read()
    assert table.classes == names
    copy = write_yolo(table, tmp_path / "copy")
    assert Yolo(str(copy)).data == str(copy)
    picture(tmp_path / "copy/images/train/a.png")
    assert Yolo(str(copy)).read().classes == names


def test_other_keys_of_a_data_file_keep_their_types_when_a_split_is_added(tmp_path):
    roboflow(tmp_path)
    (tmp_path / "data.yaml").write_text("train: train/images\nnc: 2\n" + NAMES)
    write_yolo(Yolo(str(tmp_path / "data.yaml")).read(), tmp_path, "copy")
    assert "nc: 2\n" in (tmp_path / "data.yaml").read_text()


@pytest.mark.parametrize("text", ["names: [a, '']", "names: {0: a, x: b}", "names: [a, a]", "names: [a, [b]]"])
def test_bad_names(tmp_path, text):
    roboflow(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: train/images\n{text}\n")
    with pytest.raises(InputError, match=r"data.yaml: names: "):
        Yolo(str(tmp_path / "data.yaml")).read()


def test_byte_order_marks_and_line_ends(tmp_path):
    add_split(tmp_path, "images/train", "labels/train", text="\ufeff0 .5 .5 .5 .5\r\n1 .5 .5 .2 .2\r\n")
    (tmp_path / "classes.txt").write_text("\ufeffnut\r\nbolt\r\n\r\n", "utf-8")
    table = recognise(tmp_path)["train"].read()
    assert table.classes == ("nut", "bolt")
    assert table.labels.tolist() == [0, 1, 0, 1]
    (tmp_path / "classes.txt").write_text("nut\n\nbolt\n")
    with pytest.raises(InputError, match=r"classes.txt: line 2: an empty line between class names"):
        recognise(tmp_path)["train"].read()


def test_polygons_are_read_as_their_extents(tmp_path):
    rows = "0 .1 .2 .5 .2 .5 .6\n" + ROW + "1 .25 .5 .5 .25 .75 .5 .5 .75\n"
    add_split(tmp_path, "images/train", "labels/train", "a", rows)
    with pytest.warns(DataWarning, match=r"2 of 3 objects are polygons, read as their extents, first .*a.txt: line 1"):
        table = recognise(tmp_path)["train"].read()
    assert table.boxes.round(9).tolist() == [[4, 4, 20, 12], [10, 6, 30, 14], [10, 5, 30, 15]]
    inspection = examine(recognise(tmp_path))
    assert count_kinds(inspection.findings) == {"interpreted": 1}
    write_cleaned(inspection, tmp_path / "copy")
    assert recognise(tmp_path / "copy")["train"].read().num_objects == 3


def test_keypoints_after_a_box_are_ignored(tmp_path):
    add_split(tmp_path, "images/train", "labels/train", "a", "0 .5 .5 .5 .4 .3 .3 .7 .6\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nkpt_shape: [2, 2]\n" + NAMES)
    with pytest.warns(DataWarning, match="the 4 numbers of keypoints after each box are ignored"):
        assert recognise(tmp_path)["train"].read().boxes.tolist() == [[10, 6, 30, 14]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0 .5 .5 .5 .5 .9\n0 .5 .5 .2 .2 .8\n", "a.txt: line 1: all lines have six numbers: these are predictions"),
        ("0 .5 .5 .5 .5\n0 .5 .5 .2 .2 .8\n", "a.txt: line 2: expected `class cx cy w h`"),
        ("0 .5 .5 .5 .5 .4 .4 .3\n", "a.txt: line 1: expected `class cx cy w h`"),
    ],
)
def test_rows_with_a_score_and_rows_that_are_no_polygons(tmp_path, rows, message):
    add_split(tmp_path, "images/train", "labels/train", "a", rows)
    (tmp_path / "classes.txt").write_text("nut\nbolt\n")
    with pytest.raises(InputError, match=message):
        recognise(tmp_path)["train"].read()
    assert count_kinds(examine(recognise(tmp_path)).findings)["broken_annotation"] == 1


def test_class_numbers_without_names_may_be_written_as_floats(tmp_path):
    add_split(tmp_path, "images/train", "labels/train", "ab", "2.0 .5 .5 .5 .5\n0 .5 .5 .1 .1\n")
    table = recognise(tmp_path)["train"].read()
    assert table.classes == ("0", "1", "2")
    assert table.labels.tolist() == [2, 0, 2, 0]


def test_rows_in_pixels_are_an_error_and_converted_in_a_copy(tmp_path):
    root = tmp_path / "a"
    for split, stem in (("train", "a"), ("val", "b")):
        picture(root / f"images/{split}/{stem}.png", size=(400, 200))
        (root / f"labels/{split}").mkdir(parents=True)
        (root / f"labels/{split}/{stem}.txt").write_text("0 200 100 200 100\n1 355 155 90 90\n")
    picture(root / "images/train/empty.png", 3)
    with pytest.raises(InputError, match=r"a.txt: line 1: 2 of 2 lines have coordinates above 1, .*in pixels\? YOLO"):
        recognise(root)["train"].read()
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings)["coordinates_above_1"] == 2
    assert inspection.num_errors == 2
    changes = write_cleaned(inspection, tmp_path / "copy")
    assert [change.what.rsplit(": ", 1)[1] for change in changes] == ["converted from pixels"] * 2
    table = recognise(tmp_path / "copy")["train"].read()
    assert table.boxes.round(6).tolist() == [[100, 50, 300, 150], [310, 110, 400, 200]]
    assert table.labels.tolist() == [0, 1]
    assert len(table) == 2


@pytest.mark.parametrize(
    "text",
    [
        "0 200 100 200 100\n0 .5 .5 .1 .1\n",  # pixels and fractions
        "0 20 10 20 10\n",  # percentages fit as well
        "0 200 100 300 150\n",  # corners fit as well
        "0 200 100 900 100\n",  # does not fit
        "7 355 155 90 90\n",  # a class without name
    ],
)
def test_images_with_rows_in_pixels_are_left_out_where_conversion_is_a_guess(tmp_path, text):
    root = tmp_path / "a"
    picture(root / "images/train/a.png", size=(400, 200))
    picture(root / "images/train/b.png", 3)
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text(text)
    (root / "classes.txt").write_text("nut\nbolt\n")
    write_cleaned(examine(recognise(root)), tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy/images/train").iterdir()] == ["b.png"]
    changes = json.loads((tmp_path / "copy/changes.json").read_text())
    assert len([change for change in changes if "image left out" in change["what"]]) == 1


def test_boxes_a_little_above_1_extend_beyond_their_image(tmp_path):
    add_split(tmp_path, "images/train", "labels/train", "a", "0 .5 .5 1.02 1.1\n")
    assert recognise(tmp_path)["train"].read().num_objects == 1
    assert "coordinates_above_1" not in count_kinds(examine(recognise(tmp_path)).findings)


def test_two_images_that_share_a_label_file_are_an_error(tmp_path):
    root = tmp_path / "a"
    add_split(root, "images/train", "labels/train", "abc")
    picture(root / "images/train/a.jpg", 7)
    with pytest.raises(InputError, match=r"labels/train/a.txt: images a.jpg and a.png share this label file"):
        recognise(root)["train"].read()
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings)["annotation_shared"] == 2
    assert "image_without_objects" not in count_kinds(inspection.findings)
    write_cleaned(inspection, tmp_path / "copy")
    table = recognise(tmp_path / "copy")["train"].read()
    assert (len(table), table.num_objects) == (2, 2)
    (root / "labels/train/a.txt").write_text("\n")
    assert len(recognise(root)["train"].read()) == 4, "both are without objects"
