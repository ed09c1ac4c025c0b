"""Images and targets by key, the cache of decoded images, and the way of a batch from a worker to the trainer.

No Lightning in here: this is what a loader's worker imports.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from zoo.data.sampling import seeded_rng
from zoo.data.source import Source
from zoo.data.table import COLUMNS, AnnotationTable
from zoo.types import Image, RawBatch, Sample, Target


class ImageCache:
    """Decoded images in shared memory, made before the workers start and filled by whichever decodes an image first.

    Images have their places from the start, in the order of the table, until the bound is reached; those behind it are
    decoded every time. Pages that nobody has written take no memory. No locks: an image is written once, by bytes that
    do not depend on the writer, and its mark is set after them.

    Args:
        widths: [N] pixels.
        heights: [N] pixels.
        megabytes: the most that it may take.
    """

    def __init__(self, widths: NDArray[np.int32], heights: NDArray[np.int32], megabytes: float) -> None:
        self.sizes = np.stack([heights, widths], axis=1).astype(np.int64)
        ends = np.cumsum(self.sizes.prod(axis=1) * 3)
        self.num_places = int(np.searchsorted(ends, megabytes * 1e6, side="right"))
        self.starts = np.concatenate([[0], ends[: self.num_places]])
        self.pixels = _shared(int(self.starts[-1]))
        self.filled = _shared(self.num_places).zero_()

    def get(self, index: int) -> Image | None:
        """An image, or None. In a worker it is the cached memory itself: read only; the batch's parcel copies it."""
        if index >= self.num_places or not self.filled[index]:
            return None
        image = self._place(index)
        return image.clone() if get_worker_info() is None else image

    def put(self, index: int, image: Image) -> None:
        """Keeps an image, if it has a place."""
        if index < self.num_places and image.shape[1:] == tuple(self.sizes[index]):
            self._place(index).copy_(image)
            self.filled[index] = 1

    def _place(self, index: int) -> Image:
        height, width = self.sizes[index].tolist()
        rows = self.pixels[self.starts[index] : self.starts[index + 1]].view(height, width, 3)
        return rows.permute(2, 0, 1)


class DetectionDataset(Dataset[Sample]):
    """One split, image by image.

    Keys are `epoch * N + index` (see `TrainSampler`); a plain index is epoch 0. The same key always gives the same
    sample.

    Args:
        table: what `source` read.
        source: decodes the images.
        augment: takes and gives image and target, or None.
        seed: with the key, it decides what `augment` draws.
        cache: of decoded images, or None.
        propose: gives the region proposals of an image, which are then augmented with it, or None. A worker calls it.
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
            raise IndexError(f"keys count from 0: {key}")
        image = self._image(index)
        target = self.table.target(index)
        if self.propose is not None:
            target["proposals"] = self.propose(image)
        if self.augment is None:
            return image, target
        with seeded_rng(self.seed, epoch, index):
            return self.augment(image, target)

    def _image(self, index: int) -> Image:
        if self.cache is None:
            return self.source.load_image(self.table, index)
        image = self.cache.get(index)
        if image is None:
            image = self.source.load_image(self.table, index)
            self.cache.put(index, image)
        return image

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are spawned get the columns as shared memory, one copy for all of them."""
        if self._columns is None:
            # kept, since the memory must still be there when the worker comes to open it
            self._columns = {name: torch.from_numpy(getattr(self.table, name)) for name in COLUMNS}
        words = {name: getattr(self.table, name) for name in ("classes", "folders", "name_bytes")}
        return self.__dict__ | {"table": words}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = {name: column.numpy() for name, column in state["_columns"].items()}
        self.__dict__.update(state, table=AnnotationTable(**columns, **state["table"]))


def collate(samples: list[Sample]) -> "RawBatch | _Parcel":
    """Samples -> a list of images and a list of targets; nothing is resized or padded.

    In a worker process the batch travels as one block of shared memory; it is unpacked on arrival.
    """
    images = [image for image, _ in samples]
    targets = [target for _, target in samples]
    return (images, targets) if get_worker_info() is None else _Parcel(images, targets)


class _Parcel:
    """A batch between two processes.

    torch would open one shared-memory file for every tensor, seven and more an image. Here it is one for all pixels,
    and the small columns go through the pipe as they are.
    """

    def __init__(self, images: list[Image], targets: list[Target]) -> None:
        self.pixels = _shared(sum(image.numel() for image in images))
        self.layouts: list[tuple[int, int, bool]] = []
        start = 0
        for image in images:
            height, width = image.shape[1:]
            rows_first = (
                image.stride(0) == 1
            )  # as decoders leave it; kept, since turning it around costs a third of the decoding
            self.layouts.append((height, width, rows_first))
            block = self.pixels[start : start + image.numel()]
            _unfold(block, height, width, rows_first).copy_(image)
            start += image.numel()
        self.targets = [{key: cast(Tensor, value).numpy() for key, value in target.items()} for target in targets]

    def __reduce__(self) -> tuple[Callable[..., RawBatch], tuple[Any, ...]]:
        return _unpack, (self.pixels, self.layouts, self.targets)


def _unpack(
    pixels: Tensor, layouts: list[tuple[int, int, bool]], targets: list[dict[str, NDArray[np.generic]]]
) -> RawBatch:
    images = []
    start = 0
    for height, width, rows_first in layouts:
        end = start + 3 * height * width
        images.append(_unfold(pixels[start:end], height, width, rows_first))
        start = end
    tensors = [{key: torch.from_numpy(value) for key, value in target.items()} for target in targets]
    return images, cast(list[Target], tensors)


def _unfold(block: Tensor, height: int, width: int, rows_first: bool) -> Image:
    return block.view(height, width, 3).permute(2, 0, 1) if rows_first else block.view(3, height, width)


def _shared(num_bytes: int) -> Tensor:
    """uint8 [num_bytes] in memory that other processes can map; not cleared."""
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)
