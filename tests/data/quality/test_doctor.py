"""Findings in tiny data sets in three formats, with one error or warning each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
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
    set_box,
    voc_xml,
)
from paths import SHARED_DATA
from PIL import Image as PILImage

from zoo.cli.main import main
from zoo.data.formats.recognise import recognise
from zoo.data.formats.voc import Voc
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import CLEANING_FLAGS, KINDS, count_kinds


@pytest.mark.parametrize("form", FORMATS)
def test_valid_data_set_has_no_findings(tmp_path, form):
    inspection = examine(recognise(make(tmp_path, form)))
    assert inspection.findings == []
    assert (inspection.num_errors, inspection.num_warnings) == (0, 0)


def duplicate_image_id(content):
    content["images"][1]["id"] = 1
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]


def share_class_id(content):
    content["categories"].append({"id": 1, "name": "bird"})  # the id of nuts, of which one is left
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 1 or a["image_id"] in (1, 4)]


def crowd_of_cats(content):
    for number in range(150):
        x, y = 6 * (number % 14), 5 * (number // 14)
        box = {"id": 100 + number, "image_id": 1, "category_id": 1, "bbox": [x, y, 5, 4], "area": 20, "iscrowd": 0}
        content["annotations"].append(box)


BOTH = ("train", "val")


# kind -> (change of the json, in which splits, other findings that result)
COCO_FAULTS = {
    "broken_annotation": (set_box(0, [1, 2, 3]), ("train",), {}),
    "image_listed_twice": (lambda c: c["images"].append(c["images"][0]), ("train",), {}),
    "image_id_twice": (duplicate_image_id, ("train",), {}),
    "annotation_id_twice": (lambda c: c["annotations"][1].update(id=1), ("train",), {}),
    "class_id_twice": (
        share_class_id,
        BOTH,
        {"class_without_objects": 1},
    ),
    "unknown_image": (lambda c: c["annotations"][0].update(image_id=77), ("train",), {}),
    "unknown_class": (lambda c: c["annotations"][0].update(category_id=77), ("train",), {}),
    "class_name_twice": (
        lambda c: (c["categories"].append({"id": 3, "name": "nut"}), c["annotations"][0].update(category_id=3)),
        BOTH,
        {},
    ),
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
def test_each_coco_error_is_the_only_finding_and_is_corrected(tmp_path, kind):
    change, splits, others = COCO_FAULTS[kind]
    root = make(tmp_path / "a", "coco")
    edit_json(root, change, splits)
    inspection = examine(recognise(root))
    times = len(splits) if kind in ("class_id_twice", "class_name_twice", "class_names_alike") else 1
    assert count_kinds(inspection.findings) == {kind: times, **others}
    finding = next(finding for finding in inspection.findings if finding.kind == kind)
    assert finding.file.startswith(str(root))
    assert finding.message
    check_copy(inspection, root, tmp_path / "copy")


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


def store_12_bits(root, form):
    path = image_path(root, form, 1)
    PILImage.fromarray(np.asarray(PILImage.open(path).convert("L")).astype(np.uint16) << 4).save(path)


IMAGE_FAULTS = {
    "missing_image": [remove_image],
    "broken_image": [cut_image, no_image],
    "rotated_image": [turn_image],
    "unused_bits": [store_12_bits],
    "in_two_splits": [share_image],
    "near_duplicate_in_two_splits": [share_encoded_image],
    "same_image_twice": [repeat_image],
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("kind", "damage"), [(kind, damage) for kind, functions in IMAGE_FAULTS.items() for damage in functions]
)
def test_each_image_error_is_the_only_finding_and_is_corrected(tmp_path, form, kind, damage):
    root = make(tmp_path / "a", form)
    damage(root, form)
    inspection = examine(recognise(root))
    if (form, kind) == ("yolo", "missing_image"):
        # images are listed from their folder, so that only a label file without image remains
        kind = "annotation_without_image"
    assert count_kinds(inspection.findings) == {kind: 1}
    assert inspection.findings[0].file.startswith(str(root))
    check_copy(inspection, root, tmp_path / "copy")
    if kind.endswith("in_two_splits"):
        finding = inspection.findings[0]
        assert (finding.split, Path(finding.file).name) == ("train", "2.png")  # the evaluation image is kept
        copy = examine(recognise(tmp_path / "copy")).raws
        assert (len(copy["train"]), len(copy["val"])) == (2, 3)


def test_evaluating_on_training_images_is_an_error(tmp_path):
    source = recognise(make(tmp_path / "a", "coco"))["train"]
    assert count_kinds(examine({"train": source, "val": source, "test": source}).findings) == {"in_two_splits": 3}
    assert examine({"val": source, "test": source}).findings == []


def test_unlisted_images_are_found(tmp_path):
    for form, expected in (("coco", "unlisted_image"), ("voc", "unlisted_image"), ("yolo", "image_without_objects")):
        root = make(tmp_path / form, form)
        add_image(root, form)
        assert counts(root) == {expected: 1}


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
        lambda root: replace_in(voc_xml(root), "<width>96</width>", "<width>90</width>"),
        lambda root: picture(1).resize((WIDTH // 2, HEIGHT)).save(image_path(root, "voc", 1)),
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


@pytest.mark.parametrize(
    ("kind", "damage"), [(kind, damage) for kind, functions in VOC_FAULTS.items() for damage in functions]
)
def test_each_voc_error_is_the_only_finding_and_is_corrected(tmp_path, kind, damage):
    root = make(tmp_path / "a", "voc")
    damage(root)
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {kind: 1}
    assert inspection.findings[0].file.startswith(str(root))
    check_copy(inspection, root, tmp_path / "copy")


def add_line(line):
    def damage(root):
        path = label_path(root)
        path.write_text(path.read_text() + line + "\n")

    return damage


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
    "interpreted": add_line("0 .1 .2 .5 .2 .5 .6"),  # a polygon
    "coordinates_above_1": add_line("0 50 30 10 10"),
}


@pytest.mark.parametrize("kind", YOLO_FAULTS)
def test_each_yolo_error_is_the_only_finding_and_is_corrected(tmp_path, kind):
    root = make(tmp_path / "a", "yolo")
    YOLO_FAULTS[kind](root)
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {kind: 1}
    check_copy(inspection, root, tmp_path / "copy")


def test_every_kind_of_finding_is_tested():
    tested = {
        "split_without_objects",
        *COCO_FAULTS,
        *IMAGE_FAULTS,
        *VOC_FAULTS,
        *YOLO_FAULTS,
        "unlisted_image",
        "annotation_shared",
    }
    tested |= {"boxes_are_corners", "box_unlike_polygon"}  # in test_coco_boxes.py
    of_masks = {kind for kind in KINDS if kind.startswith("mask_")}  # in test_mask_checks.py
    assert tested | of_masks == set(KINDS)


def test_findings_have_file_and_place(tmp_path):
    root = make(tmp_path / "coco", "coco")
    edit_json(root, set_box(2, [10, 10, 0, 30]))
    finding = examine(recognise(root)).findings[0]
    assert (finding.file, finding.place, finding.split) == (str(json_path(root)), "annotation id 3", "train")
    assert finding.message == "box (10, 10, 10, 40) has no area"
    root = make(tmp_path / "voc", "voc")
    replace_in(voc_xml(root, 5), "<xmax>40</xmax>", "<xmax>4</xmax>")
    finding = examine(recognise(root)).findings[0]
    assert (finding.file, finding.place, finding.split) == (str(voc_xml(root, 5)), "object 1 (nut)", "val")


def test_unknown_classes_and_shared_list_of_classes(tmp_path):
    root = str(make(tmp_path / "a", "voc"))
    inspection = examine({"train": Voc([root], "train", ["nut"])})
    assert count_kinds(inspection.findings)["unknown_class"] == 3
    # the second split uses the list of classes of the first, as in a DataModule
    inspection = examine({"train": Voc([root], "train", ["bolt", "nut"]), "val": Voc([root], "val")})
    assert inspection.findings == []
    assert inspection.raws["val"].labels.tolist() == [1, 0] * 3


def test_default_list_of_classes_is_that_of_voc(tmp_path):
    root = make(tmp_path / "a", "voc")
    for path in (root / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("nut", "cat").replace("bolt", "dog"))
    inspection = examine(recognise(root))
    assert count_kinds(inspection.findings) == {"class_without_objects": 1}
    assert inspection.findings[0].message.startswith("18 of 20 classes have no object in any split: aeroplane, bicycle")


def test_label_without_image_in_a_nested_folder_is_found_once(tmp_path):
    root = make(tmp_path / "a", "yolo")
    for folder in ("images", "labels"):
        (root / folder / "train/deep").mkdir()
    picture(30).save(root / "images/train/deep/30.png")
    shutil.copyfile(label_path(root), root / "labels/train/deep/30.txt")
    (root / "labels/train/deep/31.txt").write_text("")
    assert counts(root) == {"annotation_without_image": 1}


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
    json_path(root).write_text(json_path(root).read_text()[:-300])  # truncated, without its categories
    assert main(["doctor", str(root)]) == 2
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bccd", {"near_duplicate_in_two_splits": 1, "box_without_area": 2}),
        ("voc100", {}),
        ("coco_mini", {"image_listed_twice": 1}),
    ],
)
def test_errors_of_real_data_are_found_and_corrected(tmp_path, name, expected):
    if not (SHARED_DATA / name).exists():
        pytest.skip(f"../shared/data/{name} is absent")
    inspection = examine(recognise(SHARED_DATA / name))
    errors = [finding for finding in inspection.findings if finding.severity == "error"]
    assert count_kinds(errors) == expected
    if name == "bccd":
        empty = {Path(finding.file).stem for finding in errors if finding.kind == "box_without_area"}
        assert empty == {"BloodImage_00338", "BloodImage_00343"}
    write_cleaned(inspection, tmp_path / "copy", flags=CLEANING_FLAGS)
    assert examine(recognise(tmp_path / "copy")).num_errors == 0


def test_a_split_without_objects_is_an_error(tmp_path):
    root = make(tmp_path / "a", "coco")
    edit_json(root, lambda c: c.update(annotations=[]))
    counts = count_kinds(examine(recognise(root)).findings)
    assert counts["split_without_objects"] == 1
