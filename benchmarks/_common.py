"""Shared by the benchmarks: timing with device synchronisation, and a report of a table and json lines."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from zoo.profiling.hardware import describe_hardware, list_versions


def synchronize(device: str) -> None:
    """Wait until the device has finished its work; CUDA calls return before it has."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Seconds of a call, with the device synchronised before and after it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


@dataclass
class Timing:
    """Seconds per call of both sides, one value for each round."""

    ours: list[float]
    peer: list[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of peer / ours; above 1 where ours is faster."""
        return median(peer / ours for ours, peer in zip(self.ours, self.peer, strict=True))


def time_in_turn(ours: Callable[[], object], peer: Callable[[], object], rounds: int, device: str) -> Timing:
    """Time both sides in each round, in alternating order, after one untimed call of each."""
    ours(), peer()
    timing = Timing([], [])
    for number in range(rounds):
        if number % 2:
            timing.peer.append(seconds_of(peer, device))
            timing.ours.append(seconds_of(ours, device))
        else:
            timing.ours.append(seconds_of(ours, device))
            timing.peer.append(seconds_of(peer, device))
    return timing


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (smallest to largest)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


class Report:
    """A Markdown table followed by json lines; printed line by line, and written to a file at the end."""

    def __init__(self, title: str, command: str, columns: Sequence[str], device: str = "cpu") -> None:
        hardware = torch.cuda.get_device_name() if device == "cuda" else describe_hardware()
        versions = ", ".join(f"{name} {version}" for name, version in list_versions().items())
        self._lines: list[str] = []
        self._cases: list[str] = []
        self.line(f"# {title}\n")
        self.line(f"`{command}`\n")
        self.line(f"{hardware}; {torch.get_num_threads()} threads; {platform.system()}; {versions}\n")
        self.row(columns)
        self.line("|" + "---|" * len(columns))

    def row(self, cells: Sequence[str]) -> None:
        """Add a row to the table."""
        self.line(f"| {' | '.join(cells)} |")

    def case(self, case: str, ours: float, peer: float, peer_name: str, unit: str, ratio: float) -> None:
        """Add a json line; the ratio is above 1 where ours is better."""
        record = {"case": case, "ours": round(ours, 4), "peer": round(peer, 4), "peer_name": peer_name}
        self._cases.append(json.dumps(record | {"unit": unit, "ratio": round(ratio, 3)}))

    def line(self, text: str) -> None:
        """Add a line of text."""
        print(text, flush=True)
        self._lines.append(text)

    def finish(self, out: Path | None) -> None:
        """Add the json lines, and write everything to a file."""
        for line in ("\n```json", *self._cases, "```"):
            self.line(line)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = out.with_suffix(".tmp")
            temporary.write_text("\n".join(self._lines) + "\n")
            temporary.replace(out)
