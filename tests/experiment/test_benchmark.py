"""`zoo benchmark` on run folders and on checkpoints, its tables, and one-line errors for bad input."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console
from tiny_data import data_config, write_files, write_yaml
from tiny_detector import TinyDetector

import zoo.models
from zoo.cli.benchmark_tables import break_name, print_benchmarks
from zoo.cli.main import main
from zoo.detector import Detector
from zoo.report.benchmark_results import Benchmark, Benchmarks, read_benchmark, with_benchmark
from zoo.report.results import Cost, Run, Timing

CHECKPOINTS = {"best": 4, "last": 6}  # width of the detector, which distinguishes them


@pytest.fixture(scope="module", autouse=True)
def _register_tiny_detector() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.models.MODELS, "tiny", TinyDetector)
        yield


def save(detector: Detector, file: Path) -> None:
    content: dict[str, Any] = {"state_dict": detector.state_dict()}
    detector.on_save_checkpoint(content)
    torch.save(content, file)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a bf16 run on images of 48x32."""
    write_files(tmp_path)
    run = tmp_path / "runs" / "tiny_seed0"
    (run / "checkpoints").mkdir(parents=True)
    for name, width in CHECKPOINTS.items():
        save(TinyDetector(num_classes=2, width=width), run / "checkpoints" / f"{name}.ckpt")
    trainer = {"accelerator": "cpu", "precision": "bf16-mixed"}
    write_yaml(run / "config.yaml", {"data": data_config(tmp_path), "trainer": trainer, "model": {}})
    monkeypatch.chdir(tmp_path)
    return run


def parameters(width: int) -> int:
    return (3 * 64 + 1) * width + (width + 1) * 6


def call(*arguments: str | Path) -> int:
    return main(["benchmark", *map(str, arguments), "--seconds", "0.01"])


def test_a_run_is_measured_with_its_own_data_and_precision(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "--batch_sizes", "8", "1") == 0
    found = read_benchmark(run / "cost.json")
    assert (found.name, found.images, found.precision, found.device) == ("tiny_seed0", "tiny test", "bf16-mixed", "cpu")
    assert Path(found.checkpoint) == run / "checkpoints" / "best.ckpt"
    cost = found.cost
    assert cost.parameters == parameters(CHECKPOINTS["best"])
    assert cost.flops_input == "48x32 framed to 32x32"
    assert {timing.batch for timing in cost.timings} == {1, 8}  # of four images: some are repeated
    parts = ["decode", "frame", "network", "post-processing", "total"]
    assert [timing.part for timing in cost.timings if timing.batch == 1] == parts
    assert all(timing.batches >= 5 for timing in cost.timings)
    assert all(0 < timing.median <= timing.p95 for timing in cost.timings)
    total = cost.timings[4].median
    assert cost.ms_per_image is not None
    assert 0 < cost.ms_per_image < total
    printed = capsys.readouterr()
    for words in ("tiny_seed0", "bf16-mixed", "32x32", "decode", "95th percentile"):
        assert words in printed.out
    assert "proposals" not in printed.out.split("GFLOPs:")[0]
    assert "search" not in printed.out.split("decode:")[0]
    assert max(map(len, printed.out.splitlines()[1:])) <= 80
    assert "batch 8: " in printed.err


def test_the_measured_cost_replaces_that_of_the_run(run: Path) -> None:
    trained = Run("tiny", "tiny", 0, "tiny_seed0", "done", cost=Cost(train_minutes=3.5, ms_per_image=99.0))
    assert with_benchmark(trained, run) == trained
    assert call(run, "--batch_sizes", "1") == 0
    cost = with_benchmark(trained, run).cost
    assert cost.train_minutes == 3.5
    assert cost.parameters == parameters(CHECKPOINTS["best"])
    assert cost.ms_per_image == read_benchmark(run / "cost.json").cost.ms_per_image


def test_the_last_checkpoint_is_used_without_a_best_one(run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    assert call(run, "--batch_sizes", "1") == 0
    assert read_benchmark(run / "cost.json").cost.parameters == parameters(CHECKPOINTS["last"])


def test_another_precision_writes_no_cost_file(run: Path, tmp_path: Path) -> None:
    assert call(run, "--batch_sizes", "1", "--precision", "32-true", "--out", "all.json") == 0
    assert not (run / "cost.json").exists()
    found = msgspec.json.decode((tmp_path / "all.json").read_bytes(), type=Benchmarks)
    assert [each.precision for each in found.benchmarks] == ["32-true"]
    assert found.command.startswith("zoo benchmark ")


def test_checkpoints_are_measured_on_given_data(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints"
    flags = ("--data", "data.yaml", "--batch_sizes", "1", "--out", "all.json")
    assert call("--checkpoint", folder / "best.ckpt", folder / "last.ckpt", *flags) == 0
    found = msgspec.json.decode((tmp_path / "all.json").read_bytes(), type=Benchmarks).benchmarks
    assert [each.cost.parameters for each in found] == [parameters(width) for width in CHECKPOINTS.values()]
    assert {each.precision for each in found} == {"32-true"}
    assert not (run / "cost.json").exists()


def made_up(name: str, **cost: Any) -> Benchmark:
    """A result with the widest numbers that a detector on a GPU or R-CNN on a CPU has."""
    parts = ("decode", "proposals", "frame", "network", "post-processing", "total")
    timings = [Timing(batch, part, 11234.5, 12345.6, 50) for batch in (1, 8, 32) for part in parts]
    whole = Cost(138_357_544, 1234.56e9, "500x375 framed to 1333x1000", peak_memory_mb=123456.0, proposals=2000)
    whole.joules_per_image, whole.timings = 1234.56, timings
    return Benchmark(name, "best.ckpt", "made-up", "bf16-mixed", "no machine", "cuda:0", 1, {}, replace(whole, **cost))


NAMES = ("sliding_window_tiny_seed0", "retinanet_r50_fpn_seed12", "rcnn")


@pytest.mark.parametrize("cost", [{}, {"joules_per_image": None, "proposals": None}])
def test_tables_fit_eighty_columns_without_truncation(cost: dict[str, Any]) -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_benchmarks([made_up(name, **cost) for name in NAMES], console)
    printed = console.file.getvalue()
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in printed, "an ellipsis: something is truncated"
    assert printed.count("bf16-mixed") == printed.count("1333x1000") == printed.count("123456") == len(NAMES)
    assert printed.count("11234.5") == printed.count("12345.6") == len(NAMES) * 3 * 6
    firsts = [line.split(" ")[0] for line in lines]
    for name in NAMES:  # complete in both tables, broken over lines
        assert "".join(firsts).count(name) == 2


def test_resources_are_printed_without_timings() -> None:
    """No batch size fitted in memory."""
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_benchmarks([made_up("rcnn", timings=[])], console)
    assert "138.36" in console.file.getvalue()


def test_numbers_are_not_truncated_on_a_narrow_console() -> None:
    console = Console(width=40, file=io.StringIO(), color_system=None)
    print_benchmarks([made_up("rcnn")], console)
    printed = console.file.getvalue()
    assert "\u2026" not in printed
    assert printed.count("11234.5") == 18
    assert printed.count("1333x1000") == 1


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("rcnn", 10, ["rcnn"]),
        ("faster_rcnn_tiny_seed0", 22, ["faster_rcnn_tiny_seed0"]),
        ("faster_rcnn_tiny_seed0", 12, ["faster_rcnn_", "tiny_seed0"]),
        ("faster_rcnn_tiny_seed0", 11, ["faster_", "rcnn_tiny_", "seed0"]),
        ("epoch=12-step=4000", 10, ["epoch=12-", "step=4000"]),
        ("unbreakable_x", 4, ["unbreakable_", "x"]),
        ("", 4, [""]),
    ],
)
def test_names_break_between_words(name: str, width: int, lines: list[str]) -> None:
    assert break_name(name, width).split("\n") == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure; give folders of runs, or --checkpoint FILE --data DATA"),
        (["nowhere"], "nowhere: no such folder"),
        (["runs"], "runs: holds no checkpoints/best.ckpt or last.ckpt"),
        (["runs/tiny_seed0", "--batch_sizes", "0"], "--batch_sizes: batch sizes must be at least 1"),
        (["runs/tiny_seed0", "--precision", "17"], "(see --accelerator, --devices and --precision)"),
        (["runs/tiny_seed0", "--accelerator", "tpu"], "(see --accelerator, --devices and --precision)"),
        (["--checkpoint", "runs/tiny_seed0/checkpoints/best.ckpt"], "give --data DATA"),
        (["--checkpoint", "data.yaml", "--data", "data.yaml"], "data.yaml: is not a readable checkpoint"),
    ],
)
def test_bad_input_gives_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(*arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (run / "cost.json").exists()


@pytest.mark.parametrize("content", [{"trainer": {}}, [1], {"trainer": {}, "data": {"train": 3}}])
def test_an_invalid_run_configuration_is_refused(
    run: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(run / "config.yaml", content)
    assert call(run) == 2
    assert "config.yaml" in capsys.readouterr().err
