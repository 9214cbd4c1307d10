"""Mutants: all-reduces with a mistake each, which the conformance kit must find."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from bigbatch.comm.collectives.recursive_doubling import recursive_doubling
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.measuring.conformance import conform, conform_collective
from bigbatch.comm.parameters import OnHost
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.schedule import Round, moved

# Mutants: each is one mistake away from a right all-reduce.


def adds_itself_twice(size: int) -> Iterator[Round]:
    """A ring whose reduce-scatter goes one step too far: a sum meets a contribution that it holds already."""
    rank = np.arange(size)
    right = (rank + 1) % size
    for step in range(size if size > 1 else 0):
        yield moved(rank, right, chunk=(rank - step) % size, reduce=True)
    for step in range(size - 1):
        yield moved(rank, right, chunk=(rank - step) % size, reduce=False)


def wrong_neighbour(size: int) -> Iterator[Round]:
    """A ring whose all-gather goes to the left, in the order made for going to the right."""
    rank = np.arange(size)
    yield from list(ring(size))[: size - 1]
    for step in range(size - 1):
        yield moved(rank, (rank - 1) % size, chunk=(rank + 1 - step) % size, reduce=False)


def chunks_swapped(size: int) -> Iterator[Round]:
    """A ring whose all-gather starts with the neighbour's chunk instead of the one that is complete."""
    rank = np.arange(size)
    yield from list(ring(size))[: size - 1]
    for step in range(size - 1):
        yield moved(rank, (rank + 1) % size, chunk=(rank - step) % size, reduce=False)


def one_round_too_few(size: int) -> Iterator[Round]:
    """A ring that stops one round early, so that every rank misses the sum of one chunk."""
    yield from list(ring(size))[:-1]


def reduces_in_the_gather_half(size: int) -> Iterator[Round]:
    """A ring that adds in its second half, too, instead of replacing."""
    for round_ in ring(size):
        yield Round(round_.source, round_.target, round_.first, round_.stop, np.ones(len(round_), dtype=np.bool_))


def sends_after_adding(size: int) -> Iterator[Round]:
    """Recursive doubling in which the lower of two partners adds first, and then sends what it has by then."""
    for round_ in recursive_doubling(size):
        for half in (round_.source > round_.target, round_.source < round_.target):
            yield Round(
                round_.source[half], round_.target[half], round_.first[half], round_.stop[half], round_.reduce[half]
            )


class TailDropped(Collective):
    """A ring over as many elements as the number of ranks divides; the last few are forgotten."""

    def _sum(self, tensor: Tensor) -> None:
        ranks = self.transport.size
        execute(ring, self.transport, OnHost(tensor[: len(tensor) // ranks * ranks]).array)


@dataclass(frozen=True)
class Mutant:
    """An all-reduce with a mistake made on purpose, and the checks that must find it.

    Attributes:
        examine: puts it through the checks; returns what they found, by name.
        caught_by: the names of the checks that find the mistake.
    """

    examine: Callable[[], dict[str, str]]
    caught_by: frozenset[str]


_WRONG_SUMS = frozenset({"sum", "long", "surroundings", "cancellation", "in flight"})

MUTANTS: Mapping[str, Mutant] = {
    # Everyone ends with the same wrong sum ...
    "adds itself twice": Mutant(partial(conform, adds_itself_twice), _WRONG_SUMS | {"proof"}),
    "chunks swapped": Mutant(partial(conform, chunks_swapped), _WRONG_SUMS | {"proof"}),
    # ... or with different ones ...
    "wrong neighbour": Mutant(partial(conform, wrong_neighbour), _WRONG_SUMS | {"proof", "alike"}),
    "one round too few": Mutant(partial(conform, one_round_too_few), _WRONG_SUMS | {"proof", "alike"}),
    "reduces in the gather half": Mutant(
        partial(conform, reduces_in_the_gather_half), _WRONG_SUMS | {"proof", "alike"}
    ),
    "sends after adding": Mutant(partial(conform, sends_after_adding), _WRONG_SUMS | {"proof", "alike"}),
    # ... and here the rounds are right, but what carries them out is not.
    "tail dropped": Mutant(partial(conform_collective, TailDropped), _WRONG_SUMS | {"alike"}),
}
"""Mistakes that have been made, and the checks that find them."""
