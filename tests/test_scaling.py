"""The scaling benchmark: its model against hand-worked values, and measured bytes against the gradients' size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import SECONDS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from _scaling_model import Links, Work, first_below, hidden_share, needed_step, predict, ring_bytes  # noqa: E402

sys.path.remove(str(BENCHMARKS))

# 1 Gbit is 125 MB: 80 Gbit/s are 10 GB/s, 8 Gbit/s are 1 GB/s.
LINKS = Links(intra_gbps=80, inter_gbps=8, latency_us=10, per_node=4)
WORK = Work(gradient_bytes=100_000_000, buckets=5, step_s=0.2, backward_s=0.1)


def test_ring_bytes() -> None:
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 2) == 100
    assert ring_bytes(100, 4) == 150


def test_prediction_within_a_node() -> None:
    """1.5 x 100 MB at 10 GB/s are 15 ms; 5 buckets x 6 hops x 10 us are .3 ms."""
    found = predict(WORK, LINKS, processes=4, hidden=0)
    assert found.bandwidth_s == pytest.approx(0.015)
    assert found.latency_s == pytest.approx(0.0003)
    assert found.exchange_s == pytest.approx(0.0153)
    assert found.exposed_s == pytest.approx(0.0153)
    assert found.efficiency == pytest.approx(0.2 / 0.2153)


def test_prediction_between_nodes_uses_the_slowest_link() -> None:
    """1.75 x 100 MB at 1 GB/s are 175 ms; 5 x 14 x 10 us are .7 ms; half of it is exposed."""
    found = predict(WORK, LINKS, processes=8, hidden=0.5)
    assert found.exchange_s == pytest.approx(0.1757)
    assert found.exposed_s == pytest.approx(0.08785)
    assert found.efficiency == pytest.approx(0.2 / 0.28785)


def test_hidden_time_is_limited_by_the_backward_pass() -> None:
    found = predict(WORK, LINKS, processes=8, hidden=1)
    assert found.exposed_s == pytest.approx(0.1757 - 0.1)
    assert predict(WORK, LINKS, processes=4, hidden=1).exposed_s == 0
    assert predict(WORK, LINKS, processes=4, hidden=1).efficiency == 1


def test_one_process_exchanges_nothing() -> None:
    assert predict(WORK, LINKS, processes=1, hidden=0).efficiency == 1


def test_faster_links_between_nodes_are_limited_by_those_inside() -> None:
    assert Links(intra_gbps=8, inter_gbps=80, latency_us=0, per_node=4).gbps(64) == 8


@pytest.mark.parametrize(("with_s", "share"), [(1.0, 1), (1.5, 0.75), (3.0, 0), (0.9, 1), (4.0, 0)])
def test_hidden_share(with_s: float, share: float) -> None:
    assert hidden_share(with_s, without_s=1.0, exchange_s=2.0) == pytest.approx(share)


def test_first_below_an_efficiency() -> None:
    """With 4 it is .929 (15.3 ms on top of 200); 8 leave the node: .53."""
    assert first_below(WORK, LINKS, hidden=0, efficiency=0.9) == 8
    assert first_below(WORK, LINKS, hidden=0, efficiency=0.95) == 4
    assert first_below(Work(1000, 1, 1.0, 0.5), LINKS, hidden=1, efficiency=0.9) is None


@pytest.mark.parametrize(("hidden", "seconds"), [(0, 0.9), (0.5, 0.45), (1, 0.1 / (1 / 9 + 2 / 3))])
def test_step_time_needed_for_an_efficiency(hidden: float, seconds: float) -> None:
    """For an efficiency of .9 a ninth of the step is exposed: 100 ms of 900, 50 of 450, 14 of 129 (86 hidden)."""
    assert needed_step(0.1, hidden, 2 / 3, 0.9) == pytest.approx(seconds)
    exposed = 0.1 - min(hidden * 0.1, 2 / 3 * seconds)
    assert seconds / (seconds + exposed) == pytest.approx(0.9)


@pytest.mark.slow
def test_benchmark_counts_bytes_of_the_gradients(tmp_path: Path) -> None:
    """The script itself fails if the all-reduced bytes differ from those of the gradients."""
    arguments = ["sliding_window_tiny", "--rounds", "1", "--steps", "1", "--batch", "1"]
    arguments += ["--out", str(tmp_path / "out.md")]
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| sliding_window_tiny"))
    parameters, gradients, sent, all_reduces = (float(cell) for cell in row.split("|")[2:6])
    assert gradients == pytest.approx(4 * parameters, abs=0.03)  # float32, both in millions to two digits
    assert sent == pytest.approx(gradients, abs=0.06)  # with two processes each sends as many bytes as there are
    assert all_reduces >= 1
    case = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert case["ratio"] == pytest.approx(case["ours"] / case["peer"], rel=0.01, abs=0.001)  # has three digits
