"""`bigbatch-exp targets`: measures speeds and compares them with the ratios that they are meant to reach."""

import click

from bigbatch.experiments.commands.options import Command, FolderSettings, takes


@click.command(cls=Command)
@takes(FolderSettings)
def targets(output: FolderSettings) -> None:
    """Measure how fast the wires are, and hold that against what they are meant to reach."""
    from bigbatch.experiments.commands.output import close, console, print_json
    from bigbatch.experiments.commands.ranks import refuse_launchers
    from bigbatch.experiments.measuring.targets import measure_all, print_targets
    from bigbatch.experiments.runs.run import SUMMARY, environment, make_folder, new_folder, write_json

    refuse_launchers("targets starts the processes that it measures itself")
    folder = output.out or new_folder("targets")
    make_folder(folder)
    reached = measure_all(folder)
    write_json(folder / SUMMARY, {"targets": reached, "environment": environment()})
    if output.json:
        print_json(reached)
        return
    print_targets(console(), reached)
    close(folder)
