"""Work beside a rank's own, in simulated time: on greenlets, one by one or in a communication queue."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from bigbatch.comm.transports.simulated.clock import Awaited, End
from bigbatch.comm.wires.queue import CommunicationQueue, on_queue
from bigbatch.comm.wires.request import Request
from bigbatch.comm.wires.transport import Transport


class GreenletThread(Awaited):
    """Work on a greenlet beside a rank's own: waiting for it lasts until the work has ended."""

    def __str__(self) -> str:
        return f"{self.end} waits for the work beside its own"

    def what(self) -> str:
        """The end of the work, as the words that follow "waits to" in an error."""
        return "see the end of the work beside its own"


class Turn(Awaited):
    """One piece of work in a queue: the piece after it waits until it has ended."""

    def what(self) -> str:
        """The turn of the waiting piece, as the words that follow "waits to" in an error."""
        return "communicate in its turn"


class GreenletQueue(CommunicationQueue):
    """Carries out work on greenlets beside a rank's own, each piece after the one before it.

    Args:
        end: the rank's end of the wires.
        start_thread: starts work beside the rank's own; what it returns waits for the end of the work.
        idle: makes a context that is entered while somebody waits for the work.
    """

    def __init__(
        self,
        end: End,
        start_thread: Callable[[Callable[[Transport], None]], Request],
        idle: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(threaded=False, idle=idle)
        self._end = end
        self._start_thread = start_thread
        self._last: Turn | None = None

    def submit(self, work: Callable[[], None]) -> Callable[[], None]:
        """Begin `work` when what was submitted before it is done; the function returned waits for its end."""
        before, turn = self._last, Turn(self._end, self._end.rank)
        failures: list[Exception] = []

        def in_turn(_: Transport) -> None:
            on_queue.set(True)
            if before is not None:
                before.wait()
            try:
                self.carry_out(work)
            except Exception as failure:  # for whoever waits
                failures.append(failure)
            turn.finish(turn.peer, self._end.clock.now)

        done, self._last = self._start_thread(in_turn), turn

        def wait() -> None:
            with self.idle():
                done.wait()
            if failures:
                raise failures[0]

        return wait
