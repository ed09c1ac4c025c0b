"""Energy consumption of a measurement, from the energy counters of GPUs and CPUs.

NVIDIA GPUs count the energy of the whole board (NVML, read by the package nvidia-ml-py if it is installed), Intel and
many AMD CPUs that of each package (RAPL; by default Linux lets only root read it). Both include the idle consumption of
the device and the consumption by other processes.
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
class EnergyCounter:
    """A cumulative energy counter, which may wrap around to 0.

    Args:
        read: returns the counter in joules.
        end: joules at which it wraps around.
    """

    read: Callable[[], float]
    end: float = math.inf


class EnergyMeter:
    """Energy between `start` and `stop`, summed over counters; a counter may wrap around once in between."""

    def __init__(self, counters: list[EnergyCounter]) -> None:
        self.counters = counters
        self.before: list[float] = []

    def start(self) -> None:
        """Start the measurement."""
        self.before = [counter.read() for counter in self.counters]

    def stop(self) -> float:
        """Joules since `start`."""
        joules = 0.0
        for counter, before in zip(self.counters, self.before, strict=True):
            after = counter.read()
            joules += after - before if after >= before else after + counter.end - before
        return joules


def find_energy_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter | None:
    """Energy meter of a device; None if it has no counters or they cannot be read.

    Args:
        device: a CUDA GPU; for any other device the CPU is measured.
        powercap: folder of the CPU's counters in Linux.
    """
    counters = _gpu_counters(device) if device.type == "cuda" else _cpu_counters(powercap)
    return EnergyMeter(counters) if counters else None


def _cpu_counters(powercap: Path) -> list[EnergyCounter]:
    """One counter for each CPU package; its parts ("intel-rapl:0:0") are included in it."""
    counters = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            end = _read_microjoules(folder / "max_energy_range_uj")
            _read_microjoules(folder / "energy_uj")
        except (OSError, ValueError):
            return []  # a part of the packages would be taken for the whole CPU
        counters.append(EnergyCounter(partial(_read_microjoules, folder / "energy_uj"), end))
    return counters


def _read_microjoules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _gpu_counters(device: torch.device) -> list[EnergyCounter]:
    if find_spec("pynvml") is None:
        return []
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        # By UUID: NVML indices count all GPUs, PyTorch's only those in CUDA_VISIBLE_DEVICES.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return []
    return [EnergyCounter(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)]  # from millijoules
