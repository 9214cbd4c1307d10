"""Waiting on real wires: for messages that must be polled, and for work in a thread beside a rank's own."""

import os
import time
from collections.abc import Callable
from threading import Thread
from typing import NoReturn, Self

from bigbatch.comm.transports.watchdog import give_way
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.life import somebody_takes_time
from bigbatch.comm.wires.request import Request
from bigbatch.comm.wires.transport import Transport

YIELDS = 800
"""How often a wait gives way to other processes before it begins to sleep, which takes 50 µs more than it is told to:
long enough for a server's answer to a small request to come before."""

SHORTEST_SLEEP, LONGEST_SLEEP = 20e-6, 1e-3
"""Limits of one sleep in seconds; a waiting rank that sleeps leaves its core to the ranks that compute."""

SLEEP_SHARE = 1 / 16
"""A sleep lasts this share of the wait so far, so that no wait of a millisecond or more is overslept by much more."""


def nothing() -> None:
    """Does nothing; most waits call this before each sleep."""


def wait_until(
    arrived: Callable[[], bool],
    deadline: float,
    give_up: Callable[[], NoReturn],
    meanwhile: Callable[[], None] = nothing,
) -> None:
    """Polls until something has arrived: first it yields between polls, then it sleeps, and at last it gives up.

    Args:
        arrived: returns whether it has arrived.
        deadline: seconds after which to give up, not counting those in which another rank may take its time.
        give_up: called when the deadline has passed, to raise the error.
        meanwhile: called before every sleep; may raise what makes the wait pointless.
    """
    for _ in range(YIELDS):
        if arrived():
            return
        os.sched_yield()
    started = time.monotonic()
    while not arrived():
        meanwhile()
        waited = time.monotonic() - started
        if waited > deadline:
            if not somebody_takes_time():
                give_way()
                give_up()
            started, waited = time.monotonic(), 0.0
        time.sleep(min(max(SHORTEST_SLEEP, SLEEP_SHARE * waited), LONGEST_SLEEP))


class WorkThread(Request):
    """Runs work in a thread of its own; `wait` and `check` raise its error in the thread that calls them.

    Args:
        work: the work, which is called with `end`.
        end: the end of the wires to do it on.
    """

    def __init__(self, work: Callable[[Transport], None], end: Transport) -> None:
        self._work = work
        self._end = end
        self._error: BaseException | None = None
        # A process that ends in an error does not wait for it.
        self._thread = Thread(target=self._run, name=f"beside rank {end.rank}", daemon=True)
        self._thread.start()

    def wait(self) -> int:
        """Wait until the work has ended; it watches the deadline itself, wherever it waits."""
        self._thread.join()
        self.check()
        return self._end.rank

    def check(self) -> None:
        """Raise the work's error, if it ended in one."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work(self._end)
        except BaseException as error:  # raised again in the thread that looks
            self._error = error


class OnThreads(Transport):
    """A transport that runs work beside a rank's own in a thread, on the same wires."""

    def __init__(self, rank: int, size: int, deadline: float = DEFAULT_DEADLINE) -> None:
        super().__init__(rank, size, deadline)
        self._threads: list[WorkThread] = []

    def check_threads(self) -> None:
        """Refuses nothing, because a process can always start another thread."""

    def check_on_threads(self) -> None:
        """Raises the error of work beside this rank's own, if any failed; every long wait calls it."""
        for other in self._threads:
            other.check()

    def _start_thread(self, work: Callable[[Transport], None]) -> Request:
        self._threads.append(WorkThread(work, self._second_end()))
        return self._threads[-1]

    def _second_end(self) -> Self:
        end = super()._second_end()
        end._threads = []
        return end
