"""Run a function in a group of processes as torchrun does, forked from a server that has zoo imported."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zoo.callbacks.preemption

SECONDS = 3600  # time limit of started processes, against hanging only: far more than a busy machine needs


def run_group(work: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Run work(rank, *arguments) in a group of processes, and return their results by rank.

    In them `torch.distributed.init_process_group("gloo")` needs no arguments, and a Trainer with that many devices and
    strategy "ddp" works. An exception in one is raised here; a group that exceeds the time limit is killed.

    Args:
        work: function of an importable module.
        world_size: number of processes.
        folder: for their results.
        arguments: of `work`.
    """
    multiprocessing.set_forkserver_preload(["zoo.experiment.run"])
    start_method = multiprocessing.get_start_method()
    group = (work, world_size, _free_port(), folder, start_method, arguments)
    context = torch.multiprocessing.start_processes(_work, group, world_size, join=False, start_method="forkserver")
    deadline = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__} in {world_size} processes exceeded {SECONDS} s")
    return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]


def _work(
    rank: int,
    work: Callable[..., Any],
    world_size: int,
    port: int,
    folder: Path,
    start_method: str,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    zoo.callbacks.preemption.SECONDS_TO_STEP = SECONDS
    multiprocessing.set_start_method(start_method, force=True)  # else the server forks the children of this process
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.save(work(rank, *arguments), folder / f"result{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
