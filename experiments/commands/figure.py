"""`bigbatch-exp figure`: examines a claim about batches and their cost on this machine."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import File, Flag, Name, Text, Whole
from bigbatch.comm.options import Options, option
from bigbatch.experiments.claims import CLAIMS
from bigbatch.experiments.commands.options import Command, Value, takes
from bigbatch.experiments.commands.ranks import refuse_launchers
from bigbatch.experiments.laboratory.study import LANGUAGE_MODELLING, STUDIES, Study

if TYPE_CHECKING:  # whoever only asks for help must not wait for torch
    from rich.console import Console
    from rich.table import Table

    from bigbatch.experiments.laboratory.claim import Claim, Finding

ALL = "all"
"""The word on the command line for every registered figure."""

RUNS, FIGURES = Path("runs") / "points", Path("runs") / "figures"


@dataclass(frozen=True)
class FigureSettings(Options):
    """The options of `figure`: how a claim is examined, and where its runs and figures are kept.

    Attributes:
        quick: whether to examine the claim in its smallest form.
        task: name of the task that is learnt, one of `STUDIES`; None for language modelling.
        text: the user's own text or pairs, or None for the task's default.
        source: the language that is read, by its code; None for the task's default.
        target_language: the language that is written, by its code; None for the task's default.
        processes: number of processes that train at a time, or None for as many as there are cores.
        runs: the folder in which all runs are kept and found again.
        out: the folder below which each figure has a folder of its own.
        json: whether to print the findings as JSON instead of a table.
    """

    title: ClassVar[str] = "Figure"

    quick: bool = option(False, Flag(), "Examine the claim in its smallest form.")
    task: str | None = option(None, Name(lambda: STUDIES), "Task to learn.", missing=LANGUAGE_MODELLING.task)
    text: Path | None = option(
        None,
        File(),
        "Text or pairs of texts to learn from, a file in UTF-8.",
        missing="what the task finds on this machine",
    )
    source: str | None = option(None, Text("LANGUAGE"), "Language that is read, such as en.", missing="en")
    target_language: str | None = option(None, Text("LANGUAGE"), "Language that is written, such as de.", missing="de")
    processes: int | None = option(
        None, Whole(most=10_000), "Number of processes that train at a time.", missing="as many as there are cores"
    )
    runs: Path = option(RUNS, File(), "Folder in which all runs lie, and are found again.")
    out: Path = option(FIGURES, File(), "Folder below which each figure has its own.")
    json: bool = option(False, Flag(), "Print what was found as JSON instead of a table.")


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, type=Value(Name(lambda: [ALL, *CLAIMS.names()], "FILE.py:Figure")))
@takes(FigureSettings)
def figure(settings: FigureSettings, names: tuple[str, ...]) -> None:
    """Examine a claim here: train what that takes, draw it, and say whether it held. `all` takes every figure.

    Runs are kept: the same command draws the figure again without training, and one that was interrupted goes on.
    """
    from bigbatch.experiments.commands.output import close, console, print_json, told
    from bigbatch.experiments.laboratory.claim import summary_of
    from bigbatch.experiments.laboratory.laboratory import Laboratory
    from bigbatch.experiments.runs.results import Results
    from bigbatch.experiments.runs.run import folder_name, make_folder
    from bigbatch.experiments.training.launcher import usable_cores

    refuse_launchers("figure starts the processes that train itself")
    quick, study = settings.quick, study_of(settings)
    claims = claims_named(names)
    check_trains(claims, settings)
    study.check()
    say = told(True)
    summaries: list[dict[str, Any]] = []
    failures: list[str] = []
    with going_on(), Laboratory(settings.runs, settings.processes or usable_cores(), say, study) as laboratory:
        for name, kind in claims.items():
            began = time.monotonic()
            minutes = kind.minutes.quick if quick else kind.minutes.default
            say(f"── {name}: about {minutes:g} minutes on two cores, less what is there already")
            of_task = f"-{settings.task}" if settings.task is not None and kind.trains else ""
            folder = settings.out / f"{folder_name(Path(name).name)}{of_task}{'-quick' if quick else ''}"
            make_folder(folder)
            claim = kind(laboratory, quick=quick)
            finding = claim.examine()
            summary = {**summary_of(name, claim, finding), "seconds": time.monotonic() - began}
            summaries.append(summary)
            results = Results(folder, failures)
            results.keep(summary)
            if not settings.json:
                results.show(partial(print_finding, console(), name, claim, finding))
            results.draw("figure.png", partial(claim.draw, finding))
            if not settings.json:
                results.show(partial(close, folder))
            failures = results.failures
    with Results(settings.out, failures) as results:
        if settings.json:
            results.show(lambda: print_json(summaries))


def claims_named(names: Sequence[str]) -> dict[str, type["Claim"]]:
    """Loads figures by name, each once; `all` stands for every registered figure.

    Raises:
        ConfigurationError: there is no figure of one of the names.
    """
    chosen = [own for name in names for own in (CLAIMS.names() if name == ALL else [name])]
    return {name: CLAIMS.load(name) for name in chosen}


def study_of(settings: FigureSettings) -> Study:
    """What the figures train: the study of the task, on the user's own data where there are any."""
    study = LANGUAGE_MODELLING if settings.task is None else STUDIES[settings.task]
    text = settings.text and settings.text.resolve()
    chosen = {"text": text, "source": settings.source, "target_language": settings.target_language}
    return replace(study, chosen=chosen)


ABOUT_TRAINING = ("task", "text", "source", "target_language", "processes")
"""Those of the options that change nothing where nothing is trained."""


def check_trains(claims: dict[str, type["Claim"]], settings: FigureSettings) -> None:
    """Refuse options about training if none of the figures trains anything.

    Raises:
        ConfigurationError: such an option was given, and no figure trains.
    """
    given = settings.flat()
    words = [one.flag for one in settings.offered() if one.name in ABOUT_TRAINING and given[one.name] is not None]
    if words and not any(claim.trains for claim in claims.values()):
        raise ConfigurationError(
            f"{' and '.join(words)} would change nothing, for nothing is trained to draw {' and '.join(claims)}: leave "
            f"{'it' if len(words) == 1 else 'them'} out."
        )


@contextmanager
def going_on() -> Iterator[None]:
    """Catch Ctrl-C during the work, say that the same command continues from what is done, and raise it again."""
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with what is missing.", file=sys.stderr, flush=True)
        raise


def print_finding(printer: "Console", name: str, claim: "Claim", finding: "Finding") -> None:
    """Print a finding: what was claimed and by whom, what was run, the numbers, and the verdict."""
    from rich.markup import escape
    from rich.table import Table

    from bigbatch.experiments.commands.output import print_fitting

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
    print_fitting(printer, head)
    printer.print()
    print_fitting(printer, table_of(finding))
    printer.print(f"\n[bold]{finding.verdict.value.upper()}[/bold]: {escape(finding.sentence)}")


def table_of(finding: "Finding") -> "Table":
    """Makes the table of a finding's rows for the terminal, with numbers aligned at the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in finding.columns:
        numbers = all(not isinstance(row.get(column.key), str) for row in finding.rows)
        table.add_column(escape(column.label), justify="right" if numbers else "left", no_wrap=numbers)
    for row in finding.rows:
        table.add_row(*(escape(column.text(row.get(column.key))) for column in finding.columns))
    return table
