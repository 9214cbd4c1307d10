"""`bigbatch-exp doctor`: what this machine has and lacks, and who started this process."""

from dataclasses import dataclass
from typing import ClassVar

import click

from bigbatch.comm.errors import LaunchError
from bigbatch.comm.kinds import Flag
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, takes


@dataclass(frozen=True)
class DoctorSettings(Options):
    """The options of an examination.

    Attributes:
        clean: whether to remove what MPI jobs have left, instead of examining anything.
    """

    title: ClassVar[str] = "Doctor"

    clean: bool = option(False, Flag(), "Remove your files in /dev/shm that aborted MPI jobs have left; nothing else.")


@click.command(cls=Command)
@takes(DoctorSettings)
def doctor(settings: DoctorSettings) -> None:
    """Say what this machine has (MPI, torch, cores, GPUs), what is missing, and which launcher started this."""
    from rich.markup import escape
    from rich.table import Table

    from bigbatch.comm.transports.launch import detect
    from bigbatch.experiments.commands.output import console
    from bigbatch.experiments.measuring.doctor import clean, examine

    if settings.clean:
        print(clean(), flush=True)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, found, advice in examine():
        table.add_row(what, escape(found + (f"\n-> {advice}" if advice else "")))
    try:
        shown = detect().first_here  # one table from each machine, though MPI begins on all ranks or none
    except LaunchError:
        shown = True
    if shown:
        console().print(table)
