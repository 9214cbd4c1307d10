"""The conformance kit for strategies: what every strategy must do for a training loop, checked on any ranks.

from bigbatch.training.strategy_conformance import conform_strategy
print(conform_strategy("my_file.py:MyStrategy"))  # {} if all is well, else what each check found
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring.conformance import examined
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.transport import Transport
from bigbatch.training.session import attach

Findings = Iterator[str]

Work = Callable[[Transport], dict[str, Any]]
OnRanks = Callable[[int, Work], list[dict[str, Any]]]
"""Does some work on each of so many ranks; returns what each returned, in types that JSON can write."""

WORKERS = (1, 2, 3)
UPDATES = 4
RATE = 0.1

NOT_LOOKED_AT = (
    f"more than {UPDATES} updates of plain gradient descent on {max(WORKERS)} workers, and models of several buckets",
    "ranks that fail or come late, training that is stopped and resumed, and how fast it is",
    "whether updates are good, where a strategy says that it is not exact or its workers are not in step",
)
"""What `conform_strategy` does not look at, each as a phrase."""


def conform_strategy(name: str) -> dict[str, str]:
    """Put a strategy through every check, on simulated ranks.

    Args:
        name: the strategy's name: "ring", "ps:async", "my_file.py:MyStrategy".

    Returns:
        What the checks found, by name, one sentence each: empty if it conforms.

    Raises:
        ConfigurationError: it cannot run on simulated ranks.
    """
    refusals = refused_on_cluster(name)
    if refusals.keys() >= set(WORKERS) - {1}:
        raise next(reversed(refusals.values()))
    checks = checks_of_strategy(name, on_cluster, [workers for workers in WORKERS if workers not in refusals])
    return dict(found for found in examined(checks) if found[1])


def refused_on_cluster(name: str) -> dict[int, ConfigurationError]:
    """The numbers of workers, of those that are looked at, with which a strategy refuses to run on simulated ranks."""
    kind: type[Strategy] = STRATEGIES.load(name)
    refusals = {}
    for workers in WORKERS:
        try:
            Cluster(kind.ranks_for(workers)).run(kind)
        except ConfigurationError as error:
            refusals[workers] = error
    return refusals


def on_cluster(ranks: int, work: Work) -> list[dict[str, Any]]:
    """Does some work on simulated ranks on a free network."""
    return Cluster(ranks).run(work)


def checks_of_strategy(name: str, on_ranks: OnRanks, workers: Sequence[int]) -> dict[str, Callable[[], Findings]]:
    """The checks of `conform_strategy`, by name; each yields what it finds wrong.

    Args:
        name: the strategy's name.
        on_ranks: does work on ranks, simulated or real.
        workers: the numbers of workers to look at; real ranks have only one such number.
    """
    kind: type[Strategy] = STRATEGIES.load(name)

    def run(check: Callable[[type[Strategy], Trainings, int], Findings]) -> Findings:
        for count in workers:
            for finding in check(kind, trainings, count):
                yield f"{count} workers: {finding}"

    trainings = Trainings(name, kind, on_ranks)
    return {called: partial(run, check) for called, check in CHECKS.items()}


class Trainings:
    """Trains a tiny model over a strategy, in the ways that the checks look at.

    Args:
        name: the strategy's name.
        kind: the strategy.
        on_ranks: does work on ranks.
    """

    def __init__(self, name: str, kind: type[Strategy], on_ranks: OnRanks) -> None:
        self._name = name
        self._kind = kind
        self._on_ranks = on_ranks
        self.train = lru_cache(self._train)

    def _train(self, workers: int, idle: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """Trains, and returns every worker's parameters and reports.

        Args:
            workers: how many train.
            idle: workers that have no data in any update.
            broken: workers whose gradients are no numbers.
        """

        def work(transport: Transport) -> dict[str, Any]:
            model = Tiny()
            session = attach(model, torch.optim.SGD, lr=RATE, strategy=self._name, transport=transport, overlap=False)
            reports = []
            for update in range(UPDATES if session.worker is not None else 0):
                worker = session.worker or 0
                tokens = 0 if worker in idle else tokens_of(update, worker)
                factor = 0.0 if worker in idle else math.nan if worker in broken else 1.0
                report = session.backward(model(update, worker, factor), tokens)
                if report is not None:
                    reports.append([report.applied, int(report.version), float(report.weight)])
            values = [value for parameter in model.parameters() for value in parameter.detach().flatten().tolist()]
            session.close()
            return {"worker": session.worker, "values": values, "reports": reports}

        results = self._on_ranks(self._kind.ranks_for(workers), work)
        return [result for result in results if result["worker"] is not None]


class Tiny(nn.Module):
    """A model of which the gradient in every update is known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        values = torch.arange(1, 18, dtype=torch.float64) / 7
        self.weight = nn.Parameter(values[:12].reshape(3, 4).clone())
        self.bias = nn.Parameter(values[12:].clone())

    def forward(self, update: int, worker: int, factor: float) -> Tensor:
        """A loss with the gradient `factor` × `gradient_of`."""
        gradient = gradient_of(update, worker) * factor
        return (self.weight.flatten() * gradient[:12]).sum() + (self.bias * gradient[12:]).sum()


def gradient_of(update: int, worker: int) -> Tensor:
    """(17,) the gradient of one worker in one update, another one for each."""
    return torch.cos(torch.arange(17, dtype=torch.float64) * (1 + worker) + update) + 2 + worker


def tokens_of(update: int, worker: int) -> int:
    """The tokens behind the gradient of one worker in one update."""
    return 3 + update + 2 * worker


def start() -> list[float]:
    """The parameters before any update."""
    return [value for parameter in Tiny().parameters() for value in parameter.detach().flatten().tolist()]


def plain(workers: int) -> list[float]:
    """The parameters that a loop in one process ends with, which sums all gradients and divides once."""
    values = torch.tensor(start(), dtype=torch.float64)
    for update in range(UPDATES):
        gradients = torch.stack([gradient_of(update, worker) for worker in range(workers)]).sum(0)
        values -= RATE * gradients / sum(tokens_of(update, worker) for worker in range(workers))
    return values.tolist()


def far(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two lists of parameters differ by more than rounding."""
    return any(not math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in zip(one, other, strict=True))


def trains(_: type[Strategy], trainings: Trainings, workers: int) -> Findings:
    """Checks that every worker ends with other parameters than it had, all of them numbers, and says so."""
    results = trainings.train(workers)
    for result in results:
        who = f"worker {result['worker']}"
        if not all(map(math.isfinite, result["values"])):
            yield f"{who} ends with parameters that are no numbers."
        elif not far(result["values"], start()):
            yield f"{who} ends with the parameters that it had before {UPDATES} updates."
        if not any(applied for applied, _, _ in result["reports"]):
            yield f"{who} has no update applied, as its reports say."
        versions = [version for _, version, _ in result["reports"]]
        if versions != sorted(versions):
            yield f"the versions that {who} reports fall: {versions}."


def stays_alike(kind: type[Strategy], trainings: Trainings, workers: int) -> Findings:
    """Checks that workers that are in step end with the same parameters, to the last bit."""
    first, *others = trainings.train(workers)
    for other in others if kind.in_step() else ():
        if other["values"] != first["values"]:
            yield f"worker {other['worker']} ends with other parameters than worker 0, though they are in step."


def equals_a_plain_loop(kind: type[Strategy], trainings: Trainings, workers: int) -> Findings:
    """Checks that a strategy in step which calls itself exact makes the updates of a plain loop."""
    if not (kind.exact and kind.in_step()):
        return
    (first, *_) = trainings.train(workers)
    if far(first["values"], plain(workers)):
        worst = max(abs(a - b) for a, b in zip(first["values"], plain(workers), strict=True))
        yield (
            f"the parameters are up to {worst:.2g} from those of a plain loop, which divides summed gradients once; "
            "say exact = False if that is meant."
        )
    tokens = sum(tokens_of(0, worker) for worker in range(workers))
    if first["reports"] and first["reports"][0][2] != tokens:
        yield f"the first update is reported with {first['reports'][0][2]:g} tokens, but has {tokens}."


def bears_no_data(_: type[Strategy], trainings: Trainings, workers: int) -> Findings:
    """Checks that nothing moves without data, and that a worker without data keeps nobody waiting."""
    for result in trainings.train(workers, idle=tuple(range(workers))):
        if far(result["values"], start()):
            yield f"worker {result['worker']} moves although nobody has data."
        if any(applied for applied, _, _ in result["reports"]):
            yield f"worker {result['worker']} reports an update without data as applied."
    if workers > 1:
        for result in trainings.train(workers, idle=(workers - 1,)):
            if not all(map(math.isfinite, result["values"])):
                yield f"worker {result['worker']} ends with parameters that are no numbers, where another has no data."


def refuses_what_is_not_finite(kind: type[Strategy], trainings: Trainings, workers: int) -> Findings:
    """Checks that gradients which are no numbers change no parameters."""
    for result in trainings.train(workers, broken=(0,)):
        if not all(map(math.isfinite, result["values"])):
            yield f"worker {result['worker']} takes over gradients that are no numbers."
        elif kind.in_step() and any(applied for applied, _, _ in result["reports"]):
            yield f"worker {result['worker']} reports an update as applied in which a gradient was no number."


CHECKS: Mapping[str, Callable[[type[Strategy], Trainings, int], Findings]] = {
    "trains": trains,
    "alike": stays_alike,
    "plain loop": equals_a_plain_loop,
    "no data": bears_no_data,
    "not finite": refuses_what_is_not_finite,
}
"""Checks of a strategy, by name."""
