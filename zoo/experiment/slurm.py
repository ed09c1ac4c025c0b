"""A comparison on a cluster: one SLURM job array with a task for each run, and the report from their results.

`write_job_array` prepares the run folders that `zoo.experiment.run` reads and returns a batch script; `collect_runs`
makes the report of `zoo compare` from the results in the folders. Neither trains, and neither needs the devices of the
runs.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from zoo.data.module import DetectionDataModule
from zoo.errors import InputError
from zoo.experiment.analysis import analyse_and_report
from zoo.experiment.comparison import RunSpec, assemble_results, read_finished, write_folder
from zoo.experiment.run import read_result
from zoo.io.ownership import own_folder
from zoo.report.results import Results, Run

SECONDS_TO_SAVE = 180  # SLURM sends SIGUSR1 this long before the time limit, and the run writes a checkpoint


@dataclass(frozen=True)
class ProcessLayout:
    """Number of nodes of a run, processes on each node, and whether they use GPUs."""

    nodes: int
    processes: int
    on_gpus: bool


def write_job_array(specs: Sequence[RunSpec], module: DetectionDataModule, out: Path, command: str) -> tuple[str, int]:
    """Prepare the folders of all unfinished runs, and make the batch script of a job array that executes them.

    Args:
        specs: all runs.
        module: their data.
        out: folder of the comparison.
        command: the command that collects the results, for a comment in the script.

    Returns:
        The SLURM batch script with one task for each unfinished run, and the number of tasks.

    Raises:
        InputError: all runs are finished.
    """
    unfinished = [spec for spec in specs if read_finished(spec.folder) is None]
    if not unfinished:
        raise InputError("all runs are finished; --collect writes their report", file=out)
    for spec in unfinished:
        write_folder(spec)
    layout = process_layout(specs[0].identity["trainer"])
    return batch_script([spec.folder for spec in unfinished], layout, module.num_workers, out, command), len(unfinished)


def collect_runs(specs: Sequence[RunSpec], module: DetectionDataModule, command: str, data: Path, out: Path) -> Results:
    """Write the report of the finished runs of a comparison.

    Args:
        specs: all runs.
        module: their data.
        command: command line shown in the report.
        data: data file; the data set is named after it.
        out: folder of the comparison.

    Returns:
        All runs; a run without a result counts as failed.

    Raises:
        InputError: no run has a result.
    """
    found = [read_result(spec.folder) for spec in specs]
    if not any(found):
        raise InputError("no run has finished; --slurm prints the script that executes them", file=out)
    runs = [run or unfinished_run(spec) for spec, run in zip(specs, found, strict=True)]
    results = assemble_results(runs, specs, module, command, data, out)
    with own_folder(out):
        analyse_and_report(results, module, out, progress=partial(print, flush=True))
    return results


def count_configured_processes(config: Namespace) -> int:
    """Number of processes on all nodes, from the configuration alone."""
    layout = process_layout(config.trainer.as_dict())
    return layout.nodes * layout.processes


def process_layout(trainer: Mapping[str, Any]) -> ProcessLayout:
    """Nodes and processes from Trainer arguments, without querying this machine's devices.

    Raises:
        InputError: the arguments depend on the machine ("auto").
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if accelerator == "auto":
        raise InputError(
            "auto depends on the machine, and the runs train on another one; give cpu or gpu",
            place="trainer.accelerator",
        )
    processes = count_devices(devices)
    if processes < 1:
        raise InputError(
            f"{devices} depends on the machine, and the runs train on another one; give a number",
            place="trainer.devices",
        )
    return ProcessLayout(trainer["num_nodes"], processes, accelerator in ("gpu", "cuda"))


def count_devices(devices: int | str | list[int]) -> int:
    """Number of devices, parsed as Lightning does ("2" is two, "2," one, [0, 3] two); 0: depends on the machine."""
    if isinstance(devices, str) and "," in devices:
        return sum(bool(part.strip()) for part in devices.split(","))
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 0  # "auto" and -1


def batch_script(folders: Sequence[Path], layout: ProcessLayout, num_workers: int, out: Path, command: str) -> str:
    """Script for sbatch: a job array with one task for each run folder.

    Args:
        folders: run folders.
        layout: nodes and processes of each run.
        num_workers: loader workers of each process.
        out: folder for the output of the tasks.
        command: the command that collects the results.
    """
    log = str(out.resolve() / "slurm").replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    options = [
        "--job-name=zoo",
        f"--array=0-{len(folders) - 1}",
        f"--nodes={layout.nodes}",
        f"--ntasks-per-node={layout.processes}",
        *([f"--gpus-per-node={layout.processes}"] if layout.on_gpus else []),
        f"--cpus-per-task={1 + num_workers}",
        "--requeue",
        f"--signal=USR1@{SECONDS_TO_SAVE}",
        f'--output="{log}_%A_%a.log"',
        "--open-mode=append",
    ]
    lines = [
        "#!/bin/bash",
        f"# {len(folders)} runs of a comparison, one task of a job array each.",
        "# Give further options of the cluster on the command line, which also overrides the lines below:",
        "#     sbatch --partition PARTITION --account ACCOUNT --time 12:00:00 THIS_SCRIPT",
        f"# {SECONDS_TO_SAVE} s before its time limit, a run writes a checkpoint and is queued again.",
        "# When all tasks have ended, write the report:",
        f"#     {' '.join(command.splitlines())}",
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}  # paths in the configurations are relative to it",
        "runs=(",
        *(f"    {shlex.quote(str(folder.resolve()))}" for folder in folders),
        ")",
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun does not inherit it from sbatch',
        # --wait=0: the first process still measures costs after the others have ended. --kill-on-bad-exit=1: none
        # waits for a process that has failed.
        f"exec srun --wait=0 --kill-on-bad-exit=1 {shlex.quote(sys.executable)} -m zoo.experiment.run \\",
        '    "${runs[SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"


def unfinished_run(spec: RunSpec) -> Run:
    """A failed run, for a folder without a result."""
    detector, name = spec.identity["detector"], spec.identity["display_name"]
    return Run(detector, spec.config_name, spec.seed, spec.folder.name, "failed", error="has not finished", name=name)
