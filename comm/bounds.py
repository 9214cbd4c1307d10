"""Bounds for code that is not ours: how long it may run, and where what it prints goes to.

`foreign` sets these bounds, and says in a sentence which of them was broken, and where.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

SECONDS_OF_GRACE = 10.0
"""Seconds after which code that no exception has stopped ends the program, and code at the end of which is given up."""

LAST_RESORT = 4
"""How many times as long as it may code takes, at least, before the process ends even where no thread gets on."""

MOST_PRINTED = 100_000
"""The largest number of characters that bounded code may print."""


class StillRunning(BaseException):
    """Raised in bounded code that takes too long; no handler of ordinary exceptions stops it."""


class PrintsTooMuch(BaseException):
    """Raised in bounded code that prints too much; no handler of ordinary exceptions stops it."""


class _Beside:
    """Standard output while foreign code runs: what is printed goes to standard error, up to `MOST_PRINTED`.

    Args:
        own: standard output as it was before.
        errors: standard error as it was before.
    """

    def __init__(self, own: Any, errors: Any) -> None:
        self.own = own
        self.errors = errors
        self._printed = 0
        self.guarding = True

    def write(self, text: str) -> int:
        """Writes to standard error; after the guard has ended, to where it would have gone without."""
        if not self.guarding:
            return int(self.own.write(text))
        self._printed += len(text)
        if self._printed > MOST_PRINTED:
            raise PrintsTooMuch
        return int(self.errors.write(text))

    def flush(self) -> None:
        """Flushes standard error, where guarded code prints to."""
        self.errors.flush()

    def close(self) -> None:
        """Does nothing, because the program goes on to print."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


_lock = threading.Lock()
_guards: list[_Beside] = []

_descriptors: list[int] = []
"""While guards last: copies of the descriptors of standard output and of standard error; none if one was closed."""


@contextmanager
def output_beside() -> Iterator[None]:
    """Lets standard output go to standard error, until the last of several guards, in whichever threads, has ended.

    So does what native code and other programs write to its descriptor. Then all streams are what they were before the
    first.
    """
    with _lock:
        if not _guards:
            if sys.stdout is not None:
                sys.stdout.flush()
            _descriptors.extend(_exchanged())
        beside = _Beside(_guards[0].own, _guards[0].errors) if _guards else _Beside(sys.stdout, sys.stderr)
        _guards.append(beside)
        sys.stdout = beside
    try:
        yield
    finally:
        with _lock:
            _guards.remove(beside)
            beside.guarding = False
            sys.stdout, sys.stderr = _guards[-1] if _guards else beside.own, beside.errors
            if not _guards:
                _put_back()


def _exchanged() -> list[int]:
    """Lets the descriptor of standard output lead to standard error, and returns copies of both as they were."""
    try:
        copies = [os.dup(1), os.dup(2)]
    except OSError:
        return []
    os.dup2(2, 1)
    return copies


def _put_back() -> None:
    for number, copy in enumerate(_descriptors, 1):
        with suppress(OSError):  # foreign code has closed the copy, too
            os.dup2(copy, number)
            os.close(copy)
    _descriptors.clear()


class _Clock:
    """Seconds that a thread has had: those in which it was ready, and others had the processors, do not count.

    So a busy machine accuses nobody. Systems other than Linux do not tell, and there all seconds count.
    """

    def __init__(self) -> None:
        self._tells = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._began = self._now()

    def _now(self) -> float:
        waited = 0.0
        with suppress(OSError, ValueError, IndexError):
            waited = int(self._tells.read_text().split()[1]) / 1e9
        return time.monotonic() - waited

    def seconds(self) -> float:
        """Seconds since the clock was made."""
        return self._now() - self._began


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `StillRunning` in what the main thread does within the context, if it has had that long for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    clock = _Clock()

    def stop(*_: Any) -> None:
        if (left := seconds - clock.seconds()) > 0:
            signal.setitimer(signal.ITIMER_REAL, left)
        else:
            raise StillRunning

    handlers = {number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGALRM}}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = signal.signal(signal.SIGALRM, stop)
    began, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            if handler is not None and handler != signal.getsignal(number):  # one that Python knows
                signal.signal(number, handler)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)


_program: list[bool] = []
"""Holds something if this process is a program of ours, which may end, and not somebody's notebook."""


def may_end_process() -> None:
    """Lets bounded code that no exception can stop end this process with a sentence and the exit status 2.

    Such code catches every exception, ignores signals, or is a loop inside native code.
    """
    _program.append(True)


@contextmanager
def ended(seconds: float, sentence: Callable[[FrameType], str]) -> Iterator[None]:
    """Ends the process if what happens within the context goes on after it should have been stopped.

    Args:
        seconds: how long it may take.
        sentence: makes the last words, given where it is.
    """
    if not _program:
        yield
        return
    watched, clock, over = threading.get_ident(), _Clock(), threading.Event()

    def end() -> None:
        while (left := seconds + SECONDS_OF_GRACE - clock.seconds()) > 0:
            if over.wait(left):
                return
        _last_words(sentence(sys._current_frames()[watched]))
        os._exit(2)

    threading.Thread(target=end, name="bounds", daemon=True).start()
    faulthandler.dump_traceback_later(LAST_RESORT * (seconds + SECONDS_OF_GRACE), exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        over.set()


def _last_words(sentence: str) -> None:
    """Writes a sentence to the descriptor of standard error, whatever has become of the stream."""
    with suppress(OSError):
        os.write(2, f"bigbatch-exp: {sentence}\n".encode("ascii", "replace"))


_work_at_the_end_is_done = threading.Event()


def end_program(status: int) -> NoReturn:
    """Ends the program after foreign code has run in it, also if that has left threads, or work for the end, behind."""

    def end() -> None:
        if not _work_at_the_end_is_done.wait(SECONDS_OF_GRACE):
            _last_words(
                f"A user's file has left something running, which was not done {SECONDS_OF_GRACE:g} s after everything "
                "else, and ends here. Let its threads be daemons, and its work for the end of the program be short."
            )
            os._exit(status)

    threading.Thread(target=end, name="bounds at the end", daemon=True).start()
    sys.exit(status)


def foreign_work_is_over() -> None:
    """Says that what the program still waits for at its end is none of foreign code."""
    _work_at_the_end_is_done.set()
