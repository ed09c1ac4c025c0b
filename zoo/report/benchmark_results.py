"""Results of `zoo benchmark`: the `cost.json` of a run, which replaces the costs measured in training."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from zoo.io.files import convert_json, decode_json, encode_json, write_atomically
from zoo.report.results import Cost, Run

FILE_NAME = "cost.json"
_ADVICE = "expected a file that `zoo benchmark` wrote; delete it and run `zoo benchmark` again"


@dataclass
class Benchmark:
    """Costs of one checkpoint, and the images, precision and hardware that they were measured with."""

    name: str
    checkpoint: str
    images: str  # "bccd test, 32 images"
    precision: str  # Lightning's name
    hardware: str
    device: str  # "cpu" or "cuda:0"
    threads: int  # of PyTorch on the CPU
    versions: dict[str, str]
    cost: Cost  # training costs are None


@dataclass
class Benchmarks:
    """Content of the file that `zoo benchmark --out` writes."""

    benchmarks: list[Benchmark]
    command: str


def write_benchmark(benchmark: Benchmark, path: Path) -> None:
    """Write a `cost.json` atomically."""
    write_atomically(path, encode_json(benchmark))


def read_benchmark(path: Path) -> Benchmark:
    """Read a `cost.json`.

    Raises:
        InputError: the file is missing, is not JSON, or does not match the schema; names the file and the place.
    """
    return convert_json(decode_json(path, _ADVICE), Benchmark, path, _ADVICE)


def with_benchmark(run: Run, folder: Path) -> Run:
    """A copy of the run with the costs in its `cost.json` in place of those measured in training.

    Args:
        run: as training wrote it.
        folder: folder of the run; without a `cost.json`, the run is returned unchanged.

    Raises:
        InputError: there is a `cost.json` that cannot be read.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return run
    cost = read_benchmark(path).cost
    measured = {field.name: value for field in fields(Cost) if (value := getattr(cost, field.name)) not in (None, [])}
    return replace(run, cost=replace(run.cost, **measured))
