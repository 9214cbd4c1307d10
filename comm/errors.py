"""Everything that can go wrong, as one small tree.

    BigBatchError
    ├── ConfigurationError     what was asked for cannot be done: an option, a file, a name
    ├── LaunchError            the processes were not started as the work needs them
    ├── MismatchError          the ranks do not agree on what they are about to do
    ├── IncompleteError        the results are there, but something after them failed: a file, a table, a figure
    └── CommunicationError     the wires failed
        ├── DeadlineError      a wait took longer than allowed
        ├── MalformedError     what arrived is no message of ours
        └── DeadlockError      every rank of an in-process cluster waits for another

Each message says what happened, to whom, and what to do.
"""

import difflib
import re
import sys
from collections.abc import Iterable
from typing import Any

INTERRUPTED = 130
"""The exit status of a program that was ended by Ctrl-C, as shells have it."""

INCOMPLETE = 3
"""The exit status of a program that has its results, but could not write, print or draw all of them."""


class BigBatchError(Exception):
    """Any error that bigbatch raises on purpose.

    Args:
        message: what happened, to whom, and what to do.
        everywhere: whether every rank of the job raises this very error, so that one rank may speak for all.
    """

    def __init__(self, message: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class ConfigurationError(BigBatchError):
    """Raised when an option, a file or a name asks for something that cannot be done."""


class LaunchError(BigBatchError):
    """Raised when the processes were not started in the way that the work needs."""


class MismatchError(BigBatchError):
    """Raised when the ranks do not agree on what they are about to do."""


class IncompleteError(BigBatchError):
    """Raised when what was asked for is done, but not all of its results could be written, printed or drawn."""


class CommunicationError(BigBatchError):
    """Raised when a message cannot be sent or received, or the other side has failed."""


class DeadlineError(CommunicationError):
    """Raised when a wait takes longer than the transport's deadline."""


class MalformedError(CommunicationError):
    """Raised when something arrives that is not a message of ours, or not the one that belongs there."""


class DeadlockError(CommunicationError):
    """Raised when every rank of an in-process cluster waits for another one."""


QUOTED = 60
"""Length at which a quoted value is cut off, in characters: a message must stay a sentence."""


def quoted(value: Any) -> str:
    """Writes a refused value for a message, as Python writes it, but cut off where that is long."""
    try:
        text = repr(value)
    except Exception:  # Python writes no whole number of thousands of digits, and foreign objects raise what they like
        return f"so large a value of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}…"


def suggestion(name: object, known: Iterable[str]) -> str:
    """Names the closest known name, for a message about an unknown one: " (did you mean 'ring'?)", or ""."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def in_words(error: BaseException) -> str:
    """Tells an error that others raise, and that need not be a fault of ours, in a sentence; else returns ""."""
    if isinstance(error, ImportError):
        return (
            f"Something that bigbatch needs cannot be imported ({error}): install it anew, by {sys.executable} -m pip "
            "install --force-reinstall bigbatch."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}."
    return _memory_missing(error)


def _memory_missing(error: BaseException) -> str:
    """Says that memory did not suffice, if that is what Python, NumPy or torch means by an error; else ""."""
    said = str(error)
    if not isinstance(error, MemoryError) and "memory" not in said:
        return ""
    asked = re.search(r"allocate ([0-9.]+ ?[A-Za-z]+)", said, re.IGNORECASE)
    if asked is None and not isinstance(error, MemoryError):
        return ""
    wanted = f": {asked[1]} more were asked for" if asked else ""
    return (
        f"There is not enough memory for this{wanted}. Take a smaller batch, context, vocabulary or model, or fewer "
        "ranks."
    )


def exit_status(error: BaseException) -> int:
    """The exit status of a program that ends in an error: 2 for what was asked for, 1 for what went wrong."""
    if isinstance(error, IncompleteError):
        return INCOMPLETE
    return 2 if isinstance(error, ConfigurationError | LaunchError) else 1
