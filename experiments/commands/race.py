"""`bigbatch-exp race`: compares the training speed of strategies, DistributedDataParallel and no exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bigbatch.comm.kinds import Flag, Whole
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, takes
from bigbatch.experiments.commands.ranks import RankSettings, ranks_of

if TYPE_CHECKING:  # whoever only asks for help must not wait for what prints tables
    from rich.console import Console


@dataclass(frozen=True)
class RaceSettings(Options):
    """The options of `race`: the size of the batches, and how many turns each contestant takes.

    Attributes:
        micro_batch: examples that a rank computes at once.
        context: tokens in an example.
        turns: number of turns of each contestant, of ten updates each.
        json: whether to print the rows as JSON instead of a table.
    """

    title: ClassVar[str] = "Race"

    micro_batch: int = option(2, Whole(most=2**16), "Examples that a rank computes at once.")
    context: int = option(64, Whole(most=2**16), "Tokens in an example.")
    turns: int = option(12, Whole(most=10**6), "Turns that each contestant takes, of ten updates each.")
    json: bool = option(False, Flag(), "Print the rows as JSON instead of a table.")


@click.command(cls=Command)
@click.argument("strategies", nargs=-1)
@takes(RaceSettings, RankSettings)
def race(settings: RaceSettings, ranks: RankSettings, strategies: tuple[str, ...]) -> None:
    """Train 4 million parameters in turns: over strategies (shared), over torch's own way, and without exchange."""
    from bigbatch.experiments.commands.output import at_once, console, print_json, told
    from bigbatch.experiments.measuring import race as racing
    from bigbatch.experiments.measuring.wires import all_reduce_named

    names = strategies or ("shared",)
    for name in names:
        all_reduce_named(name)
    with ranks_of(ranks) as (transport, launch):
        speaking = transport.rank == 0
        shape = settings.micro_batch, settings.context, settings.turns
        rows = racing.race(transport, launch, names, *shape, told(speaking))
    if speaking and settings.json:
        print_json(rows)
    elif speaking:
        with at_once():
            print_race(console(), rows)


def print_race(console: "Console", rows: Sequence[dict[str, Any]]) -> None:
    """Print a line for each contestant, fastest first."""
    from bigbatch.experiments.commands.output import new_table, print_fitting
    from bigbatch.experiments.measuring.race import DDP, NOTHING

    table = new_table("", "tokens/s", "quartiles", f"× {DDP}", f"× {NOTHING}")
    for row in sorted(rows, key=lambda row: -row["tokens_per_second"]):
        table.add_row(
            row["contestant"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second_low']:,.0f} – {row['tokens_per_second_high']:,.0f}",
            *(f"{row['against'].get(other, 1.0):.3f}" for other in (DDP, NOTHING)),
        )
    print_fitting(console, table)
    first = rows[0]
    console.print(
        f"\n{first['ranks']} ranks, {first['parameters']:,} parameters, {first['tokens_per_update']:,} tokens an "
        "update, in turns; ratios are medians of turn against turn."
    )
