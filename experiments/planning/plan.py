"""Planning a training: how many workers, how large a batch, which strategy; how long it takes and what it costs.

The time is updates times seconds per update. A larger batch takes fewer updates of more seconds each, and more tokens.
More workers divide the computing but communicate more. The front consists of the combinations of which no other is both
faster and cheaper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import FP32
from bigbatch.comm.simulation.computing import Computing, Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.comm.simulation.replay import Phase, replay_phases
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.experiments.planning.simulate import described, simulate_row, simulating, strategy_named
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.planning.workload import Workload
from bigbatch.models.sizes import ModelSize

PATIENCE = 2.0
"""Largest cost of the recommended plan, in times of the least cost."""


# What an update takes.


def planned(name: str, servers: int, workers: int = 2, wire: str = FP32) -> type[Strategy]:
    """Loads a strategy whose updates combine all workers' gradients of the same parameters; only these can be planned.

    Args:
        name: name of the strategy.
        servers: number of servers, for a strategy with this option.
        workers: smallest number of workers for which it will be simulated.
        wire: the precision in which it is to send gradients.

    Raises:
        ConfigurationError: there is no such strategy, it cannot be simulated, it does not send in that precision, or
            its workers are not in step.
    """
    strategy = strategy_named(name, servers, workers)
    strategy.check_wire(wire)
    if not strategy.in_step():
        raise ConfigurationError(
            f"The updates of {name} are not of everybody's gradients of the same parameters, so that a batch's size "
            "does not say how many it takes: plan with ps, or with an all-reduce."
        )
    return strategy


@dataclass(frozen=True)
class Candidate:
    """One combination of strategy, workers and batch, with its predicted time and cost.

    Attributes:
        strategy: name of the strategy.
        workers: number of workers.
        servers: number of ranks that only serve.
        micro_batch: number of sequences that a worker computes at once.
        accumulation: number of micro-batches that a worker adds up for an update.
        batch: tokens in an update of all workers.
        updates: number of updates that the training takes.
        step_seconds: seconds that an update takes.
        efficiency: the share of that time in which workers compute.
        seconds: seconds that the whole training takes.
        gpu_hours: hours of all workers and servers together.
        simulated: whether exactly this combination was simulated; otherwise its time is composed of simulated parts.
    """

    strategy: str
    workers: int
    servers: int
    micro_batch: int
    accumulation: int
    batch: int
    updates: float
    step_seconds: float
    efficiency: float
    seconds: float
    gpu_hours: float
    simulated: bool

    @property
    def examples(self) -> int:
        """Number of sequences in an update of all workers."""
        return self.workers * self.micro_batch * self.accumulation

    @property
    def ranks(self) -> int:
        """Number of ranks that are paid for: workers and servers."""
        return self.workers + self.servers


def composed(name: str, network: Network, workers: int, workloads: Sequence[Workload], servers: int = 1) -> list[float]:
    """Composes the seconds of an update with each of several workloads from parts that are simulated only once.

    If the strategy describes what it sends, each phase is replayed right after the one before it, and phases that are
    alike are replayed once. The time that a phase adds there is taken as the time that it always adds. So an update
    lasts until the latest of (the time a phase is ready) + (the time that it and all later phases add). This ignores
    that earlier phases leave ranks at different times; see `MARGIN`.

    Any other strategy is simulated with the workload that can hide the most communication, the one with the longest
    micro-batch. What it adds to the computing there is the least that it adds anywhere, so the times of the other
    workloads are lower bounds.

    Args:
        name: name of the strategy.
        network: the network, which says what messages cost.
        workers: number of workers.
        workloads: workloads of one model, with the same size of buckets.
        servers: number of servers, for a strategy with this option.

    Raises:
        ConfigurationError: there is no such strategy, or it cannot be simulated.
    """
    strategy = strategy_named(name, servers, workers)
    says = [described(strategy, load.gradients, network, workers) for load in workloads]
    if any(one.phases is None for one in says):
        most = max(workloads, key=lambda load: load.compute / load.accumulation)
        row = simulate_row(name, network, workers, most, Stragglers(), servers=servers)
        return [load.compute + row.step_seconds - most.compute for load in workloads]
    if workers == 1:
        return [load.compute for load in workloads]
    known: dict[tuple[tuple[object, ...], ...], float] = {}

    def together(phases: Sequence[Phase]) -> float:
        key = tuple((phase.schedule, phase.elements, phase.itemsize, phase.rounded) for phase in phases)
        if key not in known:
            at_once = [replace(phase, ready=0.0) for phase in phases]
            known[key] = float(replay_phases(at_once, network, workers, roughly=lambda: None)[-1].max())
        return known[key]

    def seconds(compute: float, phases: Sequence[Phase]) -> float:
        if not phases:
            return compute
        adds = [together(phases[:1])]
        adds += [together(pair) - together(pair[:1]) for pair in pairwise(phases)]
        ready = np.array([np.max(phase.ready) for phase in phases])
        return float((compute * ready + np.cumsum(adds[::-1])[::-1]).max(initial=compute))

    return [
        fmean(seconds(load.compute, one.phases(number)) for number in range(one.period or 1))
        for load, one in zip(workloads, says, strict=True)
        if one.phases is not None
    ]


@dataclass(frozen=True)
class Deployment:
    """The model and the cluster of a planned training.

    Attributes:
        size: the size of the model.
        network: the network, which says what messages cost.
        computing: how long a worker computes for a token.
        bucket_bytes: target size of a gradient bucket, in bytes of float32.
        overlap: whether buckets are sent while backward still runs.
        example_tokens: mean number of tokens in a sequence; None for as many as the model's context.
        wire: the precision in which gradients are sent, and parameters by servers.
    """

    size: ModelSize
    network: Network
    computing: Computing
    bucket_bytes: int
    overlap: bool
    example_tokens: float | None = None
    wire: str = FP32

    def tokens(self, sequences: int) -> int:
        """The number of tokens in this many sequences, in the mean."""
        return round(sequences * (self.size.context if self.example_tokens is None else self.example_tokens))

    def workload(self, micro_batch: int, accumulation: int) -> Workload:
        """Makes a worker's workload: `accumulation` micro-batches of `micro_batch` sequences each."""
        tokens = self.tokens(micro_batch * accumulation)
        return Workload(
            self.size, tokens, self.computing, self.bucket_bytes, self.overlap, accumulation, wire=self.wire
        )


def candidates(
    cluster: Deployment,
    tradeoff: Tradeoff,
    strategies: Sequence[str],
    workers: Sequence[int],
    servers: Sequence[int],
    micro_batches: Sequence[int],
    accumulations: Sequence[int],
    say: Callable[[str], None] = lambda _: None,
) -> list[Candidate]:
    """Makes a candidate of every combination, whose time of an update is composed.

    Args:
        cluster: the model and the cluster that the training runs on.
        tradeoff: how many updates each batch size takes.
        strategies: names of the strategies.
        workers: numbers of workers.
        servers: numbers of servers, for strategies with this option; other strategies get one candidate.
        micro_batches: numbers of sequences that a worker computes at once.
        accumulations: numbers of micro-batches that a worker adds up for an update.
        say: called with a line about the progress.

    Raises:
        ConfigurationError: there is no such strategy, or it cannot be simulated.
    """
    ways = [(micro_batch, accumulation) for micro_batch in micro_batches for accumulation in accumulations]
    loads = [cluster.workload(*way) for way in ways]
    serves = {  # every combination is looked at before anything takes long
        (name, count): {
            planned(name, number, count, cluster.wire).ranks_for(count) - count: number for number in servers
        }
        for name in strategies
        for count in reversed(workers)  # what is refused is most often the largest
    }
    found = []
    for name in strategies:
        for count in workers:
            say(f"{name}, {count:,} workers ...")
            for extra, number in serves[name, count].items():
                with simulating(name, count):
                    times = composed(name, cluster.network, count, loads, number)
                for way, load, seconds in zip(ways, loads, times, strict=True):
                    found.append(_candidate(name, count, extra, way, load, seconds, tradeoff, simulated=False))
    return found


def _candidate(
    name: str,
    workers: int,
    servers: int,
    way: tuple[int, int],
    load: Workload,
    step_seconds: float,
    tradeoff: Tradeoff,
    *,
    simulated: bool,
) -> Candidate:
    batch = workers * load.tokens
    updates = tradeoff.updates(batch)
    seconds = updates * step_seconds
    return Candidate(
        name,
        workers,
        servers,
        *way,
        batch,
        updates,
        step_seconds,
        efficiency=load.compute / step_seconds if step_seconds else 1.0,
        seconds=seconds,
        gpu_hours=seconds * (workers + servers) / 3600,
        simulated=simulated,
    )


def simulated(cluster: Deployment, tradeoff: Tradeoff, candidate: Candidate) -> Candidate:
    """Makes the candidate anew, with the time of an update simulated for exactly its workload."""
    way = candidate.micro_batch, candidate.accumulation
    load, name, count = cluster.workload(*way), candidate.strategy, candidate.workers
    with simulating(name, count):
        row = simulate_row(name, cluster.network, count, load, Stragglers(), servers=max(1, candidate.servers))
    return _candidate(name, count, candidate.servers, way, load, row.step_seconds, tradeoff, simulated=True)


# The front.


def front_of(found: Sequence[Candidate]) -> list[Candidate]:
    """Picks the candidates that no other beats in time or cost without being worse in the other; fastest first.

    Of several with the same time and cost, only the first is kept.
    """
    front: list[Candidate] = []
    for candidate in sorted(found, key=lambda one: (one.seconds, one.gpu_hours)):
        if not front or candidate.gpu_hours < front[-1].gpu_hours:
            front.append(candidate)
    return front


MARGIN = 0.06
"""The share by which a composed time of an update is assumed to exceed the simulated time, at most.

Ranks that finish a bucket earlier than others start the next one earlier, which composing leaves out. On the presets'
networks, for 3 to 64 workers and models of 180 thousand and 124 million parameters, it came to 4.7 % at most (a tree
over 12 workers, the small model), and to nothing for a ring, or for halving-doubling over a power of two, on a flat
network. Composed times that are too short, by up to 12 %, do no harm, since those candidates are then simulated.
"""


def exact_front(
    cluster: Deployment, tradeoff: Tradeoff, found: Sequence[Candidate], say: Callable[[str], None] = lambda _: None
) -> tuple[list[Candidate], list[Candidate]]:
    """Finds the front, each candidate of which is simulated exactly; returns it and all candidates.

    Every candidate that may be on the front is simulated: one whose composed time would put it there if it were
    `MARGIN` shorter. This is repeated until no such candidate is left. So the result is the front of all candidates if
    all were simulated, as long as no composed time is too long by more than `MARGIN`.
    """
    everyone = list(found)
    while True:
        hoped = {id(one): one if one.simulated else _quicker(one) for one in everyone}
        on_front = {id(one) for one in front_of(list(hoped.values()))}
        pending = {key for key, one in hoped.items() if id(one) in on_front and not one.simulated}
        if not pending:
            return front_of([one for one in everyone if one.simulated]), everyone
        say(f"{len(pending)} row(s) that may be on the front, exactly ...")
        everyone = [simulated(cluster, tradeoff, one) if id(one) in pending else one for one in everyone]


def _quicker(one: Candidate) -> Candidate:
    return replace(one, seconds=one.seconds * (1 - MARGIN), gpu_hours=one.gpu_hours * (1 - MARGIN))


def recommended(front: Sequence[Candidate]) -> Candidate:
    """Picks the fastest candidate of a front that costs at most `PATIENCE` times as much as the cheapest."""
    least = front[-1].gpu_hours
    return next(candidate for candidate in front if candidate.gpu_hours <= PATIENCE * least)


def ideal(tradeoff: Tradeoff, cluster: Deployment, micro_batch: int, gpu_hours: FloatArray) -> FloatArray:
    """Computes the seconds of a training without communication, in which every worker computes one micro-batch.

    (T/T_min - 1)(C/C_min - 1) = 1, where T_min is the time of S_min micro-batches and C_min the time of E_min tokens:
    the hyperbola of updates and tokens, in time and cost.

    Args:
        tradeoff: how many updates each batch size takes.
        cluster: the model and the cluster that the training runs on.
        micro_batch: number of sequences that a worker computes at once.
        gpu_hours: (any shape) costs in GPU-hours; the time is infinite where they are below the least cost.
    """
    computing = cluster.computing.forward(1) + cluster.computing.backward(1, cluster.size.recomputed)
    least_seconds = tradeoff.least_updates * cluster.tokens(micro_batch) * computing
    over = gpu_hours * 3600 / (tradeoff.least_tokens * computing) - 1
    return np.where(over > 0, least_seconds * (1 + 1 / np.where(over > 0, over, 1.0)), np.inf)


def in_words(candidate: Candidate) -> str:
    """Describes a candidate in words: "64 workers with ring and 16 × 4 sequences each"."""
    beside = f" and {candidate.servers:,} server{'s' * (candidate.servers > 1)}" if candidate.servers else ""
    return (
        f"{candidate.workers:,} worker{'s' * (candidate.workers > 1)}{beside} with {candidate.strategy} and "
        f"{candidate.micro_batch} × {candidate.accumulation} sequences each"
    )


def duration(seconds: float) -> str:
    """Formats seconds in the unit that suits them best: 12.3 s, 4.5 min, 6.7 h, 8.9 days."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds / 86400:,.3g} days" if seconds < 1000 * 86400 else f"{seconds / 86400:,.0f} days"


def advice(front: Sequence[Candidate]) -> str:
    """Makes two sentences that say which candidate of the front to take, and what the fastest would cost."""
    cheapest, fastest, best = front[-1], front[0], recommended(front)
    beside = "which is the cheapest too"
    if best is not cheapest:
        beside = f"{cheapest.seconds / best.seconds:.2g} times as fast as the cheapest, {in_words(cheapest)}"
    take = f"Take {in_words(best)}: {_bill(best)}, the fastest up to {PATIENCE:g} times the least cost, {beside}."
    if best is fastest:
        return f"{take} Nothing that was looked at is faster."
    return (
        f"{take} At most it could be {best.seconds / fastest.seconds:.2g} times as fast, at "
        f"{fastest.gpu_hours / best.gpu_hours:.2g} times the cost, with {in_words(fastest)}: {_bill(fastest)}."
    )


def _bill(candidate: Candidate) -> str:
    return f"{duration(candidate.seconds)} and {candidate.gpu_hours:,.3g} GPU-hours"
