"""`bigbatch-exp plot`: draws the losses of any runs in one figure."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from bigbatch.comm.kinds import File, Name
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes

AXES = ("tokens", "updates", "seconds")


@dataclass(frozen=True)
class PlotSettings(Options):
    """The options of `plot`: what losses are drawn against, and the file of the figure.

    Attributes:
        by: the only horizontal axis, "tokens", "updates" or "seconds"; None for a panel for each.
        out: the PNG file to write.
    """

    title: ClassVar[str] = "Plot"

    by: str | None = option(None, Name(lambda: AXES), "Only horizontal axis to draw.", missing="a panel for each")
    out: Path = option(Path("overlay.png"), File(), "The figure.")


@click.command(cls=Command)
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=Value(File()))
@takes(PlotSettings)
def plot(settings: PlotSettings, folders: tuple[Path, ...]) -> None:
    """Draw the losses of any runs in one figure, against tokens, updates and seconds.

    A RUN is the folder of a strategy's run, or that of a comparison, which stands for the runs in it.
    """
    from bigbatch.experiments.commands.output import check_ending, write
    from bigbatch.experiments.runs.run import runs_in
    from bigbatch.experiments.runs.table import incomparable

    out = settings.out
    check_ending(out, ".png")
    runs = list({run.folder.resolve(): run for folder in folders for run in runs_in(folder)}.values())
    for note in filter(None, [incomparable(runs), *(f"{remark}." for run in runs for remark in run.remarks)]):
        print(f"Note: {note}", file=sys.stderr, flush=True)

    def draw(path: Path) -> None:
        from bigbatch.experiments.figures.overlay import draw_overlay

        draw_overlay(runs, path, settings.by)

    write(out, draw)
