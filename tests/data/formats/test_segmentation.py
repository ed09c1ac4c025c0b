"""Masks of every format: real files against pycocotools, made files by hand, damaged ones, and masks kept in tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import SHARED_DATA
from PIL import Image
from pycocotools import mask as coco_mask

from zoo.data.formats.coco import Coco, read_coco, write_coco
from zoo.data.formats.shapes import Shapes, draw
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.formats.yolo import Yolo, write_yolo
from zoo.data.images import write_images
from zoo.data.masks import NONE, RUNS, encode_runs
from zoo.data.source import DataWarning
from zoo.data.table import AnnotationTable, concatenate
from zoo.errors import InputError

SQUARE = [2.0, 3, 12, 3, 12, 9, 2, 9]


def write_coco_file(folder: Path, segmentations: list[object]) -> Path:
    """One image of 40 x 30 with an object for each segmentation."""
    annotations = [
        {"id": 5 + number, "image_id": 7, "category_id": 1, "bbox": [2, 3, 10, 6], "segmentation": segmentation}
        for number, segmentation in enumerate(segmentations)
    ]
    images = [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "some.json").write_text(json.dumps(content))
    return folder / "some.json"


def test_coco_has_polygons_and_run_lengths_of_both_kinds(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), bool)
    pixels[3:9, 2:12] = True
    text = encode_runs(pixels)
    counts = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    assert counts["counts"] == text
    uncompressed = [2 * 30 + 3, *[6, 24] * 9, 6, 28 * 30 + 21]
    file = write_coco_file(
        tmp_path,
        [
            [SQUARE, [20, 20, 30, 20, 25, 28.5]],
            {"size": [30, 40], "counts": text.decode()},
            {"size": [30, 40], "counts": uncompressed},
        ],
    )
    table = read_coco(file, with_masks=True)
    assert table.masks is not None
    assert [part.tolist() for part in table.masks.polygons(0)] == [SQUARE, [20, 20, 30, 20, 25, 28.5]]
    for row in (1, 2):
        assert table.masks.kinds[row] == RUNS
        np.testing.assert_array_equal(table.masks.decode(row, 30, 40), pixels)
    assert table.masks.decode(0, 30, 40)[3:9, 2:12].all()
    assert read_coco(file).masks is None
    assert read_coco(file).fingerprint() == table.fingerprint(), "boxes are the same with and without masks"


def test_objects_without_a_mask_are_counted(tmp_path: Path) -> None:
    file = write_coco_file(tmp_path, [[], None, [SQUARE], [[1, 2, 3, 4], SQUARE], [[1, 2, 3, 4]]])
    with pytest.warns(DataWarning, match="3 of 5 objects have no mask") as warned:
        table = read_coco(file, with_masks=True)
    assert any("2 parts of polygons with fewer than 3 corners were left out" in str(w.message) for w in warned)
    assert table.masks is not None
    assert (table.masks.kinds == NONE).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon has an odd number of coordinates"),
        ({"size": [40, 30], "counts": [1200]}, "its size is 30x40, but that of the image is 40x30"),
        ({"size": [30, 40], "counts": [1000]}, "add up to 1000 pixels, but the image has 40 x 30"),
        ({"size": [30, 40], "counts": "nonsense"}, "not COCO's compressed run lengths"),
        ("a text", "Expected"),
        ({"counts": [1200]}, "missing required field `size`"),
    ],
)
def test_damaged_masks_name_their_place(tmp_path: Path, segmentation: object, message: str) -> None:
    file = write_coco_file(tmp_path, [[SQUARE], segmentation])
    with pytest.raises(InputError, match=rf"some\.json: annotation id 6: `segmentation` cannot be read: .*{message}"):
        read_coco(file, with_masks=True)
    assert len(read_coco(file).labels) == 2, "without masks the file can be used"


@pytest.mark.filterwarnings("ignore::zoo.data.source.DataWarning")
@pytest.mark.parametrize("name", ["coco_mini", "borrat"])
def test_real_files_decode_as_pycocotools_does(name: str) -> None:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the images of {name} are not at ../shared/data")
    file = folder / ("annotations/instances_val2017.json" if name == "coco_mini" else "valid/_annotations.coco.json")
    images = folder / ("val2017" if name == "coco_mini" else "valid")
    table = Coco(str(file), str(images)).read(with_masks=True)
    content = json.loads(file.read_text())
    given = {entry["id"]: entry["segmentation"] for entry in content["annotations"]}
    assert table.masks is not None
    for index in range(0, len(table), 3):
        height, width = int(table.heights[index]), int(table.widths[index])
        rows = table.rows(index)
        for row in range(rows.start, rows.stop):
            segmentation = given[int(table.annotation_ids[row])]
            encoded = segmentation
            if isinstance(segmentation, list):
                encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                encoded = coco_mask.frPyObjects(segmentation, height, width)
            np.testing.assert_array_equal(table.masks.decode(row, height, width), coco_mask.decode(encoded))


def test_voc_numbers_of_pixels_are_places_of_objects(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationObject"):
        (tmp_path / folder).mkdir(parents=True)
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    things = "".join(f"<object><name>cell</name>{box.format(edge)}</object>" for edge in (12, 2, 20))
    size = "<size><width>40</width><height>30</height></size>"
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{name}.jpg")
        (tmp_path / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{things}</annotation>")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    numbers = np.zeros((30, 40), np.uint8)
    numbers[3:9, 2:12], numbers[3:9, 12:20], numbers[2, 2:20] = 1, 3, 255
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([value for number in range(256) for value in (number, 0, 0)])
    picture.save(tmp_path / "SegmentationObject/a.png")
    with pytest.warns(DataWarning, match=r"1 of 2 images have no file of masks, the first .*b\.png"):
        table = Voc([str(tmp_path)], "train").read(with_masks=True)
    assert table.masks is not None
    assert table.num_objects == 4, "the second box of each image is reversed"
    np.testing.assert_array_equal(table.masks.decode(0, 30, 40), numbers == 1)
    np.testing.assert_array_equal(table.masks.decode(1, 30, 40), numbers == 3)
    assert table.masks.kinds[2:].tolist() == [NONE, NONE]
    Image.new("RGB", (40, 30)).save(tmp_path / "SegmentationObject/b.png")
    with pytest.raises(InputError, match=r"b\.png: has mode RGB; VOC's masks are png files with a palette"):
        Voc([str(tmp_path)], "train").read(with_masks=True)


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "images/train/a.png")
    lines = ["0 0.05 0.1 0.3 0.1 0.3 0.3 0.05 0.3", "0 0.5 0.5 0.2 0.2"]
    (tmp_path / "labels/train/a.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": {0: "cell"}}))
    with pytest.warns(DataWarning, match="1 of 2 objects are polygons"):
        table = Yolo(str(tmp_path / "data.yaml")).read(with_masks=True)
    assert table.masks is not None
    assert table.masks.polygons(0)[0].tolist() == pytest.approx(SQUARE)
    assert table.masks.kinds[1] == NONE
    with pytest.warns(DataWarning):
        assert Yolo(str(tmp_path / "data.yaml")).read().masks is None


def test_shapes_have_the_masks_that_are_drawn() -> None:
    source = Shapes(num_images=20, seed=3)
    table = source.read(with_masks=True)
    assert table.masks is not None
    assert source.read().masks is None
    for index in range(len(table)):
        height, width = int(table.heights[index]), int(table.widths[index])
        total = np.zeros((height, width), int)
        for row in range(table.rows(index).start, table.rows(index).stop):
            pixels = table.masks.decode(row, height, width).astype(bool)
            total += pixels
            ys, xs = np.nonzero(pixels)
            x1, y1, x2, y2 = table.boxes[row]
            assert abs(np.array([xs.min() - x1, ys.min() - y1, xs.max() + 1 - x2, ys.max() + 1 - y2])).max() <= 1.5
        # Objects do not overlap, but both may cover half of a pixel.
        assert (total <= 1).mean() > 0.99
    image = draw(3, 0).astype(int)
    first = table.masks.decode(0, *image.shape[:2]).astype(bool)
    assert abs(image[first].mean(axis=0) - image.mean(axis=(0, 1))).sum() > 20, "the object differs from the image"


def test_tables_keep_masks_with_their_objects(tmp_path: Path) -> None:
    table = Shapes(num_images=6, seed=1).read(with_masks=True)
    chosen = table.select([4, 0])
    both = concatenate([chosen, table])
    assert both.masks is not None
    assert table.masks is not None
    for one, row, other, start in ((both, 0, table, table.rows(4).start), (chosen, 0, table, table.rows(4).start)):
        assert one.masks is not None
        index = int(np.searchsorted(one.offsets, row, side="right")) - 1
        height, width = int(one.heights[index]), int(one.widths[index])
        assert one.masks.runs(row, height, width) == other.masks.runs(start, height, width)
    assert len(both.masks) == both.num_objects
    with pytest.raises(ValueError, match="all have masks, or none"):
        concatenate([table, Shapes(num_images=2, seed=1).read()])


def same_pixels(one: AnnotationTable, other: AnnotationTable) -> None:
    assert one.masks is not None
    assert other.masks is not None
    assert len(one.masks) == len(other.masks)
    for index in range(len(one)):
        size = int(one.heights[index]), int(one.widths[index])
        for row in range(one.rows(index).start, one.rows(index).stop):
            np.testing.assert_array_equal(one.masks.decode(row, *size), other.masks.decode(row, *size))


def make_polygons(tmp_path: Path) -> AnnotationTable:
    """Three objects with a polygon each, the third without a mask."""
    (tmp_path / "images/train").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "images/train/a.png")
    triangle = [[20.25, 20, 30, 20, 25, 28.01]]
    return read_coco(write_coco_file(tmp_path, [[SQUARE], triangle, []]), tmp_path / "images/train", with_masks=True)


@pytest.mark.filterwarnings("ignore::zoo.data.source.DataWarning")
def test_masks_come_back_from_coco_as_they_were(tmp_path: Path) -> None:
    for number, table in enumerate((Shapes(6, seed=1).read(with_masks=True), make_polygons(tmp_path))):
        write_coco(table, tmp_path / f"{number}.json")
        again = read_coco(tmp_path / f"{number}.json", with_masks=True)
        assert again.masks is not None
        assert table.masks is not None
        assert again.masks.content.tobytes() == table.masks.content.tobytes()
        assert again.masks.kinds.tolist() == table.masks.kinds.tolist()


def test_masks_come_back_from_voc_where_objects_do_not_overlap(tmp_path: Path) -> None:
    """Shapes do not overlap, but for single pixels that two of them half cover: the later one then has them."""
    source = Shapes(6, seed=1)
    table = source.read(with_masks=True)
    write_voc(table, tmp_path, "train")
    write_images(table, source, tmp_path / "JPEGImages")
    again = Voc([str(tmp_path)], "train", list(table.classes)).read(with_masks=True)
    assert again.masks is not None
    assert table.masks is not None
    different = total = 0
    for index in range(len(table)):
        size = int(table.heights[index]), int(table.widths[index])
        for row in range(table.rows(index).start, table.rows(index).stop):
            pixels = table.masks.decode(row, *size)
            different += int((pixels != again.masks.decode(row, *size)).sum())
            total += int(pixels.sum())
    assert different < 0.002 * total
    with Image.open(tmp_path / "SegmentationObject/shapes_1_000001.png") as picture:
        assert picture.getpalette()[3:9] == [128, 0, 0, 0, 128, 0], "the colours of the devkit"


@pytest.mark.filterwarnings("ignore::zoo.data.source.DataWarning")
def test_polygons_come_back_from_yolo(tmp_path: Path) -> None:
    table = make_polygons(tmp_path)
    write_yolo(table, tmp_path)
    again = Yolo(str(tmp_path / "data.yaml")).read(with_masks=True)
    same_pixels(table, again)
    assert again.masks is not None
    assert (again.masks.kinds == NONE).tolist() == [False, False, True]
    with pytest.warns(DataWarning, match=r"\d+ masks are not one polygon, and only their boxes are written"):
        write_yolo(Shapes(3, seed=1).read(with_masks=True), tmp_path / "other")
