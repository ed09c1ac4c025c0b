"""The script for GPUs, with every part at tiny sizes on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from processes import SECONDS

PARTS = (
    "tests",
    "training",
    "step_retinanet",
    "profile_retinanet",
    "step_faster_rcnn",
    "profile_faster_rcnn",
    "inference",
    "loading",
)


@pytest.mark.slow
def test_every_part_runs_and_the_table_comes_last(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path), "--device", "cpu", "--smoke"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    last = done.stdout.splitlines()[-len(PARTS) :]
    assert [line.split()[:3] for line in last] == [[part, "exit", "0"] for part in PARTS]
    for row in (
        "retinanet_r18/ladder/+ compile",
        "faster_rcnn_r18/train/default",
        "sliding_window_r18",
        "| retinanet | all |",
    ):
        assert row in done.stdout
    assert (tmp_path / "results.json").exists()


def test_a_wrong_argument_is_said(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu.sh", str(tmp_path), "--devise", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu.sh: unknown argument --devise\n"
