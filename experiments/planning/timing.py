"""Timing updates: by replaying what a strategy describes, or by running the strategy on a simulated cluster."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.schedules.schedule import IntArray, Round
from bigbatch.comm.simulation.computing import Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.comm.simulation.replay import Phase, port_bytes, replay_phases
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.planning.updates import Updates, whole_periods
from bigbatch.experiments.planning.workload import Workload
from bigbatch.models.sizes import ModelSize

ORIGIN = 2.0**-20
"""The simulated second at which updates start, in a replay and on a cluster alike: events that coincide on one clock
then coincide on the other, to the last bit, and happen in the same order."""


def nothing(_: int) -> Sequence[Round]:
    """A schedule without rounds, for any number of ranks."""
    return ()


def replayed(
    phases: Callable[[int], Sequence[Phase]],
    period: int,
    network: Network,
    workers: int,
    workload: Workload,
    stragglers: Stragglers,
    updates: int,
    seed: int,
) -> Updates:
    """Times updates of a strategy that describes what it sends, on all ranks at once.

    Args:
        phases: the phases of the update with a given number within a period; see `Description`.
        period: number of updates in a period.
        network: the network, which says what messages cost.
        workers: number of workers.
        workload: what each worker does in an update.
        stragglers: what slows workers.
        updates: number of updates to replay; only one period is replayed if all workers end it at the same moment and
            nothing is random.
        seed: seed for the stragglers' random factors.
    """
    factors = [stragglers.factors(worker, seed) for worker in range(workers)]
    compute = np.array([[workload.compute * next(own) for own in factors] for _ in range(updates)])
    in_period = [list(phases(number)) if workers > 1 else [] for number in range(min(period, updates))]
    made = [in_period[number % period] for number in range(updates)]
    begin = np.full(workers, ORIGIN)
    ends, exact = _ends(made[:period], network, workers, compute, begin)
    alike = not stragglers.random and bool(np.ptp(ends[-1]) == 0)
    if not alike:
        ends, exact = _ends(made, network, workers, compute, begin)
    made, compute = made[: len(ends)], compute[: len(ends)]
    begins = np.stack([begin, *ends[:-1]])
    ready = begins + compute
    exchanges = np.array([bool(own) for own in made])[:, None]
    waiting = np.where(exchanges, np.minimum(ready.max(axis=1, keepdims=True), np.maximum(ends, ready)) - ready, 0.0)
    passed = _passed(in_period, network, workers)[np.arange(len(made)) % period]
    counted, whole = whole_periods(ends - begins, passed, period, random=stragglers.random)
    if alike:  # every period is like this one, the first
        counted, whole = range(len(ends)), True
    return Updates(ends - begins, compute, waiting, passed, counted, exact=exact and whole)


def _ends(
    made: Sequence[Sequence[Phase]], network: Network, workers: int, compute: FloatArray, begin: FloatArray
) -> tuple[FloatArray, bool]:
    """When every worker has ended each of some updates, (updates, workers), and whether every message was followed.

    Args:
        made: the phases of each update.
        network: what messages cost.
        workers: how many compute.
        compute: (updates, workers) seconds that computing takes.
        begin: (workers,) when each begins the first.
    """
    asked: list[Phase] = []
    last = []
    for number, (phases, seconds) in enumerate(zip(made, compute, strict=False)):
        complete = phases and np.max(phases[-1].ready) >= 1
        for place, phase in enumerate(phases if complete else [*phases, Phase(nothing, 0, 1.0)]):
            ready = np.asarray(phase.ready) * seconds
            asked.append(replace(phase, ready=ready if number else begin + ready, restart=number > 0 and place == 0))
        last.append(len(asked) - 1)
    rough: list[bool] = []
    ends = replay_phases(asked, network, workers, roughly=lambda: rough.append(True))[last]
    if not rough or len(made) == 1:
        return ends, not rough
    # Together they are too many messages to follow: each update by itself, as if it found all ports idle.
    separate, exact = [], True
    for phases, seconds in zip(made, compute, strict=False):
        (begin,), followed = _ends([phases], network, workers, seconds[None], begin)
        separate.append(begin)
        exact &= followed
    return np.stack(separate), exact


def _passed(updates: Sequence[Sequence[Phase]], network: Network, workers: int) -> IntArray:
    """(updates, ports) bytes that pass each port."""
    known: dict[tuple[Any, ...], IntArray] = {}
    none = np.zeros(network.for_ranks(workers).count, np.int64)

    def passed(phase: Phase) -> IntArray:
        key = phase.schedule, phase.elements, phase.itemsize
        if key not in known:
            known[key] = port_bytes(phase.schedule, network, workers, phase.elements, phase.itemsize)
        return known[key]

    return np.stack([sum((passed(phase) for phase in phases), none) for phases in updates])


class PhantomModel(nn.Module):
    """A model whose parameters have sizes but no contents, one parameter per part of a model's size.

    Args:
        size: the size of the model.
    """

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        for number, elements in enumerate(reversed(size.parts)):
            self.register_parameter(f"part{number}", nn.Parameter(torch.empty(elements, device="meta")))


def plain_sgd(named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Makes the optimiser of parameters without contents, on which it takes no time."""
    return torch.optim.SGD([parameter for _, parameter in named], lr=0.1)


class Meter:
    """Counts the bytes that pass every port of a cluster, by the update that they are sent for.

    What a worker sends counts for the update that it is making. What other ranks send, such as servers, counts for the
    update that the receiver is making. What a worker sends between or after its updates does not count.

    Args:
        network: the network of the cluster.
        ranks: number of ranks of the cluster.
    """

    def __init__(self, network: Network, ranks: int) -> None:
        self._ports = network.for_ranks(ranks)
        self._routes: dict[tuple[int, int], list[int]] = {}
        self._passed: list[list[int]] = []
        self._workers: set[Transport] = set()
        self._under_way: dict[int, int] = {}

    def begin(self, worker: Transport, number: int) -> None:
        """Notes that a worker starts the update with this number, from 0."""
        self._workers.add(worker)
        self._under_way[worker.rank] = number
        while len(self._passed) <= number:
            self._passed.append([0] * self._ports.count)

    def end(self, worker: Transport) -> None:
        """Notes that a worker has ended its update."""
        del self._under_way[worker.rank]

    def __call__(self, end: Transport, target: int, nbytes: int) -> None:
        """A message is sent to `target` from one end of the wires: a worker's own, or that of whoever serves it."""
        if end in self._workers:
            number = self._under_way.get(end.rank)
        else:
            number = self._under_way.get(target, self._under_way.get(end.rank))
        if number is None or target == end.rank:
            return
        way = end.rank, target
        if way not in self._routes:
            self._routes[way] = [port for port, _ in self._ports.route(*way).ports]
        passed = self._passed[number]
        for port in self._routes[way]:
            passed[port] += nbytes

    def passed(self) -> IntArray:
        """Returns the bytes so far, (updates, ports)."""
        return np.array(self._passed, np.int64)


def on_cluster(
    strategy: type[Strategy],
    network: Network,
    workers: int,
    workload: Workload,
    stragglers: Stragglers,
    updates: int,
    seed: int,
    prepare: Callable[[Transport], None] = lambda _: None,
    *,
    period: int | None = None,
) -> Updates:
    """Times updates of any strategy, which runs as it would between processes, with gradients that have only a size.

    Args:
        strategy: the strategy.
        network: the network, which says what messages cost.
        workers: number of workers.
        workload: what each worker does in an update.
        stragglers: what slows workers.
        updates: number of updates that each worker makes; fewer where the strategy skips some.
        seed: seed for the stragglers' random factors.
        prepare: called on every rank once it has started.
        period: number of updates after which the strategy repeats itself; None to find out.
    """
    ranks = strategy.ranks_for(workers)
    cluster = Cluster(ranks, network=network, failures=stragglers.failures)
    cluster.fabric.charging = False  # getting ready is no part of any update
    meter = Meter(network, ranks)
    started: list[float] = []

    def body(transport: Transport) -> list[list[float]] | None:
        parameters = FlatParameters(PhantomModel(workload.size))
        own = strategy(transport)
        own.start(parameters, plain_sgd, bucket_bytes=workload.bucket_bytes, wire=workload.wire)
        started.append(transport.now())
        transport.barrier()
        transport.spend(ORIGIN + max(started) - transport.now())
        cluster.fabric.charging, cluster.fabric.meter = True, meter
        prepare(transport)
        portions = np.diff(workload.ready([len(bucket.gradients) for bucket in own.buckets]), prepend=0.0).tolist()

        def work() -> list[list[float]]:
            factors, number = stragglers.factors(transport.rank, seed), 0
            made: list[list[float]] = []
            while number < updates:
                begin, waited, compute = transport.now(), own.waiting_seconds, workload.compute * next(factors)
                meter.begin(transport, len(made))
                for bucket, portion in zip(own.buckets, portions, strict=True):
                    transport.spend(compute * portion)
                    own.push(bucket)
                report = own.step(workload.tokens, 0.0)
                own.pull()
                meter.end(transport)
                number = report.next_update
                made.append([transport.now() - begin, compute, own.waiting_seconds - waited, report.total_weight])
            return made

        made = own.run(work)
        own.close()
        return made

    everyone = [made for made in cluster.run(body)[:workers] if made is not None]
    table = np.full((max(map(len, everyone)), workers, 4), np.nan)
    for worker, made in enumerate(everyone):
        table[: len(made), worker] = made
    steps, computing, waiting, tokens = np.moveaxis(table, -1, 0)
    passed = meter.passed()
    counted, exact = whole_periods(steps, passed, period, random=stragglers.random)
    useful, replicas = 1.0, strategy.replicas(workers)
    gradients = replicas * strategy.steps_per_update(workers) * strategy.gradients_per_step(workers)
    if gradients < workers:  # some are dropped
        useful = min(1.0, float(np.nanmax(tokens)) / (workload.tokens * sum(map(len, everyone))))
    return Updates(steps, computing, waiting, passed, counted, useful=useful, exact=exact)
