"""Simulating updates of models and clusters that nobody has at hand: step time, throughput and what limits them.

All-reduces are sequences of rounds and take `replay`, on all ranks at once. Any other strategy runs as it is, on a
`Cluster`, with a model that has a size and no contents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.collectives.recursive_doubling import recursive_doubling
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.schedules.schedule import Round, moved
from bigbatch.comm.simulation.computing import FORWARD_SHARE, Computing, Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network, wire
from bigbatch.comm.simulation.replay import Phase, port_bytes, replay, replay_phases
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.parameter_server import ParameterServer
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.recording import Span, Trace
from bigbatch.comm.wires.transport import Transport, consecutive_nodes
from bigbatch.models.sizes import ModelSize

ELEMENT_BYTES = 4
"""Gradients travel as float32."""

UPDATES = 1
"""Simulated after the first, where one is like the other; with random ones `RANDOM_UPDATES`, of which the mean is
reported."""

RANDOM_UPDATES = 20


@dataclass(frozen=True)
class Workload:
    """What every worker does in an update.

    Attributes:
        size: of the model.
        tokens: that a worker computes in an update, in all its micro-batches.
        computing: how long that takes.
        bucket_bytes: gradients are sent in buckets of about this size.
        overlap: whether buckets are sent while backward of the last micro-batch still runs.
        accumulation: micro-batches, of as many tokens each, whose gradients a worker adds up for an update.

    Raises:
        ConfigurationError: fewer than one micro-batch, or more of them than tokens.
    """

    size: ModelSize
    tokens: int
    computing: Computing
    bucket_bytes: int
    overlap: bool
    accumulation: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.accumulation <= self.tokens:
            raise ConfigurationError(
                f"A worker's {self.tokens:,} tokens of an update cannot be computed in {self.accumulation:,} "
                "micro-batches; it takes at least one, and a token for each."
            )

    @property
    def compute(self) -> float:
        """Seconds that an update's computing takes a worker that nothing slows."""
        return self.computing.forward(self.tokens) + self.computing.backward(self.tokens)

    def buckets(self) -> list[int]:
        """Elements of each bucket, in the order in which backward finishes them."""
        buckets, held = [], 0
        for elements in self.size.parts:
            held += elements
            if held * ELEMENT_BYTES >= self.bucket_bytes:
                buckets.append(held)
                held = 0
        return [*buckets, held] if held else buckets

    def ready(self) -> FloatArray:
        """(buckets,) the share of an update's computing after which each bucket is ready."""
        shares = np.cumsum(self.buckets()) / self.size.parameters
        ahead = (1 - FORWARD_SHARE) * (1 - shares) / self.accumulation
        return 1 - ahead if self.overlap else np.ones(len(shares))


@dataclass(frozen=True)
class Row:
    """One strategy on one number of workers.

    Attributes:
        strategy: its name.
        workers: how many compute.
        network: the network's name.
        step_seconds: an update takes, in the mean.
        compute_seconds: of it, a worker computes.
        communication_seconds: of it, a worker stands still while data move.
        waiting_seconds: of it, a worker stands still for slower ones.
        tokens_per_second: of all workers together.
        efficiency: that, over the tokens a second of as many workers that exchange nothing and are never slowed.
        busiest_port_bytes: through the busiest port in an update, gradients and parameters only; None if not known.
        exact: whether every message was followed; else those that overtake others, being too many, were not.
    """

    strategy: str
    workers: int
    network: str
    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    waiting_seconds: float
    tokens_per_second: float
    efficiency: float
    busiest_port_bytes: int | None
    exact: bool = True


def rounds_named(name: str) -> Callable[..., Any] | None:
    """The all-reduce of that name or in that file, if it is made of rounds."""
    if name in ALGORITHMS.names():
        algorithm: Callable[..., Any] = ALGORITHMS.load(name)
        return algorithm
    strategy = STRATEGIES.load(name)
    return strategy.rounds if issubclass(strategy, AllReduce) else None


class Updates:
    """What some updates took each worker, in any order.

    Args:
        begins: (updates,) seconds, when a worker began each.
        ends: (updates,) seconds, when it was through.
        computing: (updates,) seconds of it that it computed.
        waiting: (updates,) seconds that it stood still for slower workers.
        tokens: (updates,) behind all updates of all workers until then.
        first: (updates,) whether it is its worker's first. All begin that one at the same moment, and most of the later
            ones not: who was served first by a busy port goes on first. So first ones are left out of means and
            throughput, unless there are no others.
        exact: whether every message was followed.
    """

    def __init__(
        self,
        begins: FloatArray,
        ends: FloatArray,
        computing: FloatArray,
        waiting: FloatArray,
        tokens: FloatArray,
        first: NDArray[np.bool_],
        *,
        exact: bool = True,
    ) -> None:
        self._exact = exact
        counted = ~first if not first.all() else first
        since = float(begins.min()) if first.all() else float(ends[first].max())
        before = 0.0 if first.all() else float(tokens[ends <= since].max())
        self._steps = (ends - begins)[counted]
        self._computing, self._waiting = computing[counted], waiting[counted]
        self._tokens_per_second = float(tokens.max() - before) / (float(ends.max()) - since)

    @property
    def shortest(self) -> float:
        """Seconds of the quickest worker's quickest update."""
        return float(self._steps.min())

    @property
    def longest(self) -> float:
        """Seconds of the slowest worker's slowest update."""
        return float(self._steps.max())

    def row(self, strategy: str, workers: int, network: Network, workload: Workload, busiest: int | None) -> Row:
        """Their means."""
        step, compute, waiting = (float(part.mean()) for part in (self._steps, self._computing, self._waiting))
        alone = workers * workload.tokens / workload.compute
        return Row(
            strategy,
            workers,
            network.name,
            step_seconds=step,
            compute_seconds=compute,
            communication_seconds=step - compute - waiting,
            waiting_seconds=waiting,
            tokens_per_second=self._tokens_per_second,
            efficiency=self._tokens_per_second / alone,
            busiest_port_bytes=busiest,
            exact=self._exact,
        )


# All-reduces, by replay.


def barrier(size: int) -> Iterator[Round]:
    """The dissemination barrier of `Transport.barrier`, as rounds."""
    rank, distance = np.arange(size), 1
    while distance < size:
        yield moved(rank, (rank + distance) % size, chunk=0, reduce=False)
        distance *= 2


def exchanges(algorithm: Callable[..., Any], network: Network, workers: int, workload: Workload) -> list[Phase]:
    """What `AllReduce` sends in an update, each phase ready at a share of the update's computing.

    Every early bucket is summed after a barrier; then come the numbers of tokens and the losses; then the last bucket.
    """
    nodes = consecutive_nodes(workers, network.node_size)
    phases = []
    buckets, shares = workload.buckets(), workload.ready().tolist()
    for number, (elements, after) in enumerate(zip(buckets, shares, strict=True), start=1):
        rounds = bind(algorithm, elements * ELEMENT_BYTES, nodes)
        if number < len(buckets):
            phases.append(Phase(barrier, 1, after, itemsize=1))
        else:
            phases.append(Phase(recursive_doubling, 2, 1.0, itemsize=8))
        phases.append(Phase(rounds, elements, after, ELEMENT_BYTES))
    return phases


def all_reduced(
    algorithm: Callable[..., Any],
    network: Network,
    workers: int,
    workload: Workload,
    stragglers: Stragglers,
    updates: int,
    seed: int,
) -> Updates:
    """Updates over an all-reduce that is made of rounds."""
    factors = [stragglers.factors(worker, seed) for worker in range(workers)]
    phases = exchanges(algorithm, network, workers, workload)
    begin = np.zeros(workers)
    rough: list[bool] = []
    made = []
    for number in range(updates):
        compute = workload.compute * np.array([next(own) for own in factors])
        ready = begin + compute
        asked = [Phase(p.schedule, p.elements, begin + np.asarray(p.ready) * compute, p.itemsize) for p in phases]
        end = replay_phases(asked, network, workers, roughly=lambda: rough.append(True))[-1] if workers > 1 else ready
        tokens = np.full(workers, (number + 1.0) * workers * workload.tokens)
        made.append([begin, end, compute, ready.max() - ready, tokens, np.full(workers, number == 0)])
        if not stragglers.random and np.ptp(end) == 0:
            break  # all go on at the same moment: the next is like this one
        begin = end
    begins, ends, computing, waiting, totals, first = (np.concatenate(column) for column in zip(*made, strict=True))
    return Updates(begins, ends, computing, waiting, totals, first.astype(bool), exact=not rough)


# Any strategy, on a cluster.


class PhantomModel(nn.Module):
    """Parameters that have sizes and no contents.

    Args:
        size: of the model whose parts they are, in the order in which backward finishes them.
    """

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        for number, elements in enumerate(reversed(size.parts)):
            self.register_parameter(f"part{number}", nn.Parameter(torch.empty(elements, device="meta")))


START_TOGETHER = 10.0
"""Times as long as getting ready took after which all begin their updates, at the same moment."""


def plain_sgd(named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """An optimiser; what it does to parameters without contents takes no time."""
    return torch.optim.SGD([parameter for _, parameter in named], lr=0.1)


def on_cluster(
    strategy: type[Strategy],
    network: Network,
    workers: int,
    workload: Workload,
    stragglers: Stragglers,
    updates: int,
    seed: int,
    prepare: Callable[[Transport], None] = lambda _: None,
) -> Updates:
    """Updates over any strategy, which runs as it would between processes.

    Args:
        strategy: which.
        network: what messages cost.
        workers: how many compute.
        workload: what each does in an update.
        stragglers: what slows them.
        updates: how many each makes; fewer where the strategy leaves some out.
        seed: of the stragglers' random factors.
        prepare: called on every rank once it has started.
    """
    shares = np.diff(workload.ready(), prepend=0.0).tolist()
    started: list[float] = []

    def body(transport: Transport) -> Any:
        parameters = FlatParameters(PhantomModel(workload.size))
        own = strategy(transport)
        own.start(parameters, plain_sgd, bucket_bytes=workload.bucket_bytes)
        started.append(transport.now())
        transport.barrier()
        transport.spend(START_TOGETHER * (1 + max(started)) - transport.now())
        prepare(transport)

        def work() -> list[list[float]]:
            factors, made, number = stragglers.factors(transport.rank, seed), [], 0
            while number < updates:
                begin, waited, compute = transport.now(), own.waiting_seconds, workload.compute * next(factors)
                for bucket, portion in zip(own.buckets, shares, strict=True):
                    transport.spend(compute * portion)
                    own.push(bucket)
                report = own.step(workload.tokens, 0.0)
                own.pull()
                number = report.next_update
                made.append([begin, transport.now(), compute, own.waiting_seconds - waited, report.total_weight])
            return made

        made = own.run(work)
        own.close()
        return made

    ranks = strategy.ranks_for(workers)
    everyone = Cluster(ranks, network=network, failures=stragglers.failures).run(body)
    columns = np.concatenate([np.array(made) for made in everyone[:workers]]).T
    first = np.concatenate([np.arange(len(made)) == 0 for made in everyone[:workers]])
    begins, ends, computing, waiting, tokens = columns
    return Updates(begins, ends, computing, waiting, tokens, first)


def served_bytes(strategy: type[Strategy], workers: int, workload: Workload) -> int | None:
    """Bytes of gradients through a server's port in an update, or of values; None if the strategy has no servers.

    A server beside a worker saves its own.
    """
    if not issubclass(strategy, ParameterServer):
        return None
    setup = strategy.options
    senders, servers = (workers - 1, workers) if setup.colocated else (workers, setup.servers)
    return senders * workload.size.parameters * ELEMENT_BYTES // servers


# What the command does.


def strategy_named(name: str, servers: int) -> type[Strategy]:
    """The strategy of that name; a parameter server with so many servers.

    Raises:
        ConfigurationError: there is none, or it moves its data by other means than messages of ours.
    """
    strategy: type[Strategy] = STRATEGIES.load(name)
    if issubclass(strategy, ParameterServer):
        return strategy.configured({"servers": servers})
    if issubclass(strategy, AllReduce) and rounds_named(name) is None:
        raise ConfigurationError(
            f"{name} sends no messages of ours, so that nobody can say what they would take. Simulate one of: "
            f"{', '.join(ALGORITHMS.names())}, ps."
        )
    return strategy


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
        servers: of a parameter server.
        seed: of the stragglers' random factors.
        updates: how many are simulated after the first, which is left out; None for `UPDATES`, or `RANDOM_UPDATES`
            if they are random.

    Raises:
        ConfigurationError: no such strategy, or one that cannot be simulated.
    """
    strategy, algorithm = strategy_named(name, servers), rounds_named(name)
    if updates is None:
        updates = RANDOM_UPDATES if stragglers.random else UPDATES
    if algorithm is None:
        made = on_cluster(strategy, network, workers, workload, stragglers, 1 + updates, seed)
        return made.row(name, workers, network, workload, served_bytes(strategy, workers, workload))
    made = all_reduced(algorithm, network, workers, workload, stragglers, 1 + updates, seed)
    elements = workload.size.parameters
    rounds = bind(algorithm, elements * ELEMENT_BYTES, consecutive_nodes(workers, network.node_size))
    busiest = int(port_bytes(rounds, network, workers, elements, ELEMENT_BYTES).max(initial=0)) if workers > 1 else 0
    return made.row(name, workers, network, workload, busiest)


def bare_row(
    name: str, network: Network, workers: int, nbytes: int, *, servers: int = 1, segments: int = 1
) -> dict[str, Any]:
    """One sum of so many bytes and nothing else: strategy, workers, bytes, communication_seconds.

    Args:
        name: of the strategy.
        network: what messages cost.
        workers: how many take part.
        nbytes: of the sum.
        servers: of a parameter server.
        segments: in how many pieces a parameter server's parts travel, values of one beside gradients of the next.

    Raises:
        ConfigurationError: no such strategy, or one that is more than a sum.
    """
    strategy, algorithm = strategy_named(name, servers), rounds_named(name)
    ranks = workers
    if algorithm is not None:
        rounds = bind(algorithm, nbytes, consecutive_nodes(workers, network.node_size))
    elif issubclass(strategy, ParameterServer):
        rounds = partial(synchronous_server, servers=servers, segments=segments)
        ranks = workers + servers
    else:
        raise ConfigurationError(f"{name} is more than one sum: leave --bytes out.")
    seconds = float(replay(rounds, network, ranks, nbytes, itemsize=1).max()) if ranks > 1 else 0.0
    return {"strategy": name, "workers": workers, "bytes": nbytes, "communication_seconds": seconds}


def traced_update(
    name: str, network: Network, workers: int, workload: Workload, stragglers: Stragglers, servers: int
) -> list[list[Span]]:
    """What every rank does when in one update, (ranks,) spans each, from when the first begins."""
    traces: dict[int, Trace] = {}

    def record(transport: Transport) -> None:
        traces[transport.rank] = transport.trace = Trace(transport.now)

    on_cluster(strategy_named(name, servers), network, workers, workload, stragglers, 1, 0, record)
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
