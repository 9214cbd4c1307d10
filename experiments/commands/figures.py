"""`bigbatch-exp figures`: lists the claims that can be examined."""

from typing import TYPE_CHECKING

import click

from bigbatch.experiments.claims import CLAIMS
from bigbatch.experiments.commands.options import Command

if TYPE_CHECKING:  # whoever only asks for help must not wait for torch
    from bigbatch.experiments.laboratory.claim import Claim


@click.command(cls=Command)
def figures() -> None:
    """List the claims that can be examined here: who makes them, and how long that takes."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from bigbatch.experiments.commands.output import console, print_fitting

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 1, 0))
    for head in ("figure", "claim", "source"):
        table.add_column(head)
    table.add_column("minutes", justify="right", no_wrap=True)
    table.add_column("--quick", justify="right", no_wrap=True)
    for name in CLAIMS.names():
        claim: type[Claim] = CLAIMS.load(name)
        minutes = (f"{minute:g}" for minute in (claim.minutes.default, claim.minutes.quick))
        table.add_row(escape(name), escape(claim.claim), escape(claim.source), *minutes)
    print_fitting(console(), table)
    console().print("Minutes are those of two cores; runs that are there already take none.", highlight=False)
