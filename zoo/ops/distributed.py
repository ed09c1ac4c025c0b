"""What processes that train together tell each other; where there is one alone, nothing is said and nothing is paid."""

import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from zoo.errors import InputError, SharedInputError

T = TypeVar("T")

SECONDS_BETWEEN_SIGNS = 10.0  # of life, from a process that others wait for


def is_distributed() -> bool:
    """Whether other processes take part."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, in the order of the processes; each may have another number of them."""
    if not is_distributed():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def mean_count(count: Tensor) -> Tensor:
    """What to divide a sum of losses by, for a mean over the items of all processes.

    Gradients are averaged over processes. Where each divides its sum by the items of a process on average, and not by
    its own, the average is the gradient of the mean over all items: what one process with the joined batch has.

    Counts are exchanged where gradients are. In evaluation processes may have different numbers of batches, so nobody
    can be waited for: each goes by its own.

    Args:
        count: this process's items, an integer scalar; 0 is fine.

    Returns:
        At least one item, in all processes together.
    """
    if not (torch.is_grad_enabled() and is_distributed()):
        return count.clamp(min=1)
    total = all_reduce_sum(count.clone()).clamp(min=1)
    return total / distributed.get_world_size()


def broadcast_buffers(buffers: Iterable[Tensor]) -> None:
    """Those of the first process, on all, in place: statistics that each has gathered of its own batches."""
    if is_distributed():
        for buffer in buffers:
            distributed.broadcast(buffer, src=0)


def all_gather_strings(words: str | None) -> list[str | None]:
    """What each process has to say, on all of them. All must call this."""
    if not is_distributed():
        return [words]
    said: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(said, words)
    return said


def run_on_rank_zero(work: Callable[[], T], group: Any | None = None) -> T:
    """What `work` gives, done by the first process of the group alone; all must call this.

    However long it takes, the others do not run into a time-out: every few seconds they hear that it goes on.

    Raises:
        Exception: what `work` raises, on all of them; on one alone, it would leave the others waiting.
    """
    if distributed.get_rank(group) != 0:
        while not (told := _tell(None, group))[0]:
            pass
    else:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            while not wait([future], timeout=SECONDS_BETWEEN_SIGNS).done:
                _tell((False, None, None), group)
        error = future.exception()
        told = _tell((True, None if error else future.result(), _portable(error)), group)
    _, result, error = told
    if isinstance(error, InputError) and distributed.get_rank(group) != 0:
        raise SharedInputError(str(error))
    if error is not None:
        raise error
    return result


def _portable(error: BaseException | None) -> BaseException | None:
    """An error that can be told to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _tell(said: tuple[bool, Any, BaseException | None] | None, group: Any | None) -> tuple[bool, Any, Any]:
    """What the first process says: whether it is done, the result, and the error."""
    told: list[Any] = [said]
    distributed.broadcast_object_list(told, group=group, group_src=0)
    return told[0]


class DelayedMax:
    """The largest number of all processes: told at one step and read at the next, so that nobody waits for a device.

    Args:
        number: an integer scalar of this process, on the device that trains. All processes must tell theirs.
    """

    def __init__(self, number: Tensor) -> None:
        told = number.to(torch.int32)
        if is_distributed():
            distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        # Into pinned memory, without waiting; the event says when it is there.
        self._told = told.to("cpu", non_blocking=told.is_cuda)
        self._arrived: torch.cuda.Event | None = None
        if told.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> int:
        """Waits for the step in which it was told, but for nothing that was sent off after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._told)
