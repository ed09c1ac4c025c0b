"""What a measurement drew from the mains, where the device tells.

NVIDIA GPUs count the energy of the whole board (NVML, read by the package nvidia-ml-py where it is installed), Intel's
and many of AMD's processors that of each package (RAPL; Linux lets only root read it unless told otherwise). Both count
whoever is at work: what an idle device draws is in the figure, and so is what other processes do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """Counts energy, from 0 again once it has reached its end.

    Args:
        read: joules.
        end: joules at which it starts again.
    """

    read: Callable[[], float]
    end: float = math.inf


class EnergyMeter:
    """Joules between `start` and `stop`, of all counters together; a counter may pass its end once between the two."""

    def __init__(self, counters: list[Counter]) -> None:
        self.counters = counters
        self.before: list[float] = []

    def start(self) -> None:
        """Count from here."""
        self.before = [counter.read() for counter in self.counters]

    def stop(self) -> float:
        """Joules since `start`."""
        drawn = 0.0
        for counter, before in zip(self.counters, self.before, strict=True):
            after = counter.read()
            drawn += after - before if after >= before else after + counter.end - before
        return drawn


def find_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter | None:
    """What counts the energy of a device; None where nothing does, or nothing that may be read.

    Args:
        device: a GPU, or the processor for all others.
        powercap: where Linux shows the processor's counters.
    """
    counters = _of_gpu(device) if device.type == "cuda" else _of_processor(powercap)
    return EnergyMeter(counters) if counters else None


def _of_processor(powercap: Path) -> list[Counter]:
    """One counter a package. Its parts ("intel-rapl:0:0") are counted in it."""
    counters = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            end = _read_microjoules(folder / "max_energy_range_uj")
            _read_microjoules(folder / "energy_uj")
        except (OSError, ValueError):
            return []  # one package alone would pass for the whole
        counters.append(Counter(partial(_read_microjoules, folder / "energy_uj"), end))
    return counters


def _read_microjoules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _of_gpu(device: torch.device) -> list[Counter]:
    if find_spec("pynvml") is None:
        return []
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        # By its own name: NVML numbers all boards, PyTorch those that CUDA_VISIBLE_DEVICES shows.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return []
    return [Counter(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)]  # of millijoules
