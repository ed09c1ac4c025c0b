"""Packed masks: what goes in comes out, and pixels and run lengths are pycocotools'."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from paths import SHARED_DATA
from pycocotools import mask as coco_mask

from zoo.data.masks import (
    Masks,
    check_runs,
    compress_runs,
    decode_runs,
    encode_runs,
    encode_stack,
    expand_runs,
    find_bad_runs,
)

SQUARE = np.array([2.0, 3, 12, 3, 12, 9, 2, 9])
TRIANGLE = np.array([14.25, 1.5, 19.99, 8.01, 13.1, 9.3])


def blob(seed: int, height: int = 37, width: int = 53) -> np.ndarray:
    random = np.random.default_rng(seed)
    cells = random.random((height // 6 + 1, width // 6 + 1)) > 0.5
    return np.kron(cells, np.ones((6, 6), np.uint8))[:height, :width].astype(np.uint8)


def test_polygons_come_back_as_they_were() -> None:
    fine = TRIANGLE + 1 / 3
    masks = Masks.pack([[SQUARE, TRIANGLE], None, [fine], b"abc", [SQUARE * 1e8]])
    assert len(masks) == 5
    assert [polygon.tolist() for polygon in masks.polygons(0)] == [SQUARE.tolist(), TRIANGLE.tolist()]
    assert masks.polygons(1) == masks.polygons(3) == []
    assert masks.polygons(2)[0].tolist() == fine.tolist()
    assert masks.polygons(4)[0].tolist() == (SQUARE * 1e8).tolist()
    assert masks.starts[1] == 4 * (3 + 14), "hundredths take four bytes each"


@given(st.lists(st.integers(0, 99_999), min_size=6, max_size=30))
@settings(max_examples=200, deadline=None)
def test_two_decimals_are_exact(hundredths: list[int]) -> None:
    numbers = [float(f"{value // 100}.{value % 100:02}") for value in hundredths[: len(hundredths) // 2 * 2]]
    assert Masks.pack([[np.array(numbers)]]).polygons(0)[0].tolist() == numbers


def test_pixels_are_pycocotools() -> None:
    masks = Masks.pack([[SQUARE, TRIANGLE], None, encode_runs(blob(0, 30, 40))])
    parts = [SQUARE.tolist(), TRIANGLE.tolist()]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 30, 40)))
    np.testing.assert_array_equal(masks.decode(0, 30, 40), expected)
    assert masks.decode(0, 30, 40)[3:9, 2:12].all()
    assert masks.decode(1, 30, 40).shape == (30, 40)
    assert not masks.decode(1, 30, 40).any()
    np.testing.assert_array_equal(masks.decode(2, 30, 40), blob(0, 30, 40))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("height", "width"), [(37, 53), (1, 9), (600, 800)])
def test_run_lengths_are_pycocotools(seed: int, height: int, width: int) -> None:
    pixels = blob(seed, height, width)
    text = encode_runs(pixels)
    assert text == coco_mask.encode(np.asfortranarray(pixels))["counts"]
    np.testing.assert_array_equal(decode_runs(text, height, width), pixels)
    counts = expand_runs(text)
    assert compress_runs(counts) == text
    assert counts.sum() == height * width
    uncompressed = {"size": [height, width], "counts": counts.tolist()}
    assert coco_mask.frPyObjects(uncompressed, height, width)["counts"] == text


def test_stacks_are_encoded_alike() -> None:
    stack = np.stack([blob(seed, 37, 53) for seed in range(3)]).astype(bool)
    assert encode_stack(stack) == [encode_runs(pixels) for pixels in stack]
    assert encode_stack(np.zeros((0, 4, 5), bool)) == []


def test_empty_and_full_images() -> None:
    assert expand_runs(encode_runs(np.zeros((4, 5)))).tolist() == [20]
    assert expand_runs(encode_runs(np.ones((4, 5)))).tolist() == [0, 20]
    assert not decode_runs(encode_runs(np.zeros((4, 5))), 4, 5).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"P", "not COCO's compressed run lengths"),  # a count that does not end
        (b"\x10", "not COCO's compressed run lengths"),
        (b"5", "add up to 5 pixels, but the image has 5 x 4"),
        (compress_runs(np.array([30, -10])), "add up to 20 pixels"),
        (b"", "add up to 0 pixels"),
    ],
)
def test_damaged_run_lengths_raise(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_runs(text, 4, 5)


def test_selected_and_concatenated_masks() -> None:
    masks = Masks.pack([[SQUARE], None, b"abc", [TRIANGLE + 1 / 3, SQUARE]])
    chosen = masks.select(np.array([3, 1, 0]))
    assert chosen.kinds.tolist() == masks.kinds[[3, 1, 0]].tolist()
    assert [p.tolist() for p in chosen.polygons(0)] == [(TRIANGLE + 1 / 3).tolist(), SQUARE.tolist()]
    both = Masks.concatenate([chosen, masks.select(np.zeros(0, np.int64)), masks])
    assert len(both) == 7
    assert both.runs(5, 9, 9) == b"abc"
    assert both.polygons(6)[1].tolist() == both.polygons(0)[1].tolist() == SQUARE.tolist()
    assert both.starts[-1] == len(both.content)


def test_real_masks_take_few_bytes_and_are_exact() -> None:
    """COCO's own polygons and crowds, and Roboflow's run lengths; COCO train has 860,000 objects."""
    file = SHARED_DATA / "coco_mini/annotations/instances_train2017.json"
    if not file.exists():
        pytest.skip("needs COCO's images at ../shared/data")
    content = json.loads(file.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations = content["annotations"]
    given = [
        compress_runs(np.array(entry["segmentation"]["counts"]))
        if entry["iscrowd"]
        else [np.array(part) for part in entry["segmentation"]]
        for entry in annotations
    ]
    masks = Masks.pack(given)
    for row, entry in enumerate(annotations):
        height, width = sizes[entry["image_id"]]
        encoded = coco_mask.frPyObjects(entry["segmentation"], height, width)
        merged = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
        np.testing.assert_array_equal(masks.decode(row, height, width), coco_mask.decode(merged))
        if not entry["iscrowd"]:
            assert [part.tolist() for part in masks.polygons(row)] == entry["segmentation"]
    num_bytes = sum(column.nbytes for column in (masks.kinds, masks.starts, masks.content))
    assert num_bytes / len(masks) * 860_001 < 400e6


@given(
    seed=st.integers(0, 2**32 - 1),
    changed=st.lists(st.tuples(st.integers(0, 7), st.text("/0123OPQR_`no", max_size=16).map(str.encode)), max_size=4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_bad_run_lengths_are_found_among_many_as_one_by_one(seed: int, changed: list[tuple[int, bytes]]) -> None:
    random = np.random.default_rng(seed)
    heights, widths = random.integers(1, 40, (2, 8))
    texts = [
        encode_runs(random.random((height, width)) < random.random() / 4)
        for height, width in zip(heights, widths, strict=True)
    ]
    for index, content in changed:
        place = random.integers(0, len(texts[index]) + 1)
        texts[index] = texts[index][:place] + content + texts[index][place + len(content) :]
    refused = []
    for index, text in enumerate(texts):
        try:
            check_runs(expand_runs(text), int(heights[index]), int(widths[index]))
        except ValueError:
            refused.append(index)
    assert find_bad_runs(texts, heights, widths).tolist() == refused


def test_a_count_of_more_bits_than_an_integer_is_refused() -> None:
    text = b"R" + b"P" * 12 + b"1"  # 2, and a bit of 2^65, which would be lost
    with pytest.raises(ValueError, match="larger than COCO's"):
        expand_runs(text)
    assert find_bad_runs([b"2", text], np.array([1, 1]), np.array([2, 2])).tolist() == [1]
