"""Names of the CPU and accelerator, and package versions, for reports."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("detection-zoo", "torch", "torchvision", "timm", "pytorch-lightning", "hotcoco")


def describe_hardware() -> str:
    """CPU, usable cores and accelerators: "AMD EPYC 9654, 2 cores" or "..., 16 cores; 8 x NVIDIA H100"."""
    try:
        cores = len(os.sched_getaffinity(0))  # usable by this process
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    parts = [f"{_cpu_name()}, {cores} core{'s' if cores != 1 else ''}"]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        parts += [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    elif torch.backends.mps.is_available():
        parts.append("Apple GPU (mps)")
    return "; ".join(parts)


def list_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source folder without installation
            versions[package] = "unknown"
    return versions


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
