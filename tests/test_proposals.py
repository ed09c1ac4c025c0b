"""Selective search: deterministic boxes in the documented order; the cache under damage, concurrency and full disks."""

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scenes import make_image, make_target
from torch import Tensor
from torchvision.ops import box_iou

import zoo.proposals
from zoo.data.formats.shapes import Shapes
from zoo.proposals import (
    CacheWarning,
    ProposalCache,
    SelectiveSearch,
    default_folder,
    evict,
    group_regions,
    propose,
    rank_boxes,
)

SEARCH = SelectiveSearch("single", width=None, min_side=8)
SCENE = make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2])
IMAGE = make_image(96, 128, SCENE)


def shapes(index: int = 0) -> Tensor:
    source = Shapes(8, seed=3)
    return source.load_image(source.read(), index)


# ----------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_objects_are_found(mode: str) -> None:
    boxes = propose(IMAGE, SelectiveSearch(mode, width=None))
    assert (box_iou(SCENE["boxes"], boxes).amax(dim=1) > 0.9).all()
    assert boxes.dtype == torch.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([128, 96])).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 20).all()
    assert len(boxes.unique(dim=0)) == len(boxes)


def test_slower_modes_find_more_boxes() -> None:
    counts = [
        len(propose(shapes(), SelectiveSearch(mode, width=None, min_side=4))) for mode in ("single", "fast", "quality")
    ]
    assert counts[0] < counts[1] < counts[2]


def test_single_mode_equals_opencv() -> None:
    pixels = np.ascontiguousarray(shapes().permute(1, 2, 0).numpy()[:, :, ::-1])
    theirs = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    theirs.setBaseImage(pixels)
    theirs.switchToSingleStrategy(70, 0.8)
    expected = {(x, y, x + w, y + h) for x, y, w, h in theirs.process().tolist()}
    found = group_regions(pixels, SelectiveSearch("single", scale=70, min_segment=100))
    assert {tuple(box) for box in found.tolist()} == expected
    assert len(expected) > 5


def test_order_by_random_size_rank_with_duplicates_last() -> None:
    """Against a slow loop over the boxes."""
    boxes = group_regions(np.ascontiguousarray(shapes().permute(1, 2, 0).numpy()), SEARCH)
    by_size = sorted(boxes.tolist(), key=lambda b: (-(b[2] - b[0]) * (b[3] - b[1]), b[3], b[2], b[1], b[0]))
    factors = np.random.default_rng(0).random(len(boxes)).tolist()
    ranked = [box for _, box in sorted(zip([(i + 1) * f for i, f in enumerate(factors)], by_size, strict=True))]
    first: list[list[int]] = []
    for box in ranked:
        if not first or box_iou(torch.tensor([box]), torch.tensor(first)).max() <= 0.8:
            first.append(box)
    expected = first + [box for box in ranked if box not in first]
    assert boxes[rank_boxes(boxes)].tolist() == expected
    assert len(first) < len(boxes)


def test_limit_keeps_the_first_boxes() -> None:
    few, many = (propose(shapes(), SelectiveSearch("fast", limit, width=None)) for limit in (20, 2000))
    assert torch.equal(few, many[:20])


def test_boxes_are_in_image_pixels_at_any_search_width() -> None:
    for width in (64, 200):
        boxes = propose(IMAGE, SelectiveSearch("fast", width=width, min_side=5, min_segment=20))
        assert (box_iou(SCENE["boxes"], boxes).amax(dim=1) > 0.85).all()
        assert boxes.max() <= 128


@pytest.mark.parametrize("size", [(1, 90), (90, 1), (2, 2), (3, 2000), (2000, 3)])
def test_images_of_odd_sizes(size: tuple[int, int]) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, *size), np.uint8))
    for mode in ("single", "fast", "quality"):
        boxes = propose(noise, SelectiveSearch(mode, width=60, min_side=0))
        assert len(boxes) > 0
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_uniform_image_has_one_proposal_of_its_size() -> None:
    for height, width in ((1, 1), (40, 60), (5, 300)):
        boxes = propose(torch.full((3, height, width), 9, dtype=torch.uint8), SelectiveSearch())
        assert boxes.tolist() == [[0, 0, width, height]]


def search_here(pixels: np.ndarray, sender: Connection) -> None:
    sender.send(propose(torch.from_numpy(pixels), SelectiveSearch("fast", 50, width=None)).tolist())


def test_same_proposals_in_every_thread_and_process() -> None:
    """OpenCV's own order differs at each call."""
    image = shapes(1)
    expected = propose(image, SelectiveSearch("fast", 50, width=None))
    found: list[Tensor] = []
    work = lambda: found.append(propose(image, SelectiveSearch("fast", 50, width=None)))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(boxes, expected) for boxes in found)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=search_here, args=(image.numpy(), sender))
    process.start()
    sender.close()  # if the process dies, recv raises instead of waiting
    assert torch.equal(torch.tensor(receiver.recv()), expected)
    process.join()


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("width", 0), ("scale", 0), ("min_side", -1)])
def test_numbers_below_their_minimum_raise(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        SelectiveSearch(**{name: value})


# ------------------------------------------------------------------------------------------------------------ cache


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Images that were searched, in order."""
    searched: list[Tensor] = []

    def counted(image: Tensor, search: SelectiveSearch) -> Tensor:
        searched.append(image)
        return propose(image, search)

    monkeypatch.setattr(zoo.proposals, "propose", counted)
    return searched


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_image_is_searched_once(tmp_path: Path, calls: list[Tensor]) -> None:
    cache = ProposalCache(tmp_path)
    expected = propose(IMAGE, SEARCH)
    assert torch.equal(cache.get(IMAGE, SEARCH), expected)
    assert torch.equal(ProposalCache(tmp_path).get(IMAGE, SEARCH), expected)
    assert torch.equal(cache.get(IMAGE.clone(memory_format=torch.contiguous_format), SEARCH), expected)
    assert len(calls) == 1
    assert len(entries(tmp_path)) == 1


def test_image_settings_and_opencv_version_are_in_the_key(
    tmp_path: Path, calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ProposalCache(tmp_path)
    changed = IMAGE.clone()
    changed[1, 40, 50] += 1
    cache.get(IMAGE, SEARCH)
    cache.get(changed, SEARCH)
    cache.get(IMAGE.reshape(3, 128, 96), SEARCH)  # the same bytes in another shape
    cache.get(IMAGE, SelectiveSearch("single", width=None, min_side=9))
    monkeypatch.setattr(cv2, "__version__", "0.0")
    cache.get(IMAGE, SEARCH)
    assert len(calls) == len(entries(tmp_path)) == 5


def damage(name: str, content: bytes) -> bytes:
    boxes = np.frombuffer(content[16:], "<f4")
    with_nan = np.where(np.arange(len(boxes)) == 1, np.nan, boxes).astype("<f4").tobytes()
    return {
        "empty": b"",
        "truncated": content[:-7],
        "a box short": content[:-16],
        "a box more": content + content[-16:],
        "garbage": bytes(range(256)) * 2,
        "one bit": content[:30] + bytes([content[30] ^ 1]) + content[31:],
        "NaN": content[:16] + with_nan,
        "digest alone": content[:16],
    }[name]


@pytest.mark.parametrize(
    "name", ["empty", "truncated", "a box short", "a box more", "garbage", "one bit", "NaN", "digest alone"]
)
@pytest.mark.filterwarnings("error")
def test_a_damaged_entry_is_replaced_silently(
    name: str, tmp_path: Path, calls: list[Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    cache = ProposalCache(tmp_path)
    expected = cache.get(IMAGE, SEARCH)
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(name, whole))
    assert torch.equal(cache.get(IMAGE, SEARCH), expected)
    assert len(calls) == 2
    assert file.read_bytes() == whole
    assert capfd.readouterr() == ("", "")


def test_a_folder_in_place_of_an_entry_warns(tmp_path: Path) -> None:
    cache = ProposalCache(tmp_path)
    cache.path(IMAGE, SEARCH).mkdir(parents=True)
    with pytest.warns(CacheWarning):
        assert torch.equal(cache.get(IMAGE, SEARCH), propose(IMAGE, SEARCH))


def fill(folder: Path, start: "multiprocessing.synchronize.Barrier", count: int) -> None:
    cache = ProposalCache(folder)
    start.wait()
    for _ in range(count):
        for file in entries(folder):
            file.unlink(missing_ok=True)  # so that every process writes again and again
        boxes = cache.get(IMAGE, SEARCH)
        assert torch.equal(boxes, propose(IMAGE, SEARCH))


def test_concurrent_writers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [context.Process(target=fill, args=(tmp_path, start, 15)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    ProposalCache(tmp_path).get(IMAGE, SEARCH)
    assert len(entries(tmp_path)) == 1, "no temporary files are left"


def test_least_recently_used_entries_are_evicted_first(tmp_path: Path, calls: list[Tensor]) -> None:
    cache = ProposalCache(tmp_path)
    images = [shapes(index) for index in range(4)]
    now = time.time()
    for age, image in enumerate(images):
        cache.get(image, SEARCH)
        os.utime(cache.path(image, SEARCH), (now - 1000 + age,) * 2)
    cache.get(images[0], SEARCH)  # reading makes it the most recent
    sizes = [cache.path(image, SEARCH).stat().st_size for image in images]
    evict(tmp_path, sum(sizes))
    assert len(entries(tmp_path)) == 4, "max_bytes is not exceeded"
    evict(tmp_path, sum(sizes) - 1)
    assert [cache.path(image, SEARCH).exists() for image in images][:2] == [True, False]
    assert sum(file.stat().st_size for file in entries(tmp_path)) <= 0.9 * sum(sizes)
    for image in images:
        assert torch.equal(cache.get(image, SEARCH), propose(image, SEARCH))


def test_the_cache_stays_within_max_bytes(tmp_path: Path) -> None:
    bound = 3000
    cache = ProposalCache(tmp_path, max_bytes=bound)
    written = 0
    for value in range(30):
        noise = torch.from_numpy(np.random.default_rng(value).integers(0, 255, (3, 30, 30), np.uint8))
        cache.get(noise, SelectiveSearch("single", width=None, min_side=2, scale=20, min_segment=4, limit=20))
        found = [file.stat().st_size for file in entries(tmp_path)]
        written += found[0]
        assert sum(found) <= bound * 17 / 16 + max(found)
    assert written > 2 * bound


@pytest.mark.parametrize("place", ["a file is there", "below a file"])
def test_unusable_folder_warns_once_and_nothing_is_stored(
    place: str, tmp_path: Path, calls: list[Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "file").write_text("")
    cache = ProposalCache(tmp_path / "file" if place == "a file is there" else tmp_path / "file" / "cache")
    for _ in range(2):
        assert torch.equal(cache.get(IMAGE, SEARCH), propose(IMAGE, SEARCH))
    assert len(calls) == 2
    assert [warning.category for warning in recwarn] == [CacheWarning]
    assert str(cache.folder) in str(recwarn[0].message)


def test_full_disk_warns_once_and_entries_are_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    cache = ProposalCache(tmp_path)
    cache.get(IMAGE, SEARCH)

    def full(self: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert torch.equal(cache.get(shapes(), SEARCH), propose(shapes(), SEARCH))
    assert torch.equal(cache.get(shapes(1), SEARCH), propose(shapes(1), SEARCH))
    assert torch.equal(cache.get(IMAGE, SEARCH), propose(IMAGE, SEARCH)), "existing entries are still read"
    assert ["No space left" in str(warning.message) for warning in recwarn] == [True]


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_PROPOSALS", "/here")
    assert default_folder() == Path("/here")
    monkeypatch.delenv("ZOO_PROPOSALS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert default_folder() == Path("/there/detection-zoo/proposals")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/detection-zoo/proposals"
