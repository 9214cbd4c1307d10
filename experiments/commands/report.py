"""`bigbatch-exp report`: writes one HTML page about any runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from bigbatch.comm.errors import IncompleteError
from bigbatch.comm.kinds import File
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes


@dataclass(frozen=True)
class ReportSettings(Options):
    """The options of `report`.

    Attributes:
        out: the HTML file to write.
    """

    title: ClassVar[str] = "Report"

    out: Path = option(Path("report.html"), File(), "The page.")


@click.command(cls=Command)
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=Value(File()))
@takes(ReportSettings)
def report(settings: ReportSettings, folders: tuple[Path, ...]) -> None:
    """Write one HTML page about any runs: what was asked, tables, figures. It needs no network.

    A RUN is any folder with a summary.json: of a strategy, compare, bench, simulate, calibrate and the like.
    """
    from bigbatch.experiments.commands.output import check_ending, write
    from bigbatch.experiments.pages.page import make_page

    check_ending(settings.out, ".html", ".htm")
    failures: list[str] = []
    page = make_page(list({folder.resolve(): folder for folder in folders}.values()), failures.append)
    write(settings.out, lambda path: path.write_text(page, encoding="utf-8", errors="replace"))
    if failures:
        raise IncompleteError(f"{'; '.join(failures)}. The page {settings.out} is there without that.")
