"""Replay: schedules timed on all ranks at once, as `execute` would run them over a network.

Round by round in NumPy, as long as every port serves its messages in the order of the rounds. Where a rank that is
early overtakes one that is late, the messages are followed one by one instead, in the order of time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import ArrayLike

from bigbatch.comm.errors import ConfigurationError
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
from bigbatch.comm.simulation.network import FloatArray, Hop, Network, Ports


@dataclass(frozen=True)
class Phase:
    """A schedule that every rank begins when it is through with the one before, but not before it is ready.

    Attributes:
        schedule: the rounds as a function of the number of ranks.
        elements: the length of each rank's buffer.
        ready: (ranks,) seconds before which a rank does not begin; or one number for all.
        itemsize: bytes an element.
        restart: whether `ready`, of this phase and of those after it, counts from the moment at which the rank was
            through with the phase before this one, instead of from 0: it is the first phase of a new update.
    """

    schedule: Schedule
    elements: int
    ready: ArrayLike = 0.0
    itemsize: int = 4
    restart: bool = False


def replay(
    schedule: Schedule,
    network: Network,
    size: int,
    elements: int,
    itemsize: int = 4,
    *,
    starts: ArrayLike = 0.0,
    speeds: ArrayLike = 1.0,
) -> FloatArray:
    """When each rank is through with a schedule.

    Args:
        schedule: the rounds as a function of the number of ranks.
        network: what messages cost.
        size: the number of ranks.
        elements: the length of each rank's buffer.
        itemsize: bytes an element.
        starts: (ranks,) seconds at which each begins; or one number for all.
        speeds: (ranks,) how many times as fast as γ says each adds; or one number for all.

    Returns:
        (ranks,) seconds.

    Raises:
        ConfigurationError: the schedule cannot be made for so many ranks, or a number that cannot be.
    """
    (ends,) = replay_phases([Phase(schedule, elements, starts, itemsize)], network, size, speeds=speeds)
    return np.asarray(ends)


def replay_phases(
    phases: Sequence[Phase],
    network: Network,
    size: int,
    *,
    speeds: ArrayLike = 1.0,
    roughly: Callable[[], None] | None = None,
) -> FloatArray:
    """When each rank is through with each of several schedules, one after the other on the same ports.

    Args:
        phases: the schedules.
        network: what messages cost.
        size: the number of ranks.
        speeds: (ranks,) how many times as fast as γ says each adds; or one number for all.
        roughly: called if messages overtake each other that are too many to be followed one by one: they are then
            served in the order of the rounds, as if nobody were ahead. None given, that is an error.

    Returns:
        (phases, ranks) seconds.
    """
    ports = network.for_ranks(size)
    if not (np.isfinite(speeds) & (np.asarray(speeds) > 0)).all():
        raise ConfigurationError("A rank's speed must be a number above 0.")
    adding = np.broadcast_to(network.gamma / np.asarray(speeds, np.float64), size)
    ready = np.stack([np.broadcast_to(np.asarray(phase.ready, np.float64), size) for phase in phases])
    try:
        return _round_by_round(phases, ready, ports, adding)
    except Overtaking:
        transfers = sum(len(round_) for phase in phases for round_ in _rounds(phase.schedule, size))
        if transfers <= MOST_FOLLOWED:
            return _message_by_message(phases, ready, ports, adding)
    if roughly is None:
        raise ConfigurationError(
            f"On {size} ranks messages overtake each other, and {transfers:,} transfers are too many to follow one "
            f"by one; {MOST_FOLLOWED:,} would do. Simulate fewer ranks, or an algorithm of fewer messages."
        )
    roughly()
    return _round_by_round(phases, ready, ports, adding, in_order_of_rounds=True)


MOST_FOLLOWED = 10_000_000
"""Transfers; so many take about a minute, and a few gigabytes."""


class Overtaking(Exception):  # noqa: N818 - it says what was found, and never leaves this module
    """A message of a later round comes to a port before one of an earlier round, and holds it up."""


@dataclass(frozen=True)
class Messages:
    """A round's messages, in the order in which every rank sends and takes in its own.

    Attributes:
        source: (messages,) ranks.
        target: (messages,) ranks.
        nbytes: (messages,) sizes.
        reduce: (messages,) whether the target adds.
        sends_first: (messages,) whether the target takes nothing in before everything it sends has left.
        repeats: how many times the same sources and targets follow each other.
    """

    source: IntArray
    target: IntArray
    nbytes: IntArray
    reduce: BoolArray
    sends_first: BoolArray
    repeats: int = 1


@lru_cache(maxsize=3)
def _rounds(schedule: Schedule, size: int) -> list[Round]:
    """Those of the schedules that are replayed again and again; few, for on many ranks they fill a gigabyte."""
    return rounds_of(schedule, size)


def messages_of(phase: Phase, size: int, *, adding: bool = True) -> Iterator[Messages]:
    """The messages of every round of a phase; if adding takes no time, it does not matter what is sent before it."""
    rounds = _rounds(phase.schedule, size)
    bounds = chunk_bounds(phase.elements, chunk_count(rounds)) * phase.itemsize
    for round_ in rounds:
        nbytes = bounds[round_.stop] - bounds[round_.first]
        reduces = bool(round_.reduce.any())
        sends_first = sent_by_target(round_) if reduces and adding else np.zeros(len(round_), np.bool_)
        counts = packets(round_, nbytes) if reduces else None
        if counts is None or counts.max(initial=1) == 1:
            yield Messages(round_.source, round_.target, nbytes, round_.reduce, sends_first)
        else:
            yield _in_packets(round_, nbytes // phase.itemsize, phase.itemsize, counts, sends_first)


def _in_packets(round_: Round, elements: IntArray, itemsize: int, counts: IntArray, sends_first: BoolArray) -> Messages:
    """Packet after packet through all transfers, as `execute` has them."""
    number = np.arange(counts.max())[:, None]
    place, row = np.nonzero(number < counts)
    sizes = (place + 1) * elements[row] // counts[row] - place * elements[row] // counts[row]
    return Messages(
        round_.source[row],
        round_.target[row],
        sizes * itemsize,
        round_.reduce[row],
        sends_first[row],
        repeats=int(counts[0]) if (counts == counts[0]).all() else 1,
    )


def port_bytes(schedule: Schedule, network: Network, size: int, elements: int, itemsize: int = 4) -> IntArray:
    """(ports,) the bytes that pass each port of a network; see `Ports` for their numbers."""
    ports = network.for_ranks(size)
    total = np.zeros(ports.count)
    ways: dict[tuple[bytes, bytes], list[Hop]] = {}
    for messages in messages_of(Phase(schedule, elements, itemsize=itemsize), size, adding=False):
        key = messages.source.tobytes(), messages.target.tobytes()
        if key not in ways:
            ways[key] = ports.way(messages.source, messages.target)
        for hop in ways[key]:
            nbytes = messages.nbytes if hop.rows is None else messages.nbytes[hop.rows]
            total += np.bincount(hop.port, nbytes, minlength=ports.count)
    return total.astype(np.int64)


# Round by round: all messages of a round at once.


class Turns:
    """In what order several things happen at the same place: first the first of every place, then the second ...

    Args:
        place: (things,) where each happens, in the order in which they do.
        repeats: how many times the same places follow each other in that.

    Attributes:
        turns: the things of each turn, no two of which happen at the same place.
    """

    def __init__(self, place: IntArray, repeats: int = 1) -> None:
        length = len(place) // repeats
        if not length or int(np.bincount(place[:length]).max()) == 1:
            self.turns: list[slice | IntArray] = [slice(k * length, (k + 1) * length) for k in range(repeats)]
            return
        order = np.argsort(place, kind="stable")
        there = place[order]
        begins = np.flatnonzero(np.concatenate(([True], there[1:] != there[:-1])))
        number = np.arange(len(place)) - np.repeat(begins, np.diff(begins, append=len(place)))
        by_number = order[np.argsort(number, kind="stable")]
        self.turns = [*np.split(by_number, np.cumsum(np.bincount(number))[:-1])]


class Wiring:
    """What messages between the same sources and targets have in common.

    Args:
        ports: of the network.
        messages: some of those.
    """

    def __init__(self, ports: Ports, messages: Messages) -> None:
        source, target, repeats = messages.source, messages.target, messages.repeats
        self.hops = ports.way(source, target)
        self.hop_turns = [Turns(hop.port, repeats if hop.rows is None else 1) for hop in self.hops]
        self.sends, self.receives = Turns(source, repeats), Turns(target, repeats)


class PortClocks:
    """When every port is free again.

    Args:
        count: of ports.
        in_order_of_rounds: serve a round's messages after all those of the rounds before, whoever comes first.
    """

    def __init__(self, count: int, *, in_order_of_rounds: bool = False) -> None:
        self._in_order_of_rounds = in_order_of_rounds
        self._free = np.zeros(count)
        self._idle = np.zeros(count)  # from then until the last message came
        self._last = np.full(count, -np.inf)
        self._last_source = np.full(count, -1)

    def serve(
        self, port: IntArray, source: IntArray, turns: Turns, head: FloatArray, hold: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """(begin, end) of each message's time in its port: who comes first is served first.

        Of those that come at the same moment, that is the one from the lowest rank.

        Args:
            port: (messages,) its number.
            source: (messages,) the rank that it comes from.
            turns: of the ports, if the messages of each come in their order.
            head: (messages,) when it comes to the port.
            hold: (messages,) for how long it holds it.

        Raises:
            Overtaking: one that was served before has come after one of these.
        """
        if len(turns.turns) == 1:
            return self._serve_once(port, source, head, hold)
        before = [state.copy() for state in (self._free, self._idle, self._last, self._last_source)]
        try:
            return self._serve(port, source, turns.turns, head, hold)
        except Overtaking:
            self._free, self._idle, self._last, self._last_source = before
            order = np.lexsort((source, head, port))
            return self._serve(port, source, [order[turn] for turn in Turns(port[order]).turns], head, hold)

    def _serve(
        self,
        port: IntArray,
        source: IntArray,
        turns: Sequence[slice | IntArray],
        head: FloatArray,
        hold: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        begin, end = np.empty_like(head), np.empty_like(head)
        for rows in turns:
            begin[rows], end[rows] = self._serve_once(port[rows], source[rows], head[rows], hold[rows])
        return begin, end

    def _serve_once(
        self, port: IntArray, source: IntArray, head: FloatArray, hold: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        free, last = self._free[port], self._last[port]
        if not self._in_order_of_rounds and (head <= last).any():
            late = (head < last) | ((head == last) & (source < self._last_source[port]))
            if late.any():
                return self._serve_late(port, source, head, hold, late)
        begin = np.maximum(head, free)
        end = begin + hold
        self._idle[port] = free
        self._free[port] = end
        self._last[port] = head
        self._last_source[port] = source
        return begin, end

    def _serve_late(
        self, port: IntArray, source: IntArray, head: FloatArray, hold: FloatArray, late: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """Serve those that come before what was served last, if their ports had nothing to do for so long."""
        fits = (head >= self._idle[port]) & (head + hold <= self._last[port])
        if (late & ~fits).any():
            raise Overtaking
        begin, end = np.empty_like(head), np.empty_like(head)
        begin[late], end[late] = head[late], head[late] + hold[late]
        self._idle[port[late]] = end[late]
        others = ~late
        begin[others], end[others] = self._serve_once(port[others], source[others], head[others], hold[others])
        return begin, end


def _round_by_round(
    phases: Sequence[Phase],
    ready: FloatArray,
    ports: Ports,
    adding: FloatArray,
    *,
    in_order_of_rounds: bool = False,
) -> FloatArray:
    clocks = PortClocks(ports.count, in_order_of_rounds=in_order_of_rounds)
    wirings: dict[tuple[bytes, bytes], Wiring] = {}
    now = since = np.zeros(ports.size)
    ends = []
    for phase, gate in zip(phases, ready, strict=True):
        since = now if phase.restart else since
        now = np.maximum(now, since + gate)
        for messages in messages_of(phase, ports.size, adding=bool(adding.any())):
            key = messages.source.tobytes(), messages.target.tobytes()
            if key not in wirings:
                wirings[key] = Wiring(ports, messages)
            now = _round(messages, wirings[key], clocks, ports, now, adding)
        ends.append(now)
    return np.stack(ends)


def _round(
    messages: Messages, wiring: Wiring, clocks: PortClocks, ports: Ports, now: FloatArray, adding: FloatArray
) -> FloatArray:
    """When every rank is through with a round that it enters `now`, (ranks,)."""
    source, target = messages.source, messages.target
    latency, occupancy = ports.costs(source, target, messages.nbytes)
    first, *others = wiring.hops
    begin, left = clocks.serve(first.port, source, wiring.hop_turns[0], now[source], occupancy * first.share)
    head, tail = begin + latency, left + latency
    for hop, turns in zip(others, wiring.hop_turns[1:], strict=True):
        if hop.rows is None:
            head, end = clocks.serve(hop.port, source, turns, head, occupancy * hop.share)
            tail = np.maximum(tail, end)
        else:
            at = hop.rows
            head[at], end = clocks.serve(hop.port, source[at], turns, head[at], occupancy[at] * hop.share)
            tail[at] = np.maximum(tail[at], end)
    after = now.copy()
    if messages.sends_first.any():
        waits = np.zeros(ports.size, np.bool_)
        waits[target[messages.sends_first]] = True
        early = waits[source]
        np.maximum.at(after, source[early], left[early])
    cost = np.where(messages.reduce, messages.nbytes, 0) * adding[target]
    for rows in wiring.receives.turns:
        at = target[rows]
        after[at] = np.maximum(after[at], tail[rows]) + cost[rows]
    for rows in wiring.sends.turns:
        at = source[rows]
        after[at] = np.maximum(after[at], left[rows])
    return after


# Message by message: a heap of what comes to a port next.


@dataclass(frozen=True)
class Part:
    """What one rank does in one round.

    Attributes:
        sends: numbers of messages, in the order in which they leave.
        receives: numbers of messages, in the order in which they are taken in.
        sends_first: whether it takes nothing in before everything it sends has left.
    """

    sends: list[int]
    receives: list[int]
    sends_first: bool


class Journeys:
    """Every message of all phases, one by one.

    Args:
        phases: the schedules.
        ports: of the network.
        adding: (ranks,) seconds to add a byte.

    Attributes:
        source: (messages,) ranks.
        target: (messages,) ranks.
        latency: (messages,) seconds.
        cost: (messages,) seconds to add it where it arrives.
        ways: (messages,) the ports it passes, as (port, seconds it holds it).
        parts: (phases, ranks) what each does, round after round.
    """

    def __init__(self, phases: Sequence[Phase], ports: Ports, adding: FloatArray) -> None:
        self.source: list[int] = []
        self.target: list[int] = []
        self.latency: list[float] = []
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
        self.cost += (np.where(messages.reduce, messages.nbytes, 0) * adding[messages.target]).tolist()
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


def _message_by_message(phases: Sequence[Phase], ready: FloatArray, ports: Ports, adding: FloatArray) -> FloatArray:
    journeys = Journeys(phases, ports, adding)
    through = np.zeros_like(ready)
    free = [0.0] * ports.count
    left: list[float | None] = [None] * len(journeys.source)
    arrived: list[float | None] = [None] * len(journeys.source)
    heap: list[tuple[float, int, int, int, int]] = []  # when, whence, in what order, which message, its which port
    order = count()

    def work(rank: int) -> Iterator[None]:
        """A rank's way through its parts; it pauses when it awaits a message of which nothing is known yet."""
        now = since = 0.0
        for number, phase in enumerate(phases):
            since = now if phase.restart else since
            now = max(now, since + float(ready[number, rank]))
            for part in journeys.parts[number][rank]:
                for message in part.sends:
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
