"""`bigbatch-exp ps keys`: makes keys for a server and its workers."""

from pathlib import Path

import click

from bigbatch.comm.kinds import File
from bigbatch.experiments.commands.options import Command, Value


@click.command(cls=Command)
@click.argument("file", type=Value(File()))
def keys(file: Path) -> None:
    """Make keys: FILE for the server, and one without its secret to give to workers."""
    from bigbatch.comm.server.network.keys import Keys

    made = Keys.new()
    for_workers = file.parent / f"{file.stem}.worker{file.suffix}"
    made.write(file)
    made.for_workers().write(for_workers)
    print(f"{file} is for the server (and works for workers, too); give {for_workers} to workers on other machines.")
