"""Simulated time: which event comes next, and who waits for one.

Every rank's work runs in a greenlet. A greenlet that has to wait switches back to the clock, which takes the earliest
event from its heap and carries it out; most events switch to some greenlet again.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import NoReturn, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

from bigbatch.comm.errors import DeadlineError, DeadlockError
from bigbatch.comm.wires.request import Request


def _nobody_is_left() -> NoReturn:
    """What waiting comes to when the simulation has ended: the greenlet that would wait may belong to another one."""
    raise DeadlockError("The simulation has ended, so that nobody answers any more.")


class Clock:
    """Carries out events in the order of their simulated time, and always in the same order.

    Args:
        by_rank: whether events at the same time happen in the order of their ranks. If not, they happen in the order
            in which they were scheduled, which is what a network needs on which nothing takes any time: the lowest
            ranks would otherwise go on for ever.

    Attributes:
        now: simulated seconds since the start.
        waiting: maps what a greenlet waits for to the simulated second since which it does.
        failed: maps each rank that has failed to the simulated second at which it did.
        give_way: switches from a greenlet to the clock; it returns when an event switches back to the greenlet.
    """

    def __init__(self, *, by_rank: bool) -> None:
        self.now = 0.0
        self.waiting: dict[Awaited, float] = {}
        self.failed: dict[int, float] = {}
        self._by_rank = by_rank
        self._events: list[tuple[float, int, int, Callable[[], object]]] = []
        self._order = count()
        self._hub = getcurrent()
        self.give_way = self._hub.switch
        self._greenlets: list[tuple[int, greenlet]] = []

    def run(self, work: Sequence[Callable[[], object]], failures: Mapping[int, float]) -> None:
        """Start every rank's work, and carry out events until none is left.

        Args:
            work: what each rank does, by rank.
            failures: rank -> the second at which everything that it does ends.

        Raises:
            DeadlockError: everybody who is left waits for somebody else.
            DeadlineError: a rank has waited in vain for one that had failed.
            Exception: the first that any rank raises; the other ranks are ended.
        """
        self._hub = getcurrent()
        self.give_way = self._hub.switch
        self._greenlets = []
        for rank, own in enumerate(work):
            self.begin(rank, own)
        for rank, second in failures.items():
            self.at(second, rank, partial(self._fail, rank))
        try:
            self._go_on()
        finally:
            self._events.clear()
            self.waiting.clear()
            for _, begun in self._greenlets:
                if begun:
                    begun.throw()
            self.give_way = _nobody_is_left

    def _go_on(self) -> None:
        events = self._events
        while True:
            while events:
                self.now, _, _, happen = heappop(events)
                happen()
            if not self.waiting:
                return
            if not self.failed:
                raise DeadlockError(
                    "Every rank that is left waits for another: "
                    + "; ".join(f"{awaited}{awaited.end.before()}" for awaited in self.waiting)
                    + ". Some send has no receive, or the other way round."
                )
            awaited = min(self.waiting, key=lambda waiting: self.waiting[waiting] + waiting.end.deadline)
            self.now = max(self.now, self.waiting.pop(awaited) + awaited.end.deadline)
            awaited.give_up(self.failed)

    def at(self, when: float, rank: int, happen: Callable[[], object]) -> None:
        """Schedules an event: has a function called at a simulated time.

        Args:
            when: simulated seconds since the start.
            rank: the rank whose event it is; a message's events are its sender's.
            happen: the function to call then.
        """
        heappush(self._events, (when, rank if self._by_rank else 0, next(self._order), happen))

    def pause(self, rank: int, seconds: float) -> None:
        """Suspends the calling greenlet, which works for `rank`, for `seconds` of simulated time."""
        self.at(self.now + seconds, rank, getcurrent().switch)
        self.give_way()

    def begin(self, rank: int, work: Callable[[], object]) -> None:
        """Start work of a rank in a greenlet of its own, after the events that are scheduled for now already."""
        begun = greenlet(work, self._hub)
        self._greenlets.append((rank, begun))
        self.at(self.now, rank, begun.switch)

    def _fail(self, rank: int) -> None:
        """End everything that a rank does; the messages that it has sent still arrive."""
        mine = [begun for owner, begun in self._greenlets if owner == rank and begun]
        if mine:
            self.failed[rank] = self.now
        for begun in mine:
            for awaited in [waiting for waiting in self.waiting if waiting.waiter is begun]:
                del self.waiting[awaited]
            self._events[:] = [event for event in self._events if event[-1] != begun.switch]
            self._events.sort()
            begun.throw(GreenletExit)


class End(Protocol):
    """One end of the wires, as far as the clock must know it to let it wait and to describe it in an error.

    Attributes:
        rank: the rank whose end it is.
        clock: the clock that it lives by.
        deadline: simulated seconds after which it gives up a wait for a rank that has failed.
        last: what this end waited for last.
    """

    rank: int
    clock: Clock
    deadline: float
    last: "Awaited | None"

    def before(self) -> str:
        """What this end did last, in parentheses, for an error."""


class Awaited(Request):
    """Something that the work at one end of the wires can wait for, in simulated time.

    Args:
        end: the end that can wait for it.
        peer: the rank at the other end.

    Attributes:
        end: the end that can wait for it.
        peer: the rank at the other end.
        finished: the simulated second at which it is over; None as long as that is not known.
        waiter: the greenlet that waits for it, if one does.
    """

    waiter: greenlet | None = None

    def __init__(self, end: End, peer: int) -> None:
        self.end = end
        self.peer = peer

    def __str__(self) -> str:
        return f"{self.end} waits to {self.what()}"

    def wait(self) -> int:
        """Suspend the calling greenlet until this is over; returns the peer."""
        end, clock = self.end, self.end.clock
        if self.finished is None or self.finished > clock.now:
            self.waiter = getcurrent()
            clock.waiting[self] = clock.now
            if self.finished is not None:
                clock.at(self.finished, end.rank, self.waiter.switch)
            clock.give_way()
            clock.waiting.pop(self, None)
            self.waiter = None
        end.last = self
        return self.peer

    def finish(self, peer: int, when: float) -> None:
        """Sets the simulated second at which this is over, and the peer; whoever waits goes on then."""
        self.peer, self.finished = peer, when
        if self.waiter is not None:
            self.end.clock.at(when, self.end.rank, self.waiter.switch)

    def give_up(self, failed: Mapping[int, float]) -> None:
        """End the wait with an error that names the ranks that have failed, and when they did."""
        assert self.waiter is not None, "somebody waits"
        end = str(self.end)
        who = " and ".join(f"rank {rank} failed after {second:g} s" for rank, second in failed.items())
        waiter, self.waiter = self.waiter, None
        waiter.throw(
            DeadlineError(
                f"{end[0].upper()}{end[1:]} waited {self.end.deadline:g} s to {self.what()}; {who} of simulated time."
            )
        )

    @abstractmethod
    def what(self) -> str:
        """What is waited for, as the words that follow "waits to"."""
