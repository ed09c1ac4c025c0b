"""COCO files as users' tools write them: what is plain is read and noted, what is not is an error and a finding."""

import gzip
import json

import pytest
from paths import SHARED_CASES, SHARED_DATA
from PIL import Image as PILImage
from unusual_coco import HEIGHT, WIDTH, check_read, content, make, picture, read_all, without_sizes, write

from zoo.data.formats.recognise import data_arguments, recognise
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import count_kinds
from zoo.data.quality.stats import compute_statistics
from zoo.data.source import DataWarning
from zoo.errors import InputError


def rename(function):
    def change(described):
        for record in described["images"]:
            record["file_name"] = function(record["file_name"])

    return change


@pytest.mark.parametrize(
    "function",
    [
        lambda name: f"images\\{name}",
        lambda name: f"C:\\Users\\me\\data\\{name}",
        lambda name: f"/home/someone/project/{name}",
        lambda name: f"https://example.com/photos/{name}?token=1",
        lambda name: f"s3://bucket/photos/{name}",
        lambda name: f"upload/3/1a2b3c4d-{name}",
        lambda name: f"..%5Cimages%5C{name}",
        lambda name: name.replace(".png", "%2Epng"),
    ],
)
def test_names_from_other_computers_are_found_by_base_name(tmp_path, function):
    make(tmp_path, rename(function))
    tables = check_read(tmp_path, "4 of 4 images are not in")
    assert [tables["val"].path(index).name for index in range(4)] == ["11.png", "12.png", "13.png", "14.png"]
    assert tables["train"].file_name(0) == "1.png"


def test_names_are_not_guessed_among_several_files(tmp_path):
    make(tmp_path, rename(lambda name: f"C:\\data\\{name}"), splits=("train",), folder="a")
    for copy in ("b", "c"):
        (tmp_path / copy).mkdir()
        picture(1).save(tmp_path / copy / "1.png")
    (tmp_path / "a" / "1.png").unlink()
    with pytest.warns(DataWarning, match="3 of 4 images"), pytest.raises(InputError, match=r"missing \(1 of 4"):
        recognise(tmp_path)["train"].read()


@pytest.mark.parametrize("folder", ["photos", "train2017", "deep/er/photos", "images/all"])
def test_image_folder_unlike_the_name_of_the_json(tmp_path, folder):
    make(tmp_path, folder=folder)
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").rename(tmp_path / f"annotations/custom_{split}.json")
    assert {split: source.images for split, source in recognise(tmp_path).items()} == dict.fromkeys(
        ("train", "val"), str(tmp_path / folder)
    )
    check_read(tmp_path)


def test_facemask_with_images_in_train2017():
    folder = SHARED_DATA / "facemask"
    if not folder.exists():
        pytest.skip("../shared/data/facemask is absent")
    tables, texts = read_all(folder)
    assert {split: (len(table), table.num_objects) for split, table in tables.items()} == {
        "train": (677, 3106),
        "val": (171, 915),
    }
    assert texts == [[], []]


def as_text(described):
    for record in described["annotations"][:3]:
        record["bbox"] = [str(record["bbox"][0]), *record["bbox"][1:3], f"{record['bbox'][3]:.4f}"]
    described["annotations"][4] |= {"area": " 375.0 ", "image_id": str(described["annotations"][4]["image_id"])}
    described["images"][0] |= {"id": str(described["images"][0]["id"]), "width": str(WIDTH)}


def as_decimals(described):
    for record in [*described["images"], *described["annotations"]]:
        record["id"] = float(record["id"])
    described["images"][1]["height"] = float(HEIGHT)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (as_text, "10 numbers are written as text and were read as numbers, the first '"),
        (as_decimals, "13 integers are written as decimals and were read as numbers, the first "),
    ],
)
def test_numbers_as_text_and_integers_as_decimals(tmp_path, change, note):
    tables = check_read(make(tmp_path / "odd", change), note)
    plain, _ = read_all(make(tmp_path / "plain"))
    for split, table in tables.items():
        assert table.fingerprint() == plain[split].fingerprint()


@pytest.mark.parametrize("value", ["1,5", "ten", "", "1.5.2", "0x10", "nan", None, [1]])
def test_text_that_is_no_number_is_an_error_and_a_finding(tmp_path, value):
    make(tmp_path, lambda c: c["annotations"][0].update(bbox=[1, 2, 3, value]))
    with pytest.raises(InputError, match=r"annotations\[0\] \(id 0\): "):
        recognise(tmp_path)["train"].read()
    assert count_kinds(examine(recognise(tmp_path)).findings)["broken_annotation"] == 2


@pytest.mark.parametrize("value", ["1.5", 1.5, 1e300, True])
def test_ids_that_are_no_integers_are_an_error(tmp_path, value):
    make(tmp_path, lambda c: c["images"][0].update(id=value))
    with pytest.raises(InputError, match=r"images\[0\] "):
        recognise(tmp_path)["train"].read()


def null_sizes(described):
    for record in described["images"]:
        record |= {"width": None, "height": None}


def zero_sizes(described):
    for record in described["images"]:
        record |= {"width": 0, "height": 0}


@pytest.mark.parametrize("change", [without_sizes, null_sizes, zero_sizes])
def test_sizes_that_are_not_given_are_read_from_the_images(tmp_path, change):
    tables = check_read(make(tmp_path, change), "4 of 4 images have no width and height")
    assert tables["train"].widths.tolist() == [WIDTH] * 4
    assert tables["train"].heights.tolist() == [HEIGHT] * 4


def test_sizes_from_images_are_upright_and_need_the_files(tmp_path):
    make(tmp_path, without_sizes, splits=("train",))
    exif = PILImage.Exif()
    exif[0x0112] = 6
    picture(1).save(tmp_path / "train/1.png", exif=exif)
    with pytest.warns(DataWarning, match="no width and height"):
        table = recognise(tmp_path)["train"].read()
    assert (table.widths[0], table.heights[0]) == (HEIGHT, WIDTH)
    (tmp_path / "train/2.png").unlink()
    with pytest.warns(DataWarning), pytest.raises(InputError, match=r"2.png: image file is missing \(1 of 1"):
        recognise(tmp_path)["train"].read()
    (tmp_path / "train/2.png").write_text("no image")
    with pytest.warns(DataWarning), pytest.raises(InputError, match=r"2.png: not an image"):
        recognise(tmp_path)["train"].read()


def test_one_side_without_the_other_is_an_error_and_a_finding(tmp_path):
    make(tmp_path, lambda c: c["images"][0].update(height=0))
    with pytest.raises(InputError, match="image id 1: width and height must be positive"):
        recognise(tmp_path)["train"].read()
    assert count_kinds(examine(recognise(tmp_path)).findings) == {"wrong_size": 2}


def test_json_without_annotations_is_left_out(tmp_path):
    make(tmp_path)
    images = {key: value for key, value in content().items() if key != "annotations"}
    file = write(tmp_path / "annotations/instances_test.json", images)
    with pytest.warns(DataWarning, match="instances_test.json: has images without a list `annotations`") as caught:
        assert list(recognise(tmp_path)) == ["train", "val"]
    assert len(caught) == 1
    with pytest.raises(InputError, match="expected a list `annotations`") as error:
        recognise(file)["test"].read()
    assert "\n" not in str(error.value)
    with pytest.warns(DataWarning):
        check_read(tmp_path)
    for split in ("train", "val"):  # none is usable: the reader says why
        (tmp_path / f"annotations/instances_{split}.json").unlink()
    with pytest.raises(InputError, match="expected a list `annotations`"):
        recognise(tmp_path)["test"].read()


def test_empty_annotations_are_a_valid_split_and_a_cut_file_is_an_error(tmp_path):
    make(tmp_path, lambda c: c.update(annotations=[]))
    assert {split: source.read().num_objects for split, source in recognise(tmp_path).items()} == {"train": 0, "val": 0}
    file = tmp_path / "annotations/instances_val.json"
    file.write_text(file.read_text()[:150])
    with pytest.raises(InputError, match="is the file complete"):
        recognise(tmp_path)["val"].read()


def test_no_image_at_all_is_an_empty_split(tmp_path):
    make(tmp_path, lambda c: c.update(annotations=[], images=[]), splits=("train",))
    assert len(recognise(tmp_path)["train"].read()) == 0
    assert {finding.kind for finding in examine(recognise(tmp_path)).findings} >= {"split_without_objects"}


def test_gzip_is_read_like_the_json(tmp_path):
    make(tmp_path)
    plain, _ = read_all(tmp_path)
    for split in ("train", "val"):
        file = tmp_path / f"annotations/instances_{split}.json"
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert all(source.annotations.endswith(".json") for source in recognise(tmp_path).values())
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").unlink()
    tables = check_read(tmp_path)
    assert {split: table.fingerprint() for split, table in tables.items()} == {
        split: table.fingerprint() for split, table in plain.items()
    }
    file = tmp_path / "annotations/instances_val.json.gz"
    assert list(data_arguments(file)) == ["name", "val"]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="gzip file is damaged"):
        recognise(tmp_path)["val"].read()


def category(number, name, parent=None):
    return {"id": number, "name": name} | ({} if parent is None else {"supercategory": parent})


@pytest.mark.parametrize(
    "categories",
    [
        [category(0, "things", "none"), category(1, "nut", "things"), category(2, "bolt", "things")],
        [category(0, "things", "none"), category(1, "nut", ""), category(2, "bolt", "")],
        [category(0, "things"), category(1, "nut", "things"), category(2, "bolt", "things")],
        [category(0, "nut", "none"), category(1, "nut", "nut"), category(2, "bolt", "nut")],
        [category(7, "nut"), category(1, "nut"), category(2, "bolt")],
    ],
)
def test_unused_root_and_unused_repeated_category_are_no_classes(tmp_path, categories):
    make(tmp_path, lambda c: c.update(categories=categories))
    tables = check_read(tmp_path, "it is not a class")
    for table in tables.values():
        assert (table.classes, table.class_ids.tolist()) == (("nut", "bolt"), [1, 2])
        assert table.labels.tolist() == [0, 1] * 4


def test_roots_that_may_be_classes_are_kept(tmp_path):
    roots = [category(0, "screw", "none"), category(1, "nut", "none"), category(2, "bolt", "none")]
    tables = check_read(make(tmp_path / "a", lambda c: c.update(categories=roots)))
    assert tables["val"].classes == ("screw", "nut", "bolt")
    used = [category(0, "part", "none"), category(1, "nut", "part"), category(2, "bolt", "part")]
    make(tmp_path / "b", lambda c: c.update(categories=used))
    file = tmp_path / "b/annotations/instances_train.json"
    described = json.loads(file.read_text())
    described["annotations"][0]["category_id"] = 0
    write(file, described)
    sources = recognise(tmp_path / "b")
    train = sources["train"].read()
    assert train.classes == ("part", "nut", "bolt")
    assert sources["val"].read(classes=train.classes).classes == train.classes
    assert "classes_differ" not in count_kinds(examine(sources).findings)


def test_two_categories_of_one_name_with_objects_are_an_error(tmp_path):
    make(tmp_path, lambda c: c.update(categories=[category(1, "nut"), category(2, "nut")]))
    with pytest.raises(InputError, match="category name 'nut' occurs 2 times"):
        recognise(tmp_path)["train"].read()
    inspection = examine(recognise(tmp_path))
    assert count_kinds(inspection.findings)["class_name_twice"] == 2
    write_cleaned(inspection, tmp_path / "copy")
    assert recognise(tmp_path / "copy")["train"].read().classes == ("nut",)


def test_borrat_has_one_class():
    if not (SHARED_DATA / "borrat").exists():
        pytest.skip("../shared/data/borrat is absent")
    tables, texts = read_all(SHARED_DATA / "borrat")
    assert {table.classes for table in tables.values()} == {("human",)}
    assert [len(text) for text in texts] == [1, 1]


def case(name):
    folder = SHARED_CASES / name
    if not folder.exists():
        pytest.skip(f"../shared/cases/{name} is absent")
    return folder


CASES = {  # name -> ((images, objects) of each split, notes a split, kinds of errors)
    "c01_ls_windows_names": ({"result": (8, 24)}, 1, set()),
    "c02_url_encoded": ({"train": (8, 24), "val": (4, 12)}, 1, set()),
    "c03_roboflow_string_bbox": ({"train": (8, 24), "val": (4, 12), "test": (4, 12)}, 2, set()),
    "c27_no_width_height": ({"train": (8, 24), "val": (4, 12)}, 1, set()),
    "c28c_float_ids": ({"train": (8, 24), "val": (4, 12)}, 1, set()),
    "c29_float_sizes": ({"train": (8, 24), "val": (4, 12)}, 2, set()),
    "c36_cvat_rotation": ({"train": (8, 24), "val": (4, 12)}, 1, set()),
    "c39_cvat_default": ({"default": (12, 36)}, 0, set()),
    "c65_bbox_not_its_polygon": ({"train": (8, 24), "val": (4, 12)}, 1, {"box_unlike_polygon"}),
    "c74_coco_empty_train": ({"train": (4, 0), "val": (3, 9)}, 0, {"split_without_objects"}),
    "c76_empty_train_json": ({"train": (0, 0), "val": (3, 9)}, 0, {"split_without_objects"}),
}


@pytest.mark.parametrize("name", CASES)
def test_shared_cases_are_read(name):
    folder = case(name)
    expected, notes, errors = CASES[name]
    tables, texts = read_all(folder)
    assert {split: (len(table), table.num_objects) for split, table in tables.items()} == expected
    assert {table.classes for table in tables.values()} == {("box", "disc")}
    assert [len(text) for text in texts] == [notes] * len(expected)
    sources = recognise(folder)
    findings = examine(sources).findings
    assert {finding.kind for finding in findings if finding.severity == "error"} == errors
    statistics = compute_statistics(name, sources)
    assert {split: (found.images, found.boxes) for split, found in statistics.splits.items()} == expected


def test_shared_case_of_polygons_lists_every_box():
    findings = examine(recognise(case("c65_bbox_not_its_polygon"))).findings
    assert count_kinds(findings) == {"box_unlike_polygon": 36}


def test_shared_case_of_corners_is_an_error():
    sources = recognise(case("c30_xyxy_bbox"))
    for source in sources.values():
        with pytest.raises(InputError, match="only as x1 y1 x2 y2"):
            source.read()
    assert count_kinds(examine(sources).findings)["boxes_are_corners"] == 2


def test_shared_case_of_a_test_split_without_annotations():
    with pytest.warns(DataWarning, match=r"instances_test.json: .*left out"):
        sources = recognise(case("c33_test_without_annotations"))
    assert {split: len(source.read()) for split, source in sources.items()} == {"train": 8, "val": 4}
    assert examine(sources).findings == []
