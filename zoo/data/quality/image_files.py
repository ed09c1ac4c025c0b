"""Image files seen on their own: whether they decode, how large and which way up they are, and what they show.

Two files show the same where their fingerprints of 255 bits differ in few. The fingerprint is the perceptual hash by
discrete cosine transform (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, 3.2.1)
with 16 x 16 of 64 x 64 coefficients instead of 8 x 8 of 32 x 32: whether each, but for the mean, is above their median.
It survives resizing and compression, which spare the low frequencies; a crop or a mirror image has another.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray
from PIL import Image as PILImage

from zoo.data.images import load_image, orientation
from zoo.errors import InputError

MOST_DIFFERENT = 40
"""Bits of 255 in which fingerprints of one picture may differ; `benchmarks/results/twins.md` measures the choice."""

_SIDE, _KEPT = 64, 16  # of the grey thumbnail, and of its lowest frequencies
_WORDS = _KEPT * _KEPT // 64
# Grey levels. A thumbnail flatter than this shows nothing by which it could be told from another such.
_FLAT = 2.0
# Distances at a time, 8 bytes each.
_BLOCK = 1 << 22

Item = TypeVar("Item")


class Watch(Protocol):
    """Goes through items, told how many will come: a progress bar."""

    def __call__(self, items: Iterable[Item], count: int) -> Iterable[Item]:
        """The same items."""


def unwatched(items: Iterable[Item], count: int) -> Iterable[Item]:
    """A `Watch` that shows nothing."""
    return items


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What an image file is.

    Args:
        fault: why it cannot be used; None for a file that decodes.
        width: pixels, upright (EXIF orientation applied).
        height: as `width`.
        orientation: EXIF's, 1 to 8; 1 is upright.
        digest: of the file's bytes.
        fingerprint: of what it shows; None for a picture without anything to see.
    """

    fault: str | None
    width: int = 0
    height: int = 0
    orientation: int = 1
    digest: bytes = b""
    fingerprint: UInt64[np.ndarray, "4"] | None = None


def inspect_image(path: Path) -> ImageFile:
    """Decodes a file to its end and takes down what is said of it."""
    try:
        image = load_image(path)
        with PILImage.open(path) as file:
            turned = orientation(file)
        digest = hashlib.sha256(path.read_bytes()).digest()
    except InputError as error:
        return ImageFile(str(error).removeprefix(f"{path}: "))
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    height, width = pixels.shape[:2]
    return ImageFile(None, width, height, turned, digest, fingerprint(pixels))


def inspect_images(paths: Sequence[Path], watch: Watch = unwatched) -> list[ImageFile]:
    """`inspect_image` of many, on a thread a core.

    Threads hide the waiting for files and little more: simplejpeg decodes under Python's lock. A small photograph takes
    0.7 ms on one core, so processes, which take seconds to come up, would pay for tens of thousands only.

    Args:
        paths: image files.
        watch: goes through the results, told how many will come; for a progress bar.
    """
    with ThreadPoolExecutor(_num_cores()) as pool:
        return list(watch(pool.map(inspect_image, paths), len(paths)))


def fingerprint(pixels: NDArray[np.uint8]) -> UInt64[np.ndarray, "4"] | None:
    """[H, W, 3] RGB -> 255 bits and a 0 of what it shows; None where everything has one brightness."""
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if grey.std() < _FLAT:
        return None
    low = cv2.dct(grey.astype(np.float32))[:_KEPT, :_KEPT].reshape(-1)[1:]
    return np.packbits(np.append(low > np.median(low), False)).view(np.uint64)


def find_near_duplicates(
    ours: UInt64[np.ndarray, "A 4"], theirs: UInt64[np.ndarray, "B 4"], most_different: int = MOST_DIFFERENT
) -> Int64[np.ndarray, "P 2"]:
    """Pairs of fingerprints that differ in few bits, sorted.

    Args:
        ours: [A, 4].
        theirs: [B, 4].
        most_different: bits.

    Returns:
        [P, 2] places in `ours` and in `theirs`.
    """
    pairs = [np.zeros((0, 2), np.int64)]
    step = max(1, _BLOCK // max(len(theirs), 1))
    for start in range(0, len(ours), step):
        distances = bit_distances(ours[start : start + step], theirs)
        pairs.append(np.argwhere(distances <= most_different) + np.array([start, 0]))
    return np.concatenate(pairs)


def bit_distances(ours: UInt64[np.ndarray, "A 4"], theirs: UInt64[np.ndarray, "B 4"]) -> NDArray[np.uint16]:
    """[A, B] bits in which each pair of fingerprints differs."""
    distances = np.zeros((len(ours), len(theirs)), np.uint16)
    for word in range(_WORDS):  # one word at a time needs a quarter of the memory
        distances += np.bitwise_count(ours[:, word, None] ^ theirs[None, :, word])
    return distances


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # what this process may use
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
