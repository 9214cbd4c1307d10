"""Simulating updates of large models on large clusters: step time, throughput and what limits them.

A strategy that describes what it sends is simulated by `replay`, on all ranks at once. Any other strategy runs as it
is on a `Cluster`, with a model that has a size but no contents. Both give the same numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.kinds import RANKS, checked
from bigbatch.comm.precisions import FP32
from bigbatch.comm.schedules.schedule import Round
from bigbatch.comm.simulation.computing import Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.comm.simulation.network import wire as plain_wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.description import Description
from bigbatch.comm.strategies.description import Workload as Gradients
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.life import doing
from bigbatch.comm.wires.recording import Span, Trace
from bigbatch.comm.wires.transport import Transport, consecutive_nodes
from bigbatch.experiments.planning.timing import on_cluster, replayed
from bigbatch.experiments.planning.updates import Row
from bigbatch.experiments.planning.workload import Workload, bytes_sent

RANDOM_UPDATES = 20
"""Least number of updates that are simulated after the first if random factors slow the workers."""

MOST_UPDATES, LEAST_UPDATES = 32, 8
"""Numbers of updates that are simulated after the first if a strategy does not say its period: `MOST_UPDATES` on up to
`MANY_RANKS` ranks. On more ranks they are fewer in proportion, but at least `LEAST_UPDATES`."""

MANY_RANKS = 64

EXAMPLE = Network("example", plain_wire(1e-6, 1e9))
"""The network on which it is tested whether a strategy can be simulated; any network would do."""


def simulating(name: str, workers: int) -> AbstractContextManager[None]:
    """Says that a strategy is simulated within the context, which takes hours for some strategies on many workers."""
    return doing(f"simulating {name} on {workers:,} workers")


def strategy_named(name: str, servers: int, workers: int = 2) -> type[Strategy]:
    """Loads a strategy that can be simulated, with `servers` servers if it has an option for that.

    Args:
        name: name of the strategy.
        servers: number of servers.
        workers: smallest number of workers for which it will be simulated.

    Raises:
        ConfigurationError: there is no such strategy, it does not run with so few workers, its rounds are no
            all-reduce, or it does not move its data by messages over a transport of ours.
    """
    strategy: type[Strategy] = STRATEGIES.load(name)
    if any(option.name == "servers" for option in strategy.options.offered()):
        strategy = strategy.configured({"servers": servers})
    ranks = checked("The number of workers and servers together", RANKS, strategy.ranks_for(workers))
    strategy.workers_among(ranks)
    strategy.check_rounds(workers)
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
    """Asks a strategy to describe what it sends on a network, for `workers` workers."""
    return strategy.described(gradients, workers, consecutive_nodes(workers, network.node_size))


def updates_enough(period: int | None, ranks: int, *, random: bool) -> int:
    """Says how many updates to simulate after the first one.

    Args:
        period: number of updates after which the strategy repeats itself; None if it does not say.
        ranks: number of ranks that take part.
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
    """Simulates updates with one strategy on one number of workers, and returns their means.

    Args:
        name: name of the strategy.
        network: the network, which says what messages cost.
        workers: number of workers.
        workload: what each worker does in an update.
        stragglers: what slows workers.
        servers: number of servers, for a strategy with this option.
        seed: seed for the stragglers' random factors.
        updates: number of updates that are simulated after the first, which does not count; None for the number that
            `updates_enough` says.

    Raises:
        ConfigurationError: there is no such strategy, it cannot be simulated, or it does not send gradients in that
            precision.
    """
    strategy = strategy_named(name, servers, workers)
    strategy.check_wire(workload.wire)
    says = described(strategy, workload.gradients, network, workers)
    if updates is None:
        updates = updates_enough(says.period, strategy.ranks_for(workers), random=stragglers.random)
    if says.phases is None:
        made = on_cluster(strategy, network, workers, workload, stragglers, 1 + updates, seed, period=says.period)
    else:
        made = replayed(says.phases, says.period or 1, network, workers, workload, stragglers, 1 + updates, seed)
    return made.row(name, workers, network, workload, made.busiest)


def bare_row(
    name: str, network: Network, workers: int, nbytes: int, *, servers: int = 1, segments: int = 1, wire: str = FP32
) -> dict[str, Any]:
    """Simulates one sum and nothing else; returns strategy, workers, bytes, communication_seconds.

    Args:
        name: name of the strategy.
        network: the network, which says what messages cost.
        workers: number of workers.
        nbytes: size of the sum in float32, in bytes.
        servers: number of servers, for a strategy with this option.
        segments: number of pieces into which each server's part is cut, so that the values of one piece travel beside
            the gradients of the next; more than 1 only for a strategy whose rounds take such a number.
        wire: the precision in which it is sent.

    Raises:
        ConfigurationError: there is no such strategy, or it does more than one sum.
    """
    strategy = strategy_named(name, servers, workers)
    sent, rounded = bytes_sent(wire, nbytes), wire != FP32
    total = described(strategy, Gradients.of_bytes(sent), network, workers).total
    if total is None:
        raise ConfigurationError(f"{name} is more than one sum: leave --bytes out.")
    schedule: Callable[..., Iterable[Round]] = total.schedule
    rounds = partial(schedule, segments=segments) if segments > 1 else schedule
    seconds = 0.0
    if total.ranks > 1:
        seconds = float(replay(rounds, network, total.ranks, sent, itemsize=1, rounded=rounded).max())
    return {"strategy": name, "workers": workers, "bytes": nbytes, "communication_seconds": seconds}


def traced_update(
    name: str, network: Network, workers: int, workload: Workload, stragglers: Stragglers, servers: int
) -> list[list[Span]]:
    """Records what every rank does when in one update: spans of each rank, in seconds from the first start."""
    traces: dict[int, Trace] = {}

    def record(transport: Transport) -> None:
        traces[transport.rank] = transport.trace = Trace(transport.now)

    on_cluster(strategy_named(name, servers, workers), network, workers, workload, stragglers, 1, 0, record)
    ranks = [traces[rank].spans for rank in sorted(traces)]
    start = min(span.begin for spans in ranks for span in spans)
    return [[replace(span, begin=span.begin - start, end=span.end - start) for span in spans] for spans in ranks]


def crossover(
    network: Network,
    nbytes: int,
    workers: Sequence[int],
    bandwidths: Sequence[float],
    servers: Callable[[int], int],
    wire: str = FP32,
) -> FloatArray:
    """Simulates how many times as long as a ring a synchronous parameter server takes.

    Args:
        network: the network, of which only the bandwidth is changed.
        nbytes: size of the gradients in float32, in bytes.
        workers: numbers of workers.
        bandwidths: bandwidths of a port between nodes, in bytes per second.
        servers: the number of servers for a number of workers.
        wire: the precision in which they are sent.

    Returns:
        (bandwidths, workers) ratios of the server's time to the ring's.
    """
    ratios = np.empty((len(bandwidths), len(workers)))
    for row, bandwidth in enumerate(bandwidths):
        changed = replace(network, wires=plain_wire(network.wires.pieces[0].alpha, bandwidth))
        for column, count in enumerate(workers):
            times = [
                bare_row(name, changed, count, nbytes, servers=servers(count), wire=wire)["communication_seconds"]
                for name in ("ps", "ring")
            ]
            ratios[row, column] = times[0] / times[1]
    return ratios
