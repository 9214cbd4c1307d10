"""`bigbatch-exp targets`: measures speeds and compares them with the ratios that they are meant to reach."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bigbatch.experiments.commands.options import Command, FolderSettings, takes

if TYPE_CHECKING:  # whoever only asks for help must not wait for what prints tables
    from rich.console import Console


@click.command(cls=Command)
@takes(FolderSettings)
def targets(output: FolderSettings) -> None:
    """Measure how fast the wires are, and hold that against what they are meant to reach."""
    from bigbatch.experiments.commands.output import console, print_json, results_in, told
    from bigbatch.experiments.commands.ranks import refuse_launchers
    from bigbatch.experiments.measuring.targets import measure_all
    from bigbatch.experiments.runs.run import chosen_folder, environment

    refuse_launchers("targets starts the processes that it measures itself")
    folder = chosen_folder(output.out, "targets")
    reached = measure_all(folder, told(True))
    with results_in(folder, named=not output.json) as results:
        results.keep({"targets": reached, "environment": environment()})
        results.show(lambda: print_json(reached) if output.json else print_targets(console(), reached))


def print_targets(console: "Console", reached: Sequence[dict[str, Any]]) -> None:
    """Print a line for each target."""
    from rich import box
    from rich.table import Table

    from bigbatch.experiments.commands.output import print_fitting

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number, head in enumerate(("", "at least", "reached", "", "case by case")):
        table.add_column(head, justify="right" if number in (1, 2) else "left", no_wrap=number in (1, 2))
    for row in reached:
        cases = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["cases"].items())
        met = "yes" if row["reached"] >= row["at_least"] else "[bold]no[/bold]"
        table.add_row(row["what"], f"{row['at_least']:g} ×", f"{row['reached']:.2f} ×", met, cases)
    print_fitting(console, table)
