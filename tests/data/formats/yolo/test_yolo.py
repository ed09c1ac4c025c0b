import numpy as np
import pytest
import yaml
from PIL import Image as PILImage

from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.shapes import Shapes
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.formats.yolo import Yolo, read_yolo, write_yolo
from zoo.data.images import write_images
from zoo.data.source import DataWarning
from zoo.errors import InputError


def make_root(root, labels, **changes):
    """YOLO folder with images/train/<stem>.png of 40x20, and a label file for each text that is not None."""
    (root / "images/train/deep").mkdir(parents=True)
    (root / "labels/train/deep").mkdir(parents=True)
    for stem, text in labels.items():
        PILImage.new("RGB", (40, 20)).save(root / f"images/train/{stem}.png")
        if text is not None:
            (root / f"labels/train/{stem}.txt").write_text(text)
    data = {"train": "images/train", "names": ["cat", "dog"]} | changes
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    return str(root / "data.yaml")


def test_relative_boxes_become_pixels(tmp_path):
    data = make_root(tmp_path, {"b": "1 0.5 0.5 0.5 0.2\n\n0 .25 .25 .5 .5\n", "a": None, "deep/c": ""})
    table = Yolo(data).read()
    assert [table.file_name(i) for i in range(3)] == ["a.png", "b.png", "deep/c.png"]
    assert table.offsets.tolist() == [0, 0, 2, 2]
    assert table.boxes.tolist() == [[10, 8, 30, 12], [0, 0, 20, 10]]
    assert table.labels.tolist() == [1, 0]
    assert Yolo(data).load_image(table, 2).shape == (3, 20, 40)


def test_lists_of_images_and_numbered_names(tmp_path):
    data = make_root(tmp_path, {"a": "0 .5 .5 1 1", "b": ""}, train="list.txt", names={0: "x", 1: "y"})
    (tmp_path / "list.txt").write_text("./images/train/b.png\nimages/train/a.png\n")
    table = read_yolo(data, "train")
    assert table.classes == ("x", "y")
    assert table.offsets.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 1 1\n0 .5 .5 1", r"a.txt: line 2: expected `class cx cy w h`"),
        ("0 .5 x 1 1", r"a.txt: line 1: expected `class cx cy w h`"),
        ("2 .5 .5 1 1", r"a.txt: line 1: class 2 has no name"),
        ("0.5 .5 .5 1 1", r"a.txt: line 1: class 0.5 has no name"),
    ],
)
def test_bad_lines(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        Yolo(make_root(tmp_path, {"a": text})).read()


@pytest.mark.parametrize("line", ["0 .5 .5 0 1", "0 .5 .5 -1 1", "0 nan .5 1 1", "0 1.6 .5 .2 1"])
def test_bad_boxes(tmp_path, line):
    data = make_root(tmp_path, {"a": f"0 .5 .5 1 1\n{line}"})
    with pytest.warns(DataWarning, match=r"1 bad box skipped, the first in .*a.txt: line 2"):
        assert Yolo(data).read().num_objects == 1
    with pytest.raises(InputError, match=r"a.txt: line 2: box"):
        Yolo(data).read(strict=True)


def test_bad_data_files(tmp_path):
    data = make_root(tmp_path, {"a": ""})
    with pytest.raises(InputError, match="split 'test' is not in this file"):
        Yolo(data, "test").read()
    with pytest.raises(InputError, match="data file is missing"):
        Yolo(str(tmp_path / "none.yaml")).read()
    (tmp_path / "data.yaml").write_text("names: [a\ntrain: x")
    with pytest.raises(InputError, match="line 2, column"):
        Yolo(data).read()
    (tmp_path / "data.yaml").write_text("train: images/nowhere\nnames: {0: a, 2: b}")
    with pytest.raises(InputError, match="names: the numbers of `names`"):
        Yolo(data).read()
    (tmp_path / "data.yaml").write_text("train: images/nowhere\nnames: [a]")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        Yolo(data).read()
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [a]")
    (tmp_path / "list.txt").write_text("images/train/gone.png\n")
    with pytest.raises(InputError, match=r"gone.png: image file is missing"):
        Yolo(data).read()


@pytest.fixture(scope="module")
def shapes():
    return Shapes(5, seed=3)


def same(one, other, atol=0.0):
    assert one.classes == other.classes
    assert np.array_equal(one.offsets, other.offsets)
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.widths, other.widths)
    assert np.array_equal(one.heights, other.heights)
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=atol)


def through_coco(table, source, folder):
    write_coco(table, folder / "c.json")
    write_images(table, source, folder / "all")
    return Coco(str(folder / "c.json"), str(folder / "all"))


def through_voc(table, source, folder):
    write_voc(table, folder, "train")
    write_images(table, source, folder / "JPEGImages")
    return Voc([str(folder)], "train", list(table.classes))


def through_yolo(table, source, folder):
    write_images(table, source, folder / "images" / "train")
    return Yolo(str(write_yolo(table, folder)))


FORMATS = {"coco": through_coco, "voc": through_voc, "yolo": through_yolo}


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_every_pair_of_formats_round_trips(tmp_path, shapes, first, second):
    table = shapes.read()
    one = FORMATS[first](table, shapes, tmp_path / "one")
    other = FORMATS[second](one.read(strict=True), one, tmp_path / "other")
    # relative coordinates are rounded a few times, the others are exact
    same(table, other.read(strict=True), atol=1e-9 if "yolo" in (first, second) else 0)
    assert (other.load_image(other.read(), 4) == shapes.load_image(table, 4)).all()


def test_writing_next_to_other_classes_is_an_error(tmp_path, shapes):
    write_yolo(shapes.read(), tmp_path)
    (tmp_path / "data.yaml").write_text("names: [other]\ntrain: images/train\n")
    with pytest.raises(InputError, match="has other classes"):
        write_yolo(shapes.read(), tmp_path, "val")


def test_round_trip_of_file_names_with_a_folder_images(tmp_path):
    folders = {"shop/images": "shop/labels", "shop": "shop"}
    for number, (images, labels) in enumerate(folders.items()):
        for folder in (images, labels):
            (tmp_path / "a/train" / folder).mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (40, 20)).save(tmp_path / "a/train" / images / f"{number}.png")
        (tmp_path / "a/train" / labels / f"{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "a/data.yaml").write_text("train: train\nnames: [cat]\n")
    source = Yolo(str(tmp_path / "a/data.yaml"))
    table = source.read()
    assert table.num_objects == 2
    again = through_yolo(table, source, tmp_path / "images/copy").read()
    same(table, again)


def test_two_images_with_the_same_label_file_are_an_error(tmp_path):
    for suffix in ("png", "jpg"):
        PILImage.new("RGB", (40, 20)).save(tmp_path / f"a.{suffix}")
    (tmp_path / "data.yaml").write_text("train: .\nnames: [cat]\n")
    with pytest.raises(InputError, match=r"images a.jpg and a.png would share the label file labels/train/a.txt"):
        write_yolo(Yolo(str(tmp_path / "data.yaml")).read(), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
