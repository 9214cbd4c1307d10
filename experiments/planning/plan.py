"""Planning a training: how many workers, how large a batch, which strategy; what time that takes and what it costs.

The time is updates times seconds an update. A larger batch takes fewer updates of more seconds each, and more tokens;
more workers divide the computing, and have more to say to each other. Of all combinations, the front are those of
which no other is both faster and cheaper.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import GPU, Computing, Stragglers
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.comm.simulation.replay import replay_phases
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.experiments.planning.simulate import Workload, exchanges, rounds_named, simulate_row, strategy_named
from bigbatch.experiments.planning.tradeoff import Tradeoff, kaplan
from bigbatch.experiments.runs.run import SUMMARY
from bigbatch.models.sizes import ModelSize, own_size

STATE_BYTES = 16
"""A parameter takes them with Adam in mixed precision: 2 its value, 2 its gradient, 12 in the optimiser.

Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models" (2020), section 3.1.
"""

LAYER_BYTES, OUTPUT_BYTES = 34, 4
"""Bytes that a token leaves for backward: 34 for each unit of width in each layer, if attention scores are computed
anew, and in the output 4 for each unit of width and each word of the vocabulary.

Korthikanti et al., "Reducing activation recomputation in large Transformer models" (2022), sections 4.1 and 4.3; with
flash attention scores are never stored either.
"""

PATIENCE = 2.0
"""Times the least cost that the recommended plan may cost."""


def memory_bytes(size: ModelSize, micro_batch: int) -> int:
    """Bytes that training takes on a GPU, estimated: the model's state and what forward leaves for backward.

    Args:
        size: of the model; every worker holds it whole.
        micro_batch: sequences of `context` tokens that are computed at once.
    """
    token = size.layers * size.width * LAYER_BYTES + (size.width + size.vocabulary) * OUTPUT_BYTES
    return size.parameters * STATE_BYTES + micro_batch * size.context * token


def fitting(size: ModelSize, micro_batches: Sequence[int], gpu: GPU | None) -> tuple[int, ...]:
    """Those micro-batches that fit into the GPU's memory; all of them if none is given.

    Raises:
        ConfigurationError: none does.
    """
    if gpu is None:
        return tuple(micro_batches)
    fit = tuple(number for number in micro_batches if memory_bytes(size, number) <= gpu.memory_bytes)
    if not fit:
        least = min(micro_batches)
        raise ConfigurationError(
            f"{size.name} does not fit a worker: at a micro-batch of {least} it takes about "
            f"{memory_bytes(size, least) / 1e9:,.0f} GB, and {gpu.name} has {gpu.memory_bytes / 1e9:,.0f} GB; "
            "take a larger --gpu, a smaller --micro-batch or a smaller --model."
        )
    return fit


# How many updates it takes.


@dataclass(frozen=True)
class Known:
    """What is known of the updates that a loss takes.

    Attributes:
        tradeoff: by batch size.
        source: whence, in words.
        target: the loss, in nats a token; None if it was not said.
    """

    tradeoff: Tradeoff
    source: str
    target: float | None

    def as_json(self) -> dict[str, Any]:
        """The same in types that JSON can write."""
        return {
            "least_updates": self.tradeoff.least_updates,
            "critical_batch": self.tradeoff.critical_batch,
            "source": self.source,
            "target": self.target,
        }


def known_from(
    size: ModelSize,
    target: float | None,
    critical_batch: float | None,
    least_updates: float | None,
    folder: Path | None,
) -> Known:
    """What is given counts most, then what was measured, then what was published.

    Args:
        size: of the model.
        target: the loss to reach, in nats a token.
        critical_batch: B_c that is given, in tokens; with `least_updates` or not at all.
        least_updates: S_min that is given.
        folder: of measurements that were fitted; its summary has a "fit".

    Raises:
        ConfigurationError: one of a pair, two sources, no source, a fit that cannot be read or is of another target, or
            a target that cannot be reached.
    """
    if (critical_batch is None) != (least_updates is None):
        raise ConfigurationError("--critical-batch and --least-updates belong together: give both, or neither.")
    if critical_batch is not None and least_updates is not None:
        if folder is not None:
            raise ConfigurationError(
                "--fit and --critical-batch with --least-updates both say how many updates it takes: leave one out."
            )
        return Known(Tradeoff(least_updates, critical_batch), "as given", target)
    if folder is not None:
        return _fitted(size, folder, target)
    if target is None:
        raise ConfigurationError(
            "Nothing says how many updates it takes: give a --target loss, or --fit with a folder of measurements, or "
            "--critical-batch and --least-updates."
        )
    source = "Kaplan et al. (2020), who trained on WebText2 with Adam; elsewhere a rule of thumb"
    return Known(kaplan(size, target), source, target)


@dataclass(frozen=True)
class Measured:
    """A fit that was made of measurements.

    Attributes:
        tradeoff: that was fitted.
        target: the loss, in nats a token; None if it was not said.
        untold: why it tells little, if so.
        size: of the model that was measured; None if it was not said.
    """

    tradeoff: Tradeoff
    target: float | None
    untold: str | None
    size: ModelSize | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The fit in a folder's summary.

        Raises:
            ConfigurationError: there is none.
        """
        path = folder / SUMMARY
        try:
            fit = json.loads(path.read_text(encoding="utf-8"))["fit"]
            tradeoff = Tradeoff(float(fit["least_updates"]), float(fit["critical_batch"]))
            target = None if fit.get("target") is None else float(fit["target"])
            sizes = fit.get("model")
            model = None if sizes is None else own_size(*(int(sizes[name]) for name in SIZES))
        except OSError as error:
            raise ConfigurationError(f"--fit {folder} has no {SUMMARY} that can be read: {error.strerror}.") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} has no fit of least_updates and critical_batch; --fit takes the folder of a measured one."
            ) from error
        return cls(tradeoff, target, fit.get("untold"), model)


SIZES = ("vocabulary", "context", "layers", "width")
"""Of our own Transformer."""


def _fitted(size: ModelSize, folder: Path, target: float | None) -> Known:
    """What was fitted to measurements, perhaps of another model."""
    measured = Measured.read(folder)
    fitted_target = measured.target
    if target is not None and fitted_target is not None and not math.isclose(target, fitted_target, rel_tol=1e-6):
        raise ConfigurationError(
            f"The fit in {folder} is of a loss of {fitted_target:g}, and --target is {target:g}: leave --target out."
        )
    untold = f"; but it says: {measured.untold}" if measured.untold else ""
    other = ""
    if measured.size is not None and measured.size != size:
        other = (
            f", of another model, with {measured.size.parameters:,} parameters and {measured.size.vocabulary:,} "
            f"different tokens: nobody has measured whether {size.name} takes as many updates"
        )
    return Known(
        measured.tradeoff,
        f"fitted to the measurements in {folder}{other}{untold}",
        target if fitted_target is None else fitted_target,
    )


# What an update takes.


def planned(name: str, servers: int) -> type[Strategy]:
    """The strategy of that name, if each of its updates is of everybody's gradients, computed on the same parameters.

    Raises:
        ConfigurationError: there is none, it cannot be simulated, or its updates are of something else.
    """
    strategy = strategy_named(name, servers)
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

    An all-reduce's buckets are summed one after the other, and summing takes as long whenever a bucket's turn comes. So
    one bucket of each size is simulated, and an update lasts until the latest of (a bucket is ready) + (it and all
    after it are summed). This leaves out that not all ranks are through with a bucket at the same time; see `MARGIN`.

    Any other strategy is simulated with the workload that has most to hide behind, the longest micro-batch. What it
    adds to the computing there is the least that it adds anywhere: the times are lower bounds for shorter ones.

    Args:
        name: of the strategy.
        network: what messages cost.
        workers: how many compute.
        workloads: of one model, and with one size of buckets.
        servers: of parameter servers.

    Raises:
        ConfigurationError: no such strategy, or one that cannot be simulated.
    """
    algorithm = rounds_named(name)
    if algorithm is None:
        most = max(workloads, key=lambda load: load.compute / load.accumulation)
        row = simulate_row(name, network, workers, most, Stragglers(), servers=servers)
        return [load.compute + row.step_seconds - most.compute for load in workloads]
    if workers == 1:
        return [load.compute for load in workloads]
    alone: dict[tuple[int, ...], float] = {}
    lasting = []
    phases = exchanges(algorithm, network, workers, workloads[0])
    for pair in zip(phases[::2], phases[1::2], strict=True):  # what comes before a bucket, and the bucket
        key = tuple(phase.elements * phase.itemsize for phase in pair)
        if key not in alone:
            at_once = [replace(phase, ready=0.0) for phase in pair]
            alone[key] = float(replay_phases(at_once, network, workers, roughly=lambda: None)[-1].max())
        lasting.append(alone[key])
    rest = np.cumsum(lasting[::-1])[::-1]

    def seconds(load: Workload) -> float:
        return float((load.compute * load.ready() + rest).max())

    return [seconds(load) for load in workloads]


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
        servers: numbers of parameter servers; strategies that have none come once.
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
            serving = {planned(name, number).ranks_for(count) - count: number for number in servers}
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
