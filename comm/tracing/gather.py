"""Gathers the recordings of all ranks on rank 0, and puts their times on rank 0's clock."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.recording import ARM, UPDATE, UPDATES, Span, Trace
from bigbatch.comm.wires.transport import Transport

PINGS = 8
"""Number of round trips to another rank's clock; the shortest one counts."""


# From one rank's clock to all ranks' spans.

PING_TAG, GATHER_TAG = 29_000, 29_001
"""The tags of these messages, kept apart from those of ordinary ones."""


def clock_offset(transport: Transport) -> float:
    """Seconds to add to this rank's clock to get rank 0's; all ranks call it together, with nothing under way.

    Rank 0 asks every rank in turn what time it is, and assumes that the clock was read half way between question and
    answer (Cristian 1989). Of several round trips the shortest counts; the error is at most half of it, tens of
    microseconds between processes of one machine. An offset no larger than that error is taken as 0, so that ranks
    that read the same clock, as those of one machine or of a simulated cluster do, are never set apart.
    """
    clock, offset = np.zeros(1), np.zeros(1)
    if transport.rank:
        for _ in range(PINGS):
            transport.irecv(clock, 0, PING_TAG).wait()
            transport.isend(np.array([transport.now()]), 0, PING_TAG).wait()
        transport.irecv(offset, 0, PING_TAG).wait()
        return float(offset[0])
    for rank in range(1, transport.size):
        trips = []
        for _ in range(PINGS):
            asked = transport.now()
            transport.isend(np.array([asked]), rank, PING_TAG).wait()
            transport.irecv(clock, rank, PING_TAG).wait()
            heard = transport.now()
            trips.append((heard - asked, (asked + heard) / 2 - float(clock[0])))
        shortest, ahead = min(trips)
        transport.isend(np.array([ahead if abs(ahead) > shortest / 2 else 0.0]), rank, PING_TAG).wait()
    return 0.0


def gather(transport: Transport, trace: Trace, offset: float, arm: str = "") -> list[list[Span]]:
    """Gathers every rank's spans on rank 0, by rank and on rank 0's clock; other ranks get an empty list.

    All ranks call it together.

    What lies outside the recorded updates is cut off: a server does not know when the last of them ends.

    Args:
        transport: the transport of all ranks; its own `trace` must have been taken away.
        trace: this rank's recording.
        offset: seconds to add to this rank's clock, see `clock_offset`.
        arm: if named, every rank that made updates gets a span of that name which encloses them.
    """
    spans = [replace(span, begin=span.begin + offset, end=span.end + offset) for span in trace.spans]
    updates = [(span.begin, span.end) for span in spans if span.kind == UPDATE]
    if updates and arm:
        spans.append(Span(ARM, min(updates)[0], max(end for _, end in updates), arm, UPDATES))
    everyones = [times for theirs in all_gather(transport, _ends(updates)) for times in theirs]
    if everyones:
        spans = cut(spans, min(begin for begin, _ in everyones), max(end for _, end in everyones))
    if transport.rank:
        content = np.frombuffer(bytearray(json.dumps([_row(span) for span in spans]).encode()), dtype=np.uint8)
        transport.isend(np.array([len(content)]), 0, GATHER_TAG).wait()
        transport.isend(content, 0, GATHER_TAG).wait()
        return []
    gathered = [spans]
    for rank in range(1, transport.size):
        length = np.empty(1, dtype=np.int64)
        transport.irecv(length, rank, GATHER_TAG).wait()
        theirs = np.empty(int(length[0]), dtype=np.uint8)
        transport.irecv(theirs, rank, GATHER_TAG).wait()
        gathered.append([Span(*row) for row in json.loads(theirs.tobytes())])
    return gathered


def _ends(updates: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(min(updates)[0], max(end for _, end in updates))] if updates else []


def _row(span: Span) -> list[Any]:
    return list(asdict(span).values())


def cut(spans: Sequence[Span], first: float, stop: float) -> list[Span]:
    """The spans between two times, in seconds; spans that reach beyond one of them are shortened."""
    return [
        replace(span, begin=max(span.begin, first), end=min(span.end, stop))
        for span in spans
        if span.end >= first and span.begin <= stop
    ]


def joined(earlier: Sequence[Sequence[Span]], later: Sequence[Sequence[Span]]) -> list[list[Span]]:
    """Joins two recordings of the same ranks; the later one's messages are numbered on from the earlier one's."""
    counts: dict[tuple[int, int, int], int] = {}
    for rank, spans in enumerate(earlier):
        for span in spans:
            if (message := span.message(rank)) is not None:
                counts[message[:3]] = max(counts.get(message[:3], 0), message[3] + 1)

    def renumbered(rank: int, span: Span) -> Span:
        message = span.message(rank)
        return span if message is None else replace(span, number=span.number + counts.get(message[:3], 0))

    moved = [[renumbered(rank, span) for span in spans] for rank, spans in enumerate(later)]
    return [[*before, *after] for before, after in itertools.zip_longest(earlier, moved, fillvalue=())]
