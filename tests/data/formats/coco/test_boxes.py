"""COCO boxes that are corners, rotated, or unlike their polygons."""

import numpy as np
import pytest
from unusual_coco import check_read, make, read_all, without_sizes

from zoo.data.formats.coco.boxes import look_like_corners, rotated_extents
from zoo.data.formats.recognise import recognise
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import count_kinds
from zoo.data.source import DataWarning
from zoo.errors import InputError


def as_corners(described):
    for record in described["annotations"]:
        x, y, width, height = record["bbox"]
        record["bbox"] = [x + 25, y + 10, x + 25 + width, y + 10 + height]


def test_corners_are_an_error_for_reader_and_doctor_and_are_not_corrected(tmp_path):
    make(tmp_path / "a", as_corners)
    sources = recognise(tmp_path / "a")
    with pytest.raises(InputError, match="boxes fit their images only as x1 y1 x2 y2") as error:
        sources["train"].read()
    assert "\n" not in str(error.value)
    inspection = examine(sources)
    assert count_kinds(inspection.findings)["boxes_are_corners"] == 2
    with pytest.raises(InputError, match=r"instances_train.json: bbox: boxes fit their images only as x1 y1 x2 y2"):
        write_cleaned(inspection, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_corners_are_found_without_sizes_in_the_json(tmp_path):
    make(tmp_path, lambda c: (as_corners(c), without_sizes(c)))
    with pytest.raises(InputError, match="only as x1 y1 x2 y2"):
        recognise(tmp_path)["train"].read()


def test_boxes_that_may_be_width_and_height_are_not_taken_for_corners():
    size = np.array([[160.0, 120.0]])

    def suspicious(*boxes):
        rows = np.array(boxes, np.float64)
        return look_like_corners(
            np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1), np.repeat(size, len(rows), axis=0)
        )

    assert suspicious([100, 20, 150, 60], [5, 5, 20, 20])
    assert not suspicious([100, 20, 150, 60], [100, 5, 20, 20]), "reversed as corners"
    assert not suspicious([2, 2, 160, 120]), "a box of the whole image that is a little off"
    assert not suspicious([100, 20, 170, 60]), "outside both ways"
    assert not suspicious([0, 0, 160, 120], [5, 5, 20, 20])
    assert not look_like_corners(np.zeros((0, 4)), np.zeros((0, 2)))


def turn(degrees):
    def change(described):
        for record in described["annotations"]:
            record["attributes"] = {"occluded": False, "rotation": degrees if record["category_id"] == 1 else 0.0}

    return change


@pytest.mark.parametrize("degrees", [90.0, 45, -30.5, "270"])
def test_rotation_gives_the_extent_of_the_rotated_box(tmp_path, degrees):
    make(tmp_path, turn(degrees))
    tables = check_read(tmp_path, "4 boxes have `attributes.rotation`")
    angle = np.deg2rad(float(degrees))
    corners = np.array([[-12.5, -7.5], [12.5, -7.5], [12.5, 7.5], [-12.5, 7.5]])
    turned = corners @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) + [22.5, 27.5]
    for table in tables.values():
        assert table.boxes[0] == pytest.approx([*turned.min(0), *turned.max(0)])
        assert table.boxes[1].tolist() == [30, 20, 55, 35]


def test_no_rotation_other_attributes_and_turned_polygons_change_nothing(tmp_path):
    plain, _ = read_all(make(tmp_path / "plain"))
    values = [
        [],
        "text",
        None,
        {"rotation": None},
        {"rotation": 0},
        {"rotation": 180.0},
        {"rotation": "left"},
        {"a": 1},
    ]

    def change(described):
        for record, value in zip(described["annotations"], values, strict=True):
            record["attributes"] = value

    def outline(described):
        turn(90)(described)
        for record in described["annotations"]:
            x, y, width, height = record["bbox"]
            record["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]

    for name, function in (("attributes", change), ("polygons", outline)):
        tables = check_read(make(tmp_path / name, function))
        assert tables["train"].fingerprint() == plain["train"].fingerprint()


def test_rotated_extents_of_no_boxes():
    assert rotated_extents(np.zeros((0, 4)), np.zeros(0)).shape == (0, 4)


def polygons(shift):
    def change(described):
        for record in described["annotations"]:
            x, y, width, height = record["bbox"]
            x, y = x + shift, y + shift
            record["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]

    return change


def test_boxes_that_contradict_their_polygons(tmp_path):
    make(tmp_path / "a", polygons(8))
    sources = recognise(tmp_path / "a")
    with pytest.warns(
        DataWarning, match="8 of 8 boxes contradict their polygons, the first in annotation id 0"
    ) as seen:
        table = sources["train"].read()
    assert len(seen) == 1
    assert table.boxes[0].tolist() == [10, 20, 35, 35]
    inspection = examine(sources)
    assert count_kinds(inspection.findings) == {"box_unlike_polygon": 16}
    finding = inspection.findings[0]
    assert finding.place == "annotation id 0"
    assert finding.message == "box (10, 20, 35, 35) is not the extent (18, 28, 43, 43) of its polygon"


def test_cleaned_copy_leaves_out_images_with_contradicting_boxes(tmp_path):
    def change(described):
        polygons(0)(described)
        described["annotations"][0]["bbox"] = [40, 40, 10, 10]

    make(tmp_path / "a", change)
    changes = write_cleaned(examine(recognise(tmp_path / "a")), tmp_path / "copy")
    assert [change.what.rpartition(": ")[2] for change in changes] == ["image left out"] * 2
    tables, _ = read_all(tmp_path / "copy")
    assert [len(table) for table in tables.values()] == [3, 3]


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        None,
        {"counts": "abc", "size": [60, 80]},
        ["text"],
        [[1, 2, 3]],
        [[10.5, 20.5, 34, 20, 34, 34.5]],  # rounded outwards
        [[12, 22, 30, 22, 30, 30]],  # only a part is visible
    ],
)
def test_masks_and_polygons_inside_their_box_are_no_contradiction(tmp_path, segmentation):
    def change(described):
        for record in described["annotations"]:
            if record["category_id"] == 1:
                record["segmentation"] = segmentation

    check_read(make(tmp_path, change))
