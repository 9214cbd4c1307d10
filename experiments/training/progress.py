"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LAUNCHERS = ("mpirun", "mpiexec", "hydra", "prterun", "prte", "orted", "srun", "torchrun")
SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """Tells the reader how far a run is. Ranks that do not speak use one with `quiet`.

    Args:
        quiet: say nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._remarked: set[str] = set()
        self._columns = None if quiet else terminal_columns(sys.stderr)

    def remark(self, sentences: Sequence[str]) -> None:
        """Pass on what a strategy wants its user to know; the same sentence only once."""
        for sentence in sentences:
            if not self._quiet and sentence not in self._remarked:
                print(f"{sentence}.", file=sys.stderr, flush=True)
            self._remarked.add(sentence)

    def tell(self, sentence: str) -> None:
        """Say what has happened, every time that it happens."""
        if not self._quiet:
            print(f"{sentence}.", file=sys.stderr, flush=True)

    @contextmanager
    def arm(self, name: str, updates: int) -> Iterator["Bar"]:
        """A bar for one arm of an experiment."""
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
    """One arm's progress; this one keeps silent."""

    def advance(self, update: int, loss: float) -> None:
        """The update of that number is made; its loss was that, in nats."""


class Lines(Bar):
    """A line every few seconds."""

    def __init__(self, name: str, updates: int) -> None:
        self._name = name
        self._updates = updates
        self._last = time.monotonic()

    def advance(self, update: int, loss: float) -> None:
        """Print a line if it is time, and at the end."""
        if update == self._updates or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            known = f", loss {loss:.3f}" if math.isfinite(loss) else ""
            print(f"{self._name}: update {update}/{self._updates}{known}", file=sys.stderr, flush=True)


class RichBar(Bar):
    """A bar that is drawn again and again."""

    def __init__(self, progress: Progress, name: str, updates: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=updates, loss="  -  ")

    def advance(self, update: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=update, loss=f"{loss:.3f}")


def terminal_columns(stream: TextIO) -> int | None:
    """The width of the terminal behind a stream, or None if there is none.

    A launcher such as mpirun reads its ranks' output through a pipe and writes it on to its own: what counts then
    is where the launcher's goes, which Linux tells.
    """
    try:
        if stream.isatty():
            return os.get_terminal_size(stream.fileno()).columns
        terminal = _launchers_terminal()
        if terminal is None:
            return None
        descriptor = os.open(terminal, os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.get_terminal_size(descriptor).columns
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
