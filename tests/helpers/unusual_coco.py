"""Data sets of two splits in COCO format, to be changed into what users' tools write."""

import json
import warnings

import numpy as np
from PIL import Image as PILImage

from zoo.data.formats.recognise import recognise
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import count_kinds
from zoo.data.quality.stats import compute_statistics
from zoo.data.source import DataWarning

WIDTH, HEIGHT = 80, 60
CATEGORIES = [{"id": 1, "name": "nut"}, {"id": 2, "name": "bolt"}]


def picture(number):
    random = np.random.default_rng(number)
    return PILImage.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def content(split="train", **changes):
    """Four images with two objects each."""
    start = {"train": 1, "val": 11}[split]
    images = [
        {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
        for number in range(start, start + 4)
    ]
    annotations = [
        {"id": 2 * n + k, "image_id": start + n, "category_id": k + 1, "bbox": [10 + 20 * k, 20, 25, 15], "area": 375}
        for n in range(4)
        for k in range(2)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES} | changes


def make(root, change=lambda content: None, splits=("train", "val"), folder="{split}"):
    """Data set of two splits; `change` edits the content of each json."""
    for split in splits:
        described = content(split)
        images = root / folder.format(split=split)
        images.mkdir(parents=True, exist_ok=True)
        for record in described["images"]:
            picture(record["id"]).save(images / record["file_name"])
        change(described)
        write(root / "annotations" / f"instances_{split}.json", described)
    return root


def write(file, described):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described))
    return file


def read_all(data):
    """(tables, warnings) of all splits of a data set."""
    tables, texts = {}, []
    for split, source in recognise(data).items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tables[split] = source.read()
        assert all(warning.category is DataWarning for warning in caught)
        texts.append([str(warning.message) for warning in caught])
        for index in range(len(tables[split])):
            source.load_image(tables[split], index)
    return tables, texts


def check_read(data, *notes, objects=8):
    """All splits are read with the given notes, one sentence for each, and doctor and statistics agree."""
    tables, texts = read_all(data)
    sources = recognise(data)
    for table, text in zip(tables.values(), texts, strict=True):
        assert (len(table), table.num_objects) == (4, objects)
        assert len(text) == len(notes), text
        for sentence, note in zip(text, notes, strict=True):
            assert note in sentence
            assert "\n" not in sentence
    inspection = examine(sources)
    assert inspection.num_errors == 0
    assert count_kinds(inspection.findings).get("interpreted", 0) == len(notes) * len(tables)
    statistics = compute_statistics("x", sources)
    assert [(split.images, split.boxes) for split in statistics.splits.values()] == [(4, objects)] * len(tables)
    assert sum(note in line for line in statistics.notes for note in notes) == len(notes) * len(tables)
    return tables


def without_sizes(described):
    for record in described["images"]:
        del record["width"], record["height"]
