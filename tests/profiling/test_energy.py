"""Energy meters with fake counters."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import zoo.profiling.energy
from zoo.profiling.energy import EnergyCounter, EnergyMeter, find_energy_meter

CPU = torch.device("cpu")


def test_counters_are_summed_and_may_wrap_around() -> None:
    values = iter([10.0, 90.0, 25.0, 20.0])
    meter = EnergyMeter([EnergyCounter(lambda: next(values)), EnergyCounter(lambda: next(values), end=100.0)])
    meter.start()
    assert meter.stop() == 15 + 30


def write_package(folder: Path, microjoules: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")


def test_cpu_packages(tmp_path: Path) -> None:
    write_package(tmp_path / "intel-rapl:0", 5_000_000)
    write_package(tmp_path / "intel-rapl:0:0", 1_000_000)  # the cores: a part of the package
    write_package(tmp_path / "intel-rapl:1", 999_000_000)
    meter = find_energy_meter(CPU, tmp_path)
    assert meter is not None
    meter.start()
    write_package(tmp_path / "intel-rapl:0", 7_500_000)
    write_package(tmp_path / "intel-rapl:0:0", 3_000_000)
    write_package(tmp_path / "intel-rapl:1", 1_000_000)  # after wrapping around at 1000 J
    assert meter.stop() == pytest.approx(2.5 + 2)


def test_no_meter_without_readable_counters_of_all_packages(tmp_path: Path) -> None:
    assert find_energy_meter(CPU, tmp_path / "absent") is None
    assert find_energy_meter(CPU, tmp_path) is None
    write_package(tmp_path / "intel-rapl:0", 5_000_000)
    (tmp_path / "intel-rapl:1").mkdir()  # cannot be read
    assert find_energy_meter(CPU, tmp_path) is None


class FakeNvml(ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self, supported: bool) -> None:
        super().__init__("pynvml")
        self.supported = supported
        self.millijoules = 1_000
        self.asked: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802 (NVML's name)
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        self.asked.append(uuid)
        return 7

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        assert handle == 7
        if not self.supported:
            raise self.NVMLError
        return self.millijoules


def install(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    """Make a fake NVML importable."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(zoo.profiling.energy, "find_spec", lambda name: name == "pynvml" or None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-cd"))


def test_gpu_board(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(supported=True)
    install(monkeypatch, nvml)
    meter = find_energy_meter(torch.device("cuda", 0))
    assert meter is not None
    assert nvml.asked == ["GPU-ab-cd"]
    meter.start()
    nvml.millijoules = 3_500
    assert meter.stop() == pytest.approx(2.5)


def test_no_meter_without_nvml_or_gpu_support(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(supported=False))
    assert find_energy_meter(torch.device("cuda", 0)) is None
    monkeypatch.setattr(zoo.profiling.energy, "find_spec", lambda name: None)  # not installed
    assert find_energy_meter(torch.device("cuda", 0)) is None
