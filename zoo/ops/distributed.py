"""Collective operations of training processes; without other processes they return the local values at once."""

import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from zoo.errors import InputError, SharedInputError

T = TypeVar("T")

HEARTBEAT_SECONDS = 10.0  # interval of rank 0's messages to the processes that wait for it


def is_distributed() -> bool:
    """Whether more than one process takes part."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows [n, ...] of all processes, concatenated by rank; n may differ between processes."""
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
    """Items per process on average: the divisor that turns a sum of losses into a mean over all processes.

    Gradients are averaged over processes. Where each process divides its sum by the average count rather than by its
    own, the average is the gradient of the mean over all items, as in one process with the joined batch.

    Counts are exchanged only where gradients are enabled. In evaluation processes may have different numbers of
    batches, so a collective call could block: each process then uses its own count.

    Args:
        count: number of items in this process, an integer scalar; may be 0.

    Returns:
        The total, at least 1, divided by the number of processes; without exchange, the given count, at least 1.
    """
    if not (torch.is_grad_enabled() and is_distributed()):
        return count.clamp(min=1)
    total = all_reduce_sum(count.clone()).clamp(min=1)
    return total / distributed.get_world_size()


def broadcast_buffers(buffers: Iterable[Tensor]) -> None:
    """Overwrite buffers with those of rank 0, in place; for statistics that each process gathers from its batches."""
    if is_distributed():
        for buffer in buffers:
            distributed.broadcast(buffer, src=0)


def all_gather_strings(text: str | None) -> list[str | None]:
    """The strings of all processes, by rank. All must call this."""
    if not is_distributed():
        return [text]
    gathered: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, text)
    return gathered


def run_on_rank_zero(work: Callable[[], T], group: Any | None = None) -> T:
    """Call `work` on rank 0 of the group only and return its result on all ranks; all must call this.

    However long it takes, the other processes do not time out: rank 0 sends them a message every few seconds.

    Raises:
        Exception: what `work` raises, on all ranks; raised on rank 0 alone, it would leave the others waiting.
    """
    if distributed.get_rank(group) != 0:
        while not (message := _broadcast(None, group))[0]:
            pass
    else:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            while not wait([future], timeout=HEARTBEAT_SECONDS).done:
                _broadcast((False, None, None), group)
        error = future.exception()
        message = _broadcast((True, None if error else future.result(), _picklable(error)), group)
    _, result, error = message
    if isinstance(error, InputError) and distributed.get_rank(group) != 0:
        raise SharedInputError(str(error))
    if error is not None:
        raise error
    return result


def _picklable(error: BaseException | None) -> BaseException | None:
    """The error, or a RuntimeError with the same message where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _broadcast(message: tuple[bool, Any, BaseException | None] | None, group: Any | None) -> tuple[bool, Any, Any]:
    """The message of rank 0: whether it is done, the result, and the error."""
    messages: list[Any] = [message]
    distributed.broadcast_object_list(messages, group=group, group_src=0)
    return messages[0]


class DelayedMax:
    """Maximum over all processes, started at one step and read at the next, so that no process waits for a device.

    Args:
        number: an integer scalar of this process, on the training device. All processes must take part.
    """

    def __init__(self, number: Tensor) -> None:
        largest = number.to(torch.int32)
        if is_distributed():
            distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        # Copied into pinned memory without waiting; the event is recorded behind the copy.
        self._largest = largest.to("cpu", non_blocking=largest.is_cuda)
        self._arrived: torch.cuda.Event | None = None
        if largest.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> int:
        """The maximum; waits for the step that started it, but for no work that was queued later."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._largest)
