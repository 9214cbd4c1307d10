"""Recording: what one rank does when, as spans.

A `Trace` hangs on a rank's transport (`transport.trace`). The transport tells it of every message and every addition,
and whoever computes or waits says so with `transport.span`. Without one, nothing is recorded.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from bigbatch.comm.wires.queue import on_queue
from bigbatch.comm.wires.request import ANY, Request

COMPUTE, SEND, RECEIVE, REDUCE, WAIT, ALL_REDUCE = "compute", "send", "receive", "reduce", "wait", "all-reduce"
"""Kinds of spans. An all-reduce encloses the messages and waits that it is made of, where they are ours."""

UPDATE, ARM = "update", "arm"
"""Kinds of longer spans: one update of the training, and all recorded updates of one arm."""

WORK, COMMUNICATION, BESIDE, LIBRARY = "work", "communication", "beside", "library"
SENDS, RECEIVES, UPDATES = "sends", "receives", "updates"

MOST_SPANS = 100_000
"""The largest number of spans that a rank keeps (about 30 MB); later ones are left out."""

_busy: ContextVar[bool] = ContextVar("_busy", default=False)
"""Whether what runs now, on its thread or greenlet, is within a span of computing or adding."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in which one rank did one thing.

    Attributes:
        kind: COMPUTE, SEND, RECEIVE, REDUCE, WAIT, ALL_REDUCE, UPDATE or ARM.
        begin: its start, in seconds on the transport's clock ...
        end: ... and its end.
        name: what exactly was done, or "" if the kind says it all.
        track: which of the rank's tracks it belongs to.
        peer: the rank at the other end of a message, sent, received or waited for.
        tag: the message's tag.
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
        updates: the number of updates to record, beginning with the first; None records everything.

    Attributes:
        spans: the recorded spans, in the order in which they ended.
    """

    def __init__(self, now: Callable[[], float], updates: int | None = None) -> None:
        self.spans: list[Span] = []
        self._now = now
        self._updates_left = updates
        self._recording = updates is None
        self._track = ""
        self._numbers: dict[tuple[str, int, int], Iterator[int]] = {}

    def of_thread(self, now: Callable[[], float]) -> "Trace":
        """The same trace for work beside the rank's own, on a track of its own; records everything.

        Args:
            now: the clock of that work, in seconds.
        """
        other = Trace(now)
        other.spans, other._numbers, other._track = self.spans, self._numbers, BESIDE
        return other

    @contextmanager
    def span(self, kind: str, name: str = "", nbytes: int = 0) -> Iterator[None]:
        """Records what is done within the context as one span.

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
        """Records update `number`, from 1, and what is done within it, unless enough updates were recorded."""
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
        """Begins a message, SEND or RECEIVE; when it was waited for, it is recorded together with the wait."""
        since = self._now()
        request = begin()
        number = None if peer == ANY else self._count(kind, peer, tag)
        if number is not None and not self._recording:
            return request
        posted = Span(kind, since, since, "", SENDS if kind == SEND else RECEIVES, peer, tag, number or 0, nbytes)
        return TracedRequest(self, request, posted, recorded=self._recording, numbered=number is not None)

    def record(self, span: Span) -> None:
        """Records a span that was measured elsewhere, such as a library's all-reduce."""
        if self._recording:
            self._keep(span)

    def _keep(self, span: Span) -> None:
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)

    def now(self) -> float:
        """The time on the rank's clock, in seconds."""
        return self._now()

    def _count(self, kind: str, peer: int, tag: int) -> int:
        return next(self._numbers.setdefault((kind, peer, tag), itertools.count()))  # one step each, for threads

    def _place(self) -> str:
        return self._track or (COMMUNICATION if on_queue.get() else WORK)


class TracedRequest(Request):
    """A message under way that is recorded when it was waited for.

    Args:
        trace: the trace that records it.
        request: the transport's own request.
        posted: the span of the message as far as it is known.
        recorded: whether to record it.
        numbered: whether the message's number is known.
    """

    def __init__(self, trace: Trace, request: Request, posted: Span, *, recorded: bool, numbered: bool) -> None:
        self._trace = trace
        self._request = request
        self._posted = posted
        self._recorded = recorded
        self._numbered = numbered

    def wait(self) -> int:
        """Waits for the message, and records the message and the wait; returns the peer."""
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
