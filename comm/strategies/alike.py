"""Alike: how workers notice that the values which each of them holds have come apart."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters, digest, looks_at
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.wires.agreement import together
from bigbatch.comm.wires.transport import Transport

ROUNDING = 1e-3
"""How far the workers' values may be apart, relative to the largest: processors of several kinds round differently."""


def apart(strategy: Strategy, digests: Sequence[int]) -> float:
    """This worker's part of a number whose sum over all workers is 0 if all have the same digests.

    The sum is exact: workers have whole numbers of less than 2^40, which cancel if they are alike.

    Args:
        strategy: the strategy, on a worker.
        digests: of each tensor that all workers have, in the same order; see `bigbatch.comm.parameters.digest`.
    """
    whole = sum(number * one for number, one in enumerate(digests, start=1)) % 2**40
    return float(whole * (1 - strategy.workers if strategy.worker == 0 else 1))


def refuse_unlike(strategy: Strategy, workers: Transport, named: Sequence[tuple[str, Tensor]]) -> None:
    """Looks whether the workers' parameters have come apart by more than rounding; all workers call it together.

    Args:
        strategy: the strategy, on a worker.
        workers: the wires between all workers.
        named: (name, tensor) of what is to be the same on all.

    Raises:
        ConfigurationError: on every worker, if they have; names the first parameter.
    """
    theirs = [tensor.clone() for _, tensor in named]
    strategy.share(theirs)

    def compare() -> None:
        for (name, mine), other in zip(named, theirs, strict=True):
            if torch.equal(mine, other):
                continue
            wide = torch.complex128 if mine.is_complex() else torch.float64
            difference = float((mine.to(wide) - other.to(wide)).abs().max())
            largest = float(other.to(wide).abs().max())
            if difference > ROUNDING * largest:
                raise ConfigurationError(
                    f"The parameter {name} has come apart from worker 0's, by up to {difference:.2g}: change "
                    "parameters on all workers alike. An optimiser must not draw random numbers of its own, nor a "
                    "layer change its weights by the data that it sees, as with max_norm."
                )

    together(workers, compare)


class GivenValues:
    """Looks whether a worker's parameters are what its servers gave it, or what all workers began with.

    Servers give what is trained, and would undo any change of a worker's own. They do not hold frozen parameters.
    Workers in step compare those with each other, as workers without a server do; others cannot wait for each other,
    so that their frozen parameters may not change.

    Args:
        strategy: the strategy, on a worker, whose parameters have the first values already.
        workers: the wires between all workers, if they are in step; else None.
    """

    def __init__(self, strategy: Strategy, workers: Transport | None) -> None:
        self._strategy = strategy
        self._parameters: FlatParameters = strategy.parameters
        self._workers = workers
        self._updates = 0
        self.note()
        self._first = self._look_at_frozen()

    def note(self) -> None:
        """Notes the values that have come, and compares the frozen ones of workers in step, who all call it together.

        At that time none of their messages with the servers are under way.

        Raises:
            ConfigurationError: on every worker, if they are in step and their frozen parameters have come apart.
        """
        self._with_digests = looks_at(self._updates)
        self._noted = self._look()
        frozen = self._parameters.module.frozen
        if self._workers is not None and frozen and self._updates and self._with_digests:
            number = apart(self._strategy, self._look_at_frozen())
            if self._strategy.total(np.array([number])).any():
                refuse_unlike(self._strategy, self._workers, frozen)
        self._updates += 1

    def _look(self) -> list[tuple[int, int]]:
        digests = self._parameters.digests() if self._with_digests else []
        return list(zip_longest(self._parameters.writes(), digests, fillvalue=0))

    def _look_at_frozen(self) -> list[int]:
        return [digest(tensor) for _, tensor in self._parameters.module.frozen]

    def check(self) -> None:
        """Notes a fault if the values are others than those that came last, or frozen ones others than at first.

        Writes to a parameter itself are seen at once, those to its `.data` when the values are looked at.
        """
        for name, noted, found in zip(self._parameters.names, self._noted, self._look(), strict=True):
            if noted != found:
                self._parameters.views.found(
                    f"The parameter {name} was changed outside of the optimiser, which the servers would undo: load "
                    "values before training begins, and use an all-reduce if the loop or the model (max_norm) changes "
                    "parameters."
                )
        if self._workers is not None or not self._with_digests:
            return
        frozen = self._parameters.module.frozen
        for (name, _), first, now in zip(frozen, self._first, self._look_at_frozen(), strict=True):
            if now != first:
                self._parameters.views.found(
                    f"The parameter {name} is frozen and was changed, and workers that are not in step cannot keep it "
                    "alike: register it as a buffer, of which each worker keeps its own, or use an all-reduce."
                )
