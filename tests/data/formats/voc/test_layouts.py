import numpy as np
import pytest
from paths import SHARED_CASES, SHARED_DATA
from PIL import Image as PILImage

from zoo.data.formats.recognise import data_arguments, recognise
from zoo.data.formats.voc import Voc
from zoo.data.module import DetectionDataModule
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.source import DataWarning
from zoo.errors import InputError


def write_xml(path, inside="", name="dog", box=(1, 1, 20, 10), size=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    edges = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    thing = f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>"
    pixels = "<size><width>40</width><height>30</height><depth>3</depth></size>" if size else ""
    path.write_text(f"<annotation>{inside}{pixels}{thing}</annotation>")


def write_image(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (40, 30), (colour % 256, colour * 7 % 256, 90)).save(path)


def images_of(source, root):
    table = source.read()
    return [table.path(index).relative_to(root).as_posix() for index in range(len(table))]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        (".", "."),
        ("annotations", "images"),
        ("Annotations", "JPEGImages"),
        ("ANNOTATIONS", "Images"),
        ("xmls", "pictures"),
        ("annotations", "some photos"),
        ("annotations/first", "images/first"),
        ("labels", "images"),
        ("export/xml", "export/img"),
    ],
)
def test_folders_without_splits_are_one_split(tmp_path, annotations, images):
    for number, suffix in enumerate((".jpg", ".JPG", ".png")):
        write_xml(tmp_path / annotations / f"pic {number}.xml")
        write_image(tmp_path / images / f"pic {number}{suffix}", number)
    found = recognise(tmp_path)
    assert list(found) == ["all"]
    expected = [
        (tmp_path / images / name).relative_to(tmp_path).as_posix() for name in ("pic 0.jpg", "pic 1.JPG", "pic 2.png")
    ]
    assert images_of(found["all"], tmp_path) == expected
    assert examine(found).num_errors == 0
    with pytest.raises(InputError, match="the splits are all"):
        data_arguments(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("{}", "{}"),
        ("{}/annotations", "{}/images"),
        ("images/{}", "images/{}"),
        ("annotations/{}", "images/{}"),
        ("annotations/{}", "images"),
        ("annotations/{}", "pics/{}"),
        ("annotations/{}", "images/{}_2017"),
        ("{}_annotations", "{}_images"),
        ("{}_zip/{}", "{}_zip/{}"),
    ],
)
def test_sub_folders_are_splits(tmp_path, annotations, images):
    for number, split in enumerate(("train", "valid", "test")):
        stem = f"pic{number}" if images == "images" else "pic"  # the same names in all splits
        write_xml(tmp_path / annotations.format(split, split) / f"{stem}.xml")
        write_image(tmp_path / images.format(split, split) / f"{stem}.jpg", number)
    found = recognise(tmp_path)
    assert list(found) == ["train", "val", "test"]
    for number, (source, split) in enumerate(zip(found.values(), ("train", "valid", "test"), strict=True)):
        stem = f"pic{number}" if images == "images" else "pic"
        assert images_of(source, tmp_path) == [f"{images.format(split, split)}/{stem}.jpg"]
    assert examine(found).num_errors == 0
    assert list(data_arguments(tmp_path)) == ["name", "train", "val", "test"]


@pytest.mark.parametrize("images", ["images/{}", "pics/{}", "images/{}ing", "{}/images"])
def test_missing_image_is_not_taken_from_another_split(tmp_path, images):
    for number, split in enumerate(("train", "test")):
        for stem in "ab":
            write_xml(tmp_path / "annotations" / split / f"{stem}.xml")
            write_image(tmp_path / images.format(split) / f"{stem}.jpg", number)
    (tmp_path / images.format("train") / "b.jpg").unlink()
    found = recognise(tmp_path)
    with pytest.raises(InputError, match=r"b.jpg: image file is missing \(1 of 2"):
        found["train"].read()
    assert images_of(found["test"], tmp_path) == [f"{images.format('test')}/{stem}.jpg" for stem in "ab"]


def test_folders_of_one_split_are_joined(tmp_path):
    for number, folder in enumerate(("north/train", "south/train", "north/test")):
        write_xml(tmp_path / folder / "a.xml")
        write_image(tmp_path / folder / "a.jpg", number)
    found = recognise(tmp_path)
    assert images_of(found["train"], tmp_path) == ["north/train/a.jpg", "south/train/a.jpg"]
    assert images_of(found["test"], tmp_path) == ["north/test/a.jpg"]


def test_folders_of_classes_are_not_splits(tmp_path):
    for number, name in enumerate(("bus", "train")):
        write_xml(tmp_path / name / "a.xml", name=name)
        write_image(tmp_path / name / "a.jpg", number)
    found = recognise(tmp_path)
    assert list(found) == ["all"]
    assert images_of(found["all"], tmp_path) == ["bus/a.jpg", "train/a.jpg"]
    write_cleaned(examine(found), tmp_path / "out")
    table = recognise(tmp_path / "out")["all"].read()
    assert [table.file_name(index) for index in range(2)] == ["bus/a.jpg", "train/a.jpg"]
    assert [table.classes[label] for label in table.labels] == ["bus", "train"]


@pytest.mark.parametrize("lists", ["ImageSets/Main", "ImageSets"])
def test_lists_with_other_names_of_folders(tmp_path, lists):
    (tmp_path / lists).mkdir(parents=True)
    for number, split in enumerate(("train", "val")):
        write_xml(tmp_path / "annotations" / f"{split}.xml")
        write_image(tmp_path / "images" / f"{split}.png", number)
        (tmp_path / lists / f"{split}.txt").write_text(f"{split}\n")
    found = recognise(tmp_path)
    assert images_of(found["train"], tmp_path) == ["images/train.png"]
    assert images_of(found["val"], tmp_path) == ["images/val.png"]


def test_other_xml_files_are_skipped_with_a_note(tmp_path):
    write_xml(tmp_path / "a.xml")
    write_image(tmp_path / "a.jpg")
    (tmp_path / "project.xml").write_text("<project/>")
    (tmp_path / "._a.xml").write_bytes(b"\0\1")
    (tmp_path / ".idea").mkdir()
    (tmp_path / ".idea/workspace.xml").write_text("<project/>")
    found = recognise(tmp_path)
    with pytest.warns(DataWarning, match=r"1 of 2 xml files are skipped, .*project.xml") as warned:
        assert len(found["all"].read()) == 1
    assert len(warned) == 1
    assert [finding.kind for finding in examine(found).findings].count("interpreted") == 1


def test_other_data_with_xml_files_is_not_voc(tmp_path):
    (tmp_path / "pom.xml").write_text("<?xml version='1.0'?><!-- <annotation> --><project/>")
    with pytest.raises(InputError, match="not recognised"):
        recognise(tmp_path)


def test_images_with_other_names_than_their_xml_files(tmp_path):
    write_xml(tmp_path / "xml/1.xml", inside="<filename>first.png</filename>")
    write_xml(tmp_path / "xml/2.xml", inside=r"<filename>x</filename><path>C:\data\second.JPG</path>")
    write_xml(tmp_path / "xml/3.xml", inside="<filename>third</filename>")
    write_xml(tmp_path / "xml/4.xml", inside="<filename>first.png</filename>")
    for number, name in enumerate(("first.png", "second.JPG", "third.jpg", "4.jpg")):
        write_image(tmp_path / "images" / name, number)
    found = recognise(tmp_path)
    with pytest.warns(
        DataWarning, match=r"3 of 4 images do not have the name of their xml file .*first.png of .*1.xml"
    ):
        assert images_of(found["all"], tmp_path / "images") == ["first.png", "second.JPG", "third.jpg", "4.jpg"]
    assert [finding.kind for finding in examine(found).findings].count("interpreted") == 1
    (tmp_path / "images/4.jpg").unlink()
    with pytest.raises(InputError, match=r"4.xml: image .*first.png has two xml files, .*1.xml and this one"):
        found["all"].read()
    assert [finding.kind for finding in examine(found).findings if finding.severity == "error"] == [
        "image_listed_twice"
    ]


def test_several_images_of_one_name(tmp_path):
    write_xml(tmp_path / "xml/a.xml", inside="<filename>a.jpg</filename>")
    write_image(tmp_path / "data/photos/a.jpg")
    write_image(tmp_path / "data/masks/a.png")
    source = Voc([str(tmp_path)], None, images="data", annotations="xml")
    assert images_of(source, tmp_path) == ["data/photos/a.jpg"]  # the name in the xml file
    write_xml(tmp_path / "xml/a.xml")
    with pytest.raises(InputError, match=r"a.xml: 2 images have the name of this file \(.*masks/a.png and .*photos"):
        source.read()
    assert examine({"all": source}).num_errors == 1
    write_image(tmp_path / "data/xml/a.png")  # in the folder with the same path
    source = Voc([str(tmp_path)], None, images="data", annotations=".")
    assert images_of(source, tmp_path) == ["data/xml/a.png"]


def test_missing_image_and_no_xml_file(tmp_path):
    write_xml(tmp_path / "a.xml", inside="<filename>a.png</filename>")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a.png: image file is missing \(1 of 1"):
        recognise(tmp_path)["all"].read()
    with pytest.raises(InputError, match="empty: no xml file"):
        Voc([str(tmp_path)], None, images=".", annotations="empty").read()


def test_a_data_yaml_makes_it_yolo(tmp_path):
    write_xml(tmp_path / "images/a.xml")
    write_image(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [dog]\n")
    assert list(recognise(tmp_path)) == ["train"]


def test_cleaned_copy_keeps_images_of_equal_names_apart(tmp_path):
    for number, split in enumerate(("train", "test")):
        write_xml(tmp_path / "in/images" / split / "a.xml", box=(1 + number, 2, 30, 20))
        write_image(tmp_path / "in/images" / split / "a.png", number)
    write_cleaned(examine(recognise(tmp_path / "in")), tmp_path / "out")
    again = recognise(tmp_path / "out")
    assert list(again) == ["train", "test"]
    for number, source in enumerate(again.values()):
        table = source.read()
        assert table.boxes.tolist() == [[number, 1, 30, 20]]
        assert source.load_image(table, 0)[0, 0, 0] == number


def test_classes_that_only_one_split_has(tmp_path):
    for number, (split, name) in enumerate((("train", "dog"), ("val", "ring"), ("test", "axe"))):
        write_xml(tmp_path / split / f"{number}.xml", name=name)
        write_image(tmp_path / split / f"{number}.png", number)
    found = recognise(tmp_path)
    data = DetectionDataModule(**found)
    for split, label in (("test", 0), ("val", 2), ("train", 1)):
        assert data.table(split).classes == ("axe", "dog", "ring")
        assert data.table(split).labels.tolist() == [label]
        assert data.table(split).class_ids.tolist() == [1, 2, 3]
    assert data.class_names == next(iter(examine(found).raws.values())).classes
    assert examine(found).num_errors == 0


def case(name):
    path = SHARED_CASES / name
    if not path.exists():
        pytest.skip(f"../shared/cases/{name} is absent")
    return path


def read_all(path, num_images, num_objects):
    found = recognise(path)
    inspection = examine(found)
    assert inspection.num_errors == 0
    tables = {split: source.read() for split, source in found.items()}
    assert sum(map(len, tables.values())) == num_images
    assert sum(table.num_objects for table in tables.values()) == num_objects
    return found, tables


def test_case_of_labelimg():
    found, tables = read_all(case("c18_labelimg_folders"), 12, 36)
    assert list(found) == ["all"]
    assert tables["all"].classes == ("box", "disc")


def test_case_of_parts_and_odd_order():
    found, tables = read_all(case("c24_voc_order_parts"), 12, 36)
    assert list(found) == ["train", "val"]
    assert not any(table.difficult.any() for table in tables.values())
    assert tables["train"].boxes[0].tolist() == [69, 73, 97, 109]
    assert DetectionDataModule(**found).class_names == ("box", "disc")


def test_case_of_a_class_that_only_val_has():
    found, _ = read_all(case("c26_voc_class_only_in_val"), 12, 36)
    data = DetectionDataModule(**found)
    assert data.class_names == data.table("val").classes == ("box", "disc", "ring")
    assert examine(found).raws["train"].classes == data.class_names
    assert np.bincount(data.table("val").labels, minlength=3)[2] == 3


def test_real_cards():
    root = SHARED_DATA / "cards"
    if not root.exists():
        pytest.skip("../shared/data/cards is absent")
    tables = {split: source.read(strict=True) for split, source in recognise(root).items()}
    assert {split: (len(table), table.num_objects) for split, table in tables.items()} == {
        "train": (296, 527),
        "test": (67, 143),
    }
    assert tables["test"].classes == ("ace", "jack", "king", "nine", "queen", "ten")
