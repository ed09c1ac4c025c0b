import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED_DATA
from pycocotools.coco import COCO

from zoo.data.formats.coco import Coco, read_coco, write_coco
from zoo.data.quality.doctor import examine
from zoo.data.source import DataWarning
from zoo.errors import InputError


def content(**changes):
    return {
        "images": [
            {"id": 7, "file_name": "seven.jpg", "width": 100, "height": 50},
            {"id": 3, "file_name": "three.jpg", "width": 60, "height": 80},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [1.5, 2, 10, 20], "area": 77.25, "iscrowd": 1},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 100.4, 50]},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
    } | changes


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def annotation(**changes):
    return {"id": 1, "image_id": 3, "category_id": 90, "bbox": [1, 2, 10, 20]} | changes


def test_read_ids_with_gaps_missing_keys_and_crowds(tmp_path):
    table = read_coco(write(tmp_path / "a.json", content()), "/images")
    assert table.classes == ("bicycle", "toothbrush")
    assert table.class_ids.tolist() == [2, 90]
    assert table.image_ids.tolist() == [7, 3]
    assert table.labels.tolist() == [0, 1]
    assert table.boxes.tolist() == [[0, 0, 100.4, 50], [1.5, 2, 11.5, 22]]
    assert table.areas.tolist() == [100.4 * 50, 77.25]
    assert table.iscrowd.tolist() == [False, True]
    assert str(table.path(1)) == "/images/three.jpg"


def test_null_area_and_iscrowd_are_read_as_missing(tmp_path):
    file = write(tmp_path / "a.json", content(annotations=[annotation(area=None, iscrowd=None)]))
    table = read_coco(file)
    assert table.areas.tolist() == [200]
    assert not table.iscrowd.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation(image_id=4)]}, r"annotation id 1: image 4 is not among"),
        ({"annotations": [annotation(category_id=1)]}, r"annotation id 1: category 1 is not among"),
        ({"annotations": [annotation(), annotation()]}, r"annotation id 1 occurs 2 times"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, r"category id 1 occurs 2 times"),
        ({"categories": [{"id": 90, "name": "a"}, {"id": 2, "name": "a"}]}, r"category name 'a' occurs 2 times"),
        ({"annotations": [annotation(bbox=[1, 2, 3])]}, r"annotations\[0\] \(id 1\): .*length 4"),
        ({"annotations": [annotation(bbox="x")]}, r"annotations\[0\] \(id 1\): "),
        ({"annotations": [{"id": 5}]}, r"annotations\[0\] \(id 5\): .*image_id"),
        ({"images": [{"id": 1, "file_name": "x", "width": 0, "height": 3}], "annotations": []}, "must be positive"),
        ({"annotations": {}}, "expected a list `annotations`"),
    ],
)
def test_bad_content_names_file_and_place(tmp_path, changes, message):
    file = write(tmp_path / "bad.json", content(**changes))
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: .*{message}|{message}") as caught:
        read_coco(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def image(**changes):
    return {"id": 3, "file_name": "three.jpg", "width": 60, "height": 80} | changes


OUT_OF_RANGE = [
    ({"images": [image(id=2**63)]}, r"images\[0\] \(id 9223372036854775808\): .*<= 9223372036854775807"),
    ({"images": [image(id=10**30)]}, r"images\[0\] "),
    ({"images": [image(width=2**31)]}, r"images\[0\] \(id 3\): .*<= 2147483647.*width"),
    ({"images": [image(file_name="\ud800.jpg")]}, r"images\[0\] \(id 3\): .*surrogates not allowed"),
    ({"annotations": [annotation(id=-(2**64))]}, r"annotations\[0\] "),
    ({"annotations": [annotation(image_id=2**64)]}, r"annotations\[0\] \(id 1\): "),
    ({"annotations": [annotation(category_id=2**63)]}, r"annotations\[0\] \(id 1\): "),
    ({"annotations": [annotation(bbox=[10**400, 1, 1, 1])]}, r"annotations\[0\] \(id 1\): "),
    ({"categories": [{"id": 2**63, "name": "a"}]}, r"categories\[0\] "),
    ({"categories": [{"id": 1, "name": "\udfff"}]}, r"categories\[0\] \(id 1\): .*surrogates not allowed"),
]


@pytest.mark.parametrize(("changes", "message"), OUT_OF_RANGE)
def test_integers_out_of_range_and_invalid_unicode_are_errors_and_findings(tmp_path, changes, message):
    file = write(tmp_path / "bad.json", content(**changes))
    with pytest.raises(InputError, match=f"bad.json: {message}") as caught:
        read_coco(file)
    assert "\n" not in str(caught.value)
    findings = examine({"train": Coco(str(file), str(tmp_path))}).findings
    assert [re.search(message.split(":")[0], str(f.place)) is not None for f in findings].count(True) == 1
    assert [f.kind for f in findings].count("broken_annotation") == 1
    "".join(f.message for f in findings).encode()


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000], ids=["integer with thousands of digits", "nested"])
def test_errors_of_the_json_parser_are_one_line(tmp_path, value):
    text = json.dumps(content()).replace("77.25", value)
    with pytest.raises(InputError, match="json does not parse"):
        read_coco(write(tmp_path / "a.json", text))


def test_duplicate_image_ids_are_an_error_unless_the_records_are_equal(tmp_path):
    images = content()["images"]
    file = write(tmp_path / "a.json", content(images=[*images, images[0]]))
    with pytest.warns(DataWarning, match="such as id 7"):
        assert len(read_coco(file)) == 2
    with pytest.raises(InputError, match="image id 7 occurs 2 times"):
        read_coco(file, strict=True)
    file = write(tmp_path / "b.json", content(images=[*images, images[0] | {"width": 101}]))
    with pytest.raises(InputError, match="image id 7 occurs 2 times"):
        read_coco(file)


def test_broken_json_names_the_line(tmp_path):
    text = json.dumps(content(), indent=1)
    file = write(tmp_path / "cut.json", text[:200])
    lines = text[:200].splitlines()
    with pytest.raises(InputError, match=f"line {len(lines)}, column"):
        read_coco(file)
    with pytest.raises(InputError, match="annotation file is missing"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(InputError, match="expected an object"):
        read_coco(write(tmp_path / "list.json", "[]"))


@pytest.mark.parametrize(
    ("bbox", "why"),
    [
        ([5, 5, 0, 9], "has no area"),
        ([5, 5, -2, 9], "is reversed"),
        ([float("nan"), 5, 2, 9], "not a finite number"),
        ([float("inf"), 5, 2, 9], "not a finite number"),
        ([60, 5, 2, 9], "lies outside its image of 60x80"),
        ([-9, 5, 9, 9], "lies outside"),
    ],
)
def test_bad_boxes_are_skipped_with_one_warning_or_are_an_error(tmp_path, bbox, why):
    annotations = [annotation(), annotation(id=8, bbox=bbox), annotation(id=9, bbox=bbox)]
    file = write(tmp_path / "a.json", content(annotations=annotations))
    with pytest.warns(DataWarning, match=f"2 bad boxes skipped, .*a.json: annotation id 8: .*{why}") as caught:
        table = read_coco(file)
    assert len(caught) == 1
    assert table.annotation_ids.tolist() == [1]
    with pytest.raises(InputError, match=f"annotation id 8: .*{why}"):
        read_coco(file, strict=True)


def test_missing_images_are_an_error(tmp_path):
    file = write(tmp_path / "a.json", content())
    (tmp_path / "seven.jpg").touch()
    with pytest.raises(InputError, match=r"three.jpg: image file is missing \(1 of 2"):
        Coco(str(file), str(tmp_path)).read()
    (tmp_path / "seven.jpg").unlink()
    with pytest.raises(InputError, match=r"seven.jpg: image file is missing \(2 of 2"):
        Coco(str(file), str(tmp_path / "nowhere")).read()


coordinate = st.floats(0, 1000, allow_nan=False, width=64)


@given(st.lists(st.tuples(coordinate, coordinate, st.floats(1e-3, 500), st.floats(1e-3, 500)), max_size=5))
@settings(max_examples=30, deadline=None)
def test_round_trip_is_exact(tmp_path_factory, boxes):
    folder = tmp_path_factory.mktemp("coco")
    annotations = [
        annotation(id=10 + i, bbox=box, difficult=i % 2, iscrowd=i % 3 == 0, area=i + 0.1)
        for i, box in enumerate(boxes)
    ]
    images = [{"id": 3, "file_name": "a/b.jpg", "width": 2000, "height": 2000}]
    table = read_coco(write(folder / "a.json", content(images=images, annotations=annotations)))
    write_coco(table, folder / "b.json")
    again = read_coco(folder / "b.json")
    assert again.fingerprint() == table.fingerprint()
    assert np.array_equal(again.boxes, table.boxes)
    assert np.array_equal(again.difficult, table.difficult)
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize(("split", "objects", "images"), [("train", 606, 64), ("val", 448, 47)])
@pytest.mark.filterwarnings("ignore:.*listed again")  # val2017 of this extract lists image 58636 twice
def test_real_coco_equals_pycocotools(split, objects, images, capsys):
    folder = SHARED_DATA / "coco_mini"
    if not folder.exists():
        pytest.skip("../shared/data/coco_mini is absent")
    file = folder / "annotations" / f"instances_{split}2017.json"
    table = Coco(str(file), str(folder / f"{split}2017")).read()
    peer = COCO(file)
    capsys.readouterr()
    assert (len(table), table.num_objects, table.num_classes) == (images, objects, 80)
    for index, image_id in enumerate(table.image_ids):
        expected = peer.imgToAnns[image_id]
        rows = table.rows(index)
        assert table.annotation_ids[rows].tolist() == [a["id"] for a in expected]
        assert table.class_ids[table.labels[rows]].tolist() == [a["category_id"] for a in expected]
        assert table.areas[rows].tolist() == [a["area"] for a in expected]
        assert table.iscrowd[rows].tolist() == [bool(a["iscrowd"]) for a in expected]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in expected)]
        assert table.boxes[rows].tolist() == boxes
        assert table.file_name(index) == peer.imgs[image_id]["file_name"]
