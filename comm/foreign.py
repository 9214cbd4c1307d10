"""Code that is not ours: it is run under guard, so that whatever it does becomes one sentence with its file and line.

Guarded code can neither end the program (`sys.exit`, `os._exit`, `os.execv`), nor keep it for ever, nor mix what it
prints with the program's own output, nor go on with the program in a second process (`os.fork`), nor change what the
interpreter has for everybody: built-in names, streams, the working directory. Where no exception can stop it, the
program ends with a sentence. Not covered: a crash of native code, and signals that a process sends to itself, which no
program can go on from (the exit status tells).
"""

import atexit
import builtins
import faulthandler
import inspect
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from bigbatch.comm.errors import BigBatchError, ConfigurationError

SECONDS = 60.0
"""Seconds that guarded code may take, such as a file while it is read."""

SECONDS_OF_GRACE = 10.0
"""Seconds after which code that no exception has stopped ends the program, and code at the end of which is given up."""

MOST_PRINTED = 100_000
"""The largest number of characters that guarded code may print."""

LONGEST_ERROR = 1000
"""The largest number of characters of an error of foreign code that are shown: a message must stay a sentence."""

_OURS = (str(Path(__file__).parent.parent) + os.sep, sysconfig.get_path("stdlib") + os.sep)
_INSTALLED = ("site-packages", "dist-packages")
_folders: list[str] = []


class Ended(SystemExit):
    """Raised instead of ending the process, where foreign code calls `os._exit` or replaces the program by another."""


class StillRunning(BaseException):
    """Raised in guarded code that takes too long; no handler of ordinary exceptions stops it."""


class PrintsTooMuch(BaseException):
    """Raised in guarded code that prints too much; no handler of ordinary exceptions stops it."""


def expect_code_in(folder: Path) -> None:
    """Remembers that the Python files in a folder are foreign code, which errors may then name.

    From the first call on, `os._exit` and the like raise an error where foreign code of this process calls them.
    """
    if not _folders:
        for name in ("_exit", "abort", "execv", "execve"):
            setattr(os, name, _unless_foreign(getattr(os, name), os.getpid()))
    name = str(folder) + os.sep
    if name not in _folders:
        _folders.append(name)


def _unless_foreign(end: Callable[..., NoReturn], process: int) -> Callable[..., NoReturn]:
    @wraps(end)
    def end_unless_foreign(*arguments: Any, **named: Any) -> NoReturn:
        caller = sys._getframe(1)
        while caller.f_back is not None and caller.f_globals.get("__name__") == "os":  # `os.execvp` calls `os.execv`
            caller = caller.f_back
        if os.getpid() == process and _foreign(caller.f_code.co_filename):
            raise Ended
        end(*arguments, **named)

    return end_unless_foreign


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
    overdue = f"{who} still ran after {seconds:g} s while it {doing}"
    process = os.getpid()
    try:
        with _output_beside(), _limited(seconds, overdue), _as_it_was():
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
            said = f"{overdue}{named}. Look for a loop that does not end."
        elif isinstance(error, PrintsTooMuch):
            said = f"{who} printed more than {MOST_PRINTED:,} characters while it {doing}{named}. Let it print less."
        else:
            said = f"{who} cannot {cannot}: {_what(error)}{named}."
        raise ConfigurationError(said) from error


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
    said = ""
    with suppress(Exception, SystemExit, StillRunning), _limited(1.0):  # what makes the text may be foreign code, too
        said = str(error.msg if isinstance(error, SyntaxError) else error)
    said = " ".join(said[:LONGEST_ERROR].split()).rstrip(".") + ("…" if len(said) > LONGEST_ERROR else "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _innermost(error: BaseException) -> str | None:
    """The innermost place in foreign code that an error comes from: its file, line and function."""
    if isinstance(error, SyntaxError) and _foreign(error.filename or ""):
        return f"{shown(error.filename or '')}, line {error.lineno or 1}"
    return _place_of(reversed(traceback.extract_tb(error.__traceback__)))


def _place_of(frames: Iterable[traceback.FrameSummary]) -> str | None:
    """The first of some frames that is foreign code: its file, line and function."""
    for frame in frames:
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
    """Lets standard output go to standard error, until the last of several guards, in whichever threads, has ended.

    So does what native code and other programs write to its descriptor.
    """
    with _lock:
        if not _guards:
            if sys.stdout is not None:
                sys.stdout.flush()
            _descriptors.extend(_exchanged())
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
            if not _guards:
                _put_back()


_descriptors: list[int] = []
"""While guards last: copies of the descriptors of standard output and of standard error; none if one was closed."""


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


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back what guarded code may change for everybody, such as the working directory; what it adds stays."""
    names, path, modules = dict(vars(builtins)), list(sys.path), dict(sys.modules)
    arguments, depth, streams = list(sys.argv), sys.getrecursionlimit(), (sys.stdin, sys.stderr)
    directory = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        vars(builtins).update(names)  # before anything else, which may need them
        sys.setrecursionlimit(depth)
        sys.stdin, sys.stderr = streams
        sys.argv[:] = arguments
        if not set(path) <= set(sys.path):
            sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
        for name in modules.keys() - sys.modules.keys():
            if not _foreign(getattr(modules[name], "__file__", None) or ""):
                sys.modules[name] = modules[name]
        with suppress(OSError):  # foreign code has closed it
            os.fchdir(directory)
            os.close(directory)


@contextmanager
def _limited(seconds: float, sentence: str = "") -> Iterator[None]:
    """Raises `StillRunning` in what the main thread does within the context, if that takes longer.

    Args:
        seconds: how long it may take.
        sentence: with what to end the program if it then goes on, without its full stop; "" to let it go on.
    """
    if sentence and _program:
        with _ended(seconds + SECONDS_OF_GRACE, sentence), _limited(seconds):
            yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> NoReturn:
        raise StillRunning

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
            if handler is not None:  # one that Python knows
                signal.signal(number, handler)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)


_program: list[bool] = []
"""Holds something if this process is a program of ours, which may end, and not somebody's notebook."""


def may_end_process() -> None:
    """Lets guarded code that no exception can stop end this process with a sentence and the exit status 2.

    Such code catches every exception, ignores signals, or is a loop inside native code.
    """
    _program.append(True)


@contextmanager
def _ended(seconds: float, sentence: str) -> Iterator[None]:
    """Ends the process if what happens within the context takes longer."""
    watched = threading.get_ident()

    def end() -> None:
        place = _place_of(reversed(traceback.extract_stack(sys._current_frames()[watched])))
        where = f" ({place})" if place else ""
        _last_words(f"{sentence}{where}, and nothing stops it. Look for a loop that does not end.")
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + SECONDS_OF_GRACE, exit=True, file=2)  # where no thread gets on
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def _last_words(sentence: str) -> None:
    """Writes a sentence to the descriptor of standard error, whatever has become of the stream."""
    with suppress(OSError):
        os.write(2, f"bigbatch-exp: {sentence}\n".encode("ascii", "replace"))


def end_program(status: int) -> NoReturn:
    """Ends the program, also if foreign code has left threads that go on, or work for its end that does."""
    if _folders:
        try:
            with _limited(SECONDS_OF_GRACE):
                threading._shutdown()  # type: ignore[attr-defined]  # as at the end of a process of `multiprocessing`
                atexit._run_exitfuncs()
        except StillRunning:
            _last_words(
                f"A user's file has left something running, which was not done {SECONDS_OF_GRACE:g} s after everything "
                "else, and ends here. Let its threads be daemons, and its work for the end of the program be short."
            )
            os._exit(status)
    sys.exit(status)
