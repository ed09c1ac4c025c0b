"""Which process sees which image, in which order, with which random numbers.

Samplers here derive from torch's DistributedSampler, also for one process: Lightning replaces any other by its own, which
repeats images in evaluation.
"""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import BatchSampler, DistributedSampler


class TrainSampler(DistributedSampler[int]):
    """All images in a new order each epoch, dealt out to the processes.

    Every process gets the same number (the first images of an epoch fill up the last round), since gradients are exchanged
    each step. Yields keys that hold the epoch: `epoch * N + index`, so that a worker knows both however far it runs ahead;
    the random numbers of an image then depend on seed, epoch and index only, not on workers or processes.

    Args:
        dataset: anything with a length.
        num_replicas: processes.
        rank: this process.
        seed: decides all orders.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)

    def __iter__(self) -> Iterator[int]:
        first_key = self.epoch * len(self.dataset)
        return (first_key + index for index in super().__iter__())


class EvalSampler(DistributedSampler[int]):
    """Each image once over all processes: process r gets r, r + world, r + 2 world, ... and nothing is repeated.

    Args:
        dataset: anything with a length.
        num_replicas: processes.
        rank: this process.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self.total_size = len(dataset)
        self.num_samples = len(range(rank, self.total_size, num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


class AspectRatioBatchSampler(BatchSampler):
    """Batches of images that are all wide or all high, so that less of them is padding.

    The number of batches is that of plain batching, on every process alike: what is left over of both kinds at the end of
    an epoch shares its last batches.

    Args:
        sampler: yields keys, see `TrainSampler`.
        batch_size: images a batch.
        drop_last: leave out a last batch that is not full.
        groups: [N], the kind of each image.
    """

    def __init__(self, sampler: TrainSampler, batch_size: int, drop_last: bool, groups: Int64[np.ndarray, "N"]) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.groups = groups

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = {}
        for key in self.sampler:
            batch = waiting.setdefault(int(self.groups[key % len(self.groups)]), [])
            batch.append(key)
            if len(batch) == self.batch_size:
                yield batch.copy()
                batch.clear()
        rest = [key for group in sorted(waiting) for key in waiting[group]]
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds torch's, numpy's and Python's global generators for a while; afterwards they go on where they were.

    Args:
        entropy: integers >= 0; any other tuple of them gives unrelated numbers.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    words = np.random.SeedSequence(entropy).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
