"""Tiny data sets in three formats, sound but for one fault each; what the doctor says of them, and its copy of them."""

import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import SHARED_DATA
from PIL import Image as PILImage

from zoo.cli.main import main
from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.recognise import recognise
from zoo.data.formats.shapes import Shapes
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.formats.yolo import write_yolo
from zoo.data.quality.cleaning import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import KINDS, count_kinds
from zoo.data.quality.image_files import bit_distances, find_near_duplicates, fingerprint
from zoo.data.table import AnnotationTable
from zoo.errors import InputError

WIDTH, HEIGHT = 96, 64
FORMATS = ("coco", "voc", "yolo")


def picture(seed):
    """[H, W, 3] with something to see at low frequencies, another for each seed."""
    rough = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return PILImage.fromarray(rough).resize((WIDTH, HEIGHT), PILImage.Resampling.BICUBIC)


def table_of(split):
    """Three images with a nut and a bolt each."""
    start = {"train": 1, "val": 4}[split]
    boxes = [[[10 + i, 10, 40, 40], [50, 20 + i, 80, 50]] for i in range(3)]
    return AnnotationTable.from_rows(
        classes=("nut", "bolt"),
        image_ids=np.arange(start, start + 3),
        widths=np.full(3, WIDTH),
        heights=np.full(3, HEIGHT),
        file_names=[f"{start + i}.png" for i in range(3)],
        image_index=np.repeat(np.arange(3), 2),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.tile([0, 1], 3),
    )


def make(root, form):
    """A sound data set of two splits."""
    for split in ("train", "val"):
        table = table_of(split)
        if form == "coco":
            write_coco(table, root / "annotations" / f"instances_{split}.json")
        elif form == "voc":
            write_voc(table, root, split)
        else:
            write_yolo(table, root, split)
        for index in range(3):
            number = int(table.image_ids[index])
            path = image_path(root, form, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path)
    return root


def image_path(root, form, number):
    split = "train" if number < 4 else "val"
    folder = {"coco": split, "voc": "JPEGImages", "yolo": f"images/{split}"}[form]
    return root / folder / f"{number}.png"


def json_path(root, split="train"):
    return root / "annotations" / f"instances_{split}.json"


def edit_json(root, change, splits=("train",)):
    for split in splits:
        content = json.loads(json_path(root, split).read_text())
        change(content)
        json_path(root, split).write_text(json.dumps(content))


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def counts(root):
    return count_kinds(examine(recognise(root)).findings)


@pytest.mark.parametrize("form", FORMATS)
def test_a_sound_data_set_has_no_finding(tmp_path, form):
    inspection = examine(recognise(make(tmp_path, form)))
    assert inspection.findings == []
    assert (inspection.num_errors, inspection.num_warnings) == (0, 0)


def set_box(row, bbox):
    return lambda content: content["annotations"][row].update(bbox=bbox)


def duplicate_image_id(content):
    content["images"][1]["id"] = 1
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]


def crowd_of_cats(content):
    for number in range(150):
        x, y = 6 * (number % 14), 5 * (number // 14)
        box = {"id": 100 + number, "image_id": 1, "category_id": 1, "bbox": [x, y, 5, 4], "area": 20, "iscrowd": 0}
        content["annotations"].append(box)


BOTH = ("train", "val")
# kind -> what is done to the json, in which splits, and what else follows from it
COCO_FAULTS = {
    "broken_annotation": (set_box(0, [1, 2, 3]), ("train",), {}),
    "image_listed_twice": (lambda c: c["images"].append(c["images"][0]), ("train",), {}),
    "image_id_twice": (duplicate_image_id, ("train",), {}),
    "annotation_id_twice": (lambda c: c["annotations"][1].update(id=1), ("train",), {}),
    "class_id_twice": (
        lambda c: c["categories"].append({"id": 1, "name": "bird"}),
        BOTH,
        {"class_without_objects": 1},
    ),
    "unknown_image": (lambda c: c["annotations"][0].update(image_id=77), ("train",), {}),
    "unknown_class": (lambda c: c["annotations"][0].update(category_id=77), ("train",), {}),
    "class_names_alike": (
        lambda c: (c["categories"].append({"id": 3, "name": " Nut"}), c["annotations"][0].update(category_id=3)),
        BOTH,
        {},
    ),
    "classes_differ": (lambda c: c["categories"][1].update(name="wolf"), ("val",), {"class_not_trained": 1}),
    "box_not_finite": (set_box(0, [float("nan"), 5, 9, 9]), ("train",), {}),
    "box_reversed": (set_box(0, [40, 40, -30, 0.5 - 30]), ("train",), {}),
    "box_without_area": (set_box(0, [10, 10, 0, 30]), ("train",), {}),
    "box_outside": (set_box(0, [WIDTH + 2, 5, 9, 9]), ("train",), {}),
    "box_doubled": (lambda c: c["annotations"].append(c["annotations"][0] | {"id": 99}), ("train",), {}),
    "box_nearly_doubled": (
        lambda c: c["annotations"].append(c["annotations"][0] | {"id": 99, "bbox": [10, 10, 30, 29]}),
        ("train",),
        {},
    ),
    "box_sticks_out": (set_box(0, [-4, 5, 30, 30]), ("train",), {}),
    "box_tiny": (set_box(0, [4, 5, 30, 1.5]), ("train",), {}),
    "wrong_size": (lambda c: c["images"][0].update(width=WIDTH + 9), ("train",), {}),
    "image_without_objects": (
        lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 1]),
        ("train",),
        {},
    ),
    "class_without_objects": (lambda c: c["categories"].append({"id": 3, "name": "bird"}), BOTH, {}),
    "class_not_trained": (
        lambda c: [a.update(category_id=1) for a in c["annotations"]],
        ("train",),
        {},
    ),
    "unbalanced_classes": (crowd_of_cats, ("train",), {}),
}


@pytest.mark.parametrize("kind", COCO_FAULTS)
def test_each_fault_of_a_json_is_found_alone_and_mended(tmp_path, kind):
    change, splits, follows = COCO_FAULTS[kind]
    root = make(tmp_path / "a", "coco")
    edit_json(root, change, splits)
    inspection = examine(recognise(root))
    times = len(splits) if kind in ("class_id_twice", "class_names_alike") else 1
    assert count_kinds(inspection.findings) == {kind: times, **follows}
    finding = next(finding for finding in inspection.findings if finding.kind == kind)
    assert finding.file.startswith(str(root))
    assert finding.message
    check_the_copy(inspection, root, tmp_path / "copy")


def check_the_copy(inspection, root, out):
    """Nothing is left that has a remedy, the list says what was done, and the original is as it was."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    changes = write_cleaned(inspection, out)
    left = count_kinds(examine(recognise(out)).findings)
    assert not [kind for kind in left if KINDS[kind].remedy], left
    mended = [finding for finding in inspection.findings if KINDS[finding.kind].remedy]
    assert len(changes) >= len(mended)
    assert len(json.loads((out / "changes.json").read_text())) == len(changes)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert not list(out.parent.glob(".*.partial"))


def remove_image(root, form):
    image_path(root, form, 1).unlink()


def cut_image(root, form):
    path = image_path(root, form, 1)
    path.write_bytes(path.read_bytes()[:-900])


def no_image(root, form):
    image_path(root, form, 1).write_text("hello")


def turn_image(root, form):
    exif = PILImage.Exif()
    exif[0x0112] = 3
    picture(1).save(image_path(root, form, 1), exif=exif)


def share_image(root, form):
    shutil.copyfile(image_path(root, form, 2), image_path(root, form, 5))


def share_encoded_image(root, form):
    small = picture(2).resize((WIDTH // 2, HEIGHT // 2)).resize((WIDTH, HEIGHT))
    small.save(image_path(root, form, 5), format="jpeg", quality=60)


def repeat_image(root, form):
    shutil.copyfile(image_path(root, form, 2), image_path(root, form, 3))


def add_image(root, form):
    picture(50).save(image_path(root, form, 1).with_name("new.png"))


IMAGE_FAULTS = {
    "missing_image": [remove_image],
    "broken_image": [cut_image, no_image],
    "rotated_image": [turn_image],
    "in_two_splits": [share_image, share_encoded_image],
    "same_image_twice": [repeat_image],
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("kind", "harm"), [(kind, harm) for kind, harms in IMAGE_FAULTS.items() for harm in harms])
def test_each_fault_of_an_image_is_found_alone_and_mended(tmp_path, form, kind, harm):
    root = make(tmp_path / "a", form)
    harm(root, form)
    inspection = examine(recognise(root))
    if (form, kind) == ("yolo", "missing_image"):
        # images are listed by looking into their folder: what is left is a label without image
        kind = "annotation_without_image"
    assert count_kinds(inspection.findings) == {kind: 1}
    assert inspection.findings[0].file.startswith(str(root))
    check_the_copy(inspection, root, tmp_path / "copy")
    if kind == "in_two_splits":
        finding = inspection.findings[0]
        assert (finding.split, Path(finding.file).name) == ("train", "2.png")  # what is measured on stays
        copy = examine(recognise(tmp_path / "copy")).raws
        assert (len(copy["train"]), len(copy["val"])) == (2, 3)


def test_to_measure_what_was_learned_is_a_fault(tmp_path):
    source = recognise(make(tmp_path / "a", "coco"))["train"]
    assert count_kinds(examine({"train": source, "val": source, "test": source}).findings) == {"in_two_splits": 3}
    assert examine({"val": source, "test": source}).findings == []


def test_a_new_image_in_the_folder_is_named(tmp_path):
    for form, expected in (("coco", "unlisted_image"), ("voc", "unlisted_image"), ("yolo", "image_without_objects")):
        root = make(tmp_path / form, form)
        add_image(root, form)
        assert counts(root) == {expected: 1}


def voc_xml(root, number=1):
    return root / "Annotations" / f"{number}.xml"


VOC_FAULTS = {
    "missing_annotation": [lambda root: voc_xml(root).unlink()],
    "broken_annotation": [
        lambda root: voc_xml(root).write_text("<annotation><object></annotation>"),
        lambda root: replace_in(voc_xml(root), "<xmax>40</xmax>", ""),
        lambda root: replace_in(voc_xml(root), "<xmax>40</xmax>", "<xmax>x</xmax>"),
    ],
    "annotation_without_image": [lambda root: shutil.copyfile(voc_xml(root), root / "Annotations" / "9.xml")],
    "image_listed_twice": [lambda root: (root / "ImageSets/Main/train.txt").write_text("1\n2\n3\n2\n")],
    "wrong_size": [
        lambda root: replace_in(voc_xml(root), "<width>96</width>", "<width>90</width>"),  # boxes fit
        lambda root: picture(1).resize((WIDTH // 2, HEIGHT // 2)).save(image_path(root, "voc", 1)),  # and do not
    ],
    "class_names_alike": [lambda root: replace_in(voc_xml(root), "<name>bolt</name>", "<name>BOLT</name>")],
    "box_reversed": [lambda root: replace_in(voc_xml(root), "<xmax>40</xmax>", "<xmax>4</xmax>")],
    "box_without_area": [
        lambda root: replace_in(
            voc_xml(root),
            "<xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>40</ymax>",
            "<xmin>40</xmin><ymin>40</ymin><xmax>40</xmax><ymax>40</ymax>",
        )
    ],
    "box_sticks_out": [lambda root: replace_in(voc_xml(root), "<xmax>40</xmax>", "<xmax>99</xmax>")],
    "box_tiny": [lambda root: replace_in(voc_xml(root), "<xmax>40</xmax>", "<xmax>11</xmax>")],
}


@pytest.mark.parametrize(("kind", "harm"), [(kind, harm) for kind, harms in VOC_FAULTS.items() for harm in harms])
def test_each_fault_of_voc_files_is_found_alone_and_mended(tmp_path, kind, harm):
    root = make(tmp_path / "a", "voc")
    harm(root)
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {kind: 1}
    assert inspection.findings[0].file.startswith(str(root))
    check_the_copy(inspection, root, tmp_path / "copy")


def label_path(root, number=1):
    return root / "labels" / "train" / f"{number}.txt"


def add_line(line):
    def harm(root):
        path = label_path(root)
        path.write_text(path.read_text() + line + "\n")

    return harm


def list_twice(root):
    (root / "list.txt").write_text("images/train/1.png\nimages/train/2.png\nimages/train/3.png\nimages/train/1.png\n")
    content = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump(content | {"train": "list.txt"}))


def list_missing(root):
    list_twice(root)
    (root / "list.txt").write_text("images/train/1.png\nimages/train/2.png\nimages/train/3.png\nimages/train/77.png\n")


YOLO_FAULTS = {
    "broken_annotation": add_line("0 .5 .5 .1"),
    "unknown_class": add_line("7 .5 .5 .1 .1"),
    "box_not_finite": add_line("0 nan .5 .1 .1"),
    "box_without_area": add_line("0 .5 .5 0 .1"),
    "box_reversed": add_line("0 .5 .5 -.1 .1"),
    "box_outside": add_line("0 1.5 .5 .1 .1"),
    "box_sticks_out": add_line("0 .95 .5 .2 .1"),
    "box_tiny": add_line("0 .5 .5 .01 .1"),
    "image_without_objects": lambda root: label_path(root).unlink(),
    "annotation_without_image": lambda root: label_path(root, 9).write_text(""),
    "image_listed_twice": list_twice,
    "missing_image": list_missing,
}


@pytest.mark.parametrize("kind", YOLO_FAULTS)
def test_each_fault_of_yolo_files_is_found_alone_and_mended(tmp_path, kind):
    root = make(tmp_path / "a", "yolo")
    YOLO_FAULTS[kind](root)
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {kind: 1}
    check_the_copy(inspection, root, tmp_path / "copy")


def test_every_kind_of_fault_has_a_data_set_that_has_it():
    tested = {*COCO_FAULTS, *IMAGE_FAULTS, *VOC_FAULTS, *YOLO_FAULTS, "unlisted_image"}
    assert tested == set(KINDS)


def test_findings_name_file_and_place(tmp_path):
    root = make(tmp_path / "coco", "coco")
    edit_json(root, set_box(2, [10, 10, 0, 30]))
    finding = examine(recognise(root)).findings[0]
    assert (finding.file, finding.place, finding.split) == (str(json_path(root)), "annotation id 3", "train")
    assert finding.message == "box (10, 10, 10, 40) has no area"
    root = make(tmp_path / "voc", "voc")
    replace_in(voc_xml(root, 5), "<xmax>40</xmax>", "<xmax>4</xmax>")
    finding = examine(recognise(root)).findings[0]
    assert (finding.file, finding.place, finding.split) == (str(voc_xml(root, 5)), "object 1 (nut)", "val")


def test_a_class_that_is_not_in_the_list_given(tmp_path):
    root = str(make(tmp_path / "a", "voc"))
    inspection = examine({"train": Voc([root], "train", ["nut"])})
    assert count_kinds(inspection.findings)["unknown_class"] == 3
    # a list that the first split was given counts for the second, as for a DataModule
    inspection = examine({"train": Voc([root], "train", ["bolt", "nut"]), "val": Voc([root], "val")})
    assert inspection.findings == []
    assert inspection.raws["val"].labels.tolist() == [1, 0] * 3


def test_a_list_of_classes_that_nobody_gave_is_voc_s(tmp_path):
    root = make(tmp_path / "a", "voc")
    for path in (root / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("nut", "cat").replace("bolt", "dog"))
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"class_without_objects": 1}
    assert inspection.findings[0].message.startswith("18 of 20 classes have no object in any split: aeroplane, bicycle")


def test_a_swapped_box_that_turns_out_to_be_a_double_goes_too(tmp_path):
    root = make(tmp_path / "a", "coco")
    x, y, w, h = json.loads(json_path(root).read_text())["annotations"][0]["bbox"]
    edit_json(root, lambda c: c["annotations"].append(c["annotations"][0] | {"id": 9, "bbox": [x + w, y, -w, h]}))
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"box_reversed": 1}
    check_the_copy(inspection, root, tmp_path / "copy")
    assert len(examine(recognise(tmp_path / "copy")).raws["train"].labels) == 6


def test_a_turned_image_is_upright_in_the_copy(tmp_path):
    root = make(tmp_path / "a", "voc")
    exif = PILImage.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    picture(1).rotate(90, expand=True).save(image_path(root, "voc", 1), exif=exif)
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"rotated_image": 1}
    write_cleaned(inspection, tmp_path / "copy")
    with PILImage.open(tmp_path / "copy/JPEGImages/1.png") as image:
        assert image.size == (WIDTH, HEIGHT)
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(picture(1)))


def exif_orientation(kind, count, value):
    """EXIF with one tag, the orientation, as its bytes lie in a file; `kind` is 2 for text, 3 for short numbers."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, kind, count, value, 0)


@pytest.mark.parametrize(
    "exif",
    [
        exif_orientation(3, 1, b"\0\0\0\0"),
        exif_orientation(3, 1, b"\x09\0\0\0"),
        exif_orientation(2, 2, b"x\0\0\0"),
    ],
    ids=["0", "9", "text"],
)
def test_an_orientation_that_means_nothing_is_upright(tmp_path, exif):
    root = make(tmp_path / "a", "coco")
    picture(1).save(image_path(root, "coco", 1), exif=exif)
    with PILImage.open(image_path(root, "coco", 1)) as image:
        assert image.getexif()[0x0112] not in range(1, 9)
    inspection = examine(recognise(root))
    assert inspection.findings == []
    write_cleaned(inspection, tmp_path / "copy")
    copied = image_path(tmp_path / "copy", "coco", 1)
    assert copied.read_bytes() == image_path(root, "coco", 1).read_bytes()


def test_classes_are_merged_under_the_commonest_name(tmp_path):
    root = make(tmp_path / "a", "voc")
    replace_in(voc_xml(root), "<name>bolt</name>", "<name>Bolt</name>")
    write_cleaned(examine(recognise(root)), tmp_path / "copy")
    raw = examine(recognise(tmp_path / "copy")).raws["train"]
    assert raw.classes == ("bolt", "nut")
    assert np.bincount(raw.labels)[raw.classes.index("bolt")] == 3


def test_objects_of_an_id_of_two_classes_go_where_another_split_has_other_classes_too(tmp_path):
    root = make(tmp_path / "a", "coco")
    edit_json(
        root, lambda c: c.update(categories=[{"id": i, "name": n} for i, n in ((1, "nut"), (1, "cog"), (2, "bolt"))])
    )
    inspection = examine(recognise(root))
    assert {finding.kind for finding in inspection.findings} >= {"class_id_twice", "classes_differ"}
    changes = write_cleaned(inspection, tmp_path / "copy")
    assert any("boxes of that id left out" in change.what for change in changes)
    raws = examine(recognise(tmp_path / "copy")).raws
    labels = {split: [raw.classes[label] for label in raw.labels] for split, raw in raws.items()}
    assert labels == {"train": ["bolt"] * 3, "val": ["nut", "bolt"] * 3}


def test_splits_of_files_and_of_images_made_in_memory_mix(tmp_path):
    files = recognise(make(tmp_path / "a", "coco"))["val"]
    image_path(tmp_path / "a", "coco", 4).unlink()
    for sources in ({"train": Shapes(2, 0), "val": files}, {"train": files, "val": Shapes(2, 0)}):
        found = count_kinds(examine(sources).findings)
        assert found["missing_image"] == 1
        assert not {"unlisted_image", "in_two_splits", "broken_image"} & found.keys()


def test_the_copy_refuses_what_it_could_harm(tmp_path):
    root = make(tmp_path / "a", "coco")
    inspection = examine(recognise(root))
    with pytest.raises(InputError, match="is there already"):
        write_cleaned(inspection, root)
    (tmp_path / "empty").mkdir()
    write_cleaned(inspection, tmp_path / "empty")
    assert counts(tmp_path / "empty") == {}
    with pytest.raises(InputError, match="no files that could be cleaned"):
        write_cleaned(examine({"train": Shapes(2, 0)}), tmp_path / "b")
    with pytest.raises(InputError, match="folder of 3 images is missing"):
        write_cleaned(examine({"train": Coco(str(json_path(root)), str(tmp_path / "nowhere"))}), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def make_voc_root(root, **splits):
    """A VOC folder; split -> numbers of its images."""
    for split, numbers in splits.items():
        table = table_of("train").select(np.arange(len(numbers)))
        names = [f"{number % 10}.png" for number in numbers]
        encoded = [name.encode() for name in names]
        offsets = np.cumsum([0, *map(len, encoded)])
        write_voc(replace(table, name_bytes=b"".join(encoded), name_offsets=offsets), root, split)
        (root / "JPEGImages").mkdir(exist_ok=True)
        for number, name in zip(numbers, names, strict=True):
            picture(number).save(root / "JPEGImages" / name)
    return str(root)


def pixels_of(inspection):
    """What the images of each split show, in order."""
    shown = {}
    for split, raw in inspection.raws.items():
        shown[split] = [np.asarray(PILImage.open(path).convert("RGB")).tolist() for path in raw.paths()]
    return shown


VOC_ROOTS = {
    "a root for each split, with the same names in both": (
        {"a": {"train": [1, 2]}, "b": {"test": [11, 12]}},
        {"train": ["a"], "test": ["b"]},
        ["a", "b"],
    ),
    "one split of two roots, one of the first alone": (
        {"VOC2007": {"train": [1, 2], "test": [3]}, "VOC2012": {"train": [11, 12]}},
        {"train": ["VOC2007", "VOC2012"], "test": ["VOC2007"]},
        ["VOC2007", "VOC2012"],
    ),
    "roots of one name": (
        {"x/VOC": {"train": [1]}, "y/VOC": {"train": [11], "test": [12]}, "z/VOC_2": {"test": [21]}},
        {"train": ["x/VOC", "y/VOC"], "test": ["y/VOC", "z/VOC_2"]},
        ["VOC", "VOC_2", "VOC_2_2"],
    ),
    "one root, however it is written": (
        {"a": {"train": [1], "test": [2]}},
        {"train": ["a"], "test": ["a/../a"]},
        ["Annotations", "ImageSets", "JPEGImages"],
    ),
}


@pytest.mark.parametrize("layout", VOC_ROOTS)
def test_the_copy_of_several_voc_folders_has_every_image_of_every_split(tmp_path, layout):
    roots, splits, folders = VOC_ROOTS[layout]
    for name, images in roots.items():
        make_voc_root(tmp_path / name, **images)
    inspection = examine(
        {split: Voc([str(tmp_path / name) for name in names], split) for split, names in splits.items()}
    )
    write_cleaned(inspection, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir() if path.is_dir()) == folders
    copy = examine(recognise(tmp_path / "copy"))
    assert pixels_of(copy) == pixels_of(inspection)
    for split, raw in inspection.raws.items():
        assert np.array_equal(copy.raws[split].boxes, raw.boxes)


def test_images_of_one_stem_have_labels_of_their_own_in_the_copy_of_yolo_files(tmp_path):
    root = tmp_path / "a"
    for folder, label in (("x", 0), ("y", 1)):
        (root / "train" / folder).mkdir(parents=True)
        for name in ("1.png", "1_2.png") if folder == "x" else ("1.png",):
            picture(ord(folder) + len(name)).save(root / "train" / folder / name)
            (root / "train" / folder / name).with_suffix(".txt").write_text(f"{label} .5 .5 .{len(name)} .5\n")
    picture(7).save(root / "train/x/1.bmp")
    (root / "list.txt").write_text(
        "\n".join(f"train/{name}" for name in ("x/1.png", "x/1.bmp", "x/1_2.png", "y/1.png"))
    )
    (root / "data.yaml").write_text("train: list.txt\nnames: [nut, bolt]\n")
    inspection = examine(recognise(root))
    changes = write_cleaned(inspection, tmp_path / "copy")
    renamed = [Path(change.file).relative_to(root).as_posix() for change in changes if "has its name" in change.what]
    assert renamed == ["train/x/1.bmp", "train/x/1_2.png", "train/y/1.png"]
    copy = examine(recognise(tmp_path / "copy"))

    def content(inspection):
        raw = inspection.raws["train"]
        boxes = zip(raw.image_index.tolist(), raw.labels.tolist(), raw.boxes.round(6).tolist(), strict=True)
        of_image = {image: (label, box) for image, label, box in boxes}
        return sorted((shown, *of_image[image]) for image, shown in enumerate(pixels_of(inspection)["train"]))

    assert content(copy) == content(inspection)


def test_the_copy_may_be_made_where_one_stands(tmp_path, monkeypatch):
    root = make(tmp_path / "a", "coco")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["doctor", "../a", "--fix", "."]) == 0
    assert len(recognise(Path())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]
    assert counts(root) == {}


def test_names_on_disk_that_are_not_utf_8_end_in_one_line(tmp_path, capsys):
    root = make(tmp_path / "coco", "coco")
    odd = os.fsencode(root / "train") + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(b"")
    assert main(["doctor", str(root)]) == 0
    assert "\\xff.png: no split names this image" in capsys.readouterr().out
    root = make(tmp_path / "yolo", "yolo")
    Path(os.fsdecode(os.fsencode(root / "images/train") + b"/\xff.png")).write_bytes(b"")
    assert main(["doctor", str(root)]) == 2
    assert "images/train: image name \\xff.png is not UTF-8; rename the file" in capsys.readouterr().err


def test_a_stray_label_in_a_folder_of_a_folder_is_named_once(tmp_path):
    root = make(tmp_path / "a", "yolo")
    for folder in ("images", "labels"):
        (root / folder / "train/deep").mkdir()
    picture(30).save(root / "images/train/deep/30.png")
    shutil.copyfile(label_path(root), root / "labels/train/deep/30.txt")
    (root / "labels/train/deep/31.txt").write_text("")
    assert counts(root) == {"annotation_without_image": 1}


def test_names_that_lead_out_of_the_copy_stay_in_it(tmp_path):
    root = make(tmp_path / "a", "coco")
    edit_json(root, lambda c: c["images"][0].update(file_name="../train/1.png"))
    write_cleaned(examine({"train": Coco(str(json_path(root)), str(root / "train"))}), tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy/train").iterdir()) == ["1.png", "2.png", "3.png"]


def test_exit_code_and_json(tmp_path, capsys):
    root = make(tmp_path / "a", "coco")
    assert main(["doctor", str(root)]) == 0
    edit_json(root, set_box(0, [4, 5, 30, 1.5]))  # a warning
    assert main(["doctor", str(root)]) == 0
    edit_json(root, set_box(0, [4, 5, 30, 0]))
    capsys.readouterr()
    assert main(["doctor", str(root), "--json", "--fix", str(tmp_path / "copy")]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["errors"], document["warnings"]) == (1, 0)
    assert document["counts"] == {"box_without_area": 1}
    assert document["findings"][0]["place"] == "annotation id 1"
    assert len(document["changes"]) == 1
    assert main(["doctor", str(tmp_path / "copy")]) == 0
    json_path(root).write_text(json_path(root).read_text()[:-300])  # without its categories
    assert main(["doctor", str(root)]) == 2
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2


def test_fingerprints_of_one_picture_are_near_and_of_two_are_far():
    prints = []
    for seed in range(30):
        image = picture(seed)
        smaller = image.resize((WIDTH // 2, HEIGHT // 2))
        prints += [fingerprint(np.array(image)), fingerprint(np.array(smaller))]
    marks = np.stack(prints)
    ours, theirs = marks[::2], marks[1::2]
    expected = [[bin(int.from_bytes((a ^ b).tobytes())).count("1") for b in theirs] for a in ours]
    assert bit_distances(ours, theirs).tolist() == expected
    assert find_near_duplicates(ours, theirs).tolist() == [[i, i] for i in range(30)]
    assert find_near_duplicates(ours[:0], theirs).shape == (0, 2)
    assert fingerprint(np.full((20, 20, 3), 7, np.uint8)) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bccd", {"box_without_area": 2, "in_two_splits": 1}),
        ("voc100", {}),
        ("coco_mini", {"image_listed_twice": 1}),
    ],
)
def test_errors_of_real_data_are_all_found_and_mended(tmp_path, name, expected):
    if not (SHARED_DATA / name).exists():
        pytest.skip(f"../shared/data/{name} is absent")
    inspection = examine(recognise(SHARED_DATA / name))
    errors = [finding for finding in inspection.findings if finding.severity == "error"]
    assert count_kinds(errors) == expected
    if name == "bccd":
        empty = {Path(finding.file).stem for finding in errors if finding.kind == "box_without_area"}
        assert empty == {"BloodImage_00338", "BloodImage_00343"}
    write_cleaned(inspection, tmp_path / "copy")
    assert examine(recognise(tmp_path / "copy")).num_errors == 0
