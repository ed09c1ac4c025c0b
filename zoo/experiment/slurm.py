"""A comparison on a cluster: its runs as the tasks of one SLURM job array, and their results joined afterwards.

`write_job_array` lays out the folders that `zoo.experiment.run` reads and gives back a batch script; `collect_runs` makes of what the
tasks left behind the report that `zoo compare` makes. Neither trains, and neither needs the devices of the runs.
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
from zoo.experiment.analysis import finish
from zoo.experiment.comparison import Job, collect, read_finished, write_folder
from zoo.experiment.run import read_result
from zoo.report.results import Results, Run

SECONDS_TO_SAVE = 180  # before its time is up, a run is told to save itself


@dataclass(frozen=True)
class Layout:
    """Where the processes of a run are."""

    nodes: int
    processes: int  # on each node
    on_gpus: bool


def write_job_array(jobs: Sequence[Job], module: DetectionDataModule, out: Path, command: str) -> tuple[str, int]:
    """Lay out the folders of all runs that are not finished, for a job array to do them.

    Args:
        jobs: all runs.
        module: their data.
        out: folder of the comparison.
        command: that collects the results, for the script's reader.

    Returns:
        A SLURM batch script with one task a run, and the number of these.

    Raises:
        InputError: all runs are finished.
    """
    open_jobs = [job for job in jobs if read_finished(job.folder) is None]
    if not open_jobs:
        raise InputError("all runs are finished; --collect joins them", file=out)
    for job in open_jobs:
        write_folder(job)
    place = layout(jobs[0].identity["trainer"])
    return batch_script([job.folder for job in open_jobs], place, module.num_workers, out, command), len(open_jobs)


def collect_runs(jobs: Sequence[Job], module: DetectionDataModule, command: str, data: Path, out: Path) -> Results:
    """Write the report of what the runs of a comparison left behind.

    Args:
        jobs: all runs.
        module: their data.
        command: for the report.
        data: file that the data is named after.
        out: folder of the comparison.

    Returns:
        All runs; one that has left no result is a failed one.

    Raises:
        InputError: no run has left a result.
    """
    found = [read_result(job.folder) for job in jobs]
    if not any(found):
        raise InputError("no run here has finished; --array writes the script that does them", file=out)
    runs = [run or unfinished(job) for job, run in zip(jobs, found, strict=True)]
    results = collect(runs, jobs, module, command, data, out)
    finish(results, module, out, progress=partial(print, flush=True))
    return results


def count_processes_elsewhere(config: Namespace) -> int:
    """Number of processes that the configuration itself says, on all nodes."""
    place = layout(config.trainer.as_dict())
    return place.nodes * place.processes


def layout(trainer: Mapping[str, Any]) -> Layout:
    """Read from Trainer arguments where the processes are, without a look at this machine's devices.

    Raises:
        InputError: that depends on the machine.
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if accelerator == "auto":
        raise InputError(
            "auto would be what this machine has, and another one trains; say cpu or gpu", place="trainer.accelerator"
        )
    processes = count_devices(devices)
    if processes < 1:
        raise InputError(
            f"{devices} would be as many as this machine has, and another one trains; give a number",
            place="trainer.devices",
        )
    return Layout(trainer["num_nodes"], processes, accelerator in ("gpu", "cuda"))


def count_devices(devices: int | str | list[int]) -> int:
    """Number of devices as Lightning reads it ("2" is two, "2," one, [0, 3] two); 0 where it depends on the machine."""
    if isinstance(devices, str) and "," in devices:
        return sum(bool(part.strip()) for part in devices.split(","))
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 0  # "auto" and -1


def batch_script(folders: Sequence[Path], place: Layout, num_workers: int, out: Path, command: str) -> str:
    """A script for sbatch that does the runs of some folders, one task of an array each.

    Args:
        folders: of the runs.
        place: of the processes of each run.
        num_workers: loading processes beside each of them.
        out: for what the tasks print.
        command: that collects the results.
    """
    log = str(out.resolve() / "slurm").replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    options = [
        "--job-name=zoo",
        f"--array=0-{len(folders) - 1}",
        f"--nodes={place.nodes}",
        f"--ntasks-per-node={place.processes}",
        *([f"--gpus-per-node={place.processes}"] if place.on_gpus else []),
        f"--cpus-per-task={1 + num_workers}",
        "--requeue",
        f"--signal=USR1@{SECONDS_TO_SAVE}",
        f'--output="{log}_%A_%a.log"',
        "--open-mode=append",
    ]
    lines = [
        "#!/bin/bash",
        f"# {len(folders)} runs of a comparison, one task of a job array each.",
        "# What a cluster wants to know beside this is said on the command line, which also overrules the lines below:",
        "#     sbatch --partition PARTITION --account ACCOUNT --time 12:00:00 THIS_SCRIPT",
        f"# {SECONDS_TO_SAVE} s before its time is up, a run is told to save itself and to queue again.",
        "# When all have ended:",
        f"#     {' '.join(command.splitlines())}",
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}  # paths in the configurations are relative to it",
        "runs=(",
        *(f"    {shlex.quote(str(folder.resolve()))}" for folder in folders),
        ")",
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun does not take it over from sbatch',
        # The first process measures on when the others have ended: --wait=0. None waits for one that has failed.
        f"exec srun --wait=0 --kill-on-bad-exit=1 {shlex.quote(sys.executable)} -m zoo.experiment.run \\",
        '    "${runs[SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"


def unfinished(job: Job) -> Run:
    """The run of a folder that holds no result."""
    return Run(job.identity["detector"], job.config_name, job.seed, job.folder.name, "failed", error="has not finished")
