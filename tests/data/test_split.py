import json
import warnings

import numpy as np
import pytest
from paths import SHARED_CASES
from PIL import Image as PILImage

from zoo.cli.data import find_sources
from zoo.data.formats.recognise import recognise
from zoo.data.formats.shapes import Shapes
from zoo.data.source import DataWarning
from zoo.data.split import check_fractions, default_group, divide, write_division
from zoo.errors import InputError


def write_coco_split(folder, split, names, classes=("nut", "bolt")):
    """Image number n has an object of class n modulo 3, if there is such a class."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, objects = [], []
    for number, name in enumerate(names, start=1):
        (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 6)).save(folder / split / name)
        images.append({"id": number, "file_name": name, "width": 8, "height": 6})
        if number % 3 < len(classes):
            objects.append({"id": number, "image_id": number, "category_id": number % 3, "bbox": [number % 3, 1, 3, 4]})
    categories = [{"id": label, "name": name} for label, name in enumerate(classes)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def names_of(table):
    return {table.file_name(index) for index in range(len(table))}


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (["IMG_1.jpg", "IMG_2.jpg"], None),
        (["a_png.rf.0a1b.jpg", "b_png.rf.0a1b.jpg"], None),
        (["dog.12.jpg", "dog.13.jpg"], None),
        (["x/1.jpg", "y/1.jpg"], None),
        (["x/frame_1.jpg", "y/frame_1.jpg"], None),
        (["a_png.rf.0a1b.jpg", "a_png.rf.77cd.jpg", "valid/a_png.rf.99.png"], "a_png"),
        (["road_mp4-1_jpg.rf.12ab.jpg", "road_mp4-22_jpg.rf.34cd.jpg"], "road_mp4"),
        (["road.mp4_0001.png", "road.mp4_0002.png"], "road.mp4"),
        (["road_frame_0001.png", "road_frame_0002.png", "other/road-Frame3.png"], "road"),
        (["x/frame_0001.png", "x/frame0002.png"], "x"),
    ],
)
def test_default_groups(names, group):
    groups = [default_group(name) for name in names]
    assert len(set(groups)) == (len(names) if group is None else 1)
    assert group is None or groups[0] == group


def test_images_are_divided_by_fractions_and_classes(tmp_path):
    write_coco_split(tmp_path, "all", [f"{number}.png" for number in range(120)])
    division = divide(recognise(tmp_path), (0.7, 0.15, 0.15))
    assert {split: len(table) for split, table in division.tables.items()} == {"train": 84, "val": 18, "test": 18}
    for table in division.tables.values():
        assert np.bincount(table.labels).tolist() == [len(table) // 3] * 2
    assert set.union(*map(names_of, division.tables.values())) == {f"{number}.png" for number in range(120)}
    assert division.num_groups == 120


def test_division_depends_on_the_seed_only(tmp_path):
    write_coco_split(tmp_path, "all", [f"{number}.png" for number in range(30)])
    first, again, other = (divide(recognise(tmp_path), (0.5, 0.5), seed=seed) for seed in (3, 3, 4))
    assert names_of(first.tables["val"]) == names_of(again.tables["val"]) != names_of(other.tables["val"])
    assert list(first.tables) == ["train", "val"]


@pytest.mark.parametrize(
    ("name", "group", "key"),
    [
        ("photo{}_jpg.rf.{}a.jpg", None, lambda name: name.split(".rf.")[0]),
        ("clip{}_frame_{}.jpg", None, lambda name: name.split("_frame")[0]),
        ("s{}-{}.jpg", r"^(s\d+)-", lambda name: name.split("-")[0]),
    ],
)
def test_groups_stay_together(tmp_path, name, group, key):
    write_coco_split(tmp_path, "all", [name.format(number // 4, number % 4) for number in range(80)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        division = divide(recognise(tmp_path), (0.6, 0.2, 0.2), group)
    assert division.num_groups == 20
    groups = [set(map(key, names_of(table))) for table in division.tables.values()]
    assert sum(map(len, groups)) == 20
    assert len(set.union(*groups)) == 20
    assert [len(table) for table in division.tables.values()] == pytest.approx([48, 16, 16], abs=8)


def test_splits_are_joined_and_written_with_images_in_place(tmp_path):
    write_coco_split(tmp_path / "in", "train", [f"{number}.png" for number in range(20)])
    write_coco_split(tmp_path / "in", "valid", [f"{number}.png" for number in range(10)])
    division = divide(recognise(tmp_path / "in"), (0.6, 0.2, 0.2))
    assert sum(map(len, division.tables.values())) == 30
    config = write_division(division, tmp_path / "out", "nuts")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "data.yaml",
        "instances_test.json",
        "instances_train.json",
        "instances_val.json",
    ]
    sources = find_sources(config)
    assert list(sources) == ["train", "val", "test"]
    for split, source in sources.items():
        table = source.read()
        assert table.fingerprint() == division.tables[split].fingerprint()
        assert source.load_image(table, 0).shape == (3, 6, 8)
        assert all(path.is_relative_to(tmp_path / "in") for path in table.paths())
    with pytest.raises(InputError, match="not an empty folder"):
        write_division(division, tmp_path / "out", "nuts")


def test_image_in_two_splits_is_used_once(tmp_path):
    names = [f"{number}.png" for number in range(12)]
    write_coco_split(tmp_path, "train", names)
    content = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps(content))
    for name in names:  # both files list the images in `train`
        content["images"][names.index(name)]["file_name"] = f"../train/{name}"
    (tmp_path / "val").mkdir()
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert sum(map(len, divide(recognise(tmp_path), (0.5, 0.5)).tables.values())) == 12
    content["annotations"][0]["bbox"] = [0, 0, 2, 2]
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"png: is in two splits with different annotations"):
        divide(recognise(tmp_path), (0.5, 0.5))


def test_classes_that_a_split_lacks_are_named(tmp_path):
    write_coco_split(tmp_path, "all", [f"{number}.png" for number in range(12)])
    content = json.loads((tmp_path / "all.json").read_text())
    content["categories"].append({"id": 9, "name": "rare"})
    content["annotations"][0]["category_id"] = 9
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.warns(DataWarning, match="has no object of 1 classes: rare"):
        divide(recognise(tmp_path), (0.5, 0.5))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 0.4), "add up to 0.9"),
        ((1.0,), "two or three numbers"),
        ((0.5, 0.2, 0.2, 0.1), "two or three numbers"),
        ((1.5, -0.5), "two or three numbers"),
        ((0.0, 1.0), "two or three numbers"),
        ((float("nan"), 0.5), "two or three numbers"),
    ],
)
def test_bad_fractions(fractions, message):
    with pytest.raises(InputError, match=message):
        check_fractions(fractions)


def test_bad_groups_and_too_few_images(tmp_path):
    write_coco_split(tmp_path, "all", [f"frame_{number}.png" for number in range(12)])
    sources = recognise(tmp_path)
    with pytest.raises(
        InputError, match=r"12 images are 1 groups, too few for 2 splits; .*by --group, such as '\(\.\*\)'"
    ):
        divide(sources, (0.5, 0.5))
    assert divide(sources, (0.5, 0.5), "(.*)").num_groups == 12
    with pytest.raises(InputError, match="is not a regular expression"):
        divide(sources, (0.5, 0.5), "(")
    with pytest.raises(InputError, match="in parentheses"):
        divide(sources, (0.5, 0.5), "frame")
    with pytest.warns(DataWarning, match="does not match 2 of 12 images"):
        assert divide(sources, (0.5, 0.5), r"frame_(\d)\.").num_groups == 12
    with pytest.raises(InputError, match="generated in memory"):
        divide({"all": Shapes(3)}, (0.5, 0.5))


def test_case_of_one_export_without_splits(tmp_path):
    for name in ("c18_labelimg_folders", "c39_cvat_default"):
        if not (SHARED_CASES / name).exists():
            pytest.skip(f"../shared/cases/{name} is absent")
        division = divide(recognise(SHARED_CASES / name), (0.7, 0.15, 0.15))
        assert list(division.tables) == ["train", "val", "test"]
        assert all(len(table) for table in division.tables.values())
        write_division(division, tmp_path / name, name)
