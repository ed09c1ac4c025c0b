"""Tiny data sets in three formats, to be damaged by tests of the doctor and of cleaned copies."""

import json

import numpy as np
from PIL import Image as PILImage

from zoo.data.formats.coco import write_coco
from zoo.data.formats.recognise import recognise
from zoo.data.formats.voc import write_voc
from zoo.data.formats.yolo import write_yolo
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import CLEANING_FLAGS, KINDS, count_kinds
from zoo.data.table import AnnotationTable

WIDTH, HEIGHT = 96, 64


FORMATS = ("coco", "voc", "yolo")


def picture(seed):
    """Random image with low frequencies; different for each seed."""
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
    """Data set of two splits without errors or warnings."""
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


def set_box(row, bbox):
    return lambda content: content["annotations"][row].update(bbox=bbox)


def check_copy(inspection, root, out):
    """A copy with all flags has no findings with a remedy, all changes are listed, and the original is unchanged."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    changes = write_cleaned(inspection, out, flags=CLEANING_FLAGS)
    left = count_kinds(examine(recognise(out)).findings)
    assert not [kind for kind in left if KINDS[kind].remedy], left
    corrected = [finding for finding in inspection.findings if KINDS[finding.kind].remedy]
    assert len(changes) >= len(corrected)
    assert len(json.loads((out / "changes.json").read_text())) == len(changes)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert not list(out.parent.glob(".*.partial"))


def voc_xml(root, number=1):
    return root / "Annotations" / f"{number}.xml"


def label_path(root, number=1):
    return root / "labels" / "train" / f"{number}.txt"
