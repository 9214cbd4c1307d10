"""Standard output and standard error: the one place that decides what happens when they cannot be written.

Printing never ends the work. A character that a stream cannot write, because it is not in UTF-8, is replaced by a plain
one. A stream that is closed or full is told of once, when the program ends. A pipe that nobody reads any more is not
told of at all: the program then ends with the status of one that was ended by SIGPIPE, as `head` makes others do.
"""

import codecs
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIPE_CLOSED = 141
"""The exit status of a program whose output nobody reads any more: 128 and the number of SIGPIPE, as shells have it."""

WIDER = {"∞": "inf", "…": "...", "±": "+/-", "½": "1/2", "√": "sqrt ", "∝": "~", "✓": "passed", "✗": "FAILED"}

TWINS = str.maketrans(
    "×÷−–—·•≈←→↑↓≤≥─━│┃┌┐└┘├┤┬┴┼╸╺αβγδηλμµσςτΔΣ²³⊙█▏“”„\u2018\u2019\u00a0\u2007\u2009\u202f",
    'x/---.*~<>^v<>--||+++++++++--abgdnluusstDS23*#|"""\'\'    ',
    "\u061c\u200b\u200e\u200f",  # nobody sees them
) | {ord(letter): words for letter, words in WIDER.items()}
"""Plain characters for those that we print; most are as wide, so that tables keep their columns."""

LOST = "BIGBATCH_OUTPUT_LOST"
"""The environment variable that tells processes started for this one why nobody can see what they print."""

PLAIN = "bigbatch.plain"
"""Name of the error handler for characters that an encoding does not have."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Writes a character by its plain twin, or else by its number, as Python writes it in a string."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(TWINS)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(PLAIN, _plainly)


class Stream(io.TextIOBase):
    """A standard stream on which printing never raises an error.

    It has no `buffer`, so that whoever prints cannot go past it: click would write UTF-8 where the stream has ASCII.

    Args:
        text: the stream itself; None if the program was started with a closed one.

    Attributes:
        lost: why the stream cannot be written any more; None while it can.
        dropped: whether something was printed all the same, and went nowhere.
    """

    def __init__(self, text: io.TextIOWrapper | None) -> None:
        self._text = text
        self.lost: OSError | None = None if text is not None else OSError("it is closed")
        self.dropped = False
        self._held: list[str] | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        """Returns the name of the encoding in which the stream writes characters."""
        return "ascii" if self._text is None else self._text.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # typeshed has an attribute
        """Name of the handler of characters that the encoding does not have."""
        return PLAIN

    def _open(self) -> bool:
        """Whether the stream can be written; one that somebody else has closed is lost."""
        if self._text is not None and self._text.closed and self.lost is None:
            self.lost = OSError("it is closed")
        return self.lost is None

    def write(self, text: str | bytes) -> int:  # click writes bytes for shells, in UTF-8
        """Writes text, or drops it once the stream is lost."""
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        if self._held is not None:
            self._held.append(text)
        elif self._text is not None and self._open():
            try:
                self._text.write(text)
            except OSError as error:
                self.lose(error)
                self.dropped = True
        elif text:
            self.dropped = True
        return len(text)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps what is written within the context, and sends it in one piece when the context ends."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            pieces, self._held = self._held, None
            self.write("".join(pieces))
            self.flush()

    def flush(self) -> None:
        """Sends on what was written, unless it is held."""
        if self._held is None and self._text is not None and self._open():
            try:
                self._text.flush()
            except OSError as error:
                self.lose(error)
                self.dropped = True

    def isatty(self) -> bool:
        """Whether a terminal is behind the stream."""
        return self._text is not None and self._open() and self._text.isatty()

    def fileno(self) -> int:
        """The number of the stream's file descriptor.

        Raises:
            OSError: it has none.
        """
        if self._text is None:
            raise OSError("The stream is closed")
        return self._text.fileno()

    def writable(self) -> bool:
        """True: text can be written, though it may go nowhere."""
        return True

    def lose(self, error: OSError) -> None:
        """Gives the stream up, and sends the rest to nowhere, what libraries print included.

        So neither they nor the interpreter, when it ends, find an error.
        """
        self.lost = error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


class Streams:
    """The two standard streams of the program while it runs.

    Attributes:
        out: standard output.
        err: standard error.
    """

    def __init__(self, out: Stream | None, err: Stream | None) -> None:
        self.out = out
        self.err = err

    def failure(self) -> tuple[int, str]:
        """What became of standard output: (exit status, sentence), or (0, "") if all was written."""
        if self.out is None or self.out.lost is None or not self.out.dropped:
            return 0, ""
        if isinstance(self.out.lost, BrokenPipeError):
            return PIPE_CLOSED, ""
        from bigbatch.comm.errors import INCOMPLETE

        reason = self.out.lost.strerror or self.out.lost
        return INCOMPLETE, f"Standard output cannot be written: {reason}. What belongs into files is there."


@contextmanager
def standard_streams() -> Iterator[Streams]:
    """Puts a `Stream` in the place of standard output and of standard error while the program runs.

    Streams of somebody else's making, such as a notebook's, are left alone.
    """
    _fill_descriptors()
    inherited = os.environ.get(LOST)
    before = sys.stdout, sys.stderr
    made = [_stream(own) for own in before]
    out, err = made
    if out is not None and (reason := _unwritable(out)):
        out.lose(OSError(reason))
        os.environ[LOST] = reason
    sys.stdout, sys.stderr = (old if new is None else new for old, new in zip(before, made, strict=True))
    try:
        yield Streams(out, err)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        if inherited is None:
            os.environ.pop(LOST, None)


def _unwritable(out: Stream) -> str:
    """Why standard output cannot be written, as far as that can be told beforehand; "" if nothing is known.

    A launcher whose own output cannot be written ends all its processes, so that it must not get such a one.
    """
    if LOST in os.environ or out.lost is not None:
        return os.environ.get(LOST) or str(out.lost)
    try:
        number = out.fileno()
    except (OSError, ValueError):  # it has none, as in a notebook
        return ""
    try:
        os.write(number, b"")
        room = os.fstatvfs(number)
    except OSError as error:
        return error.strerror or str(error)
    full = stat.S_ISREG(os.fstat(number).st_mode) and room.f_blocks and not room.f_bavail
    return os.strerror(errno.ENOSPC) if full else ""


def _stream(stream: object) -> Stream | None:
    """The stream in a `Stream`; None if it is no stream of text on bytes, or one already."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=PLAIN)
        with suppress(OSError, ValueError):  # whoever started us may want to wait for nothing, but we can wait
            os.set_blocking(stream.fileno(), True)
        return Stream(stream)
    return Stream(None) if stream is None else None


def _fill_descriptors() -> None:
    """Open the descriptors 0, 1 and 2 if they are closed, or else the next files would get those numbers.

    What a library prints would then be written into them.
    """
    with suppress(OSError):
        while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(opened, True)
        os.close(opened)
