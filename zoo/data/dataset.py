"""Detection data set, shared-memory cache of decoded images, and collation of batches.

Lightning is not imported here, because loader workers import this module.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from zoo.data.masks import Masks
from zoo.data.sampling import seeded_rng
from zoo.data.source import Source
from zoo.data.table import COLUMNS, AnnotationTable
from zoo.types import Image, RawBatch, Sample, Target

MASK_COLUMNS = ("kinds", "starts", "content")  # fields of `Masks`


class ImageCache:
    """Cache of decoded images in shared memory, created before the workers start and filled by all of them.

    Memory is assigned to the images in the order of the table until the limit is reached; later images are decoded
    every time. Pages that have not been written take no memory. There are no locks: whichever worker writes an image
    writes the same bytes, and marks it as filled afterwards.

    Args:
        widths: [N] pixels.
        heights: [N] pixels.
        megabytes: largest size of the cache.
    """

    def __init__(self, widths: NDArray[np.int32], heights: NDArray[np.int32], megabytes: float) -> None:
        self.sizes = np.stack([heights, widths], axis=1).astype(np.int64)
        ends = np.cumsum(self.sizes.prod(axis=1) * 3)
        self.num_cached = int(np.searchsorted(ends, megabytes * 1e6, side="right"))
        self.starts = np.concatenate([[0], ends[: self.num_cached]])
        self.pixels = _shared(int(self.starts[-1]))
        self.filled = _shared(self.num_cached).zero_()

    def get(self, index: int) -> Image | None:
        """A cached image, or None. In a worker it is a view of the cache: do not write to it; `collate` copies it."""
        if index >= self.num_cached or not self.filled[index]:
            return None
        image = self._view(index)
        return image.clone() if get_worker_info() is None else image

    def put(self, index: int, image: Image) -> None:
        """Stores an image, if it is among those that fit."""
        if index < self.num_cached and image.shape[1:] == tuple(self.sizes[index]):
            self._view(index).copy_(image)
            self.filled[index] = 1

    def _view(self, index: int) -> Image:
        height, width = self.sizes[index].tolist()
        rows = self.pixels[self.starts[index] : self.starts[index + 1]].view(height, width, 3)
        return rows.permute(2, 0, 1)


class DetectionDataset(Dataset[Sample]):
    """Images and targets of one split.

    Keys are `epoch * N + index` (see `TrainSampler`); a plain index is epoch 0. The same key always gives the same
    sample.

    Args:
        table: annotations that were read from `source`.
        source: decodes the images.
        augment: (image, target) -> (image, target), or None.
        seed: seeds `augment`, together with the key.
        cache: cache of decoded images, or None.
        propose: returns the region proposals of an image before augmentation, or None. Called in the workers.
    """

    def __init__(
        self,
        table: AnnotationTable,
        source: Source,
        augment: Callable[[Image, Target], Sample] | None = None,
        seed: int = 0,
        cache: ImageCache | None = None,
        propose: Callable[[Image], Float[Tensor, "P 4"]] | None = None,
    ) -> None:
        self.table = table
        self.source = source
        self.augment = augment
        self.seed = seed
        self.cache = cache
        self.propose = propose
        self._columns: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int) -> Sample:
        epoch, index = divmod(key, len(self.table))
        if epoch < 0:
            raise IndexError(f"key must be at least 0: {key}")
        image = self._image(index)
        target = self.table.target(index)
        if self.table.masks is not None:
            target["masks"] = self._masks(self.table.masks, index)
        if self.propose is not None:
            target["proposals"] = self.propose(image)
        if self.augment is None:
            return image, target
        with seeded_rng(self.seed, epoch, index):
            return self.augment(image, target)

    def _masks(self, masks: Masks, index: int) -> UInt8[Tensor, "M _ _"]:
        rows, height, width = self.table.rows(index), int(self.table.heights[index]), int(self.table.widths[index])
        decoded = [torch.from_numpy(masks.decode(row, height, width)) for row in range(rows.start, rows.stop)]
        return torch.stack(decoded) if decoded else torch.zeros(0, height, width, dtype=torch.uint8)

    def _image(self, index: int) -> Image:
        if self.cache is None:
            return self.source.load_image(self.table, index)
        image = self.cache.get(index)
        if image is None:
            image = self.source.load_image(self.table, index)
            self.cache.put(index, image)
        return image

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the columns of the table as shared memory, so that spawned workers share one copy."""
        if self._columns is None:
            # kept alive until the workers have opened the shared memory
            self._columns = {name: torch.from_numpy(getattr(self.table, name)) for name in COLUMNS}
            if self.table.masks is not None:
                self._columns |= {name: torch.from_numpy(getattr(self.table.masks, name)) for name in MASK_COLUMNS}
        other_fields = {name: getattr(self.table, name) for name in ("classes", "folders", "name_bytes")}
        return self.__dict__ | {"table": other_fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = {name: column.numpy() for name, column in state["_columns"].items()}
        masks = Masks(*(columns.pop(name) for name in MASK_COLUMNS)) if MASK_COLUMNS[0] in columns else None
        self.__dict__.update(state, table=AnnotationTable(**columns, **state["table"], masks=masks))


def collate(samples: list[Sample]) -> "RawBatch | _PackedBatch":
    """Collates samples to a list of images and a list of targets, without resizing or padding.

    In a worker the images are packed into one block of shared memory, which the main process unpacks.
    """
    images = [image for image, _ in samples]
    targets = [target for _, target in samples]
    return (images, targets) if get_worker_info() is None else _PackedBatch(images, targets)


class _PackedBatch:
    """A batch on its way from a worker, with the pixels of all images in one block of shared memory.

    By default torch opens a shared-memory file for every tensor, seven or more for each image. The small targets are
    pickled, masks as bits.
    """

    def __init__(self, images: list[Image], targets: list[Target]) -> None:
        self.pixels = _shared(sum(image.numel() for image in images))
        self.layouts: list[tuple[int, int, bool]] = []
        start = 0
        for image in images:
            height, width = image.shape[1:]
            # Decoders return channels-last images. The layout is kept: permuting costs a third of the decoding time.
            channels_last = image.stride(0) == 1
            self.layouts.append((height, width, channels_last))
            block = self.pixels[start : start + image.numel()]
            _as_image(block, height, width, channels_last).copy_(image)
            start += image.numel()
        self.targets = [
            {key: cast(Tensor, value).numpy() for key, value in target.items() if key != "masks"} for target in targets
        ]
        self.masks = [_pack_bits(target["masks"]) if "masks" in target else None for target in targets]

    def __reduce__(self) -> tuple[Callable[..., RawBatch], tuple[Any, ...]]:
        return _unpack, (self.pixels, self.layouts, self.targets, self.masks)


_Bits = tuple[tuple[int, ...], NDArray[np.uint8]]
"""Shape of masks, and their pixels, eight in a byte."""


def _pack_bits(masks: UInt8[Tensor, "M _ _"]) -> _Bits:
    return tuple(masks.shape), np.packbits(masks.numpy().reshape(-1))


def _unpack_bits(shape: tuple[int, ...], content: NDArray[np.uint8]) -> UInt8[Tensor, "M _ _"]:
    return torch.from_numpy(np.unpackbits(content, count=math.prod(shape)).reshape(shape))


def _unpack(
    pixels: Tensor,
    layouts: list[tuple[int, int, bool]],
    targets: list[dict[str, NDArray[np.generic]]],
    masks: list[_Bits | None],
) -> RawBatch:
    images = []
    start = 0
    for height, width, channels_last in layouts:
        end = start + 3 * height * width
        images.append(_as_image(pixels[start:end], height, width, channels_last))
        start = end
    tensors = [{key: torch.from_numpy(value) for key, value in target.items()} for target in targets]
    for target, packed in zip(tensors, masks, strict=True):
        if packed is not None:
            target["masks"] = _unpack_bits(*packed)
    return images, cast(list[Target], tensors)


def _as_image(block: Tensor, height: int, width: int, channels_last: bool) -> Image:
    return block.view(height, width, 3).permute(2, 0, 1) if channels_last else block.view(3, height, width)


def _shared(num_bytes: int) -> Tensor:
    """Uninitialised uint8 [num_bytes] in shared memory."""
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)
