"""`bigbatch-exp figures` and `figure`: claims about batches and their cost, examined here."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.transports.launch import Launcher, detect
from bigbatch.experiments.commands.main import FILE, POSITIVE, console, told
from bigbatch.experiments.laboratory.claim import CLAIMS, Claim, Finding, summary_of
from bigbatch.experiments.laboratory.laboratory import Laboratory, cores
from bigbatch.experiments.runs.run import SUMMARY, folder_name, make_folder, unwritable, write_json

ALL = "all"

RUNS, FIGURES = Path("runs") / "points", Path("runs") / "figures"


@click.command()
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def figures(debug: bool) -> None:  # noqa: ARG001 - the program looks at it
    """List the claims that can be examined here: who makes them, and how long that takes."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 1, 0))
    for head in ("figure", "claim", "source"):
        table.add_column(head)
    table.add_column("minutes", justify="right", no_wrap=True)
    table.add_column("--quick", justify="right", no_wrap=True)
    for name in CLAIMS.names():
        claim: type[Claim] = CLAIMS.load(name)
        minutes = (f"{minute:g}" for minute in (claim.minutes.default, claim.minutes.quick))
        table.add_row(escape(name), escape(claim.claim), escape(claim.source), *minutes)
    console().print(table)
    console().print("Minutes are those of two cores; runs that are there already take none.", highlight=False)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--quick", is_flag=True, help="In its smallest form.")
@click.option("--text", type=FILE, help="Your own text. [default: Python's standard library's documentation]")
@click.option("--processes", type=POSITIVE, help="To train in at a time. [default: as many as there are cores]")
@click.option("--runs", type=FILE, default=RUNS, show_default=True, help="Where all runs lie, and are found again.")
@click.option("--out", type=FILE, default=FIGURES, show_default=True, help="Below it, each figure has its folder.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON and no table.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def figure(
    names: tuple[str, ...],
    quick: bool,
    text: Path | None,
    processes: int | None,
    runs: Path,
    out: Path,
    as_json: bool,
    debug: bool,  # noqa: ARG001 - the program looks at it
) -> None:
    """Examine a claim here: train what that takes, draw it, and say whether it held. `all` takes every figure.

    Runs are kept: the same command draws the figure again without training, and one that was interrupted goes on.
    """
    if detect().launcher is not Launcher.NONE:
        raise LaunchError("figure starts the processes that train itself: run it without mpirun or torchrun.")
    claims = claims_named(names)
    check_trains(claims, {"--text": text, "--processes": processes})
    say = told(True)
    summaries = []
    base = {"text": text and text.resolve()}
    with going_on(), Laboratory(runs, processes or cores(), say, base) as laboratory:
        for name, kind in claims.items():
            began = time.monotonic()
            minutes = kind.minutes.quick if quick else kind.minutes.default
            say(f"── {name}: about {minutes:g} minutes on two cores, less what is there already")
            folder = out / (folder_name(Path(name).name) + ("-quick" if quick else ""))
            make_folder(folder)
            claim = kind(laboratory, quick=quick)
            finding = claim.examine()
            summary = {**summary_of(name, claim, finding), "seconds": time.monotonic() - began}
            try:
                claim.draw(finding, folder / "figure.png")
                write_json(folder / SUMMARY, summary)
            except OSError as error:
                raise unwritable(folder, error) from error
            summaries.append(summary)
            if not as_json:
                print_finding(console(), name, claim, finding, folder)
    if as_json:
        print(json.dumps(summaries, indent=2), flush=True)


def claims_named(names: Sequence[str]) -> dict[str, type[Claim]]:
    """The figures of those names, each once; `all` stands for every figure that is known without a file.

    Raises:
        ConfigurationError: there is none of that name.
    """
    chosen = [own for name in names for own in (CLAIMS.names() if name == ALL else [name])]
    return {name: CLAIMS.load(name) for name in chosen}


def check_trains(claims: dict[str, type[Claim]], given: dict[str, Any]) -> None:
    """Refuse options about training if no figure trains.

    Args:
        claims: the figures.
        given: such options -> their values; None for what was left out.

    Raises:
        ConfigurationError: one was given, and no figure trains.
    """
    words = [option for option, value in given.items() if value is not None]
    if words and not any(claim.trains for claim in claims.values()):
        raise ConfigurationError(
            f"{' and '.join(words)} would change nothing, for nothing is trained to draw {' and '.join(claims)}: leave "
            f"{'it' if len(words) == 1 else 'them'} out."
        )


@contextmanager
def going_on() -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with what is missing.", file=sys.stderr, flush=True)
        raise


def print_finding(printer: Console, name: str, claim: Claim, finding: Finding, folder: Path) -> None:
    """Print what was claimed, by whom, what was run, the numbers, and the verdict."""
    facts: list[tuple[str, str]] = [
        (name, claim.claim),
        ("source", claim.source),
        ("run", finding.asked),
        ("decided by", claim.criterion),
    ]
    head = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    head.add_column(style="bold", no_wrap=True)
    head.add_column()
    for fact in facts:
        head.add_row(*map(escape, fact))
    printer.print()
    printer.print(head)
    printer.print()
    printer.print(table_of(finding))
    printer.print(f"\n[bold]{finding.verdict.value.upper()}[/bold]: {escape(finding.sentence)}")
    print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


def table_of(finding: Finding) -> Table:
    """The table of a finding."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in finding.columns:
        numbers = all(not isinstance(row.get(column.key), str) for row in finding.rows)
        table.add_column(escape(column.label), justify="right" if numbers else "left")
    for row in finding.rows:
        table.add_row(*(escape(column.text(row.get(column.key))) for column in finding.columns))
    return table


COMMANDS: dict[str, Any] = {"figures": figures, "figure": figure}
