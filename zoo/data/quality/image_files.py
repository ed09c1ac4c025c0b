"""Properties of image files (decodability, size, EXIF orientation, hash), and near-duplicates by perceptual hash.

Images are near-duplicates if their fingerprints of 255 bits differ in few bits. The fingerprint is the perceptual hash
by discrete cosine transform (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
3.2.1) with 16 x 16 of 64 x 64 coefficients instead of 8 x 8 of 32 x 32: a bit for each coefficient except the mean,
whether it is above their median. Resizing and compression hardly change it, since they keep the low frequencies;
cropping and mirroring do.
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

from zoo.errors import InputError
from zoo.io.decoding import DECODE_ERRORS, bits_in_use, deep_pixels, load_grey, orientation

MAX_DIFFERING_BITS = 40
"""Near-duplicates differ in at most this many of 255 bits; `benchmarks/results/near_duplicates.md` has the reason."""

_SIDE, _KEPT = 64, 16  # sides of the grey thumbnail and of the block of its lowest frequencies
_WORDS = _KEPT * _KEPT // 64
# Thumbnails with a smaller standard deviation (grey levels) have no fingerprint: all flat images would be alike.
_MIN_CONTRAST = 2.0
# Number of distances that are computed at a time; 8 bytes each.
_BLOCK = 1 << 22

Item = TypeVar("Item")


class Progress(Protocol):
    """Iterates over items and shows a progress bar; `count` is their number."""

    def __call__(self, items: Iterable[Item], count: int) -> Iterable[Item]:
        """Yields the same items."""


def no_progress(items: Iterable[Item], count: int) -> Iterable[Item]:
    """A `Progress` that shows nothing."""
    return items


@dataclass(frozen=True, eq=False)
class ImageFile:
    """Properties of an image file.

    Args:
        error: why it cannot be decoded; None if it can.
        width: pixels, after EXIF rotation.
        height: pixels, after EXIF rotation.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        unused_bits: of the 16 that it stores of each channel (see `bits_in_use`); 0 for other images.
        digest: hash of the file's bytes.
        fingerprint: perceptual hash of the pixels; None for an image without contrast.
    """

    error: str | None
    width: int = 0
    height: int = 0
    orientation: int = 1
    unused_bits: int = 0
    digest: bytes = b""
    fingerprint: UInt64[np.ndarray, "4"] | None = None


def inspect_image(path: Path) -> ImageFile:
    """Decodes an image file completely and returns its properties."""
    try:
        grey = load_grey(path)
        with PILImage.open(path) as file:
            exif_orientation = orientation(file)
        deep = deep_pixels(path)
        digest = hashlib.sha256(path.read_bytes()).digest()
    except InputError as error:
        return ImageFile(str(error).removeprefix(f"{path}: "))
    except DECODE_ERRORS as error:  # Pillow's, of what it refuses and others read
        return ImageFile(f"Pillow cannot read it ({error}); remove or replace it")
    height, width = grey.shape
    is_16_bit = deep is not None and deep.min(initial=0) >= 0 and deep.max(initial=0) < 1 << 16
    unused_bits = 16 - bits_in_use(deep) if deep is not None and is_16_bit else 0
    return ImageFile(None, width, height, exif_orientation, unused_bits, digest, fingerprint(grey))


def inspect_images(paths: Sequence[Path], progress: Progress = no_progress) -> list[ImageFile]:
    """`inspect_image` of many files, with a thread per core: decoding and resizing do not hold Python's global lock.

    Args:
        paths: image files.
        progress: progress bar over the results.
    """
    with ThreadPoolExecutor(_num_cores()) as pool:
        return list(progress(pool.map(inspect_image, paths), len(paths)))


def fingerprint(image: NDArray[np.uint8]) -> UInt64[np.ndarray, "4"] | None:
    """Perceptual hash of a grey image [H, W]: 255 bits and a zero bit; None for an image without contrast."""
    grey = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if grey.std() < _MIN_CONTRAST:
        return None
    low = cv2.dct(grey.astype(np.float32))[:_KEPT, :_KEPT].reshape(-1)[1:]
    return np.packbits(np.append(low > np.median(low), False)).view(np.uint64)


def find_near_duplicates(
    ours: UInt64[np.ndarray, "A 4"], theirs: UInt64[np.ndarray, "B 4"], max_differing_bits: int = MAX_DIFFERING_BITS
) -> Int64[np.ndarray, "P 2"]:
    """Pairs of fingerprints that differ in at most `max_differing_bits` bits, sorted.

    Returns:
        [P, 2] indices into `ours` and `theirs`.
    """
    pairs = [np.zeros((0, 2), np.int64)]
    step = max(1, _BLOCK // max(len(theirs), 1))
    for start in range(0, len(ours), step):
        distances = bit_distances(ours[start : start + step], theirs)
        pairs.append(np.argwhere(distances <= max_differing_bits) + np.array([start, 0]))
    return np.concatenate(pairs)


def bit_distances(ours: UInt64[np.ndarray, "A 4"], theirs: UInt64[np.ndarray, "B 4"]) -> NDArray[np.uint16]:
    """Number of differing bits [A, B] of each pair of fingerprints."""
    distances = np.zeros((len(ours), len(theirs)), np.uint16)
    for word in range(_WORDS):  # one 64-bit word at a time, to use a quarter of the memory
        distances += np.bitwise_count(ours[:, word, None] ^ theirs[None, :, word])
    return distances


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # cores that this process may use
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
