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
from typing import Any

from bigbatch.comm.errors import ConfigurationError
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
        arguments = {"track": span.track, "name": span.name, "peer": span.peer, "tag": span.tag, "bytes": span.nbytes}
        return {
            "ph": "X",
            "name": title(span),
            "cat": span.kind,
            "pid": rank,
            "tid": self.lane,
            "ts": self.begin / 1000,
            "dur": (self.end - self.begin) / 1000,
            "args": {**arguments, "number": span.number},
        }


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


def write_trace(path: Path, ranks: Sequence[Sequence[Span]]) -> None:
    """Write every rank's spans to a file that ui.perfetto.dev and chrome://tracing open."""
    document = {"traceEvents": trace_events(ranks), "displayTimeUnit": "ms"}
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def read_trace(path: Path) -> list[list[Span]]:
    """Reads every rank's spans from a file that `write_trace` wrote, in the order of their starts.

    Times are in seconds since the start of the first span.

    Raises:
        ConfigurationError: the file cannot be read, or is not such a trace.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        slices = [event for event in events if event["ph"] == "X"]
        ranks: list[list[Span]] = [[] for _ in range(max((event["pid"] for event in slices), default=-1) + 1)]
        for event in slices:
            ranks[event["pid"]].append(_span(event))
    except OSError as error:
        raise ConfigurationError(f"The trace {path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigurationError(
            f"{path} is not a trace that bigbatch wrote ({type(error).__name__}: {error}). Run again with --trace."
        ) from error
    return ranks


def _span(event: dict[str, Any]) -> Span:
    arguments = event["args"]
    begin, end = (round(time * 1000) / 1e9 for time in (event["ts"], event["ts"] + event["dur"]))
    return Span(
        str(event["cat"]),
        begin,
        end,
        str(arguments["name"]),
        str(arguments["track"]),
        None if arguments["peer"] is None else int(arguments["peer"]),
        int(arguments["tag"]),
        int(arguments["number"]),
        int(arguments["bytes"]),
    )
