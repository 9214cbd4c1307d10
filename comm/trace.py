"""Traces: what every rank did when, as spans; written and read as the JSON that Perfetto and chrome://tracing open.

A `Trace` hangs on a rank's transport (`transport.trace`). The transport tells it of every message and every addition,
and whoever computes or waits says so with `transport.span`. Without one, nothing is recorded.

The format is Google's "Trace Event Format". Three of its rules decide how spans are laid out here: slices on one track
must be disjoint or nested, so that spans which overlap get further tracks; an arrow ("flow") binds to the slice that
encloses its time on its track, so that it begins with the send and ends one nanosecond before the end of the receive;
and no slice may be empty if an arrow is to find it, so that the shortest lasts a nanosecond.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigbatch.comm.agreement import share
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.line import on_line
from bigbatch.comm.transport import ANY, Request, Transport

COMPUTE, SEND, RECEIVE, REDUCE, WAIT, ALL_REDUCE = "compute", "send", "receive", "reduce", "wait", "all-reduce"
"""What a rank does. An all-reduce encloses the messages and waits that it is made of, where they are ours."""

UPDATE, ARM = "update", "arm"
"""What else lasts: one update of the training, and all of those of one arm that were recorded."""

WORK, COMMUNICATION, BESIDE, LIBRARY = "work", "communication", "beside", "library"
SENDS, RECEIVES, UPDATES = "sends", "receives", "updates"
TRACKS = (UPDATES, WORK, COMMUNICATION, LIBRARY, BESIDE, SENDS, RECEIVES)
"""A rank's tracks, from top to bottom: its main thread, the one that communicates while it computes, what a library
does by itself, a server beside its own work, and messages, which last from their begin until they were waited for."""

MOST_SPANS = 100_000
"""A rank keeps no more (about 30 MB); what comes later is left out."""

PINGS = 8
"""Round trips to another rank's clock; the shortest counts."""

_busy: ContextVar[bool] = ContextVar("_busy", default=False)
"""Whether what runs now, on its thread or greenlet, is within a span of computing or adding."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted, on one rank.

    Attributes:
        kind: COMPUTE, SEND, RECEIVE, REDUCE, WAIT, ALL_REDUCE, UPDATE or ARM.
        begin: in seconds on the transport's clock ...
        end: ... and its end.
        name: what exactly, or "" if the kind says it all.
        track: which of the rank's tracks it belongs to.
        peer: the rank at the other end of a message, sent, received or waited for.
        tag: the message's.
        number: the message's among all from that source to that target with that tag, from 0; an update's, from 1.
        nbytes: how much was moved or added, in bytes.
    """

    kind: str
    begin: float
    end: float
    name: str = ""
    track: str = WORK
    peer: int | None = None
    tag: int = 0
    number: int = 0
    nbytes: int = 0

    def message(self, rank: int) -> tuple[int, int, int, int] | None:
        """(source, target, tag, number) if this is a message's end at `rank`: the same at both ends of a message."""
        if self.peer is None or self.kind not in (SEND, RECEIVE):
            return None
        ends = (rank, self.peer) if self.kind == SEND else (self.peer, rank)
        return (*ends, self.tag, self.number)


class Trace:
    """Records the spans of one rank, from any of its threads.

    Both ends of a message count it, by source, target and tag, so that they find each other: messages do not overtake
    one another. All ranks must therefore begin their traces at the same place of the program, with nothing under way.
    Everything is counted, whether it is recorded or not. A receive from any rank is counted when it has arrived, and
    so must not be under way with another of the same tag.

    Args:
        now: the clock, in seconds.
        updates: record only during the first so many updates; None records everything.

    Attributes:
        spans: in the order in which they ended.
    """

    def __init__(self, now: Callable[[], float], updates: int | None = None) -> None:
        self.spans: list[Span] = []
        self._now = now
        self._updates_left = updates
        self._recording = updates is None
        self._track = ""
        self._numbers: dict[tuple[str, int, int], Iterator[int]] = {}

    def beside(self, now: Callable[[], float]) -> "Trace":
        """The same trace for work beside the rank's own, on a track of its own; records everything.

        Args:
            now: that work's clock.
        """
        other = Trace(now)
        other.spans, other._numbers, other._track = self.spans, self._numbers, BESIDE
        return other

    @contextmanager
    def span(self, kind: str, name: str = "", nbytes: int = 0) -> Iterator[None]:
        """Record what is done inside.

        Computing inside of computing or adding is part of that. Neither computing nor a wait that takes no time is
        recorded: in simulated time, what torch computes takes none, and what is charged for it is a span of its own.
        """
        if kind == COMPUTE and _busy.get():
            yield
            return
        begin, recording = self._now(), self._recording
        busy = _busy.set(kind in (COMPUTE, REDUCE))
        try:
            yield
        finally:
            _busy.reset(busy)
        end = self._now()
        if recording and (end > begin or kind not in (COMPUTE, WAIT)):
            self._keep(Span(kind, begin, end, name, self._place(), nbytes=nbytes))

    @contextmanager
    def update(self, number: int) -> Iterator[None]:
        """Record the update of that number, from 1, and what is done in it, unless enough were recorded."""
        if self._updates_left == 0:
            yield
            return
        begin, self._recording = self._now(), True
        yield
        self._keep(Span(UPDATE, begin, self._now(), track=UPDATES, number=number))
        if self._updates_left is not None:
            self._updates_left -= 1
            self._recording = False

    def message(self, kind: str, begin: Callable[[], Request], peer: int, tag: int, nbytes: int) -> Request:
        """Begin a message, SEND or RECEIVE, and record it once it was waited for, and the wait."""
        since = self._now()
        request = begin()
        number = None if peer == ANY else self._count(kind, peer, tag)
        if number is not None and not self._recording:
            return request
        posted = Span(kind, since, since, "", SENDS if kind == SEND else RECEIVES, peer, tag, number or 0, nbytes)
        return TracedRequest(self, request, posted, recorded=self._recording, numbered=number is not None)

    def record(self, span: Span) -> None:
        """Record what somebody else has measured."""
        if self._recording:
            self._keep(span)

    def _keep(self, span: Span) -> None:
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)

    def now(self) -> float:
        """Seconds on the rank's clock."""
        return self._now()

    def _count(self, kind: str, peer: int, tag: int) -> int:
        return next(self._numbers.setdefault((kind, peer, tag), itertools.count()))  # one step each, for threads

    def _place(self) -> str:
        return self._track or (COMMUNICATION if on_line.get() else WORK)


class TracedRequest(Request):
    """A message under way whose end is recorded.

    Args:
        trace: where.
        request: the transport's own.
        posted: the message so far.
        recorded: whether to record it.
        numbered: whether its number is known.
    """

    def __init__(self, trace: Trace, request: Request, posted: Span, *, recorded: bool, numbered: bool) -> None:
        self._trace = trace
        self._request = request
        self._posted = posted
        self._recorded = recorded
        self._numbered = numbered

    def wait(self) -> int:
        """Wait for the message."""
        since = self._trace.now()
        peer = self._request.wait()
        number = self._posted.number if self._numbered else self._trace._count(RECEIVE, peer, self._posted.tag)
        if self._recorded:
            until = self._trace.now()
            finished = self._request.finished
            end = until if finished is None else finished
            self._trace._keep(replace(self._posted, end=end, peer=peer, number=number))
            if until > since:
                self._trace._keep(Span(WAIT, since, until, track=self._trace._place(), peer=peer))
        return peer


def update_of(transport: Transport, number: int) -> AbstractContextManager[None]:
    """Tells the transport's trace, if it has one, that what is done inside is the update of that number, from 1."""
    return nullcontext() if transport.trace is None else transport.trace.update(number)


# From one rank's clock to all ranks' spans.

PING_TAG, GATHER_TAG = 29_000, 29_001
"""Kept apart from the tags of ordinary messages."""


def clock_offset(transport: Transport) -> float:
    """Seconds to add to this rank's clock to get rank 0's; all ranks call it together, with nothing under way.

    Rank 0 asks every rank in turn what time it is, and takes the answer to be of half way between question and answer
    (Cristian 1989). Of several round trips the shortest counts; the error is at most half of it, tens of microseconds
    between processes of one machine. An offset that is no larger than that may as well be none, and is taken as none:
    so ranks that read the same clock, as those of one machine or of a simulated cluster do, are never set apart.
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
    """Every rank's spans by rank, on rank 0's clock; on the other ranks nothing. All ranks call it together.

    What lies outside the recorded updates is cut off: a server does not know when the last of them ends.

    Args:
        transport: all ranks; its own `trace` must have been taken away.
        trace: this rank's.
        offset: this rank's, see `clock_offset`.
        arm: if named, every rank that made updates gets a span of that name which encloses them.
    """
    spans = [replace(span, begin=span.begin + offset, end=span.end + offset) for span in trace.spans]
    updates = [(span.begin, span.end) for span in spans if span.kind == UPDATE]
    if updates and arm:
        spans.append(Span(ARM, min(updates)[0], max(end for _, end in updates), arm, UPDATES))
    everyones = [times for theirs in share(transport, _ends(updates)) for times in theirs]
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
    """What of the spans lies in a range of time, in seconds; those that reach over its ends are shortened."""
    return [
        replace(span, begin=max(span.begin, first), end=min(span.end, stop))
        for span in spans
        if span.end >= first and span.begin <= stop
    ]


def joined(earlier: Sequence[Sequence[Span]], later: Sequence[Sequence[Span]]) -> list[list[Span]]:
    """Two recordings of the same ranks as one; the later one's messages are numbered on from the earlier one's."""
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


# To the trace-event format and back.


def trace_events(ranks: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """Every rank's spans as events of the trace-event format, in the order of their times.

    Times are in microseconds since the first span's begin, to the nanosecond. A receive that would end before its
    send began, as clocks that are a little apart have it, is drawn out to just after that.

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
        """As a complete event."""
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
    """What a span is, in a few words."""
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
    """Spread what overlaps over lanes: as few as possible, the first one first.

    Args:
        pieces: anything with a `begin` and an `end`.
        nested: whether one may lie inside another in the same lane.

    Returns:
        What lies in each lane, in the order of the begins; there, everything is disjoint or nested.
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
    """Every rank's spans from a file that `write_trace` wrote, in the order of their begins.

    Times are in seconds since the first span's begin.

    Raises:
        ConfigurationError: there is no such file, or it is not such a trace.
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
