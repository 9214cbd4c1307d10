"""`bigbatch-exp tune`: measures which all-reduce is the fastest here, for the strategy `auto`."""

import click

from bigbatch.comm.errors import IncompleteError
from bigbatch.experiments.commands.options import Command, takes
from bigbatch.experiments.commands.ranks import RankSettings, ranks_of


@click.command(cls=Command)
@takes(RankSettings)
def tune(ranks: RankSettings) -> None:
    """Measure which all-reduce is the fastest here, in float32, and keep the table for `auto`."""
    from rich.table import Table

    from bigbatch.comm.cache import cache_folder
    from bigbatch.comm.reducers import tuning
    from bigbatch.comm.strategies.auto import candidates
    from bigbatch.experiments.commands.output import at_once, console, print_fitting, told
    from bigbatch.experiments.measuring.bench import size_label

    with ranks_of(ranks) as (transport, _):
        speaking = transport.rank == 0
        measured = tuning.tune(candidates(transport), transport, told(speaking))
    if not speaking:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("size", "fastest", "ms", "then"):
        table.add_column(head, no_wrap=head != "then")
    for size, times in measured.seconds.items():
        first, *others = measured.ranking(size)
        then = ", ".join(f"{name} {times[name] / times[first]:.2f} ×" for name in others[:3])
        table.add_row(size_label(size), first, f"{1e3 * times[first]:.3f}", then)
    with at_once():
        print_fitting(console(), table)
        if measured.kept:
            print(f"\nKept for {measured.layout} in {cache_folder()}; auto uses it.")
    if not measured.kept:
        raise IncompleteError(f"The table could not be kept in {cache_folder()}, so that auto will measure again.")
