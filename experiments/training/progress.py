"""Showing progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bigbatch.comm.wires.processes import LAUNCHERS

SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """Prints a line on standard error; if nobody can see it there, the work goes on all the same."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


class Reporter:
    """Shows the user how far a run is. Ranks that print nothing use one with `quiet`.

    Args:
        quiet: whether to print nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._remarked: set[str] = set()
        self._columns = None if quiet or os.environ.get("TERM") == "dumb" else terminal_columns(sys.stderr)

    def remark(self, sentences: Sequence[str]) -> None:
        """Print a strategy's remarks for its user, each sentence only once."""
        for sentence in sentences:
            if not self._quiet and sentence not in self._remarked:
                say(f"{sentence}.")
            self._remarked.add(sentence)

    def tell(self, sentence: str) -> None:
        """Print a sentence about something that has happened, every time it happens."""
        if not self._quiet:
            say(f"{sentence}.")

    @contextmanager
    def arm(self, name: str, updates: int) -> Iterator["Bar"]:
        """Shows the progress of one arm of an experiment, through the bar that this context provides."""
        if self._quiet:
            yield Bar()
        elif self._columns is None:
            yield Lines(name, updates)
        else:
            console = Console(stderr=True, force_terminal=True, width=self._columns)
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=console) as progress:
                yield RichBar(progress, name, updates)


class Bar:
    """Shows the progress of one arm; this base class shows nothing."""

    def advance(self, update: int, loss: float) -> None:
        """Shows that the update with this number is made; its loss is in nats per token."""


class Lines(Bar):
    """Shows the progress of one arm as a line of text every few seconds."""

    def __init__(self, name: str, updates: int) -> None:
        self._name = name
        self._updates = updates
        self._last = time.monotonic()

    def advance(self, update: int, loss: float) -> None:
        """Print a line if the last one is old enough, and after the last update."""
        if update == self._updates or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            known = f", loss {loss:.3f}" if math.isfinite(loss) else ""
            say(f"{self._name}: update {update}/{self._updates}{known}")


class RichBar(Bar):
    """Shows the progress of one arm as a bar on a terminal."""

    def __init__(self, progress: Progress, name: str, updates: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=updates, loss="  -  ")

    def advance(self, update: int, loss: float) -> None:
        """Move the bar to the update with this number, and show its loss."""
        self._progress.update(self._task, completed=update, loss=f"{loss:.3f}")


def terminal_columns(stream: TextIO) -> int | None:
    """Finds the width of the terminal behind a stream, in columns; None if there is no terminal.

    A launcher such as mpirun reads its ranks' output through a pipe and copies it to its own. Then the terminal of the
    launcher counts, which can be found on Linux.
    """
    try:
        if stream.isatty():
            return os.get_terminal_size(stream.fileno()).columns or None
        terminal = _launchers_terminal()
        if terminal is None:
            return None
        descriptor = os.open(terminal, os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.get_terminal_size(descriptor).columns or None
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _launchers_terminal() -> str | None:
    """The terminal that the outermost launcher above this process writes its errors to."""
    process, outermost = os.getppid(), None
    try:
        while process > 1:
            name, _, rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")
            if not any(launcher in name for launcher in LAUNCHERS):
                break
            outermost, process = process, int(rest.split()[1])
        if outermost is not None:
            target = str(Path(f"/proc/{outermost}/fd/2").readlink())
            return target if target.startswith(("/dev/pts/", "/dev/tty")) else None
    except OSError:  # not Linux, or not ours to look at
        return None
    return None
