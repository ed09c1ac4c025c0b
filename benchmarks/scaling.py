"""What more processes make of training: measured with one and with several, and predicted for clusters.

    python benchmarks/scaling.py                   # the seven tiny detectors, 1 and 2 processes on CPUs
    python benchmarks/scaling.py retinanet_tiny yolov1_tiny
    python benchmarks/scaling.py --device cuda --processes 8 --batch 2 retinanet_r50_fpn cornernet_hourglass104

Each process has the same images in memory and the same number of cores (or a GPU), and a step is everything between
a batch from the loader and new weights. Four things are timed in turn: a process alone; all processes without the
exchange of gradients; all with it; and the all-reduces alone. What the exchange does not lengthen a step by is hidden
behind the backward pass. From these, and from links that are said on the command line, `_scaling_model.predict`
makes efficiencies on clusters; a model, not a measurement.
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
WORTH = 0.9  # efficiency
BACKWARD = 2 / 3  # of a step, where it was not measured: about twice the forward pass
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, as DistributedDataParallel makes them

# What is timed in each round: name of the turn -> (in which group, method of the Trainee, what it is asked).
TURNS: dict[str, tuple[str, str, tuple[bool, ...]]] = {
    "alone": ("one", "run", (False,)),
    "without": ("all", "run", (False,)),
    "with": ("all", "run", (True,)),
    "exchange": ("all", "exchange", ()),
}


@dataclass
class Case:
    """What was found out about one detector."""

    name: str
    parameters: int
    bytes: int
    buckets: int
    backward_s: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # turn -> one a round

    @property
    def hidden(self) -> float | None:
        """Median share of the exchange over rounds, each of which had all turns; None where nobody exchanged."""
        if not self.seconds["with"]:
            return None
        rounds = zip(*(self.seconds[turn] for turn in ("with", "without", "exchange")), strict=True)
        return median(hidden_share(*three) for three in rounds)

    def work(self, step_ms: float | None) -> Work:
        """For the model: the step as measured alone, or as given."""
        measured = median(self.seconds["alone"])
        step_s = measured if step_ms is None else step_ms / 1000
        return Work(self.bytes, self.buckets, step_s, self.backward_s / measured * step_s)


def measure(name: str, groups: dict[str, Group], rounds: int, steps: int) -> Case:
    """All turns in each round, every second round the other way round."""
    sizes = [answer for group in groups.values() for answer in group.ask("build", name)]
    for size in sizes:
        if size["seen"] and sum(size["seen"]) != size["bytes"]:
            raise RuntimeError(f"{name}: gradients of {size['bytes']} bytes, but {sum(size['seen'])} were exchanged")
    size = sizes[-1]
    case = Case(name, size["parameters"], size["bytes"], len(size["seen"]) or count_buckets(size["bytes"]), 0)
    case.backward_s = groups["one"].ask("backward", steps)[0]
    turns = [turn for turn, (group, _, _) in TURNS.items() if group in groups]
    for number in range(rounds):
        for turn in turns[:: -1 if number % 2 else 1]:
            group, method, arguments = TURNS[turn]
            case.seconds[turn].append(max(groups[group].ask(method, steps, *arguments)))
    return case


def count_buckets(gradient_bytes: int) -> int:
    """All-reduces of a step where nobody counted them."""
    return 1 + -(-max(0, gradient_bytes - FIRST_BUCKET) // BUCKET)


def count_parameters(name: str) -> int:
    """Trained parameters of a detector, which is not built in memory for that."""
    with torch.device("meta"):
        detector = build_detector(name, num_classes=80)
    return sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)


def add_measured(report: Report, case: Case, processes: int, batch: int) -> None:
    """A row of the first table, and its json line."""
    alone, together = ([batch * n / s for s in case.seconds[turn]] for turn, n in (("alone", 1), ("with", processes)))
    rates = [spread(alone), spread(together) if together else ""]
    efficiency = ""
    if together:
        ratio = median(b / a / processes for a, b in zip(alone, together, strict=True))
        efficiency = f"{ratio:.2f}"
        linear = processes * median(alone)
        name = f"scaling/{case.name}/{processes} processes"
        report.case(name, median(together), linear, "as many processes apart", "images/s", ratio)
    times = [spread([1000 * s for s in case.seconds[turn]], 1) if case.seconds[turn] else "" for turn in TURNS]
    hidden = "" if case.hidden is None else f"{case.hidden:.2f}"
    moved = f"{ring_bytes(case.bytes, processes) / 1e6:.1f}"
    sizes = [f"{case.parameters / 1e6:.2f}", f"{case.bytes / 1e6:.2f}", moved, str(case.buckets)]
    report.row([case.name, *sizes, *rates, efficiency, *times, hidden])


def add_predicted(report: Report, name: str, work: Work, links: Links, hidden: float | None) -> None:
    """A row of the second table: with as much hidden as measured (nothing, to all that fits behind the backward)."""
    cells = []
    for processes in CLUSTERS:
        worst, best = (predict(work, links, processes, share).efficiency for share in (0.0, 1.0))
        bounds = f"{worst:.2f} to {best:.2f}"
        found = None if hidden is None else predict(work, links, processes, hidden)
        cells.append(bounds if found is None else f"{found.efficiency:.2f} ({bounds})")
    found = predict(work, links, CLUSTERS[-1], hidden or 0.0)
    cells.append(f"{1000 * found.bandwidth_s:.2f} + {1000 * found.latency_s:.2f}")
    below = first_below(work, links, hidden or 0.0, WORTH)
    limit = "bytes" if found.bandwidth_s > found.latency_s else "hops"
    report.row([name, f"{1000 * work.step_s:.0f}", *cells, "never" if below is None else str(below), limit])


def paper_work(name: str, step_ms: float) -> Work:
    """A detector that nobody measured here: its bytes from its parameters, its step as given."""
    gradient_bytes = 4 * count_parameters(name)
    return Work(gradient_bytes, count_buckets(gradient_bytes), step_ms / 1000, BACKWARD * step_ms / 1000)


def add_paper(report: Report, name: str, links: Links, hidden: float) -> None:
    """A row of the third table: how long a step has to be for the exchange to be worth it."""
    work = paper_work(name, step_ms=1.0)
    cells = []
    for processes in CLUSTERS:
        exchange_s = predict(work, links, processes, 0).exchange_s
        steps = [1000 * needed_step(exchange_s, share, BACKWARD, WORTH) for share in (hidden, 0.0, 1.0)]
        cells += [f"{1000 * exchange_s:.1f}", "{:.0f} ({:.0f} to {:.0f})".format(*steps)]
    megabytes = work.gradient_bytes / 1e6
    report.row([name, f"{megabytes / 4:.1f}", f"{megabytes:.0f}", *cells])


def read_steps(words: list[str]) -> dict[str, float]:
    """Milliseconds by name, from NAME=MS."""
    return {name: float(value) for name, _, value in (word.partition("=") for word in words)}


def measured_loss(cases: list[Case], processes: int) -> str:
    """What the processes lose here, and to what: medians over detectors and rounds."""

    def slower(turn: str, base: str) -> float:
        pairs = [zip(case.seconds[base], case.seconds[turn], strict=True) for case in cases]
        return median(short / long for pair in pairs for short, long in pair)

    return (
        f"On this machine {processes} processes have {slower('with', 'alone'):.2f} of what as many apart would have, "
        f"median of all: {slower('without', 'alone'):.2f} because they share it (memory, caches, clocks) and wait for "
        f"each other's counts, and {slower('with', 'without'):.2f} because they exchange gradients. "
    )


def conclusion(works: dict[str, Work], hidden: dict[str, float], links: Links) -> str:
    """What limits it, and from which size: in words, from the figures above."""
    below = {name: first_below(work, links, hidden[name], WORTH) for name, work in works.items()}
    lost = {name: number for name, number in below.items() if number is not None}
    largest = CLUSTERS[-1]
    worst = min(works, key=lambda name: predict(works[name], links, largest, hidden[name]).efficiency)
    found = predict(works[worst], links, largest, hidden[worst])
    share = found.bandwidth_s / found.exchange_s
    text = (
        f"Most is lost by {worst}: {found.efficiency:.2f} on {largest} GPUs, where its exchange takes "
        f"{1000 * found.exchange_s:.1f} ms, {100 * share:.0f}% of it for bytes on the slowest link, the rest for hops. "
    )
    if not lost:
        return text + f"None of these falls below {WORTH} on up to 4096 GPUs, nothing but gradients counted."
    first = min(lost, key=lambda name: lost[name])
    return (
        text + f"The first to fall below {WORTH} is {first}, from {lost[first]} GPUs on; {len(works) - len(lost)} of "
        f"{len(works)} do not up to 4096. Where bytes are the limit a larger batch on each GPU helps, since a step "
        "takes longer and exchanges as much, and so does accumulating gradients; where hops are, larger buckets."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=TINY, help="files of configs/models (the tiny ones)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, help="of the second side (2, or as many as there are GPUs)")
    parser.add_argument("--batch", type=int, default=4, help="images of a process and step (4)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in each turn of a round (4)")
    parser.add_argument("--step_ms", nargs="+", default=[], metavar="NAME=MS", help="to predict from (as measured)")
    parser.add_argument("--intra_gbps", type=float, default=3600, help="Gbit/s between two GPUs of a node (3600)")
    parser.add_argument("--inter_gbps", type=float, default=400, help="Gbit/s between two nodes (400)")
    parser.add_argument("--latency_us", type=float, default=10, help="microseconds a hop (10)")
    parser.add_argument("--per_node", type=int, default=8, help="GPUs of a node (8)")
    parser.add_argument("--out", type=Path, help="write the tables there, too")
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
            *("images/s alone", f"images/s of {processes}", "efficiency"),
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
        report.say(
            "\nBytes of gradients from the parameters, and as a hook at the all-reduces counts them, are the same."
        )
    words = predictions(report, cases, links, read_steps(arguments.step_ms))
    words = measured_loss(cases, processes) + words if processes > 1 else words
    report.say(f"\n## What limits it, and from which size\n\n{words}")
    report.finish(arguments.out)


def predictions(report: Report, cases: list[Case], links: Links, given: dict[str, float]) -> str:
    """Tables of all that is not measured, and in words what limits it."""
    shares = [case.hidden for case in cases if case.hidden is not None]
    typical = median(shares) if shares else None
    works = {case.name: case.work(given.get(case.name)) for case in cases}
    works |= {name: paper_work(name, given[name]) for name in PAPERS if name in given and name not in works}
    hidden = dict.fromkeys(works, typical) | {case.name: case.hidden for case in cases}
    report.say(
        f"\n## Predicted, not measured\n\nThe model of benchmarks/_scaling_model.py with {links}; steps as measured "
        "here or as given, and as much hidden as measured here (nothing, to all that fits behind the backward pass). "
        "A step measured on a CPU is long, and flatters: a GPU's is shorter, and exchanges as much (--step_ms).\n"
    )
    sizes = [f"{processes} GPUs" for processes in CLUSTERS]
    exchange = f"exchange on {sizes[-1]}, ms: bytes + hops"
    add_header(report, ["detector", "step, ms", *sizes, exchange, f"below {WORTH} from", "limit"])
    for name, work in works.items():
        add_predicted(report, name, work, links, hidden[name])
    report.say(
        f"\nDetectors of the papers' sizes, parameters counted: how long a GPU's step has to be for an efficiency of "
        f"{WORTH}, {BACKWARD:.2f} of it backward; as much hidden as the median above (nothing, to all that fits).\n"
    )
    columns = [cell for size in sizes for cell in (f"exchange on {size}, ms", f"step on {size} from, ms")]
    add_header(report, ["detector", "parameters, M", "gradients, MB", *columns])
    for name in PAPERS:
        add_paper(report, name, links, typical or 0.0)
    return conclusion(works, {name: share or 0.0 for name, share in hidden.items()}, links)


def add_header(report: Report, columns: list[str]) -> None:
    report.row(columns)
    report.say("|" + "---|" * len(columns))


if __name__ == "__main__":
    main()
