"""What commands print: tables and sentences on standard output, progress and errors on standard error."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table

from bigbatch.comm.errors import BigBatchError, ConfigurationError, in_words
from bigbatch.experiments.commands.options import OutputSettings
from bigbatch.experiments.commands.streams import Stream
from bigbatch.experiments.training.progress import terminal_columns

if TYPE_CHECKING:  # whoever only asks for help must not wait for NumPy
    from bigbatch.experiments.runs.results import Results
    from bigbatch.experiments.runs.run import Run

COLUMNS = 100
"""Width of the output in columns where there is no terminal."""

LINES = 25
"""Height that rich is told; of a terminal that it calls dumb, it takes our width only together with a height."""

NARROWEST = 30
"""Least width of the output in columns: what the widest cell takes beside a label."""

FOLDED = 16
"""Width in columns to which a column of words may be folded."""


def console() -> Console:
    """Makes a rich console on standard output, as wide as the terminal behind it."""
    width = max(terminal_columns(sys.stdout) or COLUMNS, NARROWEST)
    return Console(width=width, height=LINES, highlight=False)


def told(speaking: bool) -> Callable[[str], None]:
    """Makes a function that prints progress on standard error; it prints nothing unless this rank is `speaking`."""
    return (lambda text: print(text, file=sys.stderr, flush=True)) if speaking else (lambda _: None)


def close(folder: Path) -> None:
    """Print the last line of every command that writes a folder: the folder and the files in it."""
    print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


def print_json(content: Any) -> None:
    """Print rows, or any other value that JSON can write, as JSON."""
    print(json.dumps(content, indent=2), flush=True)


def new_table(*heads: str, gap: int = 2) -> Table:
    """A table whose columns but the first are numbers.

    Args:
        heads: of the columns.
        gap: columns of text between two of the table's.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for number, head in enumerate(heads):
        # A name that is too long is folded; a number that was cut off would be another number.
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table


def print_fitting(console: Console, table: Table) -> None:
    """Print a table; where it is too wide for the terminal, in several parts below each other.

    Each part begins with the table's first column. So no number is ever cut off: what is left would be another number.
    """
    gap = table.padding[1] + (table.box is not None)  # a box has a column between two of the table's
    widths = [_width(console, column) + gap for column in table.columns]
    parts: list[list[int]] = [[]]
    for place in range(1, len(widths)):
        if parts[-1] and widths[0] + sum(widths[other] for other in (*parts[-1], place)) - gap > console.width:
            parts.append([])
        parts[-1].append(place)
    for number, places in enumerate(parts):
        if number:
            console.print()
        console.print(table if len(parts) == 1 else _part(table, [0, *places]))


def _width(console: Console, column: Column) -> int:
    """The least width of a column: of its longest cell, or, if its cells may be folded, of a few words."""
    cells = (column.header, *column.cells)
    longest = max(Measurement.get(console, console.options, cell).maximum for cell in cells)
    return longest if column.no_wrap else min(longest, FOLDED)


def _part(table: Table, places: Sequence[int]) -> Table:
    """A table of some of another's columns."""
    part = copy(table)
    part.columns = [replace(table.columns[place], _index=number) for number, place in enumerate(places)]
    return part


def report(error: Exception, rank: int | None = None) -> None:
    """Print one sentence about an error on standard error, after its traceback if the command line has --debug.

    Args:
        error: the error.
        rank: the rank on which it happened; None if it happened on all ranks alike.
    """
    debug = "--debug" in sys.argv
    if debug:
        traceback.print_exception(error)
    where = "" if rank is None else f"on rank {rank}: "
    what = str(error) if isinstance(error, BigBatchError) else in_words(error)
    what = what or f"{type(error).__name__}: {error}"
    hint = "" if debug or isinstance(error, BigBatchError) else " (--debug shows where)"
    print(f"bigbatch-exp: {where}{what}{hint}", file=sys.stderr, flush=True)


@contextmanager
def results_in(folder: Path, *, named: bool = True, failures: Sequence[str] = ()) -> Iterator["Results"]:
    """Provides what keeps, shows and draws the results of a command, in this order; the folder is named last.

    Args:
        folder: the folder of the results.
        named: whether to print the folder and its files at the end.
        failures: sentences, without their full stops, about what has failed already.

    Raises:
        IncompleteError: something could not be kept, shown or drawn; everything else was.
    """
    from bigbatch.experiments.runs.results import Results

    with Results(folder, failures) as results:
        yield results
        if named:
            results.attempt(f"The folder {folder} cannot be listed", lambda: close(folder))


def present(
    runs: Sequence["Run"], summary: dict[str, Any], sentence: Callable[[], str], output: OutputSettings
) -> None:
    """Print the table of finished runs and a sentence about them, or the summary."""
    from bigbatch.experiments.runs.table import setting

    if output.json:
        print_json(summary)
    elif not output.quiet:
        with at_once():
            print()
            print_table(console(), [run.summary for run in runs])
            console().print(f"\n{escape(sentence())}")
            if setting(runs[0].summary):
                console().print(f"\n{escape(setting(runs[0].summary))}")


def print_table(console: Console, summaries: Sequence[dict[str, Any]]) -> None:
    """Print what `table_of` has."""
    from bigbatch.experiments.runs.table import table_of

    heads, blocks = table_of(summaries)
    table = new_table("", *map(escape, heads))
    for block in blocks:
        if block.title:
            table.add_row(f"[bold]{escape(block.title)}[/bold]")
        for label, cells in block.rows:
            table.add_row(label, *cells)
        table.add_section()
    print_fitting(console, table)


@contextmanager
def at_once() -> Iterator[None]:
    """Sends what is printed within the context in one piece.

    A launcher passes it on in one piece, too. If nobody reads that to its end, as with `head`, the launcher only
    notices at the next piece, when everything else has been done.
    """
    stream = sys.stdout
    with stream.held() if isinstance(stream, Stream) else nullcontext():
        yield


def check_ending(path: Path, *endings: str) -> None:
    """Refuse a file whose name does not end in one of `endings`.

    Raises:
        ConfigurationError: the name has another ending.
    """
    if path.suffix.lower() not in endings:
        raise ConfigurationError(f"{path} would be another kind of file: name one that ends in {endings[0]}.")


def write(path: Path, draw: Callable[[Path], object]) -> None:
    """Write the one file that a command makes, whole or not at all, and print its name.

    Args:
        path: the file.
        draw: writes it; gets the path to write.

    Raises:
        ConfigurationError: the file cannot be written, or what it should show cannot be drawn.
    """
    from bigbatch.experiments.runs.results import Results
    from bigbatch.experiments.runs.run import make_folder

    make_folder(path.parent)
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"The file {path} cannot be written: it is no file. Name another with --out.")
    results = Results(path.parent)
    results.draw(path.name, draw)
    if results.failures:
        raise ConfigurationError(f"{results.failures[0]}.")
    print(path, flush=True)
