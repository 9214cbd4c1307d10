import click

from bigbatch.experiments.commands.options import Command


@click.command(cls=Command)
def mine():
    """Say that this is somebody else's command."""
    print("somebody else's")
