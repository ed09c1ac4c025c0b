"""Cleaned copies of tiny data sets in three formats."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_data import (
    FORMATS,
    HEIGHT,
    WIDTH,
    check_copy,
    counts,
    edit_json,
    image_path,
    json_path,
    label_path,
    make,
    picture,
    replace_in,
    table_of,
    voc_xml,
)
from paths import SHARED_CASES
from PIL import Image as PILImage

from zoo.cli.main import main
from zoo.data.formats.coco import Coco
from zoo.data.formats.recognise import recognise
from zoo.data.formats.shapes import Shapes
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import CLEANING_FLAGS, count_kinds
from zoo.errors import InputError


def test_reversed_box_that_is_a_duplicate_is_left_out(tmp_path):
    root = make(tmp_path / "a", "coco")
    x, y, w, h = json.loads(json_path(root).read_text())["annotations"][0]["bbox"]
    edit_json(root, lambda c: c["annotations"].append(c["annotations"][0] | {"id": 9, "bbox": [x + w, y, -w, h]}))
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"box_reversed": 1}
    check_copy(inspection, root, tmp_path / "copy")
    assert len(examine(recognise(tmp_path / "copy")).raws["train"].labels) == 6


def test_exif_rotation_is_applied_in_the_copy(tmp_path):
    root = make(tmp_path / "a", "voc")
    exif = PILImage.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    picture(1).rotate(90, expand=True).save(image_path(root, "voc", 1), exif=exif)
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"rotated_image": 1}
    write_cleaned(inspection, tmp_path / "copy")
    with PILImage.open(tmp_path / "copy/JPEGImages/1.png") as image:
        assert image.size == (WIDTH, HEIGHT)
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(picture(1)))


def exif_orientation(kind, count, value):
    """Bytes of EXIF data with one tag, the orientation; `kind` is 2 for text, 3 for 16-bit integers."""
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
def test_invalid_exif_orientation_is_upright(tmp_path, exif):
    root = make(tmp_path / "a", "coco")
    picture(1).save(image_path(root, "coco", 1), exif=exif)
    with PILImage.open(image_path(root, "coco", 1)) as image:
        assert image.getexif()[0x0112] not in range(1, 9)
    inspection = examine(recognise(root))
    assert inspection.findings == []
    write_cleaned(inspection, tmp_path / "copy")
    copied = image_path(tmp_path / "copy", "coco", 1)
    assert copied.read_bytes() == image_path(root, "coco", 1).read_bytes()


def test_similar_classes_are_merged_under_the_most_frequent_name(tmp_path):
    root = make(tmp_path / "a", "voc")
    replace_in(voc_xml(root), "<name>bolt</name>", "<name>Bolt</name>")
    inspection = examine(recognise(root))
    write_cleaned(inspection, tmp_path / "as it is")
    assert examine(recognise(tmp_path / "as it is")).raws["train"].classes == ("Bolt", "bolt", "nut")
    write_cleaned(inspection, tmp_path / "copy", flags=["--merge-classes"])
    raw = examine(recognise(tmp_path / "copy")).raws["train"]
    assert raw.classes == ("bolt", "nut")
    assert np.bincount(raw.labels)[raw.classes.index("bolt")] == 3


def test_images_with_an_ambiguous_class_id_are_left_out_where_splits_have_different_classes(tmp_path):
    root = make(tmp_path / "a", "coco")

    def damage(content):
        content["categories"] = [{"id": i, "name": n} for i, n in ((1, "nut"), (1, "cog"), (2, "bolt"))]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 2 or a["image_id"] == 1]

    edit_json(root, damage)
    inspection = examine(recognise(root))
    assert {finding.kind for finding in inspection.findings} >= {"class_id_twice", "classes_differ"}
    changes = write_cleaned(inspection, tmp_path / "copy")
    assert any("images with objects of that id left out" in change.what for change in changes)
    raws = examine(recognise(tmp_path / "copy")).raws
    labels = {split: [raw.classes[label] for label in raw.labels] for split, raw in raws.items()}
    assert labels == {"train": ["bolt"] * 2, "val": ["nut", "bolt"] * 3}


def test_splits_with_files_and_splits_in_memory_can_be_mixed(tmp_path):
    files = recognise(make(tmp_path / "a", "coco"))["val"]
    image_path(tmp_path / "a", "coco", 4).unlink()
    for sources in ({"train": Shapes(2, 0), "val": files}, {"train": files, "val": Shapes(2, 0)}):
        found = count_kinds(examine(sources).findings)
        assert found["missing_image"] == 1
        assert not {"unlisted_image", "in_two_splits", "broken_image"} & found.keys()


def test_invalid_destinations_and_sources_of_a_copy(tmp_path):
    root = make(tmp_path / "a", "coco")
    inspection = examine(recognise(root))
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write_cleaned(inspection, root)
    (tmp_path / "empty").mkdir()
    write_cleaned(inspection, tmp_path / "empty")
    assert counts(tmp_path / "empty") == {}
    with pytest.raises(InputError, match="it has no files to clean"):
        write_cleaned(examine({"train": Shapes(2, 0)}), tmp_path / "b")
    shutil.rmtree(root / "train")
    with pytest.raises(InputError, match="folder of 3 images is missing"):
        write_cleaned(examine({"train": Coco(str(json_path(root)), str(tmp_path / "nowhere"))}), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def make_voc_root(root, **splits):
    """VOC folder; `splits` maps each split to the numbers of its images."""
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
    """Pixels of the images of each split, in order."""
    shown = {}
    for split, raw in inspection.raws.items():
        shown[split] = [np.asarray(PILImage.open(path).convert("RGB")).tolist() for path in raw.paths()]
    return shown


VOC_ROOTS = {
    "one root per split, with the same file names": (
        {"a": {"train": [1, 2]}, "b": {"test": [11, 12]}},
        {"train": ["a"], "test": ["b"]},
        ["a", "b"],
    ),
    "one split in two roots, one split in one root": (
        {"VOC2007": {"train": [1, 2], "test": [3]}, "VOC2012": {"train": [11, 12]}},
        {"train": ["VOC2007", "VOC2012"], "test": ["VOC2007"]},
        ["VOC2007", "VOC2012"],
    ),
    "roots with the same name": (
        {"x/VOC": {"train": [1]}, "y/VOC": {"train": [11], "test": [12]}, "z/VOC_2": {"test": [21]}},
        {"train": ["x/VOC", "y/VOC"], "test": ["y/VOC", "z/VOC_2"]},
        ["VOC", "VOC_2", "VOC_2_2"],
    ),
    "one root with different paths": (
        {"a": {"train": [1], "test": [2]}},
        {"train": ["a"], "test": ["a/../a"]},
        ["Annotations", "ImageSets", "JPEGImages"],
    ),
}


@pytest.mark.parametrize("layout", VOC_ROOTS)
def test_copy_of_several_voc_folders_has_every_image_of_every_split(tmp_path, layout):
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


def test_images_with_the_same_stem_get_different_label_files_in_the_copy(tmp_path):
    root = tmp_path / "a"
    for folder, label in (("x", 0), ("y", 1)):
        (root / "train" / folder).mkdir(parents=True)
        for name in ("1.png", "1_2.png") if folder == "x" else ("1.png",):
            picture(ord(folder) + len(name)).save(root / "train" / folder / name)
            (root / "train" / folder / name).with_suffix(".txt").write_text(f"{label} .5 .5 .{len(name)} .5\n")
    (root / "train/z").mkdir()
    picture(7).save(root / "train/z/1.bmp")
    (root / "train/z/1.txt").write_text("0 .5 .5 .4 .5\n")
    (root / "list.txt").write_text(
        "\n".join(f"train/{name}" for name in ("x/1.png", "z/1.bmp", "x/1_2.png", "y/1.png"))
    )
    (root / "data.yaml").write_text("train: list.txt\nnames: [nut, bolt]\n")
    inspection = examine(recognise(root))
    changes = write_cleaned(inspection, tmp_path / "copy")
    renamed = [Path(change.file).relative_to(root).as_posix() for change in changes if "has its name" in change.what]
    assert renamed == ["train/z/1.bmp", "train/x/1_2.png", "train/y/1.png"]
    copy = examine(recognise(tmp_path / "copy"))

    def content(inspection):
        raw = inspection.raws["train"]
        boxes = zip(raw.image_index.tolist(), raw.labels.tolist(), raw.boxes.round(6).tolist(), strict=True)
        of_image = {image: (label, box) for image, label, box in boxes}
        return sorted((shown, *of_image[image]) for image, shown in enumerate(pixels_of(inspection)["train"]))

    assert content(copy) == content(inspection)


def test_copy_into_the_current_working_directory(tmp_path, monkeypatch):
    root = make(tmp_path / "a", "coco")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["doctor", "../a", "--fix", "."]) == 0
    assert len(recognise(Path())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]
    assert counts(root) == {}


def test_file_names_with_parent_folders_stay_inside_the_copy(tmp_path):
    root = make(tmp_path / "a", "coco")
    edit_json(root, lambda c: c["images"][0].update(file_name="../train/1.png"))
    write_cleaned(examine({"train": Coco(str(json_path(root)), str(root / "train"))}), tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy/train").iterdir()) == ["1.png", "2.png", "3.png"]


def test_near_duplicates_are_kept_unless_asked(tmp_path):
    """They may be frames of a fixed camera."""
    root = make(tmp_path / "a", "coco")
    picture(4).point(lambda level: min(level + 3, 255)).save(image_path(root, "coco", 2))  # a little brighter
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"near_duplicate_in_two_splits": 1}
    write_cleaned(inspection, tmp_path / "kept")
    assert len(examine(recognise(tmp_path / "kept")).raws["train"]) == 3
    write_cleaned(inspection, tmp_path / "dropped", flags=["--drop-near-duplicates"])
    assert len(examine(recognise(tmp_path / "dropped")).raws["train"]) == 2


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="../shared/cases is absent")
def test_classes_that_differ_in_case_and_symbols_only_stay_apart(tmp_path):
    inspection = examine(recognise(SHARED_CASES / "c71_letters_and_symbols"))
    assert inspection.num_errors == 0
    write_cleaned(inspection, tmp_path / "copy")
    assert len(examine(recognise(tmp_path / "copy")).raws["train"].classes) == 8


def set_in_first(**values):
    return lambda content: content["annotations"][0].update(values)


def set_label(line):
    def damage(root):
        path = label_path(root)
        path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]) + "\n")

    return damage


def set_in_xml(old, new):
    return lambda root: replace_in(voc_xml(root), old, new)


UNREADABLE = {
    "coco": {
        "three numbers": lambda root: edit_json(root, set_in_first(bbox=[1, 2, 3])),
        "text": lambda root: edit_json(root, set_in_first(bbox=["a", 2, 3, 4])),
        "null": lambda root: edit_json(root, set_in_first(bbox=None)),
        "not finite": lambda root: edit_json(root, set_in_first(bbox=[float("nan"), 5, 9, 9])),
        "outside": lambda root: edit_json(root, set_in_first(bbox=[WIDTH + 2, 5, 9, 9])),
        "unknown class": lambda root: edit_json(root, set_in_first(category_id=77)),
        "no class": lambda root: edit_json(root, set_in_first(category_id="nut")),
        "no area": lambda root: edit_json(root, set_in_first(bbox=[10, 10, 0, 20])),
        "mostly outside": lambda root: edit_json(root, set_in_first(bbox=[60, 40, 95, 75])),
        "reversed": lambda root: edit_json(root, set_in_first(bbox=[40, 40, -30, -30])),
    },
    "voc": {
        "no edge": set_in_xml("<xmax>40</xmax>", ""),
        "text": set_in_xml("<xmax>40</xmax>", "<xmax>x</xmax>"),
        "outside": set_in_xml(
            "<xmin>11</xmin><ymin>11</ymin><xmax>40</xmax>", "<xmin>97</xmin><ymin>11</ymin><xmax>99</xmax>"
        ),
        "no area": set_in_xml("<xmax>40</xmax>", "<xmax>10</xmax>"),
        "no name": set_in_xml("<name>nut</name>", ""),
        "no xml": lambda root: voc_xml(root).write_text("<annotation><object>"),
    },
    "yolo": {
        "three numbers": set_label("0 .5 .5 .1"),
        "text": set_label("0 .5 .5 .1 x"),
        "unknown class": set_label("7 .5 .5 .1 .1"),
        "not finite": set_label("0 nan .5 .1 .1"),
        "outside": set_label("0 1.5 .5 .1 .1"),
        "pixels": set_label("0 50 30 10 10"),
    },
}


@pytest.mark.parametrize(("form", "fault"), [(form, fault) for form, faults in UNREADABLE.items() for fault in faults])
def test_images_in_a_copy_have_all_objects_that_were_annotated(tmp_path, form, fault):
    """An object of the first image is damaged: the copy has the image with the object as it was, or not at all."""
    root = make(tmp_path / "a", form)
    truth = objects_by_image(root)
    UNREADABLE[form][fault](root)
    write_cleaned(examine(recognise(root)), tmp_path / "copy", flags=CLEANING_FLAGS)
    copied = objects_by_image(tmp_path / "copy")
    assert {name: truth[name] for name in copied} == copied
    assert len(copied) == (6 if fault == "reversed" else 5)


def test_an_object_of_an_unknown_image_is_not_left_out_of_a_copy_silently(tmp_path):
    root = make(tmp_path / "a", "coco")
    edit_json(root, set_in_first(image_id="the first"))
    with pytest.raises(InputError, match=r"annotations\[0\].*any image may have this object"):
        write_cleaned(examine(recognise(root)), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_identical_files_with_other_objects_are_both_left_out(tmp_path, form):
    """The same image in two splits with the same objects is kept in one of them, with other objects in none."""
    root = make(tmp_path / "a", form)
    shutil.copyfile(image_path(root, form, 2), image_path(root, form, 5))
    write_cleaned(examine(recognise(root)), tmp_path / "same")
    assert objects_by_image(tmp_path / "same").keys() == {f"{number}.png" for number in (1, 3, 4, 5, 6)}
    if form == "coco":
        edit_json(root, lambda c: c["annotations"].pop(2))
    elif form == "voc":
        replace_in(voc_xml(root, 2), "<name>nut</name>", "<name>bolt</name>")
    else:
        path = label_path(root, 2)
        path.write_text("\n".join(path.read_text().splitlines()[1:]))
    changes = write_cleaned(examine(recognise(root)), tmp_path / "other")
    assert sum("an identical file has other objects" in change.what for change in changes) == 2
    assert objects_by_image(tmp_path / "other").keys() == {f"{number}.png" for number in (1, 3, 4, 6)}


def objects_by_image(root):
    """File name -> its (class, box)."""
    found = {}
    for source in recognise(root).values():
        table = source.read()
        for index in range(len(table)):
            target = table.target(index)
            boxes = [tuple(round(edge, 1) for edge in box) for box in target["boxes"].tolist()]
            classes = [table.classes[label] for label in target["labels"].tolist()]
            found[Path(table.file_name(index)).name] = sorted(zip(classes, boxes, strict=True))
    return found
