"""`bigbatch-exp doctor`: what this machine has and lacks."""

import click

from bigbatch.experiments.commands.options import Command


@click.command(cls=Command)
def doctor() -> None:
    """Say what this machine has (MPI, torch, cores, GPUs) and what to install for what is missing."""
    from rich.markup import escape
    from rich.table import Table

    from bigbatch.experiments.commands.output import console
    from bigbatch.experiments.measuring.doctor import examine

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, found, advice in examine():
        table.add_row(what, escape(found + (f"\n-> {advice}" if advice else "")))
    console().print(table)
