"""Communication between the processes of a group."""

import concurrent.futures
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import SECONDS, run_group

import zoo.ops.distributed
from zoo.ops.distributed import DelayedMax, all_gather_strings, mean_count, run_on_rank_zero


def exchange(rank: int) -> dict[str, object]:
    torch.distributed.init_process_group("gloo")
    count = torch.tensor([4, 0, 2][rank])
    shared = float(mean_count(count))
    with torch.no_grad():
        own = float(mean_count(count))
    strings = all_gather_strings(None if rank == 0 else f"from {rank}")
    return {"shared": shared, "own": own, "strings": strings, "largest": DelayedMax(torch.tensor(rank)).read()}


def test_mean_count_strings_and_delayed_max_over_three_processes(tmp_path: Path) -> None:
    """Counts are averaged over processes only where gradients are computed."""
    expected = {"shared": 2.0, "strings": [None, "from 1", "from 2"], "largest": 2}
    assert run_group(exchange, 3, tmp_path) == [expected | {"own": own} for own in (4, 1, 2)]


def test_one_process_without_a_group() -> None:
    assert mean_count(torch.tensor(0)) == 1
    assert mean_count(torch.tensor(5)) == 5
    assert all_gather_strings("alone") == ["alone"]
    assert DelayedMax(torch.tensor(3)).read() == 3


class SimulatedWork:
    """Seven seconds of work on a simulated clock, which only waiting for the work advances."""

    def __init__(self) -> None:
        self.now = 0.0
        self.is_over = threading.Event()

    def run(self) -> str:
        self.is_over.wait()
        return "done"

    def wait(self, futures: Sequence[Future[Any]], timeout: float) -> Any:
        """Replaces `concurrent.futures.wait`; takes no time."""
        self.now = min(self.now + timeout, 7.0)
        if self.now < 7:
            return concurrent.futures.wait(futures, timeout=0)
        self.is_over.set()
        return concurrent.futures.wait(futures)


def record_heartbeats(rank: int, interval: float) -> tuple[str, list[float]]:
    """The result of the simulated work, and rank 0's clock at each broadcast that this process took part in."""
    torch.distributed.init_process_group("gloo")
    zoo.ops.distributed.HEARTBEAT_SECONDS = interval
    work, broadcast, times = SimulatedWork(), torch.distributed.broadcast_object_list, []

    def broadcast_with_time(objects: list[Any], **arguments: Any) -> None:
        with_time = [work.now, *objects]
        broadcast(with_time, **arguments)
        time_of_rank_zero, *objects[:] = with_time
        times.append(time_of_rank_zero)

    def fail() -> None:
        raise ValueError("not so")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.ops.distributed, "wait", work.wait)
        patch.setattr(torch.distributed, "broadcast_object_list", broadcast_with_time)
        result = run_on_rank_zero(work.run)
    with pytest.raises(ValueError, match="not so"):
        run_on_rank_zero(fail)
    return result, times


@pytest.mark.parametrize(("interval", "times"), [(2.0, [2.0, 4.0, 6.0, 7.0]), (60.0, [7.0])])
def test_heartbeats_reach_the_others_during_long_work(interval: float, times: list[float], tmp_path: Path) -> None:
    """Each is a broadcast with a timeout of its own, so the interval limits the wait; the last carries the result."""
    assert run_group(record_heartbeats, 2, tmp_path, interval) == [("done", times)] * 2


def work_until_timeout(rank: int, folder: Path) -> str:
    """Rank 0 works without heartbeats until the other process has timed out."""
    torch.distributed.init_process_group("gloo")
    short_timeout_group = torch.distributed.new_group()
    torch.distributed.barrier(short_timeout_group)  # connecting may take longer than the timeout
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1), short_timeout_group)
    zoo.ops.distributed.HEARTBEAT_SECONDS = SECONDS

    def work() -> None:
        while not (folder / "timed_out").exists():
            time.sleep(0.05)

    try:
        run_on_rank_zero(work, short_timeout_group)
    except RuntimeError:
        (folder / "timed_out").touch()
        return "timed out"
    return "done"


def test_without_heartbeats_the_others_time_out(tmp_path: Path) -> None:
    assert run_group(work_until_timeout, 2, tmp_path, tmp_path)[1] == "timed out"
