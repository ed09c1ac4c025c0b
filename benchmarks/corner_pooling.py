"""Time of corner pooling: ours, a loop over rows and columns, and `torch.cummax`, in alternating order.

    python benchmarks/corner_pooling.py                 # feature maps of the paper's network, on the CPU
    python benchmarks/corner_pooling.py --device cuda

One call is top-left corner pooling of two maps of 128 channels and 128x128 cells: one is pooled along its columns, the
other along its rows, and the results are added. "train" is a call and its backward pass. The loop computes
`rows[i] = torch.maximum(maps[:, :, i], rows[i + 1])` and stacks the rows; autograd does its backward pass. Outputs and
gradients of all three are compared before timing.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from _common import Report, spread, time_in_turn
from torch import Tensor

from zoo.ops.corner_pooling import corner_pool

Pool = Callable[[Tensor, Tensor], Tensor]
GOALS = {("loop", "train", "channels_last"): 10.0}


def loop(vertical: Tensor, horizontal: Tensor) -> Tensor:
    rows, columns = [vertical[:, :, -1]], [horizontal[:, :, :, -1]]
    for i in range(vertical.shape[2] - 2, -1, -1):
        rows.append(torch.maximum(vertical[:, :, i], rows[-1]))
    for j in range(horizontal.shape[3] - 2, -1, -1):
        columns.append(torch.maximum(horizontal[:, :, :, j], columns[-1]))
    return torch.stack(rows[::-1], dim=2) + torch.stack(columns[::-1], dim=3)


def cummax(vertical: Tensor, horizontal: Tensor) -> Tensor:
    return vertical.flip(2).cummax(2).values.flip(2) + horizontal.flip(3).cummax(3).values.flip(3)


def ours(vertical: Tensor, horizontal: Tensor) -> Tensor:
    return corner_pool(vertical, horizontal, "top_left")


def make_call(pool: Pool, maps: list[Tensor], grad: Tensor, train: bool) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        if not train:
            with torch.no_grad():
                return [pool(*maps)]
        pooled = pool(*maps)
        return [pooled.detach(), *torch.autograd.grad(pooled, maps, grad)]

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    device = arguments.device
    report = Report(
        "Corner pooling, 2 maps of 128 channels, 128x128 cells",
        f"python benchmarks/corner_pooling.py {' '.join(sys.argv[1:])}".strip(),
        ["case", "ours, ms, median (min to max)", "peer, ms, median (min to max)", "ratio", "goal"],
        device,
    )
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    for memory, memory_format in formats.items():
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            maps = [torch.randn(1, 128, 128, 128, device=device) for _ in range(3)]
            *maps, grad = (part.to(dtype).to(memory_format=memory_format) for part in maps)
            maps = [part.requires_grad_() for part in maps]
            if dtype == torch.float32:  # bf16 has ties, whose gradients differ between the three
                for other in (loop, cummax):
                    pairs = zip(*(make_call(pool, maps, grad, True)() for pool in (ours, other)), strict=True)
                    for one, two in pairs:
                        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
            for peer in (loop, cummax):
                for phase in ("inference", "train"):
                    calls = (make_call(pool, maps, grad, phase == "train") for pool in (ours, peer))
                    timing = time_in_turn(*calls, arguments.rounds, device)
                    sides = [[1000 * seconds for seconds in side] for side in (timing.ours, timing.peer)]
                    name = f"corner_pooling/{peer.__name__}/{phase}/{memory}/{str(dtype).removeprefix('torch.')}"
                    goal = GOALS.get((peer.__name__, phase, memory), "") if device == "cpu" else ""
                    report.row([name, *(spread(side, 1) for side in sides), f"{timing.ratio:.1f}", str(goal)])
                    report.case(name, *map(median, sides), peer.__name__, "ms", timing.ratio)
    report.finish(arguments.out)


if __name__ == "__main__":
    main()
