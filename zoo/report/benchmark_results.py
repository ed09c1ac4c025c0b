"""What `zoo benchmark` found out of one checkpoint: the form of a run's `cost.json`, which its report prefers."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from zoo.io.files import convert_json, decode_json, encode_json, write_atomically
from zoo.report.results import Cost, Run

FILE_NAME = "cost.json"
_ADVICE = "expected a file that `zoo benchmark` wrote; delete it, and measure again"


@dataclass
class Benchmark:
    """One checkpoint measured, and on what."""

    name: str
    checkpoint: str
    images: str  # in words: "bccd test, 32 images"
    precision: str  # as Lightning names it
    hardware: str
    device: str  # "cpu" or "cuda:0"
    threads: int  # that PyTorch works with on the CPU
    versions: dict[str, str]
    cost: Cost  # without what training cost


@dataclass
class Benchmarks:
    """Several of them: the form of the file that `zoo benchmark --out` writes."""

    benchmarks: list[Benchmark]
    command: str


def write_benchmark(benchmark: Benchmark, path: Path) -> None:
    """Write one, whole or not at all."""
    write_atomically(path, encode_json(benchmark))


def read_benchmark(path: Path) -> Benchmark:
    """Read what `write_benchmark` wrote.

    Raises:
        InputError: the file is missing, is no json, or is not of this form; names the file and the place.
    """
    return convert_json(decode_json(path, _ADVICE), Benchmark, path, _ADVICE)


def with_benchmark(run: Run, folder: Path) -> Run:
    """A run with what `zoo benchmark` measured of it in place of its training's own short measurement.

    Args:
        run: as its training left it.
        folder: of the run; without a `cost.json` in it, nothing changes.

    Raises:
        InputError: there is a `cost.json` that cannot be read.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return run
    cost = read_benchmark(path).cost
    measured = {field.name: value for field in fields(Cost) if (value := getattr(cost, field.name)) not in (None, [])}
    return replace(run, cost=replace(run.cost, **measured))
