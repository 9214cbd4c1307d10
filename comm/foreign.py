"""Code that is not ours: it is run under guard, so that whatever it does becomes one sentence with its file and line.

Guarded code can neither end the program (`sys.exit`, `os._exit`), nor keep it for ever, nor mix what it prints with the
program's own output, nor go on with the program in a second process (`os.fork`). Not covered: a crash of native code,
`os.abort` and signals that a process sends to itself, which no program can go on from (the exit status tells); loops
inside native code, loops that catch every exception, and loops in threads, because only the main thread can be
interrupted; and the end of the process, which waits for threads that are no daemons.
"""

import inspect
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bigbatch.comm.errors import BigBatchError, ConfigurationError

SECONDS = 60.0
"""Seconds that guarded code may take, such as a file while it is read."""

MOST_PRINTED = 100_000
"""The largest number of characters that guarded code may print."""

_OURS = (str(Path(__file__).parent.parent) + os.sep, sysconfig.get_path("stdlib") + os.sep)
_INSTALLED = ("site-packages", "dist-packages")
_folders: list[str] = []


class Ended(SystemExit):
    """Raised instead of ending the process, where foreign code calls `os._exit`."""


class StillRunning(BaseException):
    """Raised in guarded code that takes too long; no handler of ordinary exceptions stops it."""


class PrintsTooMuch(BaseException):
    """Raised in guarded code that prints too much; no handler of ordinary exceptions stops it."""


def expect_code_in(folder: Path) -> None:
    """Remembers that the Python files in a folder are foreign code, which errors may then name.

    From the first call on, `os._exit` raises an error where foreign code of this process calls it.
    """
    if not _folders:
        _watch_exits(os._exit, os.getpid())
    name = str(folder) + os.sep
    if name not in _folders:
        _folders.append(name)


def _watch_exits(end: Callable[[int], NoReturn], process: int) -> None:
    def end_unless_foreign(status: int) -> NoReturn:
        if os.getpid() == process and _foreign(sys._getframe(1).f_code.co_filename):
            raise Ended(status)
        end(status)

    os._exit = end_unless_foreign


def _foreign(file: str) -> bool:
    """Whether a file with source code belongs to the user, and neither to us nor to something that is installed."""
    return any(
        file.startswith(folder) and not any(part in file[len(folder) :] for part in _INSTALLED) for folder in _folders
    ) and not file.startswith(_OURS)


@contextmanager
def guarded(who: str, cannot: str, doing: str, code: Any = None, seconds: float | None = None) -> Iterator[None]:
    """Guards foreign code that runs within the context; an error of ours that it raises is passed on.

    Args:
        who: whose code it is, for messages: "my_file.py", "star".
        cannot: what it has to do: "be read", "make rounds for 4 ranks".
        doing: the same in the past: "was read", "made rounds for 4 ranks".
        code: the function that is called, whose place is named where an error has none in foreign code.
        seconds: how long it may take; None for `SECONDS`.

    Raises:
        ConfigurationError: the code has raised an error, has tried to end the program, took longer than allowed or
            printed more than `MOST_PRINTED` characters; names the file and the line.
    """
    seconds = SECONDS if seconds is None else seconds
    process = os.getpid()
    try:
        with _output_beside(), _limited(seconds):
            try:
                yield
            finally:
                if os.getpid() != process:  # a fork that went on would do all that the program does a second time
                    sys.stderr.write(f"{who} has forked a process while it {doing}, which ends here.\n")
                    sys.stderr.flush()
                    os._exit(1)
    except (BigBatchError, KeyboardInterrupt):
        raise
    except BaseException as error:
        place = _innermost(error) or _beginning(code)
        named = f" ({place})" if place else ""
        if isinstance(error, SystemExit):
            said = f"{who} ended the program while it {doing}{named}. Take the exit out."
        elif isinstance(error, StillRunning):
            said = f"{who} still ran after {seconds:g} s while it {doing}{named}. Look for a loop that does not end."
        elif isinstance(error, PrintsTooMuch):
            said = f"{who} printed more than {MOST_PRINTED:,} characters while it {doing}{named}. Let it print less."
        else:
            said = failure(who, cannot, error, code)
        raise ConfigurationError(said) from error


def failure(who: str, cannot: str, error: BaseException, code: Any = None) -> str:
    """Says in a sentence that code which is not ours cannot do something, why, and in which file and line.

    Args:
        who: whose code it is, as for `guarded`.
        cannot: what it has to do.
        error: what it has raised.
        code: the function that was called, whose place is named where the error has none in foreign code.
    """
    place = _innermost(error) or _beginning(code)
    return f"{who} cannot {cannot}: {_what(error)}{f' ({place})' if place else ''}."


def explained(error: BaseException) -> ConfigurationError | None:
    """Makes the error for something that foreign code raised where it was not guarded: in a loss, in an optimiser.

    Args:
        error: what was raised, an exception or a SystemExit.

    Returns:
        An error whose message names the file, the line and the function; None if no foreign code was running.
    """
    place = None if isinstance(error, BigBatchError) else _innermost(error)
    if place is None:
        return None
    if isinstance(error, SystemExit):
        made = ConfigurationError(f"{place.partition(', line')[0]} ended the program ({place}). Take the exit out.")
    else:
        made = ConfigurationError(f"{_what(error)} ({place}).")
    made.__cause__ = error
    return made


def _what(error: BaseException) -> str:
    said = str(error.msg if isinstance(error, SyntaxError) else error)
    return f"{type(error).__name__}: {' '.join(said.split()).rstrip('.')}" if said else type(error).__name__


def _innermost(error: BaseException) -> str | None:
    """The innermost place in foreign code that an error comes from: its file, line and function."""
    if isinstance(error, SyntaxError) and _foreign(error.filename or ""):
        return f"{shown(error.filename or '')}, line {error.lineno or 1}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _foreign(frame.filename):
            function = "" if frame.name == "<module>" else f", in {frame.name}"
            return f"{shown(frame.filename)}, line {frame.lineno}{function}"
    return None


def _beginning(code: Any) -> str | None:
    """The place where a function is defined, if that is foreign code."""
    found = getattr(inspect.unwrap(getattr(code, "func", code)), "__code__", None)
    if found is None or not _foreign(found.co_filename):
        return None
    return f"{shown(found.co_filename)}, line {found.co_firstlineno}"


def shown(file: str) -> str:
    """A file's name for messages: relative, if it lies in the working directory."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


class _Beside:
    """Standard output while foreign code runs: what is printed goes to standard error, up to `MOST_PRINTED`."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._printed = 0
        self.guarding = True

    def write(self, text: str) -> int:
        """Writes to standard error; after the guard has ended, to where it would have gone without."""
        if not self.guarding:
            return int(self._own.write(text))
        self._printed += len(text)
        if self._printed > MOST_PRINTED:
            raise PrintsTooMuch
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Flushes standard error, where guarded code prints to."""
        sys.stderr.flush()

    def close(self) -> None:
        """Does nothing, because the program goes on to print."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


_lock = threading.Lock()
_guards: list[_Beside] = []


@contextmanager
def _output_beside() -> Iterator[None]:
    """Lets standard output go to standard error, until the last of several guards, in whichever threads, has ended."""
    with _lock:
        beside = _Beside(_guards[0]._own if _guards else sys.stdout)
        _guards.append(beside)
        sys.stdout = beside
    try:
        yield
    finally:
        with _lock:
            _guards.remove(beside)
            beside.guarding = False
            sys.stdout = _guards[-1] if _guards else beside._own


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `StillRunning` in what the main thread does within the context, if that takes longer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> NoReturn:
        raise StillRunning

    before = signal.signal(signal.SIGALRM, stop)
    began, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)
