"""The scripts of benchmarks/cluster, with two network namespaces or the loopback interface as two machines."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from paths import ROOT
from processes import SECONDS
from pytorch_lightning.utilities import rank_zero_only
from slurm import batch_options, sbatch
from tiny_data import write_yaml

from zoo.cli.main import main
from zoo.data.module import DetectionDataModule
from zoo.report.results import read_run
from zoo.training.trainer import make_trainer

SCRIPTS = ROOT / "benchmarks" / "cluster"
STEPS = 2


@dataclass(frozen=True)
class Host:
    """A (simulated) machine to run a command on."""

    prefix: tuple[str, ...]  # of the command
    interface: str
    master: str  # address of the first host


@pytest.fixture
def namespaces() -> Iterator[list[Host]]:
    """Two network namespaces connected by a veth pair, with an address each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"zoo{os.getpid()}{end}" for end in "ab"]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip -n {names[0]} link add cable type veth peer name cable netns {names[1]}")
    for name, address in zip(names, ("10.77.0.1", "10.77.0.2"), strict=True):
        commands.append(f"ip -n {name} address add {address}/24 dev cable")
        commands += [f"ip -n {name} link set {device} up" for device in ("lo", "cable")]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield [Host(("ip", "netns", "exec", name), "cable", "10.77.0.1") for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def loopback() -> list[Host]:
    return [Host((), "lo", "127.0.0.1")] * 2


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of `zoo fit` for two steps on a few shapes, in an empty folder."""
    source = "zoo.data.formats.shapes.Shapes"
    shapes = {
        split: {"class_path": source, "init_args": {"num_images": 8, "seed": seed}}
        for seed, split in enumerate(("train", "val"))
    }
    write_yaml(tmp_path / "data.yaml", shapes | {"name": "shapes", "batch_size": 2, "num_workers": 0})
    trainer = {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1}
    write_yaml(tmp_path / "trainer.yaml", trainer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = str(ROOT / "configs" / "models" / "retinanet_tiny.yaml")
    return ["fit", "--model", model, "--data", "data.yaml", "--trainer", "trainer.yaml"]


def run_on(hosts: list[Host], arguments: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run torchrun.sh on all hosts, and wait for them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    started = []
    for number, host in enumerate(hosts):
        variables = {"NODES": str(len(hosts)), "NODE": str(number), "PROCESSES": "1"}
        variables |= {"MASTER": host.master, "PORT": port}
        started.append(
            subprocess.Popen(
                [*host.prefix, str(SCRIPTS / "torchrun.sh"), *arguments],
                env=os.environ | variables | {"GLOO_SOCKET_IFNAME": host.interface},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=SECONDS)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    return done


def check_one_run(folder: Path) -> None:
    """Check that there is one run folder, and that its checkpoint counts the images of both processes."""
    runs = list((folder / "runs" / "retinanet").iterdir())
    assert [run.name for run in runs] == ["version_0"]
    last = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == STEPS
    curve = next(state for key, state in last["callbacks"].items() if "LearningCurve" in key)
    assert curve["images_seen"] == STEPS * 2 * 2  # two images on each of two processes


@pytest.mark.slow
@pytest.mark.parametrize("network", ["namespaces", "loopback"])
def test_torchrun_on_two_machines(network: str, fit: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    hosts: list[Host] = request.getfixturevalue(network)
    done = run_on(hosts, fit)
    assert [process.returncode for process in done] == [0, 0], "\n".join(process.stderr for process in done)
    num_lines = [process.stdout.count("run folder:") for process in done]
    assert num_lines == [1, 0]  # only the first process prints
    check_one_run(tmp_path)


@pytest.mark.slow
def test_run_of_a_comparison_with_torchrun(fit: list[str], tmp_path: Path) -> None:
    """Both processes execute the run; the first one writes the result."""
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    models = ["--models", fit[2], "--names", "retinanet"]
    arguments = [*models, "--data", "data.yaml", "--trainer", "trainer.yaml", "--out", "out", *two]
    assert main(["compare", *arguments, "--slurm"]) == 0
    run = tmp_path / "out" / "retinanet_seed0"
    group = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "zoo.experiment.run",
        str(run),
    ]
    done = subprocess.run([sys.executable, *group], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    result = read_run(run / "result.json")
    assert result.status == "done"
    assert result.metrics.keys() >= {"AP", "AP50"}
    assert result.curve[-1].images_seen == 8
    assert result.cost.parameters
    assert not list(run.glob("error*.log"))


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "tasks"), [("2", "1"), ("1", "2")])
def test_slurm_with_two_processes(nodes: str, tasks: str, fit: list[str], tmp_path: Path) -> None:
    script = tmp_path / "slurm.sh"  # SLURM runs a copy as well
    shutil.copy(SCRIPTS / "slurm.sh", script)
    done = sbatch(script, *fit, nodes=nodes, ntasks_per_node=tasks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    check_one_run(tmp_path)


def test_torchrun_inside_a_slurm_job_sets_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job has one task, which starts eight processes by torchrun."""
    variables = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "17", "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "5"}
    variables |= {"LOCAL_RANK": "5", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "8"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # global state that a Trainer overwrites; restored after the test
    arguments = {"accelerator": "cpu", "devices": 8, "strategy": "ddp", "logger": False}
    trainer = make_trainer(arguments, DetectionDataModule(), tmp_path, "run")
    assert (trainer.world_size, trainer.global_rank) == (8, 5)


def test_slurm_script_requests_signal_and_requeue() -> None:
    options = batch_options((SCRIPTS / "slurm.sh").read_text())
    assert options["signal"] == "USR1@180"
    assert "requeue" in options


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda script: script.name)
def test_scripts_are_valid_bash_and_executable(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert os.access(script, os.X_OK)
