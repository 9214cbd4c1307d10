"""What is replayed: schedules one after the other, and the messages that their rounds send."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from bigbatch.comm.schedules.schedule import (
    BoolArray,
    IntArray,
    Round,
    Schedule,
    chunk_bounds,
    chunk_count,
    packets,
    rounds_of,
    sent_by_target,
)

OWN_BYTES = 2
"""Bytes that a number has in float32, for each byte of it on the wires in half precision."""


@dataclass(frozen=True)
class Phase:
    """A schedule that each rank starts when it has finished the phase before, but not before it is ready.

    Attributes:
        schedule: the rounds as a function of the number of ranks.
        elements: the length of each rank's buffer.
        ready: (ranks,) seconds before which each rank does not start; or one number for all.
        itemsize: bytes per element on the wires.
        restart: whether `ready`, of this phase and of those after it, counts from the moment at which the rank had
            finished the phase before this one, instead of from 0: it is the first phase of a new update.
        rounded: whether numbers are sent in half precision. The sender then rounds each packet before it leaves, and
            the receiver widens it or adds it, in γ seconds for each byte that the numbers have in float32; see
            `packets` for how long packets are.
    """

    schedule: Schedule
    elements: int
    ready: ArrayLike = 0.0
    itemsize: int = 4
    restart: bool = False
    rounded: bool = False


@dataclass(frozen=True)
class Messages:
    """The messages of one round, in the order in which each rank sends its own and takes in what it receives.

    Attributes:
        source: (messages,) the rank that sends each.
        target: (messages,) the rank that receives each.
        nbytes: (messages,) the size of each.
        rounding: (messages,) bytes that the source rounds before it sends each, in γ seconds a byte.
        adding: (messages,) bytes that the target adds, or widens, when it takes in each, in γ seconds a byte.
        sends_first: (messages,) whether the target takes nothing in before everything it sends has left.
        repeats: how many times the same list of sources and targets occurs, one after the other.
    """

    source: IntArray
    target: IntArray
    nbytes: IntArray
    rounding: IntArray
    adding: IntArray
    sends_first: BoolArray
    repeats: int = 1


@lru_cache(maxsize=3)
def _rounds(schedule: Schedule, size: int) -> list[Round]:
    """The rounds of a schedule, kept for the schedules that are replayed again and again.

    Only a few are kept, because those of many ranks can fill a gigabyte.
    """
    return rounds_of(schedule, size)


def transfer_count(phases: Sequence[Phase], size: int) -> int:
    """The number of transfers in all rounds of several phases."""
    return sum(len(round_) for phase in phases for round_ in _rounds(phase.schedule, size))


def messages_of(phase: Phase, size: int, *, adding: bool = True) -> Iterator[Messages]:
    """Yield the messages of each round of a phase.

    Args:
        phase: the schedule.
        size: the number of ranks.
        adding: whether adding takes time. If not, it does not matter what a rank sends before it, and `sends_first` is
            False throughout.
    """
    rounds = _rounds(phase.schedule, size)
    bounds = chunk_bounds(phase.elements, chunk_count(rounds)) * phase.itemsize
    for round_ in rounds:
        nbytes = bounds[round_.stop] - bounds[round_.first]
        reduces = bool(round_.reduce.any())
        waits = reduces and adding and not phase.rounded
        sends_first = sent_by_target(round_) if waits else np.zeros(len(round_), np.bool_)
        counts = packets(round_, nbytes, rounded=phase.rounded) if reduces or phase.rounded else None
        if counts is None or counts.max(initial=1) == 1:
            work = _work(nbytes, round_.reduce, rounded=phase.rounded)
            yield Messages(round_.source, round_.target, nbytes, *work, sends_first)
        else:
            yield _in_packets(round_, nbytes // phase.itemsize, phase, counts, sends_first)


def _work(nbytes: IntArray, reduce: BoolArray, *, rounded: bool) -> tuple[IntArray, IntArray]:
    """(messages,) bytes that sources round, and bytes that targets add or widen."""
    return (OWN_BYTES * nbytes,) * 2 if rounded else (np.zeros_like(nbytes), np.where(reduce, nbytes, 0))


def _in_packets(round_: Round, elements: IntArray, phase: Phase, counts: IntArray, sends_first: BoolArray) -> Messages:
    """Cut the transfers of a round into packets, in the order in which `execute` sends these."""
    number = np.arange(counts.max())[:, None]
    place, row = np.nonzero(number < counts)
    sizes = (place + 1) * elements[row] // counts[row] - place * elements[row] // counts[row]
    nbytes = sizes * phase.itemsize
    return Messages(
        round_.source[row],
        round_.target[row],
        nbytes,
        *_work(nbytes, round_.reduce[row], rounded=phase.rounded),
        sends_first[row],
        repeats=int(counts[0]) if (counts == counts[0]).all() else 1,
    )
