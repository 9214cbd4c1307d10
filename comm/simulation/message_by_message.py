"""Replay of one message after the other, in the order of time: right in every case, and slow.

A heap holds what comes to a port next. Every rank is a generator that pauses where it waits for a message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

import numpy as np

from bigbatch.comm.simulation.network import FloatArray, Ports
from bigbatch.comm.simulation.phases import Messages, Phase, messages_of


@dataclass(frozen=True)
class Part:
    """The messages that one rank sends and takes in in one round.

    Attributes:
        sends: the numbers of the messages that it sends, in their order.
        receives: the numbers of the messages that it takes in, in their order.
        sends_first: whether it takes nothing in before everything it sends has left.
    """

    sends: list[int]
    receives: list[int]
    sends_first: bool


class Journeys:
    """Lists of every message of all phases, and of what each rank does with them.

    Args:
        phases: the schedules.
        ports: the ports of the network.
        adding: (ranks,) the seconds that each takes to add, round or widen a byte.

    Attributes:
        source: (messages,) the rank that sends each.
        target: (messages,) the rank that receives each.
        latency: (messages,) the α of each, in seconds.
        rounding: (messages,) the seconds that rounding each takes before it leaves.
        cost: (messages,) the seconds that adding or widening each takes where it arrives.
        ways: (messages,) the ports that each passes, as (port, seconds for which it holds it).
        parts: (phases, ranks) what each does, round after round.
    """

    def __init__(self, phases: Sequence[Phase], ports: Ports, adding: FloatArray) -> None:
        self.source: list[int] = []
        self.target: list[int] = []
        self.latency: list[float] = []
        self.rounding: list[float] = []
        self.cost: list[float] = []
        self.ways: list[list[tuple[int, float]]] = []
        self.parts: list[list[list[Part]]] = [[[] for _ in range(ports.size)] for _ in phases]
        for phase, parts in zip(phases, self.parts, strict=True):
            for messages in messages_of(phase, ports.size):
                self._add(parts, messages, ports, adding)

    def _add(self, everyone: list[list[Part]], messages: Messages, ports: Ports, adding: FloatArray) -> None:
        first = len(self.source)
        source, target = messages.source.tolist(), messages.target.tolist()
        latency, occupancy = ports.costs(messages.source, messages.target, messages.nbytes)
        ways: list[list[tuple[int, float]]] = [[] for _ in source]
        for hop in ports.way(messages.source, messages.target):
            rows = np.arange(len(source)) if hop.rows is None else hop.rows
            holds = occupancy[rows] * hop.share
            for row, port, hold in zip(rows.tolist(), hop.port.tolist(), holds.tolist(), strict=True):
                ways[row].append((port, hold))
        self.source += source
        self.target += target
        self.latency += np.broadcast_to(latency, len(source)).tolist()
        self.rounding += (messages.rounding * adding[messages.source]).tolist()
        self.cost += (messages.adding * adding[messages.target]).tolist()
        self.ways += ways
        keeping = set(messages.target[messages.sends_first].tolist())
        parts: dict[int, Part] = {}
        for row, ends in enumerate(zip(source, target, strict=True)):
            for rank in ends:
                if rank not in parts:
                    parts[rank] = Part([], [], rank in keeping)
            parts[ends[0]].sends.append(first + row)
            parts[ends[1]].receives.append(first + row)
        for rank, part in parts.items():
            everyone[rank].append(part)


def message_by_message(phases: Sequence[Phase], ready: FloatArray, ports: Ports, adding: FloatArray) -> FloatArray:
    """When each rank has finished each phase, computed for one message after the other.

    Args:
        phases: the schedules.
        ready: (phases, ranks) the seconds before which each rank does not start each phase.
        ports: the ports of the network.
        adding: (ranks,) the seconds that each takes to add, round or widen a byte.

    Returns:
        (phases, ranks) seconds.
    """
    journeys = Journeys(phases, ports, adding)
    through = np.zeros_like(ready)
    free = [0.0] * ports.count
    left: list[float | None] = [None] * len(journeys.source)
    arrived: list[float | None] = [None] * len(journeys.source)
    heap: list[tuple[float, int, int, int, int]] = []  # second, source, order, message, how many ports it has passed
    order = count()

    def work(rank: int) -> Iterator[None]:
        """Do the parts of a rank in turn; pauses where it waits for a message whose time is not known yet."""
        now = since = 0.0
        for number, phase in enumerate(phases):
            since = now if phase.restart else since
            now = max(now, since + float(ready[number, rank]))
            for part in journeys.parts[number][rank]:
                for message in part.sends:
                    now += journeys.rounding[message]
                    heappush(heap, (now, rank, next(order), message, 0))
                sends = [(left, message, 0.0) for message in part.sends]
                receives = [(arrived, message, journeys.cost[message]) for message in part.receives]
                for times, message, cost in sends + receives if part.sends_first else receives + sends:
                    while (time := times[message]) is None:
                        yield
                    now = max(now, time) + cost
            through[number, rank] = now

    workers = [work(rank) for rank in range(ports.size)]
    for worker in workers:
        next(worker, None)
    tails = [0.0] * len(journeys.source)
    while heap:
        head, source, _, message, number = heappop(heap)
        way = journeys.ways[message]
        port, hold = way[number]
        begin = max(head, free[port])
        free[port] = end = begin + hold
        if number == 0:
            latency = journeys.latency[message]
            left[message], begin, end = end, begin + latency, end + latency
            next(workers[source], None)
        tails[message] = max(tails[message], end)
        if number + 1 < len(way):
            heappush(heap, (begin, source, next(order), message, number + 1))
        else:
            arrived[message] = tails[message]
            next(workers[journeys.target[message]], None)
    return through
