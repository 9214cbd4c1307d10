"""Code that is not ours: it is run under guard, so that whatever it does becomes one sentence with its file and line.

Guarded code can neither end the program (`sys.exit`, `os._exit`), nor keep it for ever, nor mix what it prints with the
program's own output, nor go on with the program in a second process (`os.fork`). Not covered: a crash of native code,
`os.abort` and signals that a process sends to itself, which no program can go on from (the exit status tells); loops
inside native code, loops that catch every exception, and loops in threads, because only the main thread can be
interrupted; the end of the process, which waits for threads that are no daemons; and what is done to Python's own
modules, such as `sys.modules.clear()`.
"""

import dis
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

MOST_SAID = 400
"""Length at which what an error says is cut off, in characters: a message must stay a sentence."""

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
    except BaseException as error:
        if isinstance(error, BigBatchError) or interrupted(error):
            raise
        place = _innermost(error) or _beginning(code)
        named = f" ({place})" if place else ""
        if isinstance(error, SystemExit):
            said = f"{who} ended the program while it {doing}{named}. Take the exit out."
        elif isinstance(error, StillRunning):
            said = f"{who} still ran after {seconds:g} s while it {doing}{named}. Look for a loop that does not end."
        elif isinstance(error, PrintsTooMuch):
            said = f"{who} printed more than {MOST_PRINTED:,} characters while it {doing}{named}. Let it print less."
        else:
            said = f"{who} cannot {cannot}: {_what(error)}{named}."
        raise ConfigurationError(said) from error


def explained(error: BaseException) -> ConfigurationError | None:
    """Makes the error for something that foreign code raised where it was not guarded: in a loss, in an optimiser.

    Args:
        error: what was raised, of whatever kind: a KeyboardInterrupt or a SystemExit, too.

    Returns:
        An error whose message names the file, the line and the function; None if no foreign code was running, or if the
        user has interrupted it.
    """
    place = None if isinstance(error, BigBatchError) or interrupted(error) else _innermost(error)
    if place is None:
        return None
    if isinstance(error, SystemExit):
        made = ConfigurationError(f"{place.partition(', line')[0]} ended the program ({place}). Take the exit out.")
    else:
        made = ConfigurationError(f"{_what(error)} ({place}).")
    made.__cause__ = error
    return made


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is the user's interruption, by Ctrl-C, and not a KeyboardInterrupt that code has raised itself.

    An interruption comes between any two instructions; what code raises comes from an instruction that raises.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    if interrupted(error.__context__):  # code has answered to an interruption by raising another
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] != "RAISE_VARARGS"


def _what(error: BaseException) -> str:
    try:
        said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    except Exception:  # an error that cannot even be written is told by its name
        said = ""
    cut = said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}…"
    return f"{type(error).__name__}: {cut.rstrip('.')}" if said else type(error).__name__


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


@contextmanager
def _output_beside() -> Iterator[None]:
    """Lets standard output go to standard error, until the last of several guards, in whichever threads, has ended.

    Then both are what they were before the first.
    """
    with _lock:
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
