"""`bigbatch-exp timeline`: draws from a trace what every rank did when."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import UPDATES, File, Kind, Number, Text
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes


class Range(Kind):
    """The kind of value that is a range of whole numbers from 1, such as 2..4."""

    metavar = "FIRST..LAST"

    def read(self, value: Any) -> tuple[int, int]:
        """Reads both ends of a range: "2..4" -> (2, 4), "3" -> (3, 3)."""
        ends = value if isinstance(value, tuple | list) else str(value).partition("..")[::2]
        try:
            first, last = (UPDATES.read(end) for end in ([ends[0], ends[0]] if ends[1:] == ("",) else ends))
        except ValueError:
            first, last = 1, 0
        if last < first:
            raise ValueError(
                f"is no range; write 3 for the third, or 2..4 for the second to the fourth, of at most {UPDATES.most:,}"
            )
        return first, last

    def write(self, value: Any) -> str:
        """Writes a range as the command line has it: (2, 4) -> "2..4"."""
        return f"{value[0]}..{value[1]}"


@dataclass(frozen=True)
class TimelineSettings(Options):
    """The options of `timeline`: which part of the trace is drawn, chosen by updates or by time.

    Attributes:
        arm: the arm whose updates are drawn, or None for the first arm.
        updates: the first and the last update to draw, from 1; None for the second update alone.
        since: the time to start from instead, in seconds of the trace; None for its start.
        until: the time to stop at instead, in seconds of the trace; None for its end.
        out: the PNG file to write, or None for timeline.png in the run's folder.
    """

    title: ClassVar[str] = "Timeline"

    arm: str | None = option(None, Text("ARM"), "Arm whose updates are drawn.", missing="the first")
    updates: tuple[int, int] | None = option(None, Range(), "Updates to draw, as in 2..4.", missing="the second")
    since: float | None = option(
        None, Number(), "Draw from this time on instead, in seconds of the trace.", flag="--from", missing="its start"
    )
    until: float | None = option(
        None, Number(), "Draw up to this time, in seconds of the trace.", flag="--to", missing="its end"
    )
    out: Path | None = option(None, File(), "The figure.", missing="timeline.png in the run's folder")


@click.command(cls=Command)
@click.argument("run", type=Value(File()))
@takes(TimelineSettings)
def timeline(settings: TimelineSettings, run: Path) -> None:
    """Draw what every rank did when, from the trace of a run that had --trace: a folder, or a trace.json."""
    from bigbatch.comm.tracing.perfetto import read_trace
    from bigbatch.experiments.commands.output import write
    from bigbatch.experiments.figures.timeline import draw_timeline, range_of_updates
    from bigbatch.experiments.runs.run import formats_of, trace_of

    first, stop = settings.since, settings.until
    timed = first is not None or stop is not None
    if timed and (settings.arm or settings.updates):
        raise ConfigurationError("--from and --to choose a range of time, --arm and --updates one of updates: use one.")
    if settings.out is not None and settings.out.suffix.lower() not in ("", ".png"):
        raise ConfigurationError(
            f"The figure {settings.out} would be a PNG all the same. Name a file that ends in .png."
        )
    path = trace_of(run)
    ranks = read_trace(path)
    if not timed:
        first, stop = range_of_updates(ranks, settings.arm, settings.updates)
    target = settings.out or path.with_name("timeline.png")
    title = ", ".join([path.parent.resolve().name, *formats_of(path.parent)])
    write(target, lambda part: draw_timeline(ranks, part, title, first, stop))
