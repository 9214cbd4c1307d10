"""Simulating updates of models and clusters that nobody has at hand: step time, throughput and what limits them.

A strategy that describes what it sends takes `replay`, on all ranks at once. Any other strategy runs as it is, on a
`Cluster`, with a model that has a size and no contents. Both give the same numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.schedules.schedule import Round
from bigbatch.comm.simulation.computing import Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network, wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.description import Description
from bigbatch.comm.strategies.description import Workload as Gradients
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.recording import Span, Trace
from bigbatch.comm.wires.transport import Transport, consecutive_nodes
from bigbatch.experiments.planning.timing import on_cluster, replayed
from bigbatch.experiments.planning.updates import Row
from bigbatch.experiments.planning.workload import Workload

RANDOM_UPDATES = 20
"""Simulated after the first, at least, where they are random."""

MOST_UPDATES, LEAST_UPDATES = 32, 8
"""Simulated after the first, of a strategy that does not say its period: `MOST_UPDATES` on up to `MANY_RANKS` ranks.
On more ranks they are fewer in proportion, but at least `LEAST_UPDATES`."""

MANY_RANKS = 64

EXAMPLE = Network("example", wire(1e-6, 1e9))
"""On which it is tried whether a strategy can be simulated; any network would do on which messages take time."""


def strategy_named(name: str, servers: int, workers: int = 2) -> type[Strategy]:
    """The strategy of that name, with so many servers if it has an option for that.

    Args:
        name: of the strategy.
        servers: how many.
        workers: for how many it will be simulated at least.

    Raises:
        ConfigurationError: there is none, it does not run with so few workers, or it moves its data by other means
            than messages of ours.
    """
    strategy: type[Strategy] = STRATEGIES.load(name)
    if any(option.name == "servers" for option in strategy.options.offered()):
        strategy = strategy.configured({"servers": servers})
    strategy.workers_among(strategy.ranks_for(workers))
    refusal = _refusal(strategy, workers)
    if refusal is not None:
        known = [other for other in STRATEGIES.names() if _refusal(STRATEGIES.load(other), 2) is None]
        raise ConfigurationError(
            f"{name} sends no messages of ours, so that nobody can say what they would take. Simulate one of: "
            f"{', '.join(known)}. What it says itself: {refusal}"
        ) from refusal
    return strategy


def _refusal(strategy: type[Strategy], workers: int) -> BigBatchError | None:
    """What a strategy says if it is to run in simulated time and cannot; None if it can."""
    try:
        says = described(strategy, Gradients.of_bytes(1), EXAMPLE, workers)
        if says.phases is None and says.total is None:
            Cluster(strategy.ranks_for(workers), network=EXAMPLE).run(strategy)
    except ConfigurationError as error:
        return error
    return None


def described(strategy: type[Strategy], gradients: Gradients, network: Network, workers: int) -> Description:
    """What a strategy says about itself on a network."""
    return strategy.described(gradients, workers, consecutive_nodes(workers, network.node_size))


def updates_enough(period: int | None, ranks: int, *, random: bool) -> int:
    """How many updates to simulate after the first one.

    Args:
        period: after how many the strategy repeats itself; None if it does not say.
        ranks: how many take part.
        random: whether random factors slow the workers.
    """
    if period is None:
        return max(LEAST_UPDATES, MOST_UPDATES * MANY_RANKS // max(MANY_RANKS, ranks))
    return period * -(-RANDOM_UPDATES // period) if random else period


def simulate_row(
    name: str,
    network: Network,
    workers: int,
    workload: Workload,
    stragglers: Stragglers,
    *,
    servers: int = 1,
    seed: int = 0,
    updates: int | None = None,
) -> Row:
    """One strategy on one number of workers.

    Args:
        name: of the strategy.
        network: what messages cost.
        workers: how many compute.
        workload: what each does in an update.
        stragglers: what slows them.
        servers: for a strategy with an option of that name.
        seed: of the stragglers' random factors.
        updates: how many are simulated after the first, which is left out; None for as many as `updates_enough` says.

    Raises:
        ConfigurationError: no such strategy, or one that cannot be simulated.
    """
    strategy = strategy_named(name, servers, workers)
    says = described(strategy, workload.gradients, network, workers)
    if updates is None:
        updates = updates_enough(says.period, strategy.ranks_for(workers), random=stragglers.random)
    if says.phases is None:
        made = on_cluster(strategy, network, workers, workload, stragglers, 1 + updates, seed, period=says.period)
    else:
        made = replayed(says.phases, says.period or 1, network, workers, workload, stragglers, 1 + updates, seed)
    return made.row(name, workers, network, workload, made.busiest)


def bare_row(
    name: str, network: Network, workers: int, nbytes: int, *, servers: int = 1, segments: int = 1
) -> dict[str, Any]:
    """One sum of so many bytes and nothing else: strategy, workers, bytes, communication_seconds.

    Args:
        name: of the strategy.
        network: what messages cost.
        workers: how many take part.
        nbytes: of the sum.
        servers: for a strategy with an option of that name.
        segments: in how many pieces parts travel, values of one beside gradients of the next; more than 1 only for a
            strategy whose rounds take such a number.

    Raises:
        ConfigurationError: no such strategy, or one that is more than a sum.
    """
    strategy = strategy_named(name, servers, workers)
    total = described(strategy, Gradients.of_bytes(nbytes), network, workers).total
    if total is None:
        raise ConfigurationError(f"{name} is more than one sum: leave --bytes out.")
    schedule: Callable[..., Iterable[Round]] = total.schedule
    rounds = partial(schedule, segments=segments) if segments > 1 else schedule
    seconds = float(replay(rounds, network, total.ranks, nbytes, itemsize=1).max()) if total.ranks > 1 else 0.0
    return {"strategy": name, "workers": workers, "bytes": nbytes, "communication_seconds": seconds}


def traced_update(
    name: str, network: Network, workers: int, workload: Workload, stragglers: Stragglers, servers: int
) -> list[list[Span]]:
    """What every rank does when in one update, (ranks,) spans each, from when the first begins."""
    traces: dict[int, Trace] = {}

    def record(transport: Transport) -> None:
        traces[transport.rank] = transport.trace = Trace(transport.now)

    on_cluster(strategy_named(name, servers, workers), network, workers, workload, stragglers, 1, 0, record)
    ranks = [traces[rank].spans for rank in sorted(traces)]
    start = min(span.begin for spans in ranks for span in spans)
    return [[replace(span, begin=span.begin - start, end=span.end - start) for span in spans] for spans in ranks]


def crossover(
    network: Network, nbytes: int, workers: Sequence[int], bandwidths: Sequence[float], servers: Callable[[int], int]
) -> FloatArray:
    """(bandwidths, workers) how many times as long as a ring a synchronous parameter server takes.

    Args:
        network: all else about it.
        nbytes: of the gradients.
        workers: numbers of them.
        bandwidths: of a port between nodes, bytes a second.
        servers: how many there are for a number of workers.
    """
    ratios = np.empty((len(bandwidths), len(workers)))
    for row, bandwidth in enumerate(bandwidths):
        changed = replace(network, wires=wire(network.wires.pieces[0].alpha, bandwidth))
        for column, count in enumerate(workers):
            times = [
                bare_row(name, changed, count, nbytes, servers=servers(count))["communication_seconds"]
                for name in ("ps", "ring")
            ]
            ratios[row, column] = times[0] / times[1]
    return ratios
