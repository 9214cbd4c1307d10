"""Traces as files: the JSON that Perfetto and chrome://tracing open.

The format is Google's "Trace Event Format". Three of its rules decide how spans are laid out here: slices on one track
must be disjoint or nested, so that spans which overlap get further tracks; an arrow ("flow") binds to the slice that
encloses its time on its track, so that it begins with the send and ends one nanosecond before the end of the receive;
and no slice may be empty if an arrow is to find it, so that the shortest lasts a nanosecond.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from bigbatch.comm.files import read_json, write_whole
from bigbatch.comm.schema import Amount, AtLeast, Count, check, plain
from bigbatch.comm.wires.recording import (
    BESIDE,
    COMMUNICATION,
    LIBRARY,
    RECEIVE,
    RECEIVES,
    SEND,
    SENDS,
    UPDATE,
    UPDATES,
    WORK,
    Span,
)

TRACKS = (UPDATES, WORK, COMMUNICATION, LIBRARY, BESIDE, SENDS, RECEIVES)
"""A rank's tracks, from top to bottom: its main thread, the one that communicates while it computes, what a library
does by itself, a server beside its own work, and messages, which last from their start until they were waited for."""


# What is in the file.

MOST_RANKS = 1 << 20
"""Largest number of ranks in a trace that is read."""


class Arguments(TypedDict):
    """What a slice of a trace says about its span, besides what the trace-event format has a place for."""

    track: str
    name: str
    peer: Annotated[int, AtLeast(0, MOST_RANKS)] | None
    tag: int
    bytes: Count
    number: Count


class SliceEvent(TypedDict):
    """A complete event of the trace-event format: a span of one rank, with times in microseconds."""

    ph: Literal["X"]
    name: str
    cat: str
    pid: Annotated[int, AtLeast(0, MOST_RANKS - 1)]
    tid: Count
    ts: Amount
    dur: Amount
    args: Arguments


class AnyEvent(TypedDict):
    """What every event of the trace-event format has: its phase, which is X for complete events."""

    ph: str


class TraceFile(TypedDict):
    """The document of a trace."""

    traceEvents: list[AnyEvent]


# To the trace-event format and back.


def trace_events(ranks: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """Every rank's spans as events of the trace-event format, in the order of their times.

    Times are in microseconds since the start of the first span, to the nanosecond. A receive that would end before the
    start of its send, because the clocks differ a little, is drawn until just after that.

    Args:
        ranks: the spans of every rank, in any order.
    """
    zero = min((span.begin for spans in ranks for span in spans), default=0.0)
    slices = [[_Slice.of(span, zero) for span in spans] for spans in ranks]
    sent = {
        message: piece.begin
        for rank, pieces in enumerate(slices)
        for piece in pieces
        if piece.span.kind == SEND and (message := piece.span.message(rank)) is not None
    }
    arrows = itertools.count(1)
    flows: dict[tuple[int, int, int, int], int] = {}
    heads: list[dict[str, Any]] = []
    events: list[tuple[int, int, int, dict[str, Any]]] = []
    for rank, pieces in enumerate(slices):
        for piece in pieces:
            message = piece.span.message(rank)
            if piece.span.kind == RECEIVE and message in sent:
                piece.end = max(piece.end, sent[message] + 1)
                flows[message] = next(arrows)
        heads += _metadata(rank, pieces)
    for rank, pieces in enumerate(slices):
        for piece in pieces:
            events.append((piece.begin, 0, -piece.end, piece.event(rank)))
            message = piece.span.message(rank)
            if message in flows:
                begins = piece.span.kind == SEND
                when = piece.begin if begins else piece.end - 1
                flow = {"ph": "s"} if begins else {"ph": "f", "bp": "e"}
                place = {"name": "message", "cat": "message", "id": flows[message], "pid": rank, "tid": piece.lane}
                events.append((when, 1 if begins else 2, 0, {**flow, **place, "ts": when / 1000}))
    return [*heads, *(event for *_, event in sorted(events, key=lambda entry: entry[:3]))]


class _Slice:
    """A span in whole nanoseconds, and the number of its lane among its rank's."""

    __slots__ = ("begin", "end", "lane", "span")

    def __init__(self, span: Span, begin: int, end: int) -> None:
        self.span = span
        self.begin = begin
        self.end = end
        self.lane = 0

    @classmethod
    def of(cls, span: Span, zero: float) -> "_Slice":
        begin, end = (round((time - zero) * 1e9) for time in (span.begin, span.end))
        return cls(span, begin, max(end, begin + 1))

    def event(self, rank: int) -> dict[str, Any]:
        """The slice as a complete event of the trace-event format, with times in microseconds."""
        span = self.span
        event: SliceEvent = {
            "ph": "X",
            "name": title(span),
            "cat": span.kind,
            "pid": rank,
            "tid": self.lane,
            "ts": self.begin / 1000,
            "dur": (self.end - self.begin) / 1000,
            "args": {
                "track": span.track,
                "name": span.name,
                "peer": span.peer,
                "tag": span.tag,
                "bytes": span.nbytes,
                "number": span.number,
            },
        }
        return plain(event)


def title(span: Span) -> str:
    """A short title for a span, such as "update 3" or "send to rank 1"."""
    if span.name:
        return span.name
    if span.kind == UPDATE:
        return f"update {span.number}"
    if span.peer is None:
        return span.kind
    return f"{span.kind} {({SEND: 'to', RECEIVE: 'from'}).get(span.kind, 'for')} rank {span.peer}"


def _metadata(rank: int, pieces: list[_Slice]) -> list[dict[str, Any]]:
    """Give every slice its lane; the events that name the rank and its lanes."""
    heads = [
        _named("process_name", rank, 0, name=f"rank {rank}"),
        _named("process_sort_index", rank, 0, sort_index=rank),
    ]
    tracks = dict.fromkeys([*TRACKS, *(piece.span.track for piece in pieces)])
    numbers = itertools.count(1)
    for track in tracks:
        nested = track not in (SENDS, RECEIVES)
        for place, lane in enumerate(lanes([piece for piece in pieces if piece.span.track == track], nested=nested)):
            number = next(numbers)
            for piece in lane:
                piece.lane = number
            name = track if place == 0 else f"{track} ({place + 1})"
            heads += [
                _named("thread_name", rank, number, name=name),
                _named("thread_sort_index", rank, number, sort_index=number),
            ]
    return heads


def _named(what: str, rank: int, lane: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": lane, "args": arguments}


def lanes(pieces: Sequence[Any], *, nested: bool) -> list[list[Any]]:
    """Spreads overlapping pieces over lanes; each goes into the first lane in which it fits.

    Args:
        pieces: the pieces to spread, each with a `begin` and an `end`.
        nested: whether one may lie inside another in the same lane.

    Returns:
        The pieces of each lane, in the order of their starts; within a lane all of them are disjoint or nested.
    """
    found: list[tuple[list[Any], list[Any]]] = []  # what lies in the lane, and the ends that are still to come
    for piece in sorted(pieces, key=lambda piece: (piece.begin, -piece.end)):
        for _, open_ends in found:
            while open_ends and open_ends[-1] <= piece.begin:
                open_ends.pop()
        fitting = (lane for lane in found if not lane[1] or (nested and lane[1][-1] >= piece.end))
        lane = next(fitting, None)
        if lane is None:
            lane = ([], [])
            found.append(lane)
        lane[0].append(piece)
        lane[1].append(piece.end)
    return [lying for lying, _ in found]


LARGEST_TRACE = 2**31
"""Largest trace that is read, in bytes: 64 ranks with the most spans that each keeps take about this."""


def write_trace(path: Path, ranks: Sequence[Sequence[Span]]) -> None:
    """Write every rank's spans to a file that ui.perfetto.dev and chrome://tracing open, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    document = {"traceEvents": trace_events(ranks), "displayTimeUnit": "ms"}
    write_whole(path, json.dumps(document, separators=(",", ":")))


def read_trace(path: Path) -> list[list[Span]]:
    """Reads every rank's spans from a file that `write_trace` wrote, in the order of their starts.

    Times are in seconds since the start of the first span.

    Raises:
        ConfigurationError: the file cannot be read, or is not such a trace.
    """
    what = f"The trace {path}"
    events = check(read_json(path, what, LARGEST_TRACE), TraceFile, what)["traceEvents"]
    slices = [(number, event) for number, event in enumerate(events) if event["ph"] == "X"]
    for number, event in slices:
        check(event, SliceEvent, what, f"traceEvents[{number}]")
    ranks: list[list[Span]] = [[] for _ in range(max((event["pid"] for _, event in slices), default=-1) + 1)]
    for _, event in slices:
        ranks[event["pid"]].append(_span(event))
    return ranks


def _span(event: dict[str, Any]) -> Span:
    arguments = event["args"]
    begin, end = (round(time * 1000) / 1e9 for time in (event["ts"], event["ts"] + event["dur"]))
    return Span(
        event["cat"],
        begin,
        end,
        arguments["name"],
        arguments["track"],
        arguments["peer"],
        arguments["tag"],
        arguments["number"],
        arguments["bytes"],
    )
