"""Region proposals by selective search (Uijlings et al., IJCV 2013), and their cache on disk.

OpenCV segments and groups; the groupings are those of the paper and of its authors' code. Two things differ from
OpenCV:

  - The order. OpenCV draws it from C's `rand()`, so it differs at each call, and puts small regions first. Here it is
    the paper's (section 3.3): large regions first, multiplied by random factors that depend only on the number of
    boxes. Then near-duplicates of a better box are moved behind all others, which raises recall at a small limit.
  - The minimum size of a segment is an argument. OpenCV's is 100 pixels, more than a small object has.

An image has the same proposals in every process and thread.

Legend: H, W pixels of an image; P proposals; k scale of the segmentation.
"""

import hashlib
import os
import secrets
import tempfile
import warnings
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from cv2.typing import MatLike
from cv2.ximgproc import segmentation
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from zoo.types import Image

FOLDER_VARIABLE = "ZOO_PROPOSALS"
"""Environment variable with the folder of the cache."""

_VERSION = 1  # of the algorithm below and of the format of the cache's files; part of the cache key
_DIGEST_SIZE = 16  # bytes
_SIGMA = 0.8  # pixels, of the Gaussian smoothing before segmentation: the paper's
_DUPLICATE_IOU = 0.8
_MAX_ASPECT = 4  # height / width: taller images are searched at a smaller width, which bounds memory


class CacheWarning(UserWarning):
    """The cache folder cannot be written; proposals are computed without it."""


# ----------------------------------------------------------------------------------------------------------- search


@dataclass(frozen=True)
class SelectiveSearch:
    """Settings of selective search.

    Args:
        mode: number of groupings, colour spaces x segmentations x similarity measures: "single" (1: HSV, k), "fast"
            (8: HSV and Lab; k and 2k; two measures) or "quality" (80: five; k, 2k, 3k and 6k; four).
        limit: maximum number of proposals of an image.
        width: images are resized to this width in pixels before the search (R-CNN: 500); None keeps their size.
        min_side: boxes narrower or lower than this are dropped, in pixels of the resized image (R-CNN: 20).
        scale: Felzenszwalb's k of the finest segmentation; a larger k makes larger initial segments.
        min_segment: segments of fewer pixels are merged with a neighbour before the grouping.
    """

    mode: Literal["single", "fast", "quality"] = "fast"
    limit: int = 2000
    width: int | None = 500
    min_side: int = 20
    scale: int = 50
    min_segment: int = 50

    def __post_init__(self) -> None:
        """Check the minimum of each number."""
        least = {"limit": 1, "width": 1, "min_side": 0, "scale": 1, "min_segment": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"selective search: {name} is {value}, but must be at least {smallest}")


def propose(image: Image, search: SelectiveSearch) -> Float[Tensor, "P 4"]:
    """Region proposals of an image by selective search, best first; deterministic.

    Args:
        image: uint8 [3, H, W] RGB, on any device.
        search: settings.

    Returns:
        f32 xyxy on the CPU, in pixels of the image; P is at least 1 (the whole image) and at most `search.limit`.
    """
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()[:, :, ::-1])  # BGR, as OpenCV has it
    height, width = pixels.shape[:2]
    if search.width is not None and search.width != width:
        factor = min(search.width / width, _MAX_ASPECT * search.width / height)
        new_width, new_height = max(1, round(width * factor)), max(1, round(height * factor))
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        pixels = np.asarray(cv2.resize(pixels, (new_width, new_height), interpolation=method), np.uint8)
    boxes = group_regions(pixels, search)
    large = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= search.min_side]
    if not len(large):
        large = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]], np.int32)
    best = large[rank_boxes(large)[: search.limit]]
    factors = np.tile([width / pixels.shape[1], height / pixels.shape[0]], 2)
    return torch.from_numpy((best * factors).astype(np.float32))


def group_regions(pixels: NDArray[np.uint8], search: SelectiveSearch) -> NDArray[np.int32]:
    """Boxes of all regions of all groupings, without duplicates, in no particular order.

    Args:
        pixels: [H, W, 3] BGR.
        search: only `mode`, `scale` and `min_segment` are used.

    Returns:
        [P, 4] xyxy.
    """
    cv2.setNumThreads(1)  # more threads gain nothing here, and loader workers share the cores already
    # Created for each image: the measures cache by image index, which starts at 0 again for the next image.
    colour = segmentation.createSelectiveSearchSegmentationStrategyColor()
    fill = segmentation.createSelectiveSearchSegmentationStrategyFill()
    texture = segmentation.createSelectiveSearchSegmentationStrategyTexture()
    size = segmentation.createSelectiveSearchSegmentationStrategySize()
    combine = segmentation.createSelectiveSearchSegmentationStrategyMultiple
    measures: list[segmentation.SelectiveSearchSegmentationStrategy] = [combine(colour, fill, texture, size)]
    if search.mode != "single":
        measures.append(combine(fill, texture, size))
    if search.mode == "quality":
        measures += [fill, size]
    factors = {"single": (1,), "fast": (1, 2), "quality": (1, 2, 3, 6)}[search.mode]

    grouping = segmentation.createSelectiveSearchSegmentation()
    grouping.setBaseImage(pixels)
    for space in _colour_spaces(pixels, search.mode):
        grouping.addImage(space)
    for factor in factors:
        k = float(search.scale * factor)
        grouping.addGraphSegmentation(segmentation.createGraphSegmentation(_SIGMA, k, search.min_segment))
    for measure in measures:
        grouping.addStrategy(measure)
    boxes = np.asarray(grouping.process(), np.int32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _colour_spaces(pixels: NDArray[np.uint8], mode: str) -> list[MatLike]:
    """HSV; mode "fast" adds Lab; "quality" adds rgI (normalised red and green, intensity), hue and intensity."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
    if mode == "single":
        return [hsv]
    lab = cv2.cvtColor(pixels, cv2.COLOR_BGR2Lab)
    if mode == "fast":
        return [hsv, lab]
    intensity = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    total = np.maximum(pixels.sum(axis=2, dtype=np.float32), 1)
    red, green = (np.rint(255 * pixels[:, :, channel] / total).astype(np.uint8) for channel in (2, 1))
    return [hsv, lab, np.stack([red, green, intensity], axis=2), np.ascontiguousarray(hsv[:, :, 0]), intensity]


def rank_boxes(boxes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Indices [P] that sort boxes best first; boxes must be unique."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).astype(np.int64).prod(axis=1)
    by_size = np.lexsort((*boxes.T, -sizes))
    values = np.arange(1, len(boxes) + 1) * np.random.default_rng(0).random(len(boxes))
    ranked = by_size[np.argsort(values, kind="stable")]
    # Negative ranks as scores, so that the sort inside NMS keeps this order.
    scores = -torch.arange(len(boxes), dtype=torch.float32)
    is_duplicate = np.ones(len(boxes), np.bool_)
    is_duplicate[nms(torch.from_numpy(boxes[ranked].astype(np.float32)), scores, _DUPLICATE_IOU).numpy()] = False
    return np.concatenate([ranked[~is_duplicate], ranked[is_duplicate]])


# ------------------------------------------------------------------------------------------------------------ cache


class ProposalCache:
    """On-disk cache of proposals, keyed by image pixels, search settings and the versions of code and OpenCV.

    Any number of processes may share a folder: entries are written to a temporary file and renamed. A damaged entry is
    computed again. If the folder cannot be written, proposals are computed and not stored.

    Args:
        folder: created if missing. The default is the environment variable ZOO_PROPOSALS, or
            `detection-zoo/proposals` in the user's cache folder.
        max_bytes: maximum size of all entries; the least recently used are deleted first. Each process checks the size
            of the folder after writing a sixteenth of it, so each can exceed the maximum by that much.
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int = 4_000_000_000) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self.is_writable = True
        self._bytes_since_check: int | None = None  # written since the last check of the folder; None before the first
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            self._disable(error)

    def get(self, image: Image, search: SelectiveSearch) -> Float[Tensor, "P 4"]:
        """Proposals of an image as `propose` returns them, read from the cache or computed and stored."""
        path = self.path(image, search)
        boxes = _read(path)
        if boxes is None:
            boxes = propose(image, search)
            if self.is_writable:
                self._write(path, boxes)
        return boxes

    def path(self, image: Image, search: SelectiveSearch) -> Path:
        """File of the cache entry of an image."""
        key = (_VERSION, cv2.__version__, tuple(image.shape), astuple(search))
        digest = hashlib.blake2b(repr(key).encode(), digest_size=20)
        digest.update(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()).data)
        name = digest.hexdigest()
        return self.folder / name[:2] / name[2:]

    def _write(self, path: Path, boxes: Float[Tensor, "P 4"]) -> None:
        content = boxes.numpy().astype("<f4").tobytes()
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(_digest(content) + content)
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            self._disable(error)
            return
        if self._bytes_since_check is not None:
            self._bytes_since_check += _DIGEST_SIZE + len(content)
        if self._bytes_since_check is None or self._bytes_since_check > self.max_bytes / 16:
            self._bytes_since_check = 0
            evict(self.folder, self.max_bytes)

    def _disable(self, error: OSError) -> None:
        self.is_writable = False
        warnings.warn(
            f"{self.folder} cannot be written ({error.strerror or error}); proposals are computed without the cache",
            CacheWarning,
            stacklevel=3,
        )


def default_folder() -> Path:
    """Folder of the cache: from the environment variable ZOO_PROPOSALS, or in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detection-zoo" / "proposals"


def evict(folder: Path, max_bytes: int) -> None:
    """If the entries exceed `max_bytes`, delete the least recently used down to 90 % of it.

    Other processes may delete entries at the same time.
    """
    entries = []
    for subfolder in folder.iterdir():
        with suppress(OSError), os.scandir(subfolder) as files:
            entries += [(stat.st_mtime, stat.st_size, file.path) for file in files if (stat := file.stat())]
    total = sum(size for _, size, _ in entries)
    if total <= max_bytes:
        return
    for _, size, path in sorted(entries):
        with suppress(OSError):
            os.unlink(path)
        total -= size
        if total <= max_bytes * 0.9:
            return


def _read(path: Path) -> Float[Tensor, "P 4"] | None:
    """Boxes of a cache entry, or None if it is missing or damaged; updates its time of last use."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # a shared cache may be read-only
        os.utime(path)
    digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if digest != _digest(content) or not content or len(content) % 16:
        return None
    return torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32).reshape(-1, 4))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
