"""Which process sees which image, in which order, with which random numbers.

Samplers here derive from torch's DistributedSampler, also for one process: Lightning replaces any other by its own,
which repeats images in evaluation. (For the same reason there is no batch sampler: with one, Lightning does not see the
sampler in it.)
"""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset, DistributedSampler


class TrainSampler(DistributedSampler[int]):
    """All images in a new order each epoch, dealt out to the processes.

    Every process gets the same number (the first images of an epoch fill up the last round), since gradients are
    exchanged each step. Yields keys that hold the epoch, `epoch * N + index`, so that a worker knows both however far
    it runs ahead; the random numbers of an image then depend on seed, epoch and index only, never on workers or ranks.

    Args:
        dataset: anything with a length.
        num_replicas: processes.
        rank: this process.
        seed: decides all orders.
        groups: [N], the kind of each image, or None. With it, `batch_size` keys in a row are of one kind (wide or high
            images, so that less of a batch is padding), but for the last batches of an epoch.
        batch_size: images a batch.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int,
        rank: int,
        seed: int,
        groups: Int64[np.ndarray, "N"] | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(cast(Dataset, dataset), num_replicas, rank, shuffle=True, seed=seed)
        self.num_images = len(dataset)
        self.groups = groups
        self.batch_size = batch_size
        self._skipped = 0

    def resume_at(self, epoch: int, num_images: int) -> None:
        """Begin next in this epoch, and leave out what has been seen of it; later epochs are whole.

        Args:
            epoch: from 0.
            num_images: seen by all processes together. Rounded down to whole batches of each.
        """
        self.set_epoch(epoch)
        self._skipped = num_images // (self.num_replicas * self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        if self.groups is not None:
            order = group_batches(order, self.groups[order].tolist(), self.batch_size)
        skipped, self._skipped = self._skipped, 0
        first_key = self.epoch * self.num_images
        return (first_key + index for index in order[skipped:])


def group_batches(order: list[int], groups: list[int], batch_size: int) -> list[int]:
    """Moves images so that batches are of one kind; batches come in the order in which they are full.

    Args:
        order: indices of images.
        groups: the kind of each of them.
        batch_size: images a batch.

    Returns:
        The same indices. What is left over of each kind comes last.
    """
    batches: list[int] = []
    waiting: dict[int, list[int]] = {}
    for index, group in zip(order, groups, strict=True):
        batch = waiting.setdefault(group, [])
        batch.append(index)
        if len(batch) == batch_size:
            batches += batch
            batch.clear()
    return batches + [index for group in sorted(waiting) for index in waiting[group]]


class EvalSampler(DistributedSampler[int]):
    """Each image once over all processes: process r gets r, r + world, r + 2 world, ... and nothing is repeated.

    Args:
        dataset: anything with a length.
        num_replicas: processes.
        rank: this process.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(cast(Dataset, dataset), num_replicas, rank, shuffle=False)
        self.total_size = len(dataset)
        self.num_samples = len(range(rank, self.total_size, num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


@contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Seeds torch's, numpy's and Python's global generators for a while; afterwards they go on where they were.

    Args:
        entropy: integers >= 0; any other tuple of them gives unrelated numbers.
    """
    # not torch.manual_seed, which turns to every GPU as well and takes as long as a third of a JPEG
    generator = torch.default_generator
    states = generator.get_state(), np.random.get_state(), random.getstate()
    words = np.random.SeedSequence(entropy).generate_state(4)
    generator.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))
    try:
        yield
    finally:
        generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
