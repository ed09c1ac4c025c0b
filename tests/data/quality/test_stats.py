import json
import math
from dataclasses import fields

import hotcoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.shapes import Shapes
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.formats.yolo import Yolo
from zoo.data.quality.neighbours import highest_iou, same_image_pairs
from zoo.data.quality.stats import (
    GRID,
    QUANTILES,
    Distribution,
    compute_statistics,
    distribution,
    histogram,
    split_statistics,
)
from zoo.data.table import AnnotationTable
from zoo.report.dataset import headlines, panels, render_statistics, statistics_rows


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / area if area else 0.0


edge = st.integers(0, 40)
box = st.tuples(edge, edge, edge, edge).map(
    lambda e: (float(min(e[0], e[2])), float(min(e[1], e[3])), float(max(e[0], e[2]) + 1), float(max(e[1], e[3]) + 1))
)


@given(st.lists(st.tuples(st.integers(0, 3), box), max_size=14))
@settings(max_examples=60, deadline=None)
def test_highest_iou_equals_a_loop_over_all_pairs(items):
    image_index = np.array([image for image, _ in items], np.int64)
    boxes = np.array([b for _, b in items], np.float64).reshape(-1, 4)
    expected = [
        max((iou(b, c) for j, (other, c) in enumerate(items) if j != i and other == image), default=0.0)
        for i, (image, b) in enumerate(items)
    ]
    assert highest_iou(boxes, image_index).tolist() == pytest.approx(expected)
    pairs = [(int(a), int(b)) for block in same_image_pairs(image_index) for a, b in zip(*block, strict=True)]
    count = len(items)
    wanted = {(i, j) for i in range(count) for j in range(i + 1, count) if image_index[i] == image_index[j]}
    assert len(pairs) == len(wanted)
    assert set(pairs) == wanted


def make_table(**changes):
    """Three images: two overlapping cats and a dog; no object; a small cat and a crowd."""
    columns = {
        "classes": ("cat", "dog", "cow"),
        "image_ids": np.array([1, 2, 3]),
        "widths": np.array([100, 100, 200]),
        "heights": np.array([50, 50, 100]),
        "file_names": ["a.jpg", "b.jpg", "c.jpg"],
        "image_index": np.array([0, 0, 0, 2, 2]),
        "boxes": np.array([[0, 0, 40, 40], [10, 0, 50, 40], [60, 0, 110, 50], [190, 90, 200, 100], [0, 0, 200, 100]])
        * 1.0,
        "labels": np.array([0, 0, 1, 0, 1]),
        "iscrowd": np.array([False, False, False, False, True]),
        "difficult": np.array([False, True, False, False, False]),
    }
    return AnnotationTable.from_rows(**columns | changes)


def test_split_statistics_on_an_example():
    stats = split_statistics(make_table())
    assert (stats.images, stats.boxes, stats.empty_images, stats.crowds, stats.difficult) == (3, 4, 1, 1, 1)
    assert stats.boxes_an_image.mean == pytest.approx(4 / 3)
    assert stats.boxes_an_image.max == 3
    assert [(c.name, c.objects, c.images) for c in stats.classes] == [("cat", 3, 2), ("dog", 1, 1), ("cow", 0, 0)]
    assert stats.imbalance == 3
    # the dog is clipped to its image: 40 x 50
    assert stats.box_width.max == 40
    assert stats.box_area.max == 2000
    assert stats.box_aspect.min == pytest.approx(0.8)
    assert stats.relative_side.max == pytest.approx(math.sqrt(2000 / 5000))
    # annotated areas, not clipped: 1600, 1600, 2500, 100
    assert stats.by_size == {"small": 1, "medium": 3, "large": 0}
    # the cats share 30 x 40 of 50 x 40: IoU 0.6; nothing else overlaps
    assert stats.overlap.max == pytest.approx(0.6)
    assert stats.overlapping == stats.overlapping_alike == 0.5
    assert [(s.width, s.height, s.images) for s in stats.image_sizes] == [(100, 50, 2), (200, 100, 1)]
    centres = np.array(stats.centres)
    assert centres.shape == (GRID, GRID)
    assert centres.sum() == 4
    # centres: (20, 20), (30, 20), (80, 25) of 100 x 50 and (195, 95) of 200 x 100
    for x, y in ((0.2, 0.4), (0.3, 0.4), (0.8, 0.5), (0.975, 0.95)):
        assert centres[int(y * GRID), int(x * GRID)] == 1
    assert stats.count_histogram.counts[:4] == [1, 1, 0, 1]


def test_overlap_within_and_between_classes():
    stats = split_statistics(make_table(labels=np.array([0, 1, 1, 0, 1])))
    assert stats.overlapping == 0.5
    assert stats.overlapping_alike == 0


@given(st.lists(st.floats(0, 5000), max_size=30))
@settings(max_examples=40, deadline=None)
def test_distribution_and_histogram_equal_loops(values):
    edges = (0.0, 1.0, 10.0, 100.0)
    counts = [0, 0, 0]
    for value in values:
        counts[sum(value >= e for e in edges[1:-1])] += 1
    assert histogram(np.array(values, np.float64), edges).counts == counts
    got = distribution(np.array(values, np.float64))
    names = [field.name for field in fields(Distribution)][1:]
    ordered = sorted(values)
    for name, quantile in zip(names, QUANTILES, strict=True):
        if not values:
            assert math.isnan(getattr(got, name))
            continue
        place = quantile * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        assert getattr(got, name) == pytest.approx(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def test_split_without_boxes_and_classes_has_nan_statistics():
    nothing = {"image_index": np.zeros(0, np.int64), "boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64)}
    flags = {"iscrowd": np.zeros(0, bool), "difficult": np.zeros(0, bool)}
    stats = split_statistics(make_table(classes=(), **nothing, **flags))
    assert (stats.images, stats.boxes, stats.empty_images) == (3, 0, 3)
    assert math.isnan(stats.box_area.median)
    assert math.isnan(stats.imbalance)
    assert np.array(stats.centres).sum() == 0


def test_counts_equal_hotcoco(tmp_path):
    write_coco(Shapes(60, 3).read(), tmp_path / "a.json")
    ours = compute_statistics("a", {"train": Coco(str(tmp_path / "a.json"), str(tmp_path))}).splits["train"]
    peer = hotcoco.COCO(str(tmp_path / "a.json")).stats()
    assert (ours.images, ours.boxes) == (peer["image_count"], peer["annotation_count"])
    expected = {c["name"]: (c["ann_count"], c["img_count"]) for c in peer["per_category"]}
    assert {c.name: (c.objects, c.images) for c in ours.classes} == expected
    assert ours.image_width.median == peer["image_width"]["median"]
    assert ours.image_height.mean == pytest.approx(peer["image_height"]["mean"])


def test_missing_images_give_a_note(tmp_path):
    write_coco(make_table(), tmp_path / "a.json")
    stats = compute_statistics("a", {"train": Coco(str(tmp_path / "a.json"), str(tmp_path / "nowhere"))})
    assert stats.splits["train"].boxes == 4
    assert any("3 of 3 image files are missing" in note for note in stats.notes)


@pytest.mark.filterwarnings("ignore:1 crowds")
def test_splits_share_their_classes_and_equal_splits_are_merged(tmp_path):
    write_voc(make_table(labels=np.array([2, 2, 2, 2, 2])).select([1, 0]), tmp_path, "val")
    write_voc(make_table().select([2]), tmp_path, "small")
    (tmp_path / "JPEGImages").mkdir()
    stats = compute_statistics("a", {"small": Voc([str(tmp_path)], "small"), "val": Voc([str(tmp_path)], "val")})
    assert [c.name for c in stats.splits["small"].classes] == [c.name for c in stats.splits["val"].classes]
    again = compute_statistics("a", {"val": Shapes(3, 1), "test": Shapes(3, 1), "train": Shapes(3, 0)})
    assert list(again.splits) == ["val/test", "train"]


def test_invalid_boxes_are_left_out_and_counted(tmp_path):
    write_coco(make_table(), tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 9]
    content["annotations"][1] |= {"image_id": 77}
    (tmp_path / "a.json").write_text(json.dumps(content))
    stats = compute_statistics("a", {"train": Coco(str(tmp_path / "a.json"), str(tmp_path))})
    assert (stats.splits["train"].boxes, stats.splits["train"].skipped_boxes) == (2, 2)
    assert any("2 invalid boxes are left out" in note for note in stats.notes)


def test_page_of_boxes_of_one_size_and_one_class(tmp_path):
    one = {"image_index": np.array([0]), "boxes": np.array([[0.0, 0, 40, 40]]), "labels": np.array([0])}
    write_coco(make_table(**one, iscrowd=np.zeros(1, bool), difficult=np.zeros(1, bool)), tmp_path / "a.json")
    stats = compute_statistics("a", {"train": Coco(str(tmp_path / "a.json"), str(tmp_path))})
    sizes = panels(stats)[1]
    assert sizes.title == "Size of boxes"
    assert [text for _, text in sizes.x_ticks] == ["38.055", "45.255"]
    assert headlines(stats)[-1] == "Of 3 classes only cat has objects."
    assert "Size of boxes" in render_statistics(stats, "zoo stats a")


def test_headline_compares_most_frequent_and_rarest_class(tmp_path):
    write_coco(make_table(), tmp_path / "a.json")
    stats = compute_statistics("a", {"train": Coco(str(tmp_path / "a.json"), str(tmp_path))})
    assert headlines(stats)[-1] == "Balanced: cat has 3 times as many objects as dog."


def test_images_of_unknown_size_are_counted_and_their_boxes_are_not_invalid(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(5):
        PILImage.new("RGB", (40, 20)).save(tmp_path / f"images/{number}.png")
        (tmp_path / f"labels/{number}.txt").write_text("0 .5 .5 .5 .5\n0 .2 .2 .1 .1\n")
    (tmp_path / "images/1.png").write_text("no image")
    (tmp_path / "images/3.png").write_text("no image")
    (tmp_path / "labels/4.txt").write_text("0 .5 .5 0 .5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    stats = compute_statistics("a", {"train": Yolo(str(tmp_path / "data.yaml"))})
    train = stats.splits["train"]
    assert (train.images, train.boxes, train.skipped_images, train.skipped_boxes) == (3, 4, 2, 1)
    first = tmp_path / "images/1.png"
    expected = f"train: 2 of 5 images are left out with their 4 boxes, since their size is unknown, the first: {first}"
    assert expected in stats.notes
    assert any("1 invalid box is left out" in note for note in stats.notes)
    assert [row.cells for row in statistics_rows(stats) if row.name == "of unknown size, left out"] == [["2"]]


@pytest.mark.parametrize("num_objects", [100, 101])
def test_more_objects_of_a_class_than_coco_counts_give_a_note(tmp_path, num_objects):
    """Two hundred objects of two classes, and a crowd, which does not count."""
    labels = np.array([0] * num_objects + [1] * (200 - num_objects) + [0])
    corners = np.arange(201)[:, None] // [1, 2] % 90
    table = make_table(
        labels=labels,
        boxes=np.concatenate([corners, corners + 5], axis=1) * 1.0,
        image_index=np.zeros(201, np.int64),
        iscrowd=np.arange(201) == 200,
        difficult=np.zeros(201, bool),
        heights=np.array([100, 50, 100]),
    )
    write_coco(table, tmp_path / "a.json")
    notes = compute_statistics("a", {"train": Coco(str(tmp_path / "a.json"), str(tmp_path))}).notes
    found = [note for note in notes if "objects of one class" in note]
    assert len(found) == (num_objects > 100)
    assert all("1 image has more than 100 objects of one class (at most 101)" in note for note in found)
