"""Images of another size than their annotation, but of its shape: read, cleaned, and refused where it is open."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from zoo.data.formats.coco import Coco
from zoo.data.formats.resized import have_one_shape
from zoo.data.formats.voc import Voc
from zoo.data.quality.cleaning import clean
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import count_kinds
from zoo.data.source import DataWarning
from zoo.errors import InputError

ANNOTATED = (160, 120)
NUM = 10


def make_boxes(reach: float) -> np.ndarray:
    """Three boxes [NUM, 3, 4] in each image, at most at `reach` of its sides, in pixels of the annotated size."""
    rng = np.random.default_rng(0)
    limits = np.array(ANNOTATED) * reach
    near = rng.uniform(0, 0.6, (NUM, 3, 2)) * limits
    far = near + rng.uniform(0.1, 0.4, (NUM, 3, 2)) * limits
    far[0, 0] = limits
    return np.concatenate([near, far], axis=2).round()


def write_images(folder: Path, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{number}.png")


def write_coco(folder: Path, size: tuple[int, int], boxes: np.ndarray, polygons: bool = False) -> Coco:
    write_images(folder / "images", size)
    images = [{"id": at, "file_name": f"{at}.png", "width": ANNOTATED[0], "height": ANNOTATED[1]} for at in range(NUM)]
    annotations = []
    for at in range(NUM):
        for x1, y1, x2, y2 in boxes[at].tolist():
            entry = {"id": len(annotations), "image_id": at, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            entry |= {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]} if polygons else {}
            annotations.append(entry)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "bolt"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return Coco(str(folder / "a.json"), str(folder / "images"))


def write_voc(folder: Path, size: tuple[int, int], boxes: np.ndarray) -> Voc:
    write_images(folder / "JPEGImages", size)
    (folder / "Annotations").mkdir()
    for at in range(NUM):
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = f"{at}.png"
        of_image = ET.SubElement(root, "size")
        for key, value in (("width", ANNOTATED[0]), ("height", ANNOTATED[1]), ("depth", 3)):
            ET.SubElement(of_image, key).text = str(value)
        for x1, y1, x2, y2 in boxes[at].astype(int).tolist():
            item = ET.SubElement(root, "object")
            ET.SubElement(item, "name").text = "bolt"
            box = ET.SubElement(item, "bndbox")
            for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                ET.SubElement(box, key).text = str(value)
        ET.ElementTree(root).write(folder / "Annotations" / f"{at}.xml")
    return Voc([str(folder)], None)


@pytest.mark.parametrize("write", [write_coco, write_voc])
@pytest.mark.parametrize(
    ("size", "reach", "scale"),
    [
        ((80, 60), 1.0, 0.5),  # resized after annotation: boxes reach beyond the smaller image
        ((320, 240), 1.0, 2.0),  # none of the boxes is in the other three quarters of the larger image
        ((320, 240), 2.0, 1.0),  # resized together with the boxes, which reach beyond the annotated size
        ((80, 60), 0.5, 1.0),  # none of the boxes is in the other three quarters of the annotated size
        ((107, 80), 1.0, (107 / 160, 80 / 120)),  # a height of 80.25
    ],
)
def test_boxes_of_resized_images(tmp_path, write, size, reach, scale):
    boxes = make_boxes(reach)
    source = write(tmp_path, size, boxes)
    with pytest.warns(DataWarning, match=r"10 of 10 images have the shape but not the size of their annotation"):
        table = source.read()
    expected = boxes.reshape(-1, 4) * np.broadcast_to(np.tile(scale, 4 if isinstance(scale, float) else 2), 4)
    np.testing.assert_allclose(table.boxes, expected)
    np.testing.assert_allclose(table.areas, (expected[:, 2:] - expected[:, :2]).prod(axis=1))
    assert (table.widths[0], table.heights[0]) == size
    assert source.load_image(table, 0).shape == (3, size[1], size[0])
    inspection = examine({"train": source})
    assert count_kinds(inspection.findings).keys() <= {"interpreted", "box_tiny", "box_nearly_doubled"}
    tables, _ = clean(inspection)
    np.testing.assert_allclose(tables["train"].boxes, expected)


@pytest.mark.parametrize(
    ("size", "reach", "num"),
    [
        ((150, 113), 0.9, NUM),  # fits both
        ((80, 60), 0.5, 2),  # too few objects to tell
        ((320, 240), 3.0, NUM),  # fits neither
    ],
)
def test_boxes_that_leave_it_open_are_not_guessed(tmp_path, size, reach, num):
    boxes = make_boxes(reach)
    boxes[num:] = boxes[:1]
    boxes = boxes[:, : 3 if num == NUM else 1]
    source = write_coco(tmp_path, size, boxes)
    with pytest.raises(InputError, match="but its annotation says 160x120; 10 of 10 images differ"):
        source.read()
    inspection = examine({"train": source})
    assert count_kinds(inspection.findings)["wrong_size"] == NUM
    with pytest.raises(InputError, match="a cleaned copy would have no image of the train split"):
        clean(inspection)


@pytest.mark.parametrize(
    ("size", "boxes", "scale"),
    [
        # a box that sticks out a little says nothing; few objects do not either
        ((320, 240), [[10, 10, 163, 60], *[[5, 5, 70, 50]] * 9], None),
        ((200, 150), [[10, 10, 163, 60], *[[5 + at, 5, 100 + at, 119] for at in range(59)]], 1.25),
        # objects in the middle of the files, of which the annotated size is the smaller one
        ((240, 180), [[96, 72, 144, 108]] * 25, None),
        # a few bad boxes of many do not hide that the others fit
        ((80, 60), [[0, 0, 500, 400], *[[1 + at, 1, 100 + at, 119] for at in range(59)]], 0.5),
    ],
)
def test_evidence_of_single_boxes(tmp_path, size, boxes, scale):
    of_images = np.array((boxes + boxes[-1:] * (-len(boxes) % NUM)), np.float64).reshape(NUM, -1, 4)
    source = write_coco(tmp_path, size, of_images)
    if scale is None:
        with pytest.raises(InputError, match="but its annotation says"):
            source.read()
    else:
        with pytest.warns(DataWarning, match="scaled to the actual one"):
            assert source.read().widths[0] == size[0]


def test_an_object_of_an_unknown_image_has_no_scale(tmp_path):
    source = write_coco(tmp_path, (80, 60), make_boxes(1.0), polygons=True)
    content = json.loads(Path(source.annotations).read_text())
    content["annotations"].append(content["annotations"][0] | {"id": 99, "image_id": 77})
    Path(source.annotations).write_text(json.dumps(content))
    kinds = count_kinds(examine({"train": source}).findings)
    assert "box_unlike_polygon" not in kinds
    assert kinds["unknown_image"] == 1


def test_polygons_of_resized_images_are_scaled_too(tmp_path):
    source = write_coco(tmp_path, (80, 60), make_boxes(1.0), polygons=True)
    assert "box_unlike_polygon" not in count_kinds(examine({"train": source}).findings)


def test_sizes_that_are_swapped_are_corrected_in_a_copy(tmp_path):
    boxes = make_boxes(0.5)
    source = write_coco(tmp_path, ANNOTATED[::-1], boxes)
    with pytest.raises(InputError, match="image is 120x160 but its annotation says 160x120"):
        source.read()
    tables, changes = clean(examine({"train": source}))
    assert (tables["train"].widths[0], tables["train"].heights[0]) == ANNOTATED[::-1]
    np.testing.assert_allclose(tables["train"].boxes, boxes.reshape(-1, 4))
    assert sum("size corrected" in change.what for change in changes) == NUM


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((640, 480), (320, 240), True),
        ((640, 427), (300, 200), True),  # 200.2
        ((427, 640), (640, 427), False),
        ((96, 72), (90, 72), False),
        ((500, 375), (375, 500), False),
        ((4000, 3000), (1333, 1000), True),
        ((4000, 3000), (1333, 990), False),
    ],
)
def test_shapes(one, other, expected):
    assert have_one_shape(one, other) is have_one_shape(other, one) is expected
