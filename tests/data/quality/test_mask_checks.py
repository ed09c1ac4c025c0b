"""Findings about masks, and masks in cleaned copies."""

import json
from pathlib import Path

import numpy as np
import pytest
from faulty_data import counts, edit_json, image_path, json_path, make, picture
from PIL import Image as PILImage

from zoo.data.formats.coco import read_coco
from zoo.data.formats.recognise import recognise
from zoo.data.masks import encode_runs
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.doctor import examine
from zoo.errors import InputError

WIDTH, HEIGHT = 96, 64


def polygon(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def run_lengths(x1: int, y1: int, x2: int, y2: int) -> dict:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[y1:y2, x1:x2] = True
    return {"size": [HEIGHT, WIDTH], "counts": encode_runs(pixels).decode()}


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A data set in COCO's format of which every object has the polygon of its box."""
    root = make(tmp_path / "data", "coco")

    def add(content: dict) -> None:
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["segmentation"] = polygon(x, y, x + width, y + height)

    edit_json(root, add, ("train", "val"))
    return root


def test_good_masks_have_no_findings(masked: Path) -> None:
    assert counts(masked) == {}


# The box of the first object is 10 10 40 40.
@pytest.mark.parametrize(
    ("segmentation", "kinds"),
    [
        pytest.param(polygon(20.1, 20.1, 20.2, 20.2), {"mask_empty": 1, "box_unlike_polygon": 1}, id="empty polygon"),
        pytest.param(run_lengths(0, 0, 0, 0), {"mask_empty": 1}, id="empty run lengths"),
        pytest.param(run_lengths(10, 10, 45, 40), {"mask_outside_box": 1}, id="outside"),
        pytest.param(run_lengths(10, 10, 42, 40), {}, id="two pixels outside"),
        pytest.param(run_lengths(10, 10, 30, 40), {"mask_unlike_box": 1}, id="two thirds of the box"),
        pytest.param(run_lengths(11, 11, 38, 39), {}, id="most of the box"),
        pytest.param(polygon(10, 10, 40, 20) + polygon(10, 30, 40, 40), {"mask_in_parts": 1}, id="parts"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": "x\x01"}, {"mask_broken": 1}, id="broken"),
        pytest.param([[1, 2, 3]], {"mask_broken": 1}, id="odd"),
        pytest.param([], {"mask_missing": 1}, id="none"),
    ],
)
def test_each_kind_of_bad_mask(masked: Path, segmentation: object, kinds: dict[str, int]) -> None:
    edit_json(masked, lambda content: content["annotations"][0].update(segmentation=segmentation))
    found = counts(masked)
    if "mask_broken" in kinds:  # its object has none
        kinds = kinds | {"mask_missing": 1}
    assert found == kinds


def test_messages_have_file_annotation_and_numbers(masked: Path) -> None:
    edit_json(masked, lambda content: content["annotations"][0].update(segmentation=run_lengths(10, 10, 45, 40)))
    (finding,) = examine(recognise(masked)).findings
    assert finding.severity == "warning"
    assert finding.file.endswith("instances_train.json")
    assert finding.place == "annotation id 1"
    assert finding.message == "the mask extends 5 pixels beyond its box (10, 10, 40, 40)"


def test_a_data_set_of_boxes_is_not_told_that_it_has_no_masks(tmp_path: Path) -> None:
    root = make(tmp_path, "coco")
    edit_json(root, lambda content: [a.update(segmentation=[]) for a in content["annotations"]], ("train", "val"))
    assert counts(root) == {}


def test_a_cleaned_copy_keeps_masks(masked: Path, tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["annotations"][1]["segmentation"] = run_lengths(50, 20, 80, 50)
        content["annotations"][2]["segmentation"] = [[1, 2, 3]]
        content["annotations"].append(content["annotations"][0] | {"id": 99})  # doubled: left out of the copy

    edit_json(masked, change)
    write_cleaned(examine(recognise(masked)), tmp_path / "out")
    table = read_coco(json_path(tmp_path / "out"), with_masks=True)
    assert table.num_objects == 6
    assert table.masks is not None
    assert table.masks.polygons(0)[0].tolist() == polygon(10, 10, 40, 40)[0]
    assert table.masks.runs(1, HEIGHT, WIDTH).decode() == run_lengths(50, 20, 80, 50)["counts"]
    assert table.masks.kinds.tolist()[2] == 0


def test_run_lengths_of_another_size_than_the_image_file_are_left_out(masked: Path, tmp_path: Path) -> None:
    """The size in the file is swapped: the boxes fit either way, the run lengths are those of the swapped size."""
    picture(9).resize((WIDTH, WIDTH)).crop((0, 0, HEIGHT, WIDTH)).save(image_path(masked, "coco", 1))
    edit_json(
        masked,
        lambda content: (
            [
                a.update(bbox=[10, 10, 30, 30], area=900, segmentation=run_lengths(10, 10, 40, 40))
                for a in content["annotations"][:1]
            ]
            and content["annotations"].pop(1)
        ),
    )
    write_cleaned(examine(recognise(masked)), tmp_path / "out")
    content = json.loads(json_path(tmp_path / "out").read_text())
    assert [content["images"][0][side] for side in ("width", "height")] == [HEIGHT, WIDTH]
    assert content["annotations"][0]["segmentation"] == []
    changes = json.loads((tmp_path / "out/changes.json").read_text())
    assert "mask of another size: left out" in [change["what"] for change in changes]


def test_voc_masks_that_disagree_with_boxes(tmp_path: Path) -> None:
    root = make(tmp_path, "voc")
    (root / "SegmentationObject").mkdir()
    for number in range(1, 7):
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        shift = (number - 1) % 3
        pixels[10:40, 10 + shift : 40] = 1
        pixels[20 + shift : 50, 50:80] = 2
        if number == 1:
            pixels[pixels == 1] = 0
            pixels[10:20, 10:20] = 1
        image = PILImage.fromarray(pixels, mode="P")
        image.putpalette([0] * 768)
        image.save(root / "SegmentationObject" / f"{number}.png")
    assert counts(root) == {"mask_unlike_box": 1}


def test_a_broken_mask_is_found_where_no_other_object_has_one(tmp_path: Path) -> None:
    root = make(tmp_path, "coco")
    edit_json(root, lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3]]))
    assert counts(root)["mask_broken"] == 1


def test_voc_masks_of_another_size_than_their_image(tmp_path: Path) -> None:
    root = make(tmp_path, "voc")
    (root / "SegmentationObject").mkdir()
    PILImage.fromarray(np.ones((8, 8), np.uint8)).save(root / "SegmentationObject" / "1.png")
    (finding,) = (found for found in examine(recognise(root)).findings if found.kind == "mask_broken")
    assert finding.message == "has 8x8 pixels, but its image has 96x64"
    with pytest.raises(InputError, match=r"1\.png: has 8x8 pixels, but its image has 96x64"):
        recognise(root)["train"].read(with_masks=True)
