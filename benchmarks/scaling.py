"""Scaling of training with the number of processes: measured for a few, predicted for clusters.

    python benchmarks/scaling.py                   # the tiny detectors, 1 and 2 processes on CPUs
    python benchmarks/scaling.py retinanet_tiny yolov1_tiny
    python benchmarks/scaling.py --device cuda --processes 8 --batch 2 retinanet_r50_fpn cornernet_hourglass104

Each process has the same images in memory and the same number of cores (or a GPU), and a step is everything from a
batch of the loader to updated weights. Four variants are timed in alternating order: a single process; all processes
without gradient exchange; all processes with it; and the all-reduces alone. The share of the exchange that does not add
to a step is hidden behind the backward pass. From these times, and from the bandwidths and latency given on the command
line, `_scaling_model.predict` computes efficiencies on clusters. They are predictions, not measurements.
"""

import argparse
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from _common import Report, spread
from _scaling_model import Links, Work, first_below, hidden_share, needed_step, predict, ring_bytes
from _scaling_work import CONFIGS, Group, Settings, build_detector

TINY = sorted(file.stem for file in CONFIGS.glob("*_tiny.yaml"))
PAPERS = ("retinanet_r50_fpn", "cornernet_hourglass104")
CLUSTERS = (8, 64)  # GPUs
MIN_EFFICIENCY = 0.9  # tables give the number of GPUs at which the efficiency falls below it
BACKWARD = 2 / 3  # share of a step where it is not measured: the backward pass takes about twice the forward pass
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, the defaults of DistributedDataParallel

# The variants timed in each round: name -> (group, method of TrainingProcess, its arguments).
VARIANTS: dict[str, tuple[str, str, tuple[bool, ...]]] = {
    "alone": ("one", "run", (False,)),
    "without": ("all", "run", (False,)),
    "with": ("all", "run", (True,)),
    "exchange": ("all", "exchange", ()),
}


@dataclass
class Case:
    """Sizes and times of one detector."""

    name: str
    parameters: int
    bytes: int
    buckets: int
    backward_s: float
    # by variant, one value per round
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def hidden(self) -> float | None:
        """Median over the rounds of the hidden share of the exchange; None without a group of processes."""
        if not self.seconds["with"]:
            return None
        rounds = zip(*(self.seconds[variant] for variant in ("with", "without", "exchange")), strict=True)
        return median(hidden_share(*three) for three in rounds)

    def work(self, step_ms: float | None) -> Work:
        """Input of the model, with the measured step of a single process or the given one."""
        measured = median(self.seconds["alone"])
        step_s = measured if step_ms is None else step_ms / 1000
        return Work(self.bytes, self.buckets, step_s, self.backward_s / measured * step_s)


def measure(name: str, groups: dict[str, Group], rounds: int, steps: int) -> Case:
    """Time all variants in each round, in reversed order in every second round."""
    sizes = [answer for group in groups.values() for answer in group.call("build", name)]
    for size in sizes:
        if size["buckets"] and sum(size["buckets"]) != size["bytes"]:
            exchanged = sum(size["buckets"])
            raise RuntimeError(f"{name}: gradients of {size['bytes']} bytes, but {exchanged} were exchanged")
    size = sizes[-1]
    case = Case(name, size["parameters"], size["bytes"], len(size["buckets"]) or count_buckets(size["bytes"]), 0)
    case.backward_s = groups["one"].call("backward", steps)[0]
    variants = [variant for variant, (group, _, _) in VARIANTS.items() if group in groups]
    for number in range(rounds):
        for variant in variants[:: -1 if number % 2 else 1]:
            group, method, arguments = VARIANTS[variant]
            case.seconds[variant].append(max(groups[group].call(method, steps, *arguments)))
    return case


def count_buckets(gradient_bytes: int) -> int:
    """Number of all-reduces per step, where they are not counted by a hook."""
    return 1 + -(-max(0, gradient_bytes - FIRST_BUCKET) // BUCKET)


def count_parameters(name: str) -> int:
    """Number of trained parameters of a detector, built on the meta device."""
    with torch.device("meta"):
        detector = build_detector(name, num_classes=80)
    return sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)


def add_measured(report: Report, case: Case, processes: int, batch: int) -> None:
    """Add a row to the first table, and its json line."""
    alone, together = (
        [batch * n / s for s in case.seconds[variant]] for variant, n in (("alone", 1), ("with", processes))
    )
    rates = [spread(alone), spread(together) if together else ""]
    efficiency = ""
    if together:
        ratio = median(b / a / processes for a, b in zip(alone, together, strict=True))
        efficiency = f"{ratio:.2f}"
        linear = processes * median(alone)
        name = f"scaling/{case.name}/{processes} processes"
        report.case(name, median(together), linear, "independent processes", "images/s", ratio)
    times = [
        spread([1000 * s for s in case.seconds[variant]], 1) if case.seconds[variant] else "" for variant in VARIANTS
    ]
    hidden = "" if case.hidden is None else f"{case.hidden:.2f}"
    moved = f"{ring_bytes(case.bytes, processes) / 1e6:.1f}"
    sizes = [f"{case.parameters / 1e6:.2f}", f"{case.bytes / 1e6:.2f}", moved, str(case.buckets)]
    report.row([case.name, *sizes, *rates, efficiency, *times, hidden])


def add_predicted(report: Report, name: str, work: Work, links: Links, hidden: float | None) -> None:
    """Add a row to the second table, for the measured hidden share (and for the bounds 0 and 1)."""
    cells = []
    for processes in CLUSTERS:
        worst, best = (predict(work, links, processes, share).efficiency for share in (0.0, 1.0))
        bounds = f"{worst:.2f} to {best:.2f}"
        found = None if hidden is None else predict(work, links, processes, hidden)
        cells.append(bounds if found is None else f"{found.efficiency:.2f} ({bounds})")
    found = predict(work, links, CLUSTERS[-1], hidden or 0.0)
    cells.append(f"{1000 * found.bandwidth_s:.2f} + {1000 * found.latency_s:.2f}")
    below = first_below(work, links, hidden or 0.0, MIN_EFFICIENCY)
    limit = "bytes" if found.bandwidth_s > found.latency_s else "hops"
    report.row([name, f"{1000 * work.step_s:.0f}", *cells, "never" if below is None else str(below), limit])


def paper_work(name: str, step_ms: float) -> Work:
    """Input of the model for a detector that is not measured: bytes from its parameters, and the given step."""
    gradient_bytes = 4 * count_parameters(name)
    return Work(gradient_bytes, count_buckets(gradient_bytes), step_ms / 1000, BACKWARD * step_ms / 1000)


def add_paper(report: Report, name: str, links: Links, hidden: float) -> None:
    """Add a row to the third table: the shortest step with an efficiency of MIN_EFFICIENCY."""
    work = paper_work(name, step_ms=1.0)
    cells = []
    for processes in CLUSTERS:
        exchange_s = predict(work, links, processes, 0).exchange_s
        steps = [1000 * needed_step(exchange_s, share, BACKWARD, MIN_EFFICIENCY) for share in (hidden, 0.0, 1.0)]
        cells += [f"{1000 * exchange_s:.1f}", "{:.0f} ({:.0f} to {:.0f})".format(*steps)]
    megabytes = work.gradient_bytes / 1e6
    report.row([name, f"{megabytes / 4:.1f}", f"{megabytes:.0f}", *cells])


def read_steps(arguments: list[str]) -> dict[str, float]:
    """Milliseconds by name, from NAME=MS arguments."""
    return {name: float(value) for name, _, value in (word.partition("=") for word in arguments)}


def describe_efficiency(cases: list[Case], processes: int) -> str:
    """Text about the efficiency lost on this machine and its causes: medians over detectors and rounds."""

    def slower(variant: str, base: str) -> float:
        pairs = [zip(case.seconds[base], case.seconds[variant], strict=True) for case in cases]
        return median(short / long for pair in pairs for short, long in pair)

    return (
        f"On this machine the median efficiency of {processes} processes is {slower('with', 'alone'):.2f}: a factor of "
        f"{slower('without', 'alone'):.2f} because they share memory, caches and clock frequency and synchronise the "
        f"counts of the losses, and a factor of {slower('with', 'without'):.2f} because they exchange gradients. "
    )


def describe_limits(works: dict[str, Work], hidden: dict[str, float], links: Links) -> str:
    """Text about what limits scaling and from which number of GPUs on."""
    below = {name: first_below(work, links, hidden[name], MIN_EFFICIENCY) for name, work in works.items()}
    lost = {name: number for name, number in below.items() if number is not None}
    largest = CLUSTERS[-1]
    worst = min(works, key=lambda name: predict(works[name], links, largest, hidden[name]).efficiency)
    found = predict(works[worst], links, largest, hidden[worst])
    share = found.bandwidth_s / found.exchange_s
    text = (
        f"The lowest efficiency is that of {worst}: {found.efficiency:.2f} on {largest} GPUs, where its exchange takes "
        f"{1000 * found.exchange_s:.1f} ms, {100 * share:.0f}% of it for bytes on the slowest link, the rest for hops. "
    )
    if not lost:
        return text + f"None falls below {MIN_EFFICIENCY} on up to 4096 GPUs, if only the exchange of gradients counts."
    first = min(lost, key=lambda name: lost[name])
    return (
        text + f"The first to fall below {MIN_EFFICIENCY} is {first}, from {lost[first]} GPUs on; "
        f"{len(works) - len(lost)} of {len(works)} do not fall below it on up to 4096. If bytes are the "
        "limit, a larger batch per GPU and gradient accumulation help, since the exchange stays the same; if hops are, "
        "larger buckets help."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=TINY, help="files of configs/models (the tiny ones)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, help="processes of the group (2)")
    parser.add_argument("--batch", type=int, default=4, help="images per process and step (4)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps per variant and round (4)")
    parser.add_argument(
        "--step_ms",
        nargs="+",
        default=[],
        metavar="NAME=MS",
        help="duration of a step, for the predictions (as measured)",
    )
    parser.add_argument("--intra_gbps", type=float, default=3600, help="Gbit/s between two GPUs of a node (3600)")
    parser.add_argument("--inter_gbps", type=float, default=400, help="Gbit/s between two nodes (400)")
    parser.add_argument("--latency_us", type=float, default=10, help="microseconds per hop (10)")
    parser.add_argument("--per_node", type=int, default=8, help="GPUs per node (8)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    device = arguments.device
    processes = arguments.processes or (2 if device == "cpu" else min(2, torch.cuda.device_count()))
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    settings = Settings(device, arguments.batch, arguments.precision == "bf16", threads)
    links = Links(arguments.intra_gbps, arguments.inter_gbps, arguments.latency_us, arguments.per_node)
    report = Report(
        f"Scaling up to {processes} processes of {threads} threads, {arguments.batch} images each, {device}, "
        + arguments.precision,
        f"python benchmarks/scaling.py {' '.join(sys.argv[1:])}".strip(),
        [
            *("detector", "parameters, M", "gradients, MB", "sent by each, MB", "all-reduces"),
            *("images/s of 1", f"images/s of {processes}", "efficiency"),
            *("step alone, ms", "without exchange, ms", "with it, ms", "exchange alone, ms", "hidden"),
        ],
        device,
    )
    groups = {"one": Group(1, settings)} | ({"all": Group(processes, settings)} if processes > 1 else {})
    cases = []
    for name in arguments.names:
        cases.append(measure(name, groups, arguments.rounds, arguments.steps))
        add_measured(report, cases[-1], processes, arguments.batch)
    for group in groups.values():
        group.end()
    if processes > 1:
        report.line(
            "\nBytes of gradients computed from the parameters equal those counted by a hook at the all-reduces."
        )
    text = predictions(report, cases, links, read_steps(arguments.step_ms))
    text = describe_efficiency(cases, processes) + text if processes > 1 else text
    report.line(f"\n## What limits scaling, and from which size\n\n{text}")
    report.finish(arguments.out)


def predictions(report: Report, cases: list[Case], links: Links, given: dict[str, float]) -> str:
    """Add the tables of predictions, and return a text about what limits scaling."""
    shares = [case.hidden for case in cases if case.hidden is not None]
    typical = median(shares) if shares else None
    works = {case.name: case.work(given.get(case.name)) for case in cases}
    works |= {name: paper_work(name, given[name]) for name in PAPERS if name in given and name not in works}
    hidden = dict.fromkeys(works, typical) | {case.name: case.hidden for case in cases}
    report.line(
        f"\n## Predicted, not measured\n\nThe model of benchmarks/_scaling_model.py with {links}; steps as measured "
        "here or as given, hidden share as measured here (and, as bounds, nothing to all that fits behind the backward "
        "pass). Steps measured on a CPU make efficiencies too high: a GPU's step is shorter, with as many bytes to "
        "exchange (see --step_ms).\n"
    )
    sizes = [f"{processes} GPUs" for processes in CLUSTERS]
    exchange = f"exchange on {sizes[-1]}, ms: bytes + hops"
    add_header(report, ["detector", "step, ms", *sizes, exchange, f"below {MIN_EFFICIENCY} from", "limit"])
    for name, work in works.items():
        add_predicted(report, name, work, links, hidden[name])
    report.line(
        f"\nDetectors of the papers' sizes: the shortest step of a GPU with an efficiency of {MIN_EFFICIENCY}, with "
        f"{BACKWARD:.2f} of it for the backward pass, and the median hidden share from above (and, as bounds, nothing "
        "to all that fits).\n"
    )
    columns = [cell for size in sizes for cell in (f"exchange on {size}, ms", f"step on {size} from, ms")]
    add_header(report, ["detector", "parameters, M", "gradients, MB", *columns])
    for name in PAPERS:
        add_paper(report, name, links, typical or 0.0)
    return describe_limits(works, {name: share or 0.0 for name, share in hidden.items()}, links)


def add_header(report: Report, columns: list[str]) -> None:
    report.row(columns)
    report.line("|" + "---|" * len(columns))


if __name__ == "__main__":
    main()
