"""What exchanging gradients costs on clusters that are not at hand: a model, worked by hand in its tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """What connects GPUs.

    Args:
        intra_gbps: gigabits a second and direction between two GPUs of a node.
        inter_gbps: between two nodes, all their adapters together.
        latency_us: microseconds for one hop from GPU to GPU.
        per_node: GPUs in a node.
    """

    intra_gbps: float
    inter_gbps: float
    latency_us: float
    per_node: int = 8

    def gbps(self, processes: int) -> float:
        """Of the slowest link of a ring through this many GPUs, which all of it waits for."""
        return self.intra_gbps if processes <= self.per_node else min(self.intra_gbps, self.inter_gbps)


@dataclass(frozen=True)
class Work:
    """One training step of one process.

    Args:
        gradient_bytes: bytes of all gradients.
        buckets: all-reduces that they are exchanged in.
        step_s: seconds of the step without any exchange.
        backward_s: seconds of its backward pass, which an exchange can run beside.
    """

    gradient_bytes: int
    buckets: int
    step_s: float
    backward_s: float


@dataclass(frozen=True)
class Prediction:
    """What a number of processes make of it."""

    bandwidth_s: float  # of the exchange: bytes on their way ...
    latency_s: float  # ... and hops
    exposed_s: float  # what a step is longer for it
    efficiency: float  # images a second, as a fraction of those of as many processes that exchange nothing

    @property
    def exchange_s(self) -> float:
        return self.bandwidth_s + self.latency_s


def ring_bytes(gradient_bytes: int, processes: int) -> float:
    """Bytes that each process of a ring all-reduce sends: 2 (N - 1) / N times what is summed up."""
    return 2 * (processes - 1) / processes * gradient_bytes


def predict(work: Work, links: Links, processes: int, hidden: float) -> Prediction:
    """Efficiency of data-parallel training, of the same batch on each of more processes.

    A ring all-reduce of S bytes over N processes takes 2 (N - 1) steps, in each of which every process sends S / N
    bytes to the next one:

        exchange = 2 (N - 1) / N * S / bandwidth + buckets * 2 (N - 1) * latency

    with the bandwidth of the slowest link. A share `hidden` of it runs beside the backward pass, but no more than that
    pass is long; the rest makes the step longer:

        exposed    = exchange - min(hidden * exchange, backward)
        efficiency = step / (step + exposed)

    Rings make the latency of many nodes look worse than it is: NCCL takes trees there, with 2 log2(N) hops. Left out
    are loading, stragglers, and other traffic on the links, which make things worse.

    Args:
        work: of each process.
        links: between them.
        processes: N.
        hidden: share of the exchange that runs beside the backward pass where that is long enough, 0..1.
    """
    bandwidth_s = ring_bytes(work.gradient_bytes, processes) * 8 / (links.gbps(processes) * 1e9)
    latency_s = work.buckets * 2 * (processes - 1) * links.latency_us * 1e-6
    exchange_s = bandwidth_s + latency_s
    exposed_s = exchange_s - min(hidden * exchange_s, work.backward_s)
    return Prediction(bandwidth_s, latency_s, exposed_s, work.step_s / (work.step_s + exposed_s))


def hidden_share(with_s: float, without_s: float, exchange_s: float) -> float:
    """Share of the exchange that a step does not get longer by: 1 - (with - without) / exchange.

    Clipped to 0..1: noise, and what exchange and computing take from each other, can bring it outside.
    """
    return min(1.0, max(0.0, 1 - (with_s - without_s) / exchange_s))


def needed_step(exchange_s: float, hidden: float, backward: float, efficiency: float) -> float:
    """Seconds that a step takes at least where an exchange leaves this efficiency; `predict` solved for the step.

    The step may get longer by (1 / efficiency - 1) of itself, and exposed is the larger one of (1 - hidden) * exchange
    and exchange - backward.

    Args:
        exchange_s: seconds of the exchange.
        hidden: share that runs beside the backward pass where that is long enough, 0..1.
        backward: that pass as a fraction of the step.
        efficiency: to keep, below 1.
    """
    allowed = 1 / efficiency - 1
    return max((1 - hidden) * exchange_s / allowed, exchange_s / (allowed + backward))


def first_below(work: Work, links: Links, hidden: float, efficiency: float, most: int = 4096) -> int | None:
    """The smallest power of two processes with less than this efficiency; None where there is none up to `most`."""
    processes = 2
    while processes <= most:
        if predict(work, links, processes, hidden).efficiency < efficiency:
            return processes
        processes *= 2
    return None
