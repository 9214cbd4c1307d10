"""Code that is not ours: it is run under guard, so that whatever it does becomes one sentence with its file and line.

Guarded code can neither end the program (`sys.exit`, `os._exit`, `os.execv`), nor keep it for ever, nor mix what it
prints with the program's own output, nor go on with the program in a second process (`os.fork`), nor change what the
interpreter has for everybody: built-in names, streams, the working directory, torch's type of numbers. Where no
exception can stop it, the program ends with a sentence. Not covered: a crash of native code, and signals that a process
sends to itself, which no program can go on from (the exit status tells).
"""

import builtins
import dis
import inspect
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bigbatch.comm import bounds
from bigbatch.comm.bounds import MOST_PRINTED, PrintsTooMuch, StillRunning, ended, limited, output_beside
from bigbatch.comm.errors import BigBatchError, ConfigurationError

SECONDS = 60.0
"""Seconds that guarded code may take, such as a file while it is read."""

MOST_SAID = 400
"""Length at which what an error says is cut off, in characters: a message must stay a sentence."""

_OURS = (str(Path(__file__).parent.parent) + os.sep, sysconfig.get_path("stdlib") + os.sep)
_INSTALLED = ("site-packages", "dist-packages")
_folders: list[str] = []


class _Guards(threading.local):
    """How many guards this thread is in."""

    depth = 0


_guards = _Guards()


class Ended(SystemExit):
    """Raised instead of ending the process, where foreign code calls `os._exit` or replaces the program by another."""


def expect_code_in(folder: Path) -> None:
    """Remembers that the Python files in a folder are foreign code, which errors may then name."""
    name = str(folder) + os.sep
    if name not in _folders:
        _folders.append(name)


@cache
def _have_ends_raise() -> None:
    """From now on, `os._exit` and the like raise an error where foreign code of this process calls them."""
    for name in ("_exit", "abort", "execv", "execve"):
        setattr(os, name, _unless_foreign(getattr(os, name), os.getpid()))


def _unless_foreign(end: Callable[..., NoReturn], process: int) -> Callable[..., NoReturn]:
    @wraps(end)
    def end_unless_foreign(*arguments: Any, **named: Any) -> NoReturn:
        caller = sys._getframe(1)
        while caller.f_back is not None and caller.f_globals.get("__name__") == "os":  # `os.execvp` calls `os.execv`
            caller = caller.f_back
        if os.getpid() == process and (_guards.depth or _foreign(caller.f_code.co_filename)):
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

    def stuck(frame: FrameType) -> str:
        place = _place_of(reversed(traceback.extract_stack(frame)))
        return f"{overdue}{f' ({place})' if place else ''}, and nothing stops it. Look for a loop that does not end."

    try:
        with output_beside(), ended(seconds, stuck), limited(seconds), _as_it_was(), _no_end():
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
            said = f"{overdue}{named}. Look for a loop that does not end."
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


def comes_of_interruption(error: BaseException | None) -> bool:
    """Whether an error is the user's interruption, or was made of it, as Python and NumPy do it while they import."""
    while error is not None:
        if interrupted(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _what(error: BaseException) -> str:
    kind, said = "an error", ""
    with suppress(Exception, SystemExit, StillRunning), limited(1.0):  # what makes the text may be foreign code, too
        kind = str(type(error).__name__)
        said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    cut = said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}…"
    told = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)  # no terminal obeys it
    return f"{kind}: {told.rstrip('.')}" if told else kind


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
    with suppress(OSError, ValueError):  # there may be no such directory any more, or the file lies elsewhere
        return str(Path(file).relative_to(Path.cwd()))
    return file


@contextmanager
def _no_end() -> Iterator[None]:
    """Has whatever ends the process raise an error, since within the context this thread runs foreign code."""
    _have_ends_raise()
    _guards.depth += 1
    try:
        yield
    finally:
        _guards.depth -= 1


@contextmanager
def same_directory() -> Iterator[None]:
    """Puts the working directory back at the end of the context, wherever foreign code has gone to.

    Whoever writes files within the context, while such code runs, must name them from the root.
    """
    try:
        before = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody may read it
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # foreign code has closed it, or nobody may go there any more
            os.fchdir(before)
        with suppress(OSError):
            os.close(before)


_SETTINGS: tuple[tuple[str, str, Callable[[Any, Any], object]], ...] = (
    ("sys", "getrecursionlimit", lambda sys, depth: sys.setrecursionlimit(depth)),
    ("socket", "getdefaulttimeout", lambda socket, seconds: socket.setdefaulttimeout(seconds)),
    ("numpy", "geterr", lambda numpy, modes: numpy.seterr(**modes)),
    ("torch", "get_default_dtype", lambda torch, kind: torch.set_default_dtype(kind)),
    ("torch", "is_grad_enabled", lambda torch, enabled: torch.set_grad_enabled(enabled)),
)
"""What code may set for everybody: the module, the function that tells it, and how it is put back."""


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back what guarded code may change for everybody, such as the working directory; what it adds stays."""
    names = [(vars(module), dict(vars(module))) for module in (builtins, sys)]
    path, arguments, modules = list(sys.path), list(sys.argv), dict(sys.modules)
    settings = [
        (put_back, modules[name], getattr(modules[name], told)())
        for name, told, put_back in _SETTINGS
        if name in modules
    ]
    try:
        with same_directory():
            yield
    finally:
        added = sys.path
        for now, before in names:  # before anything else, which may need them
            now.update(before)
        for name, module in modules.items():
            if sys.modules.get(name) is not module and not _foreign(getattr(module, "__file__", None) or ""):
                sys.modules[name] = module
        for put_back, module, setting in settings:
            put_back(module, setting)
        sys.argv[:] = arguments
        kept = [entry for entry in added or () if isinstance(entry, str)]
        sys.path[:] = [*kept, *(entry for entry in path if entry not in kept)]


def end_program(status: int) -> NoReturn:
    """Ends the program, also if a user's file has left threads that go on, or work for its end that does."""
    if _folders:
        bounds.end_program(status)
    sys.exit(status)
