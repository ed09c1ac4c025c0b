"""A fake SLURM for batch scripts: `sbatch` reads the options, `srun` starts the tasks of all nodes on this machine.

Every task has SLURM's environment variables, so that Lightning's SLURMEnvironment works as on a cluster.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from processes import SECONDS

PRINT = """#!/bin/bash
printf '%s\\n' "$PWD" "$@"
"""
SRUN = """#!{python}
import os, subprocess, sys, time

command = sys.argv[1:]
options = []
while command and command[0].startswith("-"):
    options.append(command.pop(0))
per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
tasks = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    task_variables = {{
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank % per_node,
        "SLURM_NODEID": rank // per_node,
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
    }}
    variables = os.environ | {{key: str(value) for key, value in task_variables.items()}}
    tasks.append(subprocess.Popen(command, env=variables))
while any(task.poll() is None for task in tasks):
    if "--kill-on-bad-exit=1" in options and any(task.poll() for task in tasks):
        for task in tasks:
            task.kill()
    time.sleep(0.05)
sys.exit(max(abs(task.returncode) for task in tasks))
"""


def batch_options(script: str) -> dict[str, str]:
    """Options of the #SBATCH lines of a script: {"nodes": "1", "requeue": "", ...}."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    options = [option.removeprefix("--") for line in lines for option in shlex.split(line)]
    return {name: value for name, _, value in (option.partition("=") for option in options)}


def array_tasks(script: str) -> range:
    """Task indices of the option `--array=0-n`."""
    first, last = map(int, batch_options(script)["array"].split("-"))
    return range(first, last + 1)


def sbatch(
    script: Path,
    *arguments: str,
    task: int | None = None,
    start: bool = True,
    **overrides: str,
) -> subprocess.CompletedProcess[str]:
    """Run a batch script as a SLURM job, with loopback addresses as nodes.

    Args:
        script: file of the batch script.
        arguments: of the script.
        task: index in the job array.
        start: False replaces srun by a script that prints its working folder and its arguments, one a line.
        overrides: options of sbatch's command line, which override the script's: nodes="2", ntasks_per_node="1".
    """
    options = batch_options(script.read_text()) | {name.replace("_", "-"): value for name, value in overrides.items()}
    folder = script.parent / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "srun").write_text(SRUN.format(python=sys.executable) if start else PRINT)
    (folder / "srun").chmod(0o755)
    nodes, per_node = int(options.get("nodes", "1")), int(options.get("ntasks-per-node", "1"))
    hosts = f"127.0.0.[1-{nodes}]" if nodes > 1 else "127.0.0.1"
    job = os.getpid()  # Lightning derives the port from it, which must differ between concurrent tests
    variables = {
        "SLURM_JOB_ID": job + (task or 0),
        "SLURM_JOB_NAME": options.get("job-name", script.name),
        "SLURM_JOB_NODELIST": hosts,
        "SLURM_NODELIST": hosts,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": nodes * per_node,
        "SLURM_NTASKS_PER_NODE": per_node,
        "SLURM_CPUS_PER_TASK": options.get("cpus-per-task", "1"),
    }
    if task is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
    inherited = {key: value for key, value in os.environ.items() if not re.match("SLURM_|RANK|LOCAL_RANK|MASTER_", key)}
    return subprocess.run(
        ["bash", str(script), *arguments],
        env=inherited
        | {key: str(value) for key, value in variables.items()}
        | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
