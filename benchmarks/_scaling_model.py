"""A model of the cost of gradient exchange in data-parallel training; tested in tests/test_scaling.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """Bandwidth and latency between GPUs.

    Args:
        intra_gbps: gigabits per second, in each direction, between two GPUs of a node.
        inter_gbps: the same between two nodes, all their adapters together.
        latency_us: microseconds for one hop from GPU to GPU.
        per_node: GPUs in a node.
    """

    intra_gbps: float
    inter_gbps: float
    latency_us: float
    per_node: int = 8

    def gbps(self, processes: int) -> float:
        """Bandwidth of the slowest link of a ring of this many GPUs, which limits the ring."""
        return self.intra_gbps if processes <= self.per_node else min(self.intra_gbps, self.inter_gbps)


@dataclass(frozen=True)
class Work:
    """One training step of one process.

    Args:
        gradient_bytes: bytes of all gradients.
        buckets: number of all-reduces that exchange them.
        step_s: seconds of the step without the exchange.
        backward_s: seconds of its backward pass, with which an exchange can overlap.
    """

    gradient_bytes: int
    buckets: int
    step_s: float
    backward_s: float


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of the exchange and efficiency for a number of processes."""

    bandwidth_s: float  # seconds of the exchange for transferring bytes ...
    latency_s: float  # ... and for hops
    exposed_s: float  # seconds that it adds to a step
    efficiency: float  # images per second relative to as many processes without exchange

    @property
    def exchange_s(self) -> float:
        return self.bandwidth_s + self.latency_s


def ring_bytes(gradient_bytes: int, processes: int) -> float:
    """Bytes that each process of a ring all-reduce sends: 2 (N - 1) / N times the size of the tensor."""
    return 2 * (processes - 1) / processes * gradient_bytes


def predict(work: Work, links: Links, processes: int, hidden: float) -> Prediction:
    """Efficiency of data-parallel training with the same batch size on each process.

    A ring all-reduce of S bytes over N processes takes 2 (N - 1) steps, in each of which every process sends S / N
    bytes to the next one:

        exchange = 2 (N - 1) / N * S / bandwidth + buckets * 2 (N - 1) * latency

    with the bandwidth of the slowest link. A share `hidden` of it overlaps with the backward pass, limited by the
    duration of that pass; the rest adds to the step:

        exposed    = exchange - min(hidden * exchange, backward)
        efficiency = step / (step + exposed)

    The ring overestimates the latency of many nodes, where NCCL uses trees with 2 log2(N) hops. Data loading,
    stragglers and other traffic on the links are not modelled and lower the efficiency.

    Args:
        work: of each process.
        links: between them.
        processes: N.
        hidden: share of the exchange that overlaps with the backward pass where that is long enough, 0..1.
    """
    bandwidth_s = ring_bytes(work.gradient_bytes, processes) * 8 / (links.gbps(processes) * 1e9)
    latency_s = work.buckets * 2 * (processes - 1) * links.latency_us * 1e-6
    exchange_s = bandwidth_s + latency_s
    exposed_s = exchange_s - min(hidden * exchange_s, work.backward_s)
    return Prediction(bandwidth_s, latency_s, exposed_s, work.step_s / (work.step_s + exposed_s))


def hidden_share(with_s: float, without_s: float, exchange_s: float) -> float:
    """Share of the exchange that does not add to the step: 1 - (with - without) / exchange.

    Clipped to 0..1: noise and competition for the cores can lead to values outside.
    """
    return min(1.0, max(0.0, 1 - (with_s - without_s) / exchange_s))


def needed_step(exchange_s: float, hidden: float, backward: float, efficiency: float) -> float:
    """Shortest step in seconds with which an exchange allows this efficiency: `predict`, solved for the step.

    The exposed time may be (1 / efficiency - 1) of the step, and it is the larger one of (1 - hidden) * exchange and
    exchange - backward.

    Args:
        exchange_s: seconds of the exchange.
        hidden: share of it that overlaps with the backward pass where that is long enough, 0..1.
        backward: duration of the backward pass as a fraction of the step.
        efficiency: required, below 1.
    """
    allowed = 1 / efficiency - 1
    return max((1 - hidden) * exchange_s / allowed, exchange_s / (allowed + backward))


def first_below(work: Work, links: Links, hidden: float, efficiency: float, limit: int = 4096) -> int | None:
    """The smallest power of two of processes with an efficiency below this; None if there is none up to `limit`."""
    processes = 2
    while processes <= limit:
        if predict(work, links, processes, hidden).efficiency < efficiency:
            return processes
        processes *= 2
    return None
