"""`bigbatch-exp show`: prints and draws the rounds of an all-reduce algorithm."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from bigbatch.comm.collectives import ALGORITHMS
from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.kinds import BYTES, RANKS, File, Flag, Name, Whole
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes


@dataclass(frozen=True)
class ShowSettings(Options):
    """The options of `show`: the ranks and the buffer, and what is printed and drawn.

    Attributes:
        ranks: number of ranks.
        bytes: size of the buffer, in bytes.
        node_size: number of ranks on a machine, or None if all share one.
        proof: whether to print how every contribution arrives at every rank.
        account: whether to print the messages and bytes of every rank.
        gif: whether to animate the rounds.
        out: folder of the figures, or None for one named after the algorithm.
    """

    title: ClassVar[str] = "Rounds"

    ranks: int = option(4, Whole(most=100_000), "Number of ranks.", short="-n")
    bytes: int = option(2**20, BYTES, "Size of the buffer.")
    node_size: int | None = option(None, RANKS, "Number of ranks on a machine, for hierarchical.", missing="all")
    proof: bool = option(False, Flag(), "Print how every contribution arrives, once, at every rank.")
    account: bool = option(False, Flag(), "Print messages and bytes of every rank.")
    gif: bool = option(False, Flag(), "Animate the rounds, chunk by chunk.")
    out: Path | None = option(None, File(), "Folder of the figures.", missing="runs/show-NAME-RANKS")


@click.command(cls=Command)
@click.argument("name", type=Value(Name(ALGORITHMS.names, "FILE.py:function", "NAME")))
@takes(ShowSettings)
def show(settings: ShowSettings, name: str) -> None:
    """Print and draw an algorithm's rounds: a registered one, or FILE.py:function."""
    from bigbatch.comm.collectives import bind
    from bigbatch.comm.wires.transport import consecutive_nodes
    from bigbatch.experiments.commands.output import results_in
    from bigbatch.experiments.figures.shown import Shown
    from bigbatch.experiments.runs.run import make_folder

    ranks, nbytes = settings.ranks, settings.bytes
    nodes = consecutive_nodes(ranks, settings.node_size or ranks)
    shown = Shown(name.rpartition(":")[2], bind(ALGORITHMS.load(name), nbytes, nodes), ranks)
    folder = settings.out or Path("runs") / f"show-{shown.name}-{ranks}"
    make_folder(folder)

    def drawn(path: Path) -> None:
        from bigbatch.experiments.figures.rounds import draw_rounds

        draw_rounds(shown, path)

    def animated(path: Path) -> None:
        from bigbatch.experiments.figures.rounds import animate_rounds

        animate_rounds(shown, path)

    proof = shown.proof_text() if settings.proof else ()
    account = shown.account_text(nbytes) if settings.account else ()
    with results_in(folder) as results:
        results.show(lambda: print("\n".join([*proof, *account] or shown.text()), flush=True))
        results.draw("rounds.png", drawn)
        if settings.gif:
            results.draw("rounds.gif", animated)
    if not shown.proof.holds:
        raise BigBatchError(f"{name} over {ranks} ranks is no all-reduce: {shown.proof}.")
