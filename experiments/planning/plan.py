"""Planning a training: how many workers, how large a batch, which strategy; what time that takes and what it costs.

The time is updates times seconds an update. A larger batch takes fewer updates of more seconds each, and more tokens;
more workers divide the computing, and have more to say to each other. Of all combinations, the front are those of
which no other is both faster and cheaper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import Computing, Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.comm.simulation.replay import Phase, replay_phases
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.experiments.planning.simulate import described, simulate_row, strategy_named
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.planning.workload import Workload
from bigbatch.models.sizes import ModelSize

PATIENCE = 2.0
"""Times the least cost that the recommended plan may cost."""


# What an update takes.


def planned(name: str, servers: int, workers: int = 2) -> type[Strategy]:
    """The strategy of that name, if each of its updates is of everybody's gradients, computed on the same parameters.

    Args:
        name: of the strategy.
        servers: for a strategy with an option of that name.
        workers: for how many it will be simulated at least.

    Raises:
        ConfigurationError: there is none, it cannot be simulated, or its updates are of something else.
    """
    strategy = strategy_named(name, servers, workers)
    if not strategy.in_step():
        raise ConfigurationError(
            f"The updates of {name} are not of everybody's gradients of the same parameters, so that a batch's size "
            "does not say how many it takes: plan with ps, or with an all-reduce."
        )
    return strategy


@dataclass(frozen=True)
class Candidate:
    """One way to train.

    Attributes:
        strategy: its name.
        workers: how many compute.
        servers: how many ranks only serve.
        micro_batch: sequences that a worker computes at once.
        accumulation: micro-batches that it adds up for an update.
        batch: tokens of an update, of all workers.
        updates: that it takes.
        step_seconds: of one.
        efficiency: the part of that in which workers compute.
        seconds: that the training takes.
        gpu_hours: of workers and servers.
        simulated: whether just this was simulated; else its time is composed of parts that were.
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
    def ranks(self) -> int:
        """All that are paid for."""
        return self.workers + self.servers


def composed(name: str, network: Network, workers: int, workloads: Sequence[Workload], servers: int = 1) -> list[float]:
    """Seconds that an update takes with each of several workloads, put together from what was simulated once.

    Of a strategy that says what it sends, each phase is replayed after the one before it, and once for all that are
    alike. What it adds there is taken for what it adds whenever its turn comes. So an update lasts until the latest of
    (a phase is ready) + (what it and all after it add). This leaves out how far ranks are apart because of what comes
    earlier; see `MARGIN`.

    Any other strategy is simulated with the workload that has most to hide behind, the longest micro-batch. What it
    adds to the computing there is the least that it adds anywhere: the times are lower bounds for shorter ones.

    Args:
        name: of the strategy.
        network: what messages cost.
        workers: how many compute.
        workloads: of one model, and with one size of buckets.
        servers: for a strategy with an option of that name.

    Raises:
        ConfigurationError: no such strategy, or one that cannot be simulated.
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
        key = tuple((phase.schedule, phase.elements, phase.itemsize) for phase in phases)
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
    """What the training runs on.

    Attributes:
        size: of the model.
        network: what messages cost.
        computing: how long a worker takes for a token.
        bucket_bytes: gradients are sent in buckets of about this size.
        overlap: whether they are sent while backward still runs.
    """

    size: ModelSize
    network: Network
    computing: Computing
    bucket_bytes: int
    overlap: bool

    def workload(self, micro_batch: int, accumulation: int) -> Workload:
        """A worker's, with that many sequences at once, that many times."""
        tokens = micro_batch * accumulation * self.size.context
        return Workload(self.size, tokens, self.computing, self.bucket_bytes, self.overlap, accumulation)


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
    """Every combination, with the time of an update composed.

    Args:
        cluster: what the training runs on.
        tradeoff: how many updates a batch takes.
        strategies: their names.
        workers: numbers of them.
        servers: numbers of servers, for strategies with an option of that name; others come once.
        micro_batches: sequences that a worker computes at once.
        accumulations: micro-batches that it adds up for an update.
        say: told how far it is.

    Raises:
        ConfigurationError: no such strategy, or one that cannot be simulated.
    """
    ways = [(micro_batch, accumulation) for micro_batch in micro_batches for accumulation in accumulations]
    loads = [cluster.workload(*way) for way in ways]
    found = []
    for name in strategies:
        for count in workers:
            serving = {planned(name, number, count).ranks_for(count) - count: number for number in servers}
            say(f"{name}, {count:,} workers ...")
            for extra, number in serving.items():
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
    """The same with an update's time simulated for just this workload."""
    way = candidate.micro_batch, candidate.accumulation
    load, name, count = cluster.workload(*way), candidate.strategy, candidate.workers
    row = simulate_row(name, cluster.network, count, load, Stragglers(), servers=max(1, candidate.servers))
    return _candidate(name, count, candidate.servers, way, load, row.step_seconds, tradeoff, simulated=True)


# The front.


def front_of(found: Sequence[Candidate]) -> list[Candidate]:
    """Those of which no other is faster and not dearer, or cheaper and not slower; fastest first.

    Of several with the same time and cost, the first.
    """
    front: list[Candidate] = []
    for candidate in sorted(found, key=lambda one: (one.seconds, one.gpu_hours)):
        if not front or candidate.gpu_hours < front[-1].gpu_hours:
            front.append(candidate)
    return front


MARGIN = 0.06
"""By how much of it the composed time of an update may be above the simulated one, or so it is taken to be.

Ranks that are through with a bucket earlier than others begin the next one earlier, which composing leaves out. On the
presets' networks, for 3 to 64 workers and models of 180 thousand and 124 million parameters, it came to 4.7 % at most
(a tree over 12 workers, the small model), and to nothing for a ring, or for halving-doubling over a power of two, on a
flat network. Composed times that are too short, which were so by up to 12 %, do no harm: they are found out.
"""


def exact_front(
    cluster: Deployment, tradeoff: Tradeoff, found: Sequence[Candidate], say: Callable[[str], None] = lambda _: None
) -> tuple[list[Candidate], list[Candidate]]:
    """The front, every row of which was simulated by itself, and all candidates with these numbers.

    Whoever may be on the front is simulated, until nobody is left who was not and could be: a candidate whose time is
    composed could if it were on it with `MARGIN` less. So this is the front of all candidates simulated, as long as
    none is composed more than that too slow.
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
    """The fastest that costs at most twice as much as the cheapest."""
    least = front[-1].gpu_hours
    return next(candidate for candidate in front if candidate.gpu_hours <= PATIENCE * least)


def ideal(tradeoff: Tradeoff, cluster: Deployment, micro_batch: int, gpu_hours: FloatArray) -> FloatArray:
    """Seconds of a training without communication, on as many workers as have one micro-batch each to compute.

    (T/T_min - 1)(C/C_min - 1) = 1, where T_min is S_min micro-batches' time, and C_min that of E_min tokens: the
    hyperbola of updates and tokens, in time and cost.

    Args:
        tradeoff: how many updates a batch takes.
        cluster: what the training runs on.
        micro_batch: sequences that a worker computes at once.
        gpu_hours: (any shape) costs; infinite time where they are below the least.
    """
    computing = cluster.computing.seconds_per_token
    least_seconds = tradeoff.least_updates * micro_batch * cluster.size.context * computing
    over = gpu_hours * 3600 / (tradeoff.least_tokens * computing) - 1
    return np.where(over > 0, least_seconds * (1 + 1 / np.where(over > 0, over, 1.0)), np.inf)


def in_words(candidate: Candidate) -> str:
    """Who computes how: "64 workers with ring and 16 × 4 sequences each"."""
    beside = f" and {candidate.servers:,} server{'s' * (candidate.servers > 1)}" if candidate.servers else ""
    return (
        f"{candidate.workers:,} worker{'s' * (candidate.workers > 1)}{beside} with {candidate.strategy} and "
        f"{candidate.micro_batch} × {candidate.accumulation} sequences each"
    )


def duration(seconds: float) -> str:
    """In the unit that tells it best: 12.3 s, 4.5 min, 6.7 h, 8.9 days."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds / 86400:,.3g} days" if seconds < 1000 * 86400 else f"{seconds / 86400:,.0f} days"


def advice(front: Sequence[Candidate]) -> str:
    """What to do, in two sentences."""
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
