"""Instance masks of many objects in three packed columns, and COCO's run-length encoding.

A mask is kept as it was annotated, as polygons or as run lengths, and becomes pixels only when it is asked for. COCO's
polygons have two decimals: they are kept as hundredths of a pixel in four bytes, from which the original numbers come
back exactly. Polygons are turned into pixels by pycocotools, as COCO's evaluation does it.

COCO's run lengths (cocoapi, common/maskApi.c) alternate between 0 and 1, starting with 0, down the columns from left to
right. In text each count is written in characters of six bits, `0` (48) being zero: five bits of the value from the
lowest on, and a bit that says that more follow; from the fourth count on, the difference to the one two before it.

Legend: T objects, H and W height and width of an image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import hotcoco.mask
import numpy as np
from jaxtyping import Float64, Int8, Int64, UInt8
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

NONE, POLYGONS, EXACT_POLYGONS, RUNS = range(4)
"""Kinds of a mask: none, polygons in hundredths of a pixel, polygons in float64, compressed run lengths."""

MIN_CORNERS = 3
_DECIMALS = 100
_CHECKED_AT_ONCE = 20_000  # masks; bounds the memory to some tens of MB
_ZERO, _MORE, _SIGN, _BITS = 48, 32, 16, 5  # of compressed run lengths
_LONGEST = 7  # characters of a count: enough for a difference of two counts of 32 bits, and no sum of them overflows

Polygons = Sequence[NDArray[np.float64]]
"""Parts of one object, x and y in turn: [2 * corners] each, in pixels."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of T objects; made by `pack`."""

    kinds: Int8[np.ndarray, " T"]
    starts: Int64[np.ndarray, " T+1"]  # of each object's bytes in `content`, and the end
    content: UInt8[np.ndarray, " bytes"]

    @classmethod
    def pack(cls, masks: Iterable[Polygons | bytes | None]) -> Self:
        """Pack polygons, compressed run lengths, or None for an object without a mask."""
        kinds, parts = bytearray(), [b""]
        for mask in masks:
            kind, part = _encode(mask)
            kinds.append(kind)
            parts.append(part)
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        return cls(np.frombuffer(kinds, np.int8), ends, np.frombuffer(bytearray(b"".join(parts)), np.uint8))

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.kinds)

    def any(self) -> bool:
        """Whether an object has a mask."""
        return bool((self.kinds != NONE).any())

    def polygons(self, row: int) -> list[Float64[np.ndarray, " K"]]:
        """Polygons of an object as they were annotated; empty where it has none."""
        kind, content = self.kinds[row], self.content[self.starts[row] : self.starts[row + 1]]
        if kind not in (POLYGONS, EXACT_POLYGONS):
            return []
        count = int(content[:4].view(np.int32)[0])
        lengths, values = content[4 : 4 * (1 + count)].view(np.int32), content[4 * (1 + count) :]
        numbers = values.view(np.int32) / _DECIMALS if kind == POLYGONS else values.view(np.float64).copy()
        return np.split(numbers, np.cumsum(lengths[:-1]))

    def runs(self, row: int, height: int, width: int) -> bytes:
        """Compressed run lengths of an object in an image of this size; all 0 without a mask."""
        if self.kinds[row] == RUNS:
            return self.content[self.starts[row] : self.starts[row + 1]].tobytes()
        parts = self.polygons(row)
        if not parts:
            return compress_runs(np.array([height * width]))
        return coco_mask.merge(coco_mask.frPyObjects([part.tolist() for part in parts], height, width))["counts"]

    def run_lengths(self, heights: NDArray[np.integer], widths: NDArray[np.integer]) -> list[Any]:
        """Run lengths of all objects in the form that pycocotools and hotcoco read; the sizes are those of `areas`."""
        if (self.kinds == RUNS).all():  # as `runs`, ten times as fast
            content = self.content.tobytes()
            texts = [content[start:end] for start, end in pairwise(self.starts.tolist())]
        else:
            sizes = zip(heights.tolist(), widths.tolist(), strict=True)
            texts = [self.runs(row, *size) for row, size in enumerate(sizes)]
        # Masks share the lists of their sizes: one for each would keep Python's garbage collector busy.
        keys, number = np.unique(heights.astype(np.int64) << 32 | widths, return_inverse=True)
        lists = [[key >> 32, key & 0xFFFFFFFF] for key in keys.tolist()]
        return [{"size": lists[at], "counts": text} for at, text in zip(number.tolist(), texts, strict=True)]

    def decode(self, row: int, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
        """Pixels of an object in an image of this size, 0 or 1; all 0 without a mask."""
        return decode_runs(self.runs(row, height, width), height, width)

    def scale(self, factors: Float64[np.ndarray, "T 2"]) -> Self:
        """Masks with the x and y of their polygons multiplied by factors; run lengths stay as they are."""
        if (factors == 1).all() or not np.isin(self.kinds, (POLYGONS, EXACT_POLYGONS)).any():
            return self
        return self.pack(
            [part * np.tile(factors[row], len(part) // 2) for part in self.polygons(row)]
            or (self.content[self.starts[row] : self.starts[row + 1]].tobytes() if self.kinds[row] == RUNS else None)
            for row in range(len(self))
        )

    def areas(self, heights: NDArray[np.integer], widths: NDArray[np.integer]) -> Int64[np.ndarray, " T"]:
        """Number of pixels of each object, in images of these sizes, one for each object."""
        return areas_of_runs(self.run_lengths(heights, widths))

    def select(self, rows: NDArray[np.integer]) -> Self:
        """Masks of the given objects, in the given order."""
        counts = np.diff(self.starts)[rows]
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        bytes_of = np.arange(total) + np.repeat(self.starts[rows] - (ends - counts), counts)
        return type(self)(self.kinds[rows], np.concatenate([[0], ends]).astype(np.int64), self.content[bytes_of])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Masks of all parts, one after the other."""
        shifts = np.cumsum([0, *(len(part.content) for part in parts)])
        starts = [part.starts[:-1] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
        return cls(
            np.concatenate([part.kinds for part in parts]),
            np.concatenate([*starts, shifts[-1:]]).astype(np.int64),
            np.concatenate([part.content for part in parts]),
        )


def _encode(mask: Polygons | bytes | None) -> tuple[int, bytes]:
    if mask is None:
        return NONE, b""
    if isinstance(mask, bytes):
        return RUNS, mask
    header = np.array([len(mask), *map(len, mask)], np.int32).tobytes()
    numbers = np.concatenate(mask)
    hundredths = np.rint(numbers * _DECIMALS)
    # Division gives the number that is nearest to its two decimals, which is what a reader makes of the text.
    if np.abs(hundredths).max(initial=0) < 2**31 and np.array_equal(hundredths / _DECIMALS, numbers):
        return POLYGONS, header + hundredths.astype(np.int32).tobytes()
    return EXACT_POLYGONS, header + numbers.astype(np.float64).tobytes()


def areas_of_runs(runs: list[Any]) -> Int64[np.ndarray, " T"]:
    """Number of pixels of each of `Masks.run_lengths`."""
    # pycocotools' `area` of a list fails for more than 255 masks with numpy 2
    return np.asarray(hotcoco.mask.area(runs), np.int64) if runs else np.zeros(0, np.int64)


def expand_runs(text: bytes) -> Int64[np.ndarray, " K"]:
    """Counts of compressed run lengths.

    Raises:
        ValueError: the text is not made of such characters, ends within a count, or has one of more than 35 bits.
    """
    values = np.frombuffer(text, np.uint8).astype(np.int64) - _ZERO
    if not len(values):
        return np.zeros(0, np.int64)
    is_last = (values & _MORE) == 0
    if values.min() < 0 or values.max() >= 2 * _MORE or not is_last[-1]:
        raise ValueError("the counts of the mask are not COCO's compressed run lengths")
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    sizes = np.diff([*starts, len(values)])
    if sizes.max() > _LONGEST:
        raise ValueError("the counts of the mask are larger than COCO's compressed run lengths allow")
    place = np.arange(len(values)) - np.repeat(starts, sizes)
    counts = np.add.reduceat((values & (_MORE - 1)) << (_BITS * place), starts)
    counts = np.where(values[is_last] & _SIGN, counts - (1 << (_BITS * sizes)), counts)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def find_bad_runs(
    texts: Sequence[bytes], heights: NDArray[np.integer], widths: NDArray[np.integer]
) -> Int64[np.ndarray, " K"]:
    """Indices of compressed run lengths that `expand_runs` or `check_runs` refuses; for many at once."""
    bad = [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _CHECKED_AT_ONCE):
        part = slice(start, start + _CHECKED_AT_ONCE)
        bad.append(start + _find_bad(texts[part], heights[part].astype(np.int64) * widths[part]))
    return np.concatenate(bad)


def _find_bad(texts: Sequence[bytes], totals: NDArray[np.int64]) -> NDArray[np.int64]:
    lengths = np.array([len(text) for text in texts], np.int64)
    values = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - _ZERO
    text_ends = np.cumsum(lengths)
    of_value = np.repeat(np.arange(len(texts)), lengths)
    is_last = (values & _MORE) == 0
    bad = lengths == 0
    np.logical_or.at(bad, of_value[(values < 0) | (values >= 2 * _MORE)], True)
    bad[~bad] |= ~is_last[text_ends[~bad] - 1]
    kept = ~bad[of_value]  # so that no count spans two texts
    values, is_last, of_value = values[kept], is_last[kept], of_value[kept]
    ends = np.flatnonzero(is_last)
    if not len(ends):
        return np.flatnonzero(bad)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    np.logical_or.at(bad, of_value[ends[sizes > _LONGEST]], True)
    place = np.arange(len(values)) - np.repeat(starts, sizes)
    counts = np.add.reduceat((values & (_MORE - 1)) << (_BITS * place), starts)
    counts = np.where(values[ends] & _SIGN, counts - (1 << (_BITS * sizes)), counts)
    # A count is written as its difference from the one two before, so it is the sum of those of its parity.
    of_count = of_value[ends]
    index = np.arange(len(counts)) - np.searchsorted(of_count, of_count)
    for chosen in (index % 2 == 1, (index % 2 == 0) & (index > 0)):
        rows = np.flatnonzero(chosen)
        sums = np.cumsum(counts[rows])
        first = np.searchsorted(of_count[rows], of_count[rows])
        counts[rows] = sums - np.where(first > 0, sums[first - 1], 0)
    np.logical_or.at(bad, of_count[counts < 0], True)
    totals_found = np.bincount(of_count, weights=counts, minlength=len(texts))
    return np.flatnonzero(bad | (totals_found != totals))


def compress_runs(counts: NDArray[np.integer]) -> bytes:
    """Compressed run lengths of counts, the inverse of `expand_runs`."""
    values = np.asarray(counts, np.int64)
    values = np.concatenate([values[:3], values[3:] - values[1:-2]])
    text = bytearray()
    for value in values.tolist():
        more = True
        while more:
            bits, value = value & (_MORE - 1), value >> _BITS
            more = value != (-1 if bits & _SIGN else 0)
            text.append(_ZERO + bits + (_MORE if more else 0))
    return bytes(text)


def decode_runs(text: bytes, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Pixels of compressed run lengths.

    Raises:
        ValueError: they are damaged, or of an image of another size.
    """
    counts = expand_runs(text)
    check_runs(counts, height, width)
    bits = np.arange(len(counts), dtype=np.uint8) % 2
    return np.ascontiguousarray(np.repeat(bits, counts).reshape(width, height).T)


def encode_runs(pixels: NDArray[np.integer] | NDArray[np.bool_]) -> bytes:
    """Compressed run lengths of an image of 0 and 1, [H, W]."""
    columns = np.asarray(pixels, bool).T.reshape(-1)
    ends = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *ends, len(columns)])
    return compress_runs(np.concatenate([[0], counts]) if len(columns) and columns[0] else counts)


def encode_stack(pixels: NDArray[np.bool_]) -> list[bytes]:
    """Compressed run lengths of several images of one size, [N, H, W]; by pycocotools, which is faster."""
    columns = np.ascontiguousarray(pixels.transpose(0, 2, 1)).astype(np.uint8, copy=False)
    return [mask["counts"] for mask in coco_mask.encode(columns.transpose(2, 1, 0))]


def check_runs(counts: NDArray[np.integer], height: int, width: int) -> None:
    """Check that counts are those of an image of this size.

    Raises:
        ValueError: a count is negative, or they do not add up.
    """
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(
            f"the counts of the mask add up to {counts.sum()} pixels, but the image has {width} x {height}"
        )
