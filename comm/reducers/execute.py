"""Execute a schedule: one rank's part of every round, on a transport and a buffer."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np

from bigbatch.comm.buffers import Buffer, add_in_place
from bigbatch.comm.schedules.schedule import IntArray, Round, Schedule, chunk_bounds, chunk_count, packets, rounds_of
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.request import Request
from bigbatch.comm.wires.transport import Transport

UNDER_WAY = 2
"""Packets of one transfer on their way to a rank that adds: one arrives while the one before it is added."""


class Move(NamedTuple):
    """A transfer, or a packet of one, as one of its two ends sees it.

    Attributes:
        peer: the rank at the other end.
        first: the first element moved ...
        stop: ... and one past the last.
        reduce: whether the receiver adds it.
        in_place: whether the receiver can have it written where it belongs, because nothing else reads or writes there.
    """

    peer: int
    first: int
    stop: int
    reduce: bool
    in_place: bool = False


@dataclass(frozen=True)
class Step:
    """The packets that one rank sends and receives in one round.

    Attributes:
        sends: the packets to send, in the order in which they leave.
        receives: the packets to receive, in the order in which they are taken in.
        under_way: the number of packets that may be on their way to this rank at once.
        sends_first: whether every send must be through before anything is taken in, because it reads there.
        landing: elements of the largest packet that cannot be received in place.
        staged: elements of all packets to send, which take memory of their own if they are sent in half precision.
    """

    sends: tuple[Move, ...]
    receives: tuple[Move, ...]
    under_way: int
    sends_first: bool
    landing: int
    staged: int = 0


@lru_cache(maxsize=256)
def part(
    schedule: Schedule,
    size: int,
    rank: int,
    elements: int,
    itemsize: int,
    chunks: tuple[int, ...] | None = None,
    *,
    rounded: bool = False,
) -> tuple[Step, ...]:
    """Picks out of every round what `rank` sends and receives, for a buffer of `elements` elements.

    Args:
        schedule: the rounds as a function of the number of ranks.
        size: the number of ranks.
        rank: the rank whose part it is.
        elements: the buffer's length.
        itemsize: bytes an element on the wires.
        chunks: (chunks + 1,) where each chunk begins, in elements, and the last one's end; None for even chunks.
        rounded: whether what is sent is rounded, so that nothing can be received in place.
    """
    rounds = _rounds(schedule, size)
    bounds = _bounds(rounds, elements, chunks)
    own = (round_ for round_ in rounds if rank in round_.source or rank in round_.target)
    return tuple(_step(round_, rank, bounds, itemsize, rounded=rounded) for round_ in own)


@lru_cache(maxsize=256)
def unrounded(
    schedule: Schedule, size: int, rank: int, elements: int, chunks: tuple[int, ...] | None = None
) -> tuple[slice, ...]:
    """Finds what a rank ends with that it has added up and not sent, so that it must round it as others have it.

    Args:
        schedule: the rounds as a function of the number of ranks.
        size: the number of ranks.
        rank: the rank.
        elements: the buffer's length.
        chunks: where the chunks begin, as for `part`.
    """
    rounds = _rounds(schedule, size)
    bounds = _bounds(rounds, elements, chunks)
    exact = np.zeros(len(bounds) - 1, dtype=np.bool_)
    for round_ in rounds:
        for row in np.flatnonzero(round_.source == rank).tolist():
            exact[round_.first[row] : round_.stop[row]] = True
        for row in np.flatnonzero(round_.target == rank).tolist():
            exact[round_.first[row] : round_.stop[row]] = not round_.reduce[row]
    edges = np.flatnonzero(np.diff(np.concatenate([[True], exact, [True]]).astype(np.int8)))
    return tuple(slice(int(bounds[first]), int(bounds[stop])) for first, stop in edges.reshape(-1, 2).tolist())


@lru_cache(maxsize=64)
def _rounds(schedule: Schedule, size: int) -> tuple[Round, ...]:
    return tuple(rounds_of(schedule, size))


def _bounds(rounds: Sequence[Round], elements: int, chunks: tuple[int, ...] | None) -> IntArray:
    return chunk_bounds(elements, chunk_count(rounds)) if chunks is None else np.array(chunks, dtype=np.int64)


def _step(round_: Round, rank: int, bounds: IntArray, itemsize: int, *, rounded: bool) -> Step:
    counts = packets(round_, (bounds[round_.stop] - bounds[round_.first]) * itemsize, rounded=rounded)
    sends: list[tuple[Move, int]] = []
    receives: list[tuple[Move, int]] = []
    for row in np.flatnonzero((round_.source == rank) | (round_.target == rank)).tolist():
        first, stop = int(bounds[round_.first[row]]), int(bounds[round_.stop[row]])
        reduce, count = bool(round_.reduce[row]), int(counts[row])
        if round_.source[row] == rank:
            sends.append((Move(int(round_.target[row]), first, stop, reduce), count))
        if round_.target[row] == rank:
            receives.append((Move(int(round_.source[row]), first, stop, reduce), count))
    sent, received = [move for move, _ in sends], [move for move, _ in receives]
    for number, move in enumerate(received):
        others = (*sent, *received[:number], *received[number + 1 :])
        in_place = not rounded and not move.reduce and not any(_overlap(move, other) for other in others)
        receives[number] = move._replace(in_place=in_place), receives[number][1]
    taken_in = tuple(_abreast(receives))
    sends_first = not rounded and any(_overlap(receive, send) for receive in received for send in sent)
    return Step(
        sends=tuple(_abreast(sends)),
        receives=taken_in,
        under_way=len(taken_in) if sends_first else UNDER_WAY * len(receives),
        sends_first=sends_first,
        landing=max((packet.stop - packet.first for packet in taken_in if not packet.in_place), default=0),
        staged=sum(move.stop - move.first for move in sent) if rounded else 0,
    )


def _abreast(moves: Sequence[tuple[Move, int]]) -> Iterator[Move]:
    """Packet after packet through all transfers: both ends see them in one order, each element in the table's."""
    for row in zip_longest(*(_packets(move, count) for move, count in moves)):
        yield from (packet for packet in row if packet is not None)


def _packets(move: Move, count: int) -> Iterator[Move]:
    bounds = (move.first + chunk_bounds(move.stop - move.first, count)).tolist()
    for first, stop in pairwise(bounds):
        yield move._replace(first=first, stop=stop)


def _overlap(one: Move, other: Move) -> bool:
    return one.first < other.stop and other.first < one.stop


def execute(
    schedule: Schedule,
    transport: Transport,
    buffer: Buffer,
    tag: int = 0,
    chunks: tuple[int, ...] | None = None,
    wire: WireFormat = WHOLE,
) -> None:
    """Run this rank's part of `schedule`, in place; every rank of the transport must call it.

    In half precision what is sent is rounded where it lies, too, and what arrives is added in the buffer's own
    precision. So all ranks that held the same numbers still do, and in the end everything is what was sent, or could
    have been.

    Args:
        schedule: the rounds as a function of the number of ranks.
        transport: moves the chunks.
        buffer: (elements,) this rank's values; on return, the collective's result.
        tag: keeps apart the messages of schedules that run at the same time.
        chunks: where the chunks begin, if they are not even; see `part`.
        wire: the format in which the values travel.

    Raises:
        DeadlineError: a peer did not send or take its message in time.
    """
    if transport.size == 1:
        return
    whole, place = wire.whole, (transport.size, transport.rank, len(buffer))
    itemsize = wire.dtype(buffer.dtype).itemsize
    for step in part(schedule, *place, itemsize, chunks, rounded=not whole):
        _run(step, transport, buffer, tag, wire)
    if not whole:
        for rest in unrounded(schedule, *place, chunks):
            wire.round(buffer[rest])


def _run(step: Step, transport: Transport, buffer: Buffer, tag: int, wire: WireFormat) -> None:
    """One round: send everything, and take in packet after packet while the next ones arrive."""
    slots = min(step.under_way, len(step.receives))
    room = transport.scratch(step.landing * slots + step.staged, wire.dtype(buffer.dtype))
    staged = _parts_of(room[step.landing * slots :])
    arriving: deque[tuple[Request, Buffer]] = deque()

    def expect(number: int) -> None:
        """Have the packet of that number land: where it belongs, or where one that was taken in before had landed."""
        move = step.receives[number]
        start = number % step.under_way * step.landing
        elements = move.stop - move.first
        landing = buffer[move.first : move.stop] if move.in_place else room[start : start + elements]
        arriving.append((transport.irecv(landing, move.peer, tag), landing))

    for number in range(slots):
        expect(number)
    leaving: list[Request] = []
    for move in step.sends:
        own = buffer[move.first : move.stop]
        sent = own
        if not wire.whole:
            sent = staged(len(own))
            wire.encode(own, sent, keep=True)
            transport.convert(own)
        leaving.append(transport.isend(sent, move.peer, tag))
    if step.sends_first:
        for request in leaving:
            request.wait()
    for number, move in enumerate(step.receives):
        request, landing = arriving.popleft()
        request.wait()
        own = buffer[move.first : move.stop]
        if move.reduce:
            transport.add(own, landing, add_in_place if wire.whole else wire.add)
        elif not wire.whole:
            wire.decode(landing, own)
            transport.convert(own)
        elif not move.in_place:
            own[:] = landing
        if number + step.under_way < len(step.receives):
            expect(number + step.under_way)
    if not step.sends_first:
        for request in leaving:
            request.wait()


def _parts_of(memory: Buffer) -> Callable[[int], Buffer]:
    """Makes a function that gives one part of a memory after the other, of the length that it is called with."""
    taken = 0

    def part_of(elements: int) -> Buffer:
        nonlocal taken
        taken += elements
        return memory[taken - elements : taken]

    return part_of
