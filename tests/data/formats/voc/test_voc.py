import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED_DATA
from PIL import Image as PILImage

from zoo.data.formats.voc import Voc, read_voc, write_voc
from zoo.data.quality.doctor import examine
from zoo.data.source import DataWarning
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.class_names import VOC_CLASSES

PERSON = """<object><name>person</name><difficult>1</difficult>
 <bndbox><xmax>349</xmax><xmin>174</xmin><ymin>101</ymin><ymax>351</ymax></bndbox>
 <part><name>head</name><bndbox><xmin>180</xmin><ymin>110</ymin><xmax>200</xmax><ymax>130</ymax></bndbox></part></object>"""


def thing(name="dog", box=(1, 1, 20, 10)):
    edges = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>"


def make_root(root, images, split="train"):
    """VOC folder; `images` maps stems to the xml of their objects."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, objects in images.items():
        size = "<size><width>400</width><height>360</height><depth>3</depth></size>"
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (root / "JPEGImages" / f"{stem}.jpg").touch()
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n\n")
    return str(root)


def test_inclusive_pixels_become_edges_and_parts_are_ignored(tmp_path):
    table = Voc([make_root(tmp_path, {"a": PERSON, "b": ""})], "train").read()
    assert table.classes == VOC_CLASSES
    assert table.boxes.tolist() == [[173, 100, 349, 351]]
    assert table.difficult.tolist() == [True]
    assert table.offsets.tolist() == [0, 1, 1]
    assert VOC_CLASSES[table.labels[0]] == "person"


@pytest.mark.parametrize(
    ("item", "box", "difficult"),
    [
        ("<difficult/>", (0, 0, 20, 10), False),
        ("<difficult> 1 </difficult>", (0, 0, 20, 10), True),
        ("<difficult>True</difficult>", (0, 0, 20, 10), True),
        ("<difficult>false</difficult>", (0, 0, 20, 10), False),
        ("<difficult>Unspecified</difficult>", (0, 0, 20, 10), False),
        ("<part><name>x</name><bndbox><xmin>5.5</xmin><ymin>5</ymin></bndbox></part>", (0, 0, 20, 10), False),
        (
            "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax> 20 </xmax><ymax>\n10.0</ymax></bndbox>",
            (0, 0, 20, 10),
            False,
        ),
    ],
)
def test_unusual_objects(tmp_path, item, box, difficult):
    root = make_root(tmp_path, {"a": thing("person").replace("<object>", f"<object>{item}")})
    table = Voc([root], "train").read()
    assert table.boxes.tolist() == [list(box)]
    assert table.difficult.tolist() == [difficult]
    assert examine({"train": Voc([root], "train")}).num_errors == 1  # the image file is empty


def test_object_with_two_different_boxes_is_an_error(tmp_path):
    other = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    root = make_root(tmp_path, {"a": thing().replace("</object>", other)})
    with pytest.raises(InputError, match=r"a.xml: object 1 \(dog\): object has 2 different <bndbox>"):
        Voc([root], "train").read()


def test_coordinates_with_decimals_are_edges(tmp_path):
    boxes = thing("cat", (10.5, 20, 30, 40)) + thing("dog", (1, 1, 5, 6))
    root = make_root(
        tmp_path, {"a": boxes, "b": thing("dog", ("2.0", "3.00", 30, 40)), "c": thing("cat", (0, 0, 8.25, 9))}
    )
    message = r"train.txt: 2 of 3 xml files have coordinates with decimals, which are read as edges .*a.xml"
    with pytest.warns(DataWarning, match=message) as warned:
        table = Voc([root], "train").read()
    assert len(warned) == 1
    assert table.boxes.tolist() == [[10.5, 20, 30, 40], [1, 1, 5, 6], [1, 2, 30, 40], [0, 0, 8.25, 9]]
    findings = examine({"train": Voc([root], "train")}).findings
    assert [finding.kind for finding in findings].count("interpreted") == 1


def test_names_with_blanks_in_split_files(tmp_path):
    names = ["pic 04", "my photo 1", "plain", "pic (2)", "x.y.z 9", "copy 1", "quoted name", "with suffix"]
    root = make_root(tmp_path, dict.fromkeys(names, ""))
    lines = [
        "pic 04",
        "my photo 1  -1",
        "plain 1",
        "pic (2)   0",
        "x.y.z 9",
        "copy 1",
        '"quoted name"',
        "with suffix.jpg",
    ]
    (tmp_path / "ImageSets/Main/train.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    table = Voc([root], "train").read()
    assert [table.file_name(index) for index in range(len(table))] == [f"{name}.jpg" for name in names]
    (tmp_path / "ImageSets/Main/train.txt").write_text("not there 1\n")
    with pytest.raises(InputError, match=r"Annotations/not there.xml: annotation file is missing"):
        Voc([root], "train").read()


@pytest.mark.parametrize(
    "size", ["", "<size/>", "<size><width/><height> </height></size>", "<size><width>0</width></size>"]
)
def test_sizes_that_are_missing_are_those_of_the_image(tmp_path, size):
    root = make_root(tmp_path, {"a": thing()})
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}{thing()}</annotation>")
    PILImage.new("RGB", (37, 21)).save(tmp_path / "JPEGImages/a.jpg")
    table = Voc([root], "train").read()
    assert (table.widths[0], table.heights[0]) == (37, 21)


def test_size_with_blanks(tmp_path):
    root = make_root(tmp_path, {"a": thing()})
    size = "<size><width> 400\n</width><height>\t360.0</height></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}{thing()}</annotation>")
    table = Voc([root], "train").read()
    assert (table.widths[0], table.heights[0]) == (400, 360)


def test_union_of_roots_and_split_files_of_one_class(tmp_path):
    first = make_root(tmp_path / "VOC2007", {"1": thing("cat")})
    second = make_root(tmp_path / "VOC2012", {"1": thing("cow"), "2": ""})
    (tmp_path / "VOC2012/ImageSets/Main/train.txt").write_text("2  -1\n1   1\n")
    table = Voc([first, second], "train").read()
    assert [str(table.path(i).relative_to(tmp_path)) for i in range(3)] == [
        "VOC2007/JPEGImages/1.jpg",
        "VOC2012/JPEGImages/2.jpg",
        "VOC2012/JPEGImages/1.jpg",
    ]
    assert table.image_ids.tolist() == [1, 2, 3]


def test_classes_from_annotations_source_and_other_split(tmp_path):
    root = make_root(tmp_path, {"a": thing("RBC") + thing("WBC")})
    assert Voc([root], "train").read().classes == ("RBC", "WBC")
    assert Voc([root], "train", ["WBC", "RBC"]).read(classes=("x",)).labels.tolist() == [1, 0]
    assert Voc([root], "train").read(classes=("P", "RBC", "WBC")).labels.tolist() == [1, 2]
    with pytest.raises(InputError, match=r"a.xml: object 2 \(WBC\): class 'WBC' is not one of RBC"):
        Voc([root], "train", ["RBC"]).read()


def test_images_of_other_suffixes_and_sizes_from_the_image(tmp_path):
    root = Path(make_root(tmp_path, {"a": thing()}))
    (root / "JPEGImages/a.jpg").unlink()
    PILImage.new("RGB", (37, 21)).save(root / "JPEGImages/a.PNG", format="png")
    (root / "Annotations/a.xml").write_text(
        f"<annotation><size><width>0</width><height>0</height></size>{thing()}</annotation>"
    )
    table = Voc([str(root)], "train").read()
    assert table.file_name(0) == "a.PNG"
    assert (table.widths[0], table.heights[0]) == (37, 21)


def test_first_suffix_is_used_for_two_images_with_one_stem(tmp_path, monkeypatch):
    root = make_root(tmp_path, {"a": thing()})
    (tmp_path / "JPEGImages/a.png").touch()
    scandir = os.scandir
    for backwards in (False, True):

        @contextmanager
        def ordered(folder, backwards=backwards):
            with scandir(folder) as entries:
                yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

        monkeypatch.setattr(os, "scandir", ordered)
        assert read_voc([root], "train").file_name(0) == "a.jpg"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>\n <object></annotation>", r"a.xml: line 2, column 12: xml does not parse: mismatched tag"),
        (f"<annotation>{thing(box=(1, 1, 'x', 9))}</annotation>", r"object 1 \(dog\): <bndbox><xmax> is 'x'"),
        ("<annotation><object><name>dog</name></object></annotation>", r"object 1 \(dog\): <bndbox><xmin> is missing"),
        ("<annotation><object></object></annotation>", r"object 1: object has no name"),
        ("<annotation><size><width>NaN</width><height>9</height></size></annotation>", "size: size is NaN x 9"),
        ("<annotation><size><width>9</width><height>inf</height></size></annotation>", "size: size is 9 x Infinity"),
        ("<annotation><size><width>99999999999</width><height>9</height></size></annotation>", "width> is 99999999999"),
        ("<annotation><size><width>1e999999999</width><height>9</height></size></annotation>", "width> is 1E"),
        (f"<annotation>{thing(box=(1, 1, '1e999999999', 9))}</annotation>", r"object 1 \(dog\): .*xmax> is 1E"),
        (f"<annotation>{thing(box=('sNaN', 1, 2, 9))}</annotation>", r"object 1 \(dog\): .*xmin> is sNaN"),
        ('<?xml version="1.0" encoding="gb2312"?><annotation/>', "a.xml: xml does not parse: .*multi-byte"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml: xml does not parse: unknown encoding"),
    ],
)
def test_bad_xml_is_an_error_with_file_and_place_and_a_finding(tmp_path, xml, message):
    root = make_root(tmp_path, {"a": ""})
    (tmp_path / "Annotations/a.xml").write_text(xml)
    with pytest.raises(InputError, match=message) as caught:
        Voc([root], "train").read()
    assert "\n" not in str(caught.value)
    kinds = [finding.kind for finding in examine({"train": Voc([root], "train")}).findings]
    assert kinds.count("broken_annotation") == 1


def test_missing_files(tmp_path):
    root = make_root(tmp_path, {"a": "", "b": ""})
    with pytest.raises(InputError, match=r"test.txt: split file is missing"):
        Voc([root], "test").read()
    (tmp_path / "JPEGImages/b.jpg").unlink()
    with pytest.raises(InputError, match=r"b.jpg: image file is missing"):
        Voc([root], "train").read()
    (tmp_path / "Annotations/a.xml").unlink()
    with pytest.raises(InputError, match=r"a.xml: annotation file is missing"):
        Voc([root], "train").read()
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\nb\n")
    with pytest.raises(InputError, match=r"train.txt: entry 2: image b is listed twice"):
        Voc([root], "train").read()
    with pytest.raises(InputError, match="no folder given"):
        Voc([]).read()


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((9, 9, 9, 9), "no area"),
        ((20, 5, 10, 9), "reversed"),
        (("nan", 5, 10, 9), "not a finite"),
        ((500, 5, 510, 9), "lies outside its image of 400x360"),
    ],
)
def test_bad_boxes(tmp_path, box, why):
    root = make_root(tmp_path, {"a": thing() + thing("cat", box), "b": thing("cat", box)})
    with pytest.warns(DataWarning, match=rf"2 bad boxes skipped, the first in .*a.xml: object 2 \(cat\): .*{why}"):
        assert Voc([root], "train").read().num_objects == 1
    with pytest.raises(InputError, match=rf"a.xml: object 2 \(cat\): .*{why}.*2 bad boxes in all"):
        Voc([root], "train").read(strict=True)


edge = st.one_of(st.integers(0, 300), st.floats(0, 300, width=64), st.integers(0, 1200).map(lambda n: n / 4))


@given(st.lists(st.tuples(edge, edge, edge, edge, st.booleans()), max_size=5))
@settings(max_examples=30, deadline=None)
def test_round_trip_is_exact(tmp_path_factory, objects):
    root = tmp_path_factory.mktemp("voc")
    boxes = np.array([o[:4] for o in objects], np.float64).reshape(-1, 4)
    boxes = np.stack(
        [boxes[:, [0, 2]].min(1), boxes[:, [1, 3]].min(1), boxes[:, [0, 2]].max(1), boxes[:, [1, 3]].max(1)], 1
    )
    boxes[boxes < 1e-6] = 0  # beyond the 28 digits of Decimal
    sizes = boxes[:, 2:] - boxes[:, :2]
    good = (sizes > 1e-3).all(1) & ~(sizes == 1).all(1)  # one pixel is read as a box without area
    table = AnnotationTable.from_rows(
        classes=["a & b", "<c>"],
        image_ids=np.array([1, 2]),
        widths=np.array([300, 300]),
        heights=np.array([300, 300]),
        file_names=["x.jpg", "y.jpg"],
        image_index=np.arange(good.sum()) % 2,
        boxes=boxes[good],
        labels=np.arange(good.sum()) % 2,
        difficult=np.array([o[4] for o in objects], bool)[good],
    )
    write_voc(table, root, "train")
    again = read_voc([root], "train", table.classes)
    assert np.array_equal(again.boxes, table.boxes)
    assert np.array_equal(again.labels, table.labels)
    assert np.array_equal(again.difficult, table.difficult)
    assert np.array_equal(again.offsets, table.offsets)


def test_integers_are_written_without_decimals(tmp_path):
    root = make_root(tmp_path / "in", {"a": thing(box=(3, 4, 30, 40))})
    write_voc(Voc([root], "train").read(), tmp_path / "out", "train")
    text = (tmp_path / "out/Annotations/a.xml").read_text()
    assert "<xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax>" in text


@pytest.mark.filterwarnings("ignore:.*bad box")
def test_real_bccd():
    root = SHARED_DATA / "bccd"
    if not root.exists():
        pytest.skip("../shared/data/bccd is absent")
    tables = {split: Voc([str(root)], split).read() for split in ("train", "val", "trainval", "test")}
    assert {split: len(table) for split, table in tables.items()} == {
        "train": 205,
        "val": 87,
        "trainval": 292,
        "test": 72,
    }
    assert tables["test"].classes == ("Platelets", "RBC", "WBC")
    # 4,155 RBC, of which two have no area
    counts = sum(np.bincount(tables[split].labels) for split in ("trainval", "test"))
    assert counts.tolist() == [361, 4153, 372]
    with pytest.raises(
        InputError, match=r"BloodImage_00338.xml: object \d+ \(RBC\): .* has no area \(2 bad boxes in all"
    ):
        Voc([str(root)], "trainval").read(strict=True)
    source = Voc([str(root)], "val")
    assert source.load_image(tables["val"], 0).shape == (3, 480, 640)


def test_real_voc():
    root = SHARED_DATA / "voc100"
    if not root.exists():
        pytest.skip("../shared/data/voc100 is absent")
    train, val = (Voc([str(root)], split).read(strict=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (60, 40)
    assert train.num_objects + val.num_objects == 273
    assert train.difficult.sum() + val.difficult.sum() == 38
    assert train.classes == VOC_CLASSES
    assert set(np.concatenate([train.labels, val.labels])) == set(range(20))
    for index in range(5):
        assert Voc([str(root)], "val").load_image(val, index).shape == (3, val.heights[index], val.widths[index])


def test_images_of_one_name_in_one_folder_cannot_be_written(tmp_path):
    def table(*names):
        return AnnotationTable.from_rows(
            classes=["nut"],
            image_ids=np.array([1, 2]),
            widths=np.array([9, 9]),
            heights=np.array([9, 9]),
            file_names=names,
            image_index=np.zeros(0, np.int64),
            boxes=np.zeros((0, 4)),
            labels=np.zeros(0, np.int64),
        )

    with pytest.raises(InputError, match="two images have the same name without suffix"):
        write_voc(table("x/a.jpg", "x/a.png"), tmp_path, "train")
    write_voc(table("x/a.jpg", "y/a.jpg"), tmp_path, "train")
    assert (tmp_path / "ImageSets/Main/train.txt").read_text() == "x/a\ny/a\n"
