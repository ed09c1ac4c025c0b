"""Samplers for training and evaluation in one or more processes, and seeded random number generators.

The samplers derive from torch's DistributedSampler, also for one process: Lightning replaces any other sampler by its
own, which repeats images in evaluation. For the same reason there is no batch sampler: Lightning does not look at the
sampler inside it.
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
    """Shuffles all images every epoch and distributes them over the processes.

    Every process gets the same number of images, since gradients are synchronised each step; the first images of an
    epoch are repeated where the number does not divide. Yields keys `epoch * N + index`, so that a prefetching worker
    knows the epoch of each image; random augmentation then depends on seed, epoch and index only, not on workers or
    ranks.

    Args:
        dataset: anything with a length.
        num_replicas: number of processes.
        rank: rank of this process.
        seed: seed of the shuffling.
        groups: [N] group of each image (such as landscape or portrait, to reduce padding), or None. Each batch is from
            one group, except for the last batches of an epoch.
        batch_size: images per batch and process.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int,
        rank: int,
        seed: int,
        groups: Int64[np.ndarray, " N"] | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(cast(Dataset, dataset), num_replicas, rank, shuffle=True, seed=seed)
        self.num_images = len(dataset)
        self.groups = groups
        self.batch_size = batch_size
        self._skipped = 0

    def resume_at(self, epoch: int, num_images: int) -> None:
        """Starts the next iteration in the middle of an epoch; later epochs are complete.

        Args:
            epoch: counted from 0.
            num_images: images already seen in it by all processes together; rounded down to full batches.
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
    """Reorders images so that each batch is from one group; batches are in the order in which they become full.

    Args:
        order: image indices.
        groups: group of each of them.
        batch_size: images per batch.

    Returns:
        The same indices; the incomplete batches of all groups come last.
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
    """Distributes the images over the processes without repetition: rank r gets r, r + world_size, and so on.

    Args:
        dataset: anything with a length.
        num_replicas: number of processes.
        rank: rank of this process.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(cast(Dataset, dataset), num_replicas, rank, shuffle=False)
        self.total_size = len(dataset)
        self.num_samples = len(range(rank, self.total_size, num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


@contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Seeds the global generators of torch (CPU), numpy and Python, and restores their states on exit.

    Args:
        entropy: integers >= 0; different tuples give independent random numbers.
    """
    # torch.manual_seed would seed every GPU too, which takes a third of the time of decoding a JPEG
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
