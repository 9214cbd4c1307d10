"""Count what a schedule costs: messages, bytes and rounds, against the least that any algorithm can do."""

from dataclasses import dataclass

import numpy as np

from bigbatch.comm.schedules.schedule import IntArray, Schedule, chunk_bounds, chunk_count, packets, rounds_of


@dataclass(frozen=True)
class Account:
    """The rounds of a schedule, and the messages and bytes that each rank sends and receives in them.

    Attributes:
        rounds: the number of rounds.
        messages: (ranks,) messages each rank sends; long transfers take several, see `packets`.
        sent: (ranks,) bytes each rank sends.
        received: (ranks,) bytes each rank receives.
        lower_bound: the bytes that the busiest rank of any all-reduce must send, 2((p-1)/p)n
            (Patarasuk and Yuan 2009, theorem 1).
    """

    rounds: int
    messages: IntArray
    sent: IntArray
    received: IntArray
    lower_bound: float


def account(schedule: Schedule, size: int, elements: int, itemsize: int = 4, *, rounded: bool = False) -> Account:
    """Count the messages and bytes of an all-reduce schedule.

    Args:
        schedule: the rounds as a function of the number of ranks.
        size: the number of ranks.
        elements: the length of each rank's buffer.
        itemsize: bytes an element.
        rounded: whether numbers are sent in a format of their own; see `packets`.
    """
    rounds = rounds_of(schedule, size)
    bounds = chunk_bounds(elements, chunk_count(rounds))
    messages, sent, received = (np.zeros(size, dtype=np.int64) for _ in range(3))
    for round_ in rounds:
        volume = (bounds[round_.stop] - bounds[round_.first]) * itemsize
        np.add.at(messages, round_.source, packets(round_, volume, rounded=rounded))
        np.add.at(sent, round_.source, volume)
        np.add.at(received, round_.target, volume)
    return Account(len(rounds), messages, sent, received, 2 * (size - 1) / size * elements * itemsize)
