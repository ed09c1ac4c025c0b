"""What processes tell each other."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from processes import run_group

import zoo.ops.distributed
from zoo.ops.distributed import DelayedMax, all_gather_strings, mean_count, run_on_rank_zero


def tell(rank: int) -> dict[str, object]:
    torch.distributed.init_process_group("gloo")
    count = torch.tensor([4, 0, 2][rank])
    shared = float(mean_count(count))
    with torch.no_grad():
        own = float(mean_count(count))
    words = all_gather_strings(None if rank == 0 else f"from {rank}")
    return {"shared": shared, "own": own, "words": words, "largest": DelayedMax(torch.tensor(rank)).read()}


def test_counts_are_shared_where_gradients_are_and_all_hear_all(tmp_path: Path) -> None:
    said = {"shared": 2.0, "words": [None, "from 1", "from 2"], "largest": 2}
    assert run_group(tell, 3, tmp_path) == [said | {"own": own} for own in (4, 1, 2)]


def test_without_others_everything_is_its_own() -> None:
    assert mean_count(torch.tensor(0)) == 1
    assert mean_count(torch.tensor(5)) == 5
    assert all_gather_strings("alone") == ["alone"]
    assert DelayedMax(torch.tensor(3)).read() == 3


def wait_long(rank: int, seconds_between_signs: float) -> tuple[object, str]:
    """Seven seconds of work in a group that waits for three."""
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()  # they need not find each other within three seconds
    impatient = torch.distributed.new_group(timeout=timedelta(seconds=3))
    zoo.ops.distributed.SECONDS_BETWEEN_SIGNS = seconds_between_signs

    def work() -> str:
        time.sleep(7)
        return f"done by {rank}"

    def fail() -> None:
        raise ValueError("not so")

    try:
        result = run_on_rank_zero(work, impatient)
    except RuntimeError:
        return None, "timed out"
    with pytest.raises(ValueError, match="not so"):
        run_on_rank_zero(fail, impatient)
    return result, ""


def test_others_wait_without_a_time_out(tmp_path: Path) -> None:
    assert run_group(wait_long, 2, tmp_path, 0.3) == [("done by 0", "")] * 2


def test_that_test_would_notice(tmp_path: Path) -> None:
    assert (None, "timed out") in run_group(wait_long, 2, tmp_path, 60.0)
