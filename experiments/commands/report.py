"""The commands about runs that are there already: `bigbatch-exp plot` and `report`."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.commands.main import FILE
from bigbatch.experiments.runs.run import make_folder, runs_in

FOLDERS = click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=FILE)


@click.command()
@FOLDERS
@click.option(
    "--by", type=click.Choice(("tokens", "updates", "seconds")), help="Only that. [default: a panel for each]"
)
@click.option("--out", type=FILE, default="overlay.png", show_default=True, help="The figure.")
def plot(folders: tuple[Path, ...], by: str | None, out: Path) -> None:
    """Draw the losses of any runs in one figure, against tokens, updates and seconds.

    A RUN is the folder of a strategy's run, or that of a comparison, which stands for the runs in it.
    """
    from bigbatch.experiments.figures.overlay import draw_overlay, incomparable

    _check_ending(out, ".png")
    runs = list({run.folder.resolve(): run for folder in folders for run in runs_in(folder)}.values())
    if incomparable(runs):
        print(f"Note: {incomparable(runs)}", file=sys.stderr, flush=True)
    _write(out, lambda: draw_overlay(runs, out, by))


@click.command()
@FOLDERS
@click.option("--out", type=FILE, default="report.html", show_default=True, help="The page.")
def report(folders: tuple[Path, ...], out: Path) -> None:
    """Write one HTML page about any runs: what was asked, tables, figures. It needs no network.

    A RUN is any folder with a summary.json: of a strategy, compare, bench, simulate, calibrate and the like.
    """
    from bigbatch.experiments.pages.page import make_page

    _check_ending(out, ".html", ".htm")
    page = make_page(list({folder.resolve(): folder for folder in folders}.values()))
    _write(out, lambda: out.write_text(page, encoding="utf-8"))


def _check_ending(path: Path, *endings: str) -> None:
    if path.suffix.lower() not in endings:
        raise ConfigurationError(f"{path} would be another kind of file: name one that ends in {endings[0]}.")


def _write(path: Path, write: Callable[[], object]) -> None:
    make_folder(path.parent)
    try:
        write()
    except OSError as error:
        raise ConfigurationError(f"The file {path} cannot be written: {error.strerror}. Name another.") from error
    print(path, flush=True)


COMMANDS = {"plot": plot, "report": report}
