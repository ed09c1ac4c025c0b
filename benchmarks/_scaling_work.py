"""The processes of the scaling benchmark: one that trains alone, and a group that exchanges gradients."""

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.multiprocessing
from _common import seconds_of, synchronize
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from zoo.data.formats.shapes import Shapes
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector, build_optimizer
from zoo.training.configuration import instantiate, make_parser, parse
from zoo.types import RawBatch

CONFIGS = Path(__file__).parents[1] / "configs" / "models"
BATCHES = 2  # that every process has, and goes through in turn


@dataclass(frozen=True)
class Settings:
    """What all processes have in common."""

    device: str
    batch: int  # images of a process and step
    bf16: bool
    threads: int  # of a process


def build_detector(name: str, num_classes: int = 3) -> Detector:
    """The detector of a file in configs/models, with untrained weights: nothing is downloaded."""
    parser = make_parser()
    words = ["--model", str(CONFIGS / f"{name}.yaml"), "--model.init_args.pretrained", "false"]
    config = parse(parser, [*words, "--data.train", "zoo.data.formats.shapes.Shapes", "--data.train.num_images", "1"])
    return instantiate(parser, config).model


class TotalLoss(nn.Module):
    """What DistributedDataParallel wraps, as Lightning does: the losses of a raw batch."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor], targets: list[Any]) -> Tensor:
        return torch.stack(list(self.detector.compute_raw_losses((images, targets)).values())).sum()


class Trainee:
    """One detector in one process. All processes have the same batches: who waits for whom is not the question."""

    def __init__(self, name: str, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.device = torch.device(settings.device, torch.cuda.current_device() if settings.device == "cuda" else None)
        detector = build_detector(name).to(self.device).train()
        detector.configure_model()
        self.model = TotalLoss(detector)
        self.wrapped: DistributedDataParallel | None = None
        self.optimizer = build_optimizer(detector.parameters(), detector.recipe)
        self.batches = cycle(list(self._make_batches(detector)))
        self.trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self.bucket_bytes: list[int] = []
        if distributed.is_initialized():
            self._count_bytes()
            self.wrapped = self._wrap()
        self.run(BATCHES, exchange=True)  # warms up, and lets the wrapper rebuild its buckets

    def sizes(self) -> dict[str, Any]:
        """Trained parameters, bytes of their gradients, and those of each all-reduce that the hook saw."""
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in self.trained)
        return {"parameters": sum(map(Tensor.numel, self.trained)), "bytes": num_bytes, "seen": self.bucket_bytes}

    def run(self, steps: int, exchange: bool) -> float:
        """Seconds a training step, with or without the exchange of gradients."""
        if distributed.is_initialized():
            distributed.barrier()
        return seconds_of(lambda: [self._step(exchange) for _ in range(steps)], self.settings.device) / steps

    def backward(self, steps: int) -> float:
        """Seconds of the backward pass in a step without exchange."""
        seconds: list[float] = []
        for _ in range(steps):
            self._step(False, lambda loss: seconds.append(seconds_of(loss.backward, self.settings.device)))
        return mean(seconds)

    def exchange(self, steps: int) -> float:
        """Seconds of the all-reduces of a step, of the same sizes, while nothing else is done."""
        buffers = [torch.zeros(size // 4, device=self.device) for size in self.bucket_bytes]

        def all_reduce() -> None:
            for work in [distributed.all_reduce(buffer, async_op=True) for buffer in buffers]:
                work.wait()

        all_reduce()
        distributed.barrier()
        return seconds_of(lambda: [all_reduce() for _ in range(steps)], self.settings.device) / steps

    def _step(self, exchange: bool, run_backward: Callable[[Tensor], None] = Tensor.backward) -> None:
        images, targets = next(self.batches)
        self.optimizer.zero_grad()
        with nullcontext() if exchange or self.wrapped is None else self.wrapped.no_sync():
            with torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.bf16):
                loss = (self.wrapped or self.model)(images, targets)
            run_backward(loss)
        self.optimizer.step()

    def _wrap(self) -> DistributedDataParallel:
        return DistributedDataParallel(self.model, [self.device] if self.device.type == "cuda" else None)

    def _count_bytes(self) -> None:
        """Two steps with a hook at each all-reduce; buckets have their final sizes from the second on."""

        def count(state: None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
            self.bucket_bytes.append(bucket.buffer().nbytes)
            return allreduce_hook(None, bucket)

        self.wrapped = self._wrap()
        self.wrapped.register_comm_hook(None, count)
        for _ in range(2):
            self.bucket_bytes = []
            self._step(exchange=True)
        synchronize(self.settings.device)
        self.wrapped = None
        gc.collect()  # its hooks are gone before the next wrapper sets its own

    def _make_batches(self, detector: Detector) -> Iterator[RawBatch]:
        """Of the built-in shapes, with proposals where the detector wants them."""
        size = self.settings.batch
        module = DetectionDataModule(Shapes(BATCHES * size), batch_size=size, num_workers=0, proposal_cache_mb=0)
        module.proposals = detector.proposals
        dataset = module.dataset("train")
        for start in range(0, BATCHES * size, size):
            images, targets = zip(*(dataset[index] for index in range(start, start + size)), strict=True)
            moved = [{key: value.to(self.device) for key, value in target.items()} for target in targets]
            yield [image.to(self.device) for image in images], moved


class Group:
    """Processes that train together, or one alone. They wait, without using a core, until they are asked."""

    def __init__(self, size: int, settings: Settings) -> None:
        context = torch.multiprocessing.get_context("spawn")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(theirs, rank, size, port, settings), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the Trainee in all processes; "build" makes a new one. Raises what one of them raised."""
        for pipe in self.pipes:
            pipe.send((method, arguments))
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self.pipes):
            for pipe in wait([pipe for pipe in self.pipes if pipe not in answers]):
                answers[pipe] = pipe.recv()
                if isinstance(answers[pipe], Exception):  # the others may wait for this one
                    raise answers[pipe]
        return [answers[pipe] for pipe in self.pipes]

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def _serve(pipe: Connection, rank: int, size: int, port: int, settings: Settings) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[rank * settings.threads : (rank + 1) * settings.threads])
    torch.set_num_threads(settings.threads)
    if settings.device == "cuda":
        torch.cuda.set_device(rank)
    if size > 1:
        backend = "nccl" if settings.device == "cuda" else "gloo"
        distributed.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    trainee: Trainee | None = None
    while (order := pipe.recv()) is not None:
        method, arguments = order
        try:
            if method == "build":
                trainee = None  # the former one's memory is free before
                trainee = Trainee(*arguments, settings)
                pipe.send(trainee.sizes())
            else:
                pipe.send(getattr(trainee, method)(*arguments))
        except Exception as error:
            pipe.send(RuntimeError(f"process {rank} of {size}, {method}: {type(error).__name__}: {error}"))
    if size > 1:
        distributed.destroy_process_group()
