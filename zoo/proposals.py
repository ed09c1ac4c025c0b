"""Region proposals by selective search (Uijlings et al., IJCV 2013), and their cache on disk.

OpenCV segments and groups; the groupings are those of the paper and of its authors' code. Two things are our own:

  - The order. OpenCV's comes from C's `rand()`, so that no two calls agree on it, and has small regions first. Ours
    is the paper's (section 3.3): large regions first, loosened by random factors, which depend here on nothing but
    the boxes. Then boxes that nearly repeat a better one go behind all others, which finds more with fewer.
  - The least size of a segment is an argument. OpenCV's is 100 pixels, more than a small object has.

The same image has the same proposals in every process and thread.

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
"""Environment variable that names the cache's folder."""

_VERSION = 1  # of everything below that decides which boxes come out, and of the cache's files
_DIGEST_SIZE = 16  # bytes
_SIGMA = 0.8  # pixels by which the image is smoothed before it is segmented: the paper's
_NEARLY_THE_SAME = 0.8  # IoU
_TALLEST = 4  # widths: taller images are searched at less than the width asked for, or columns would fill the memory


class CacheWarning(UserWarning):
    """The cache cannot be used; work goes on without it."""


# ----------------------------------------------------------------------------------------------------------- search


@dataclass(frozen=True)
class SelectiveSearch:
    """Which proposals a detector wants.

    Args:
        mode: how many groupings there are, by colour spaces x segmentations x measures of similarity: "single" (1: HSV,
            k), "fast" (8: HSV and Lab; k and 2k; two measures) or "quality" (80: five; k, 2k, 3k and 6k; four).
        limit: the most proposals of an image.
        width: images are searched at this width in pixels, larger or smaller than they are (R-CNN: 500); None: as they
            are.
        min_side: boxes narrower or lower than this are left out, in pixels of the image as it is searched (R-CNN: 20).
        scale: Felzenszwalb's k of the finest segmentation: a larger one makes larger segments to begin with.
        min_segment: segments of fewer pixels are joined to a neighbour at once.
    """

    mode: Literal["single", "fast", "quality"] = "fast"
    limit: int = 2000
    width: int | None = 500
    min_side: int = 20
    scale: int = 50
    min_segment: int = 50

    def __post_init__(self) -> None:
        """Refuse what finds nothing."""
        least = {"limit": 1, "width": 1, "min_side": 0, "scale": 1, "min_segment": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"selective search: {name} is {value}, and must be at least {smallest}")


def propose(image: Image, search: SelectiveSearch) -> Float[Tensor, "P 4"]:
    """Boxes around what might be an object, best first; the same for the same image, always.

    Args:
        image: uint8 [3, H, W] RGB, on any device.
        search: how to look.

    Returns:
        f32 xyxy on the CPU, in pixels of the image; P is at least 1 (the whole image) and at most `search.limit`.
    """
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()[:, :, ::-1])  # BGR, as OpenCV has it
    height, width = pixels.shape[:2]
    if search.width is not None and search.width != width:
        factor = min(search.width / width, _TALLEST * search.width / height)
        new_width, new_height = max(1, round(width * factor)), max(1, round(height * factor))
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        pixels = np.asarray(cv2.resize(pixels, (new_width, new_height), interpolation=method), np.uint8)
    boxes = group(pixels, search)
    large = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= search.min_side]
    if not len(large):
        large = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]], np.int32)
    best = large[order(large)[: search.limit]]
    factors = np.tile([width / pixels.shape[1], height / pixels.shape[0]], 2)
    return torch.from_numpy((best * factors).astype(np.float32))


def group(pixels: NDArray[np.uint8], search: SelectiveSearch) -> NDArray[np.int32]:
    """Boxes of all regions of all groupings, each box once, in no order.

    Args:
        pixels: [H, W, 3] BGR.
        search: `mode`, `scale` and `min_segment` count.

    Returns:
        [P, 4] xyxy.
    """
    cv2.setNumThreads(1)  # nothing here gains by more, and workers share the cores already
    # Made anew for each image: the measures keep what they know of an image by its number, which starts again.
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
    """HSV; and Lab; and rgI (red and green as parts of the whole, and intensity), hue alone and intensity alone."""
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


def order(boxes: NDArray[np.int32]) -> NDArray[np.int64]:
    """[P] places of the boxes, best first; boxes must differ from each other."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).astype(np.int64).prod(axis=1)
    by_size = np.lexsort((*boxes.T, -sizes))
    values = np.arange(1, len(boxes) + 1) * np.random.default_rng(0).random(len(boxes))
    places = by_size[np.argsort(values, kind="stable")]
    # The sort that NMS does must keep this order: so the scores are the places themselves.
    scores = -torch.arange(len(boxes), dtype=torch.float32)
    is_repeat = np.ones(len(boxes), np.bool_)
    is_repeat[nms(torch.from_numpy(boxes[places].astype(np.float32)), scores, _NEARLY_THE_SAME).numpy()] = False
    return np.concatenate([places[~is_repeat], places[is_repeat]])


# ------------------------------------------------------------------------------------------------------------ cache


class ProposalCache:
    """Proposals on disk, by the pixels of the image, the search and the versions of what computes them.

    Any number of processes may use one folder: entries are written under another name and then renamed. An entry that
    is damaged in any way is computed anew. When the folder cannot be written, everything is computed and nothing kept.

    Args:
        folder: is made if need be. Without one it is the environment variable ZOO_PROPOSALS, or
            `detection-zoo/proposals` below the user's cache folder.
        max_bytes: bound of all entries together; those not used for the longest time go first. Each process looks at
            the whole folder after writing a sixteenth of it, so several together can pass the bound by that much each.
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int = 4_000_000_000) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self.is_writable = True
        self._unseen_bytes: int | None = None  # written since the last look at the folder; None before the first
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            self._give_up(error)

    def get(self, image: Image, search: SelectiveSearch) -> Float[Tensor, "P 4"]:
        """As `propose`, from the cache where it is there; what is computed is kept."""
        path = self.path(image, search)
        boxes = _read(path)
        if boxes is None:
            boxes = propose(image, search)
            if self.is_writable:
                self._write(path, boxes)
        return boxes

    def path(self, image: Image, search: SelectiveSearch) -> Path:
        """Where the proposals of an image are kept."""
        words = (_VERSION, cv2.__version__, tuple(image.shape), astuple(search))
        digest = hashlib.blake2b(repr(words).encode(), digest_size=20)
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
            self._give_up(error)
            return
        if self._unseen_bytes is not None:
            self._unseen_bytes += _DIGEST_SIZE + len(content)
        if self._unseen_bytes is None or self._unseen_bytes > self.max_bytes / 16:
            self._unseen_bytes = 0
            evict(self.folder, self.max_bytes)

    def _give_up(self, error: OSError) -> None:
        self.is_writable = False
        warnings.warn(
            f"proposals are computed anew each time: {self.folder} cannot be written ({error.strerror or error})",
            CacheWarning,
            stacklevel=3,
        )


def default_folder() -> Path:
    """The folder that the environment names, or the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detection-zoo" / "proposals"


def evict(folder: Path, max_bytes: int) -> None:
    """Deletes the entries that were not used for the longest time, down to nine tenths of the bound, if it is passed.

    Entries that another process deletes at the same time are no matter.
    """
    entries = []
    for shelf in folder.iterdir():
        with suppress(OSError), os.scandir(shelf) as files:
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
    """An entry, or None where there is none that is whole; reading makes it young again."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # others may share what they cannot change
        os.utime(path)
    digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if digest != _digest(content) or not content or len(content) % 16:
        return None
    return torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32).reshape(-1, 4))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
