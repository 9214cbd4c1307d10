"""Mutants: all-reduces with a mistake each, which the conformance kit must find."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from bigbatch.comm.collectives.chain import chain
from bigbatch.comm.collectives.hierarchical import hierarchical
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


class AddsBeforeSent(Collective):
    """Sends its own values to everybody, and adds what comes to them while they are perhaps still being sent."""

    def _sum(self, tensor: Tensor) -> None:
        own, transport = OnHost(tensor).array, self.transport
        others = [rank for rank in range(transport.size) if rank != transport.rank]
        arrived = [np.empty_like(own) for _ in others]
        arriving = [transport.irecv(room, rank) for room, rank in zip(arrived, others, strict=True)]
        transport.barrier()  # so that every send finds its receive, and wires that are quick show nothing
        leaving = [transport.isend(own, rank) for rank in others]
        for request, room in zip(arriving, arrived, strict=True):
            request.wait()
            transport.add(own, room)
        for sent in leaving:
            sent.wait()


class TailOfWhatIsLong(Collective):
    """A ring over the first megabyte; what a longer buffer holds beyond it is forgotten."""

    def _sum(self, tensor: Tensor) -> None:
        execute(ring, self.transport, OnHost(tensor[: 2**20 // tensor.element_size()]).array)


def wrong_on_many_ranks(size: int) -> Iterator[Round]:
    """A ring that stops one round early on more than 65 ranks."""
    yield from list(ring(size))[: -1 if size > 65 else None]


def wrong_in_segments(size: int, segments: int) -> Iterator[Round]:
    """A chain that forgets its last round if the buffer is cut into more than eight pieces, as one of 1 MB is."""
    yield from list(chain(size, segments))[: -1 if segments > 8 else None]


def wrong_on_some_nodes(size: int, nodes: Sequence[Sequence[int]] = ()) -> Iterator[Round]:
    """A hierarchical algorithm that forgets its last round on nodes of five ranks and more."""
    large = any(len(node) >= 5 for node in nodes)
    yield from list(hierarchical(size, nodes))[: -1 if large and len(nodes) > 1 else None]


def never_ends(size: int) -> Iterator[Round]:
    """A ring whose loop has no end."""
    while True:
        yield from ring(size)
        if size == 1:
            yield moved([], [], chunk=[], reduce=False)


def drawn_by_lot(size: int) -> Iterator[Round]:
    """A ring whose first round is in another order of the ranks every time that it is made."""
    first, *others = ring(size) if size > 1 else [moved([], [], chunk=[], reduce=False)]
    order = np.random.default_rng().permutation(len(first))
    yield Round(first.source[order], first.target[order], first.first[order], first.stop[order], first.reduce[order])
    yield from others


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

FEW = (2, 3, 4)
"""Numbers of ranks that show the mistakes whose checks take long."""

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
    "adds before sent": Mutant(
        partial(conform_collective, AddsBeforeSent, FEW), frozenset({"sum", "alike", "in flight"})
    ),
    "tail of what is long": Mutant(partial(conform_collective, TailOfWhatIsLong, FEW), frozenset({"long"})),
    # These are right for most numbers of ranks, segments and nodes ...
    "wrong on many ranks": Mutant(partial(conform, wrong_on_many_ranks, FEW), frozenset({"proof"})),
    "wrong in segments": Mutant(partial(conform, wrong_in_segments, FEW), frozenset({"proof", "long"})),
    "wrong on some nodes": Mutant(partial(conform, wrong_on_some_nodes, FEW), frozenset({"proof"})),
    # ... and these make other rounds every time, or never come to an end.
    "drawn by lot": Mutant(partial(conform, drawn_by_lot, FEW), frozenset({"rounds"})),
    "never ends": Mutant(
        partial(conform, never_ends, FEW), _WRONG_SUMS | {"rounds", "proof", "alike", "repeatable", "count"}
    ),
}
"""Mistakes that have been made, and the checks that find them."""
