"""Training processes of the scaling benchmark: a single one, and a group that exchanges gradients."""

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
BATCHES = 2  # of each process, used in turn


@dataclass(frozen=True)
class Settings:
    """Settings of all processes."""

    device: str
    batch: int  # images per process and step
    bf16: bool
    threads: int  # per process


def build_detector(name: str, num_classes: int = 3) -> Detector:
    """The detector of a file in configs/models with untrained weights, so that nothing is downloaded."""
    parser = make_parser()
    args = ["--model", str(CONFIGS / f"{name}.yaml"), "--model.init_args.pretrained", "false"]
    config = parse(parser, [*args, "--data.train", "Shapes", "--data.train.num_images", "1"])
    return instantiate(parser, config).model


class TotalLoss(nn.Module):
    """Total loss of a raw batch, as the module that DistributedDataParallel wraps (Lightning does the same)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor], targets: list[Any]) -> Tensor:
        return torch.stack(list(self.detector.compute_raw_losses((images, targets)).values())).sum()


class TrainingProcess:
    """One detector in one process. All processes have the same batches, so none waits for a slower batch."""

    def __init__(self, name: str, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.device = torch.device(settings.device, torch.cuda.current_device() if settings.device == "cuda" else None)
        detector = build_detector(name).to(self.device).train()
        detector.configure_model()
        self.model = TotalLoss(detector)
        self.wrapped: DistributedDataParallel | None = None
        self.optimizer = build_optimizer(detector, detector.recipe)
        self.batches = cycle(list(self._make_batches(detector)))
        self.trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self.bucket_bytes: list[int] = []
        if distributed.is_initialized():
            self._count_bytes()
            self.wrapped = self._wrap()
        self.run(BATCHES, exchange=True)  # warms up, and the wrapper rebuilds its buckets

    def sizes(self) -> dict[str, Any]:
        """Number of trained parameters, bytes of their gradients, and bytes of each all-reduce counted by the hook."""
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in self.trained)
        return {"parameters": sum(map(Tensor.numel, self.trained)), "bytes": num_bytes, "buckets": self.bucket_bytes}

    def run(self, steps: int, exchange: bool) -> float:
        """Seconds per training step, with or without the exchange of gradients."""
        if distributed.is_initialized():
            distributed.barrier()
        return seconds_of(lambda: [self._step(exchange) for _ in range(steps)], self.settings.device) / steps

    def backward(self, steps: int) -> float:
        """Seconds of the backward pass of a step without exchange."""
        seconds: list[float] = []
        for _ in range(steps):
            self._step(False, lambda loss: seconds.append(seconds_of(loss.backward, self.settings.device)))
        return mean(seconds)

    def exchange(self, steps: int) -> float:
        """Seconds of all-reduces of the same sizes as those of a step, with no other work."""
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
        """Count the bytes of each all-reduce with a hook, in the second of two steps: the first changes the buckets."""

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
        gc.collect()  # removes its hooks before the next wrapper registers its own

    def _make_batches(self, detector: Detector) -> Iterator[RawBatch]:
        """Batches of the built-in shapes, with proposals if the detector declares them."""
        size = self.settings.batch
        module = DetectionDataModule(Shapes(BATCHES * size), batch_size=size, num_workers=0, proposal_cache_mb=0)
        module.proposals = detector.proposals
        dataset = module.dataset("train")
        for start in range(0, BATCHES * size, size):
            images, targets = zip(*(dataset[index] for index in range(start, start + size)), strict=True)
            moved = [{key: value.to(self.device) for key, value in target.items()} for target in targets]
            yield [image.to(self.device) for image in images], moved


class Group:
    """Processes that train together, or a single one. They wait for calls of their methods by `call`."""

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

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Results of a TrainingProcess method in all processes; "build" makes a new object. Raises an error of any."""
        for pipe in self.pipes:
            pipe.send((method, arguments))
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self.pipes):
            for pipe in wait([pipe for pipe in self.pipes if pipe not in answers]):
                answers[pipe] = pipe.recv()
                if isinstance(answers[pipe], Exception):  # the others may block on this one
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
    training: TrainingProcess | None = None
    while (request := pipe.recv()) is not None:
        method, arguments = request
        try:
            if method == "build":
                training = None  # frees the memory of the previous detector first
                training = TrainingProcess(*arguments, settings)
                pipe.send(training.sizes())
            else:
                pipe.send(getattr(training, method)(*arguments))
        except Exception as error:
            pipe.send(RuntimeError(f"process {rank} of {size}, {method}: {type(error).__name__}: {error}"))
    if size > 1:
        distributed.destroy_process_group()
