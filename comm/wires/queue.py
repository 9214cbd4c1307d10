"""Communication queues: work on the wires, carried out one piece after the other."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

on_queue: ContextVar[bool] = ContextVar("on_queue", default=False)
"""Whether what runs now, on its thread or greenlet, is carried out by a queue beside the rank's own work."""


class CommunicationQueue:
    """Carries out work in the order in which it was submitted, so that all ranks do the same at the same time.

    Args:
        threaded: whether the work runs on a thread of its own, which the first work starts; if not, it runs when
            somebody waits for it.
        idle: makes a context that is entered while somebody waits for that thread.

    Attributes:
        idle: makes the context of a wait, as given.
    """

    def __init__(self, *, threaded: bool, idle: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._threaded = threaded
        self.idle = idle
        self._thread: ThreadPoolExecutor | None = None
        self._left: deque[Callable[[], None]] = deque()
        self._failure: BaseException | None = None

    def submit(self, work: Callable[[], None]) -> Callable[[], None]:
        """Put `work` at the end of the queue; the function returned waits until it is done.

        Waiting raises what the work raised, or what any work before it did: after a failure nothing is carried out.
        """
        if self._threaded:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "communication", initializer=on_queue.set, initargs=(True,))
            result = self._thread.submit(self.carry_out, work).result

            def wait_for_thread() -> None:
                with self.idle():
                    result()

            return wait_for_thread
        done: list[bool] = []

        def finally_done() -> None:
            self.carry_out(work)
            done.append(True)

        self._left.append(finally_done)

        def wait() -> None:
            while not done:
                self._left.popleft()()

        return wait

    def close(self) -> None:
        """Ends the queue's thread, if it has started one, after the work that is left."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def carry_out(self, work: Callable[[], None]) -> None:
        """Does one piece of work; if an earlier one has failed, it raises that error instead."""
        if self._failure is not None:
            raise self._failure
        try:
            work()
        except BaseException as failure:
            self._failure = failure
            raise
