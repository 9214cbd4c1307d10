"""`bigbatch-exp plan`: how many workers, how large a batch and which strategy to use to reach a loss."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.planning.settings import PlanRequest

if TYPE_CHECKING:  # whoever only asks for help must not wait for NumPy
    from rich.console import Console

    from bigbatch.experiments.planning.plan import Candidate
    from bigbatch.experiments.planning.plans import Plan


@click.command(cls=Command)
@takes(PlanRequest, FolderSettings)
def plan(request: PlanRequest, output: FolderSettings) -> None:
    """Say on how many workers, with which batch and strategy, a loss is reached in what time, for what cost."""
    from bigbatch.experiments.commands.output import at_once, console, print_json, results_in, told
    from bigbatch.experiments.planning.plans import planned_for
    from bigbatch.experiments.runs.run import chosen_folder, environment

    folder = chosen_folder(output.out, "plan")
    found = planned_for(request, told(True))

    def show() -> None:
        if output.json:
            print_json([{**asdict(one), **found.precisions} for one in found.front])
            return
        with at_once():
            print_front(console(), found.front, found.best, request.price)
            print(
                "\nGPU-h: GPU-hours; each: sequences at once × micro-batches of a worker's update; batch: tokens of an "
                "update."
            )
            for sentence in found.sentences():
                print(sentence)
            print(f"\n{found.advice}")

    with results_in(folder, named=not output.json) as results:
        results.keep({**found.written(), "environment": environment()})
        results.show(show)
        results.draw("front.png", lambda path: _draw(path, found))


def _draw(path: Path, found: "Plan") -> None:
    import numpy as np

    from bigbatch.experiments.figures.front import draw_front
    from bigbatch.experiments.planning.plan import ideal

    costs = [one.gpu_hours for one in found.front]
    hours = np.geomspace(min(costs) / 10, 10 * max(costs), 2000)
    curve = ideal(found.known.tradeoff, found.cluster, min(found.at_once), hours), hours
    words = (
        "points: workers × sequences at once × micro-batches; ringed: the fastest at no more than twice the least cost"
    )
    title = f"{found.title}\n{words}"
    draw_front(found.candidates, found.front, found.best, curve, title, path, found.request.price)


def print_front(printer: "Console", front: "Sequence[Candidate]", best: "Candidate", price: float | None) -> None:
    """Print a line for each candidate on the front, with a mark at the recommended one.

    Args:
        printer: the console.
        front: the candidates, fastest first.
        best: the recommended candidate.
        price: price of a GPU-hour; None leaves the column of prices out.
    """
    from bigbatch.experiments.commands.output import new_table, print_fitting
    from bigbatch.experiments.planning.plan import duration

    money = [] if price is None else ["price"]
    heads = ("time", "GPU-h", *money, "workers", "strategy", "each", "batch", "updates", "s/update", "efficiency")
    table = new_table(*heads, gap=1)
    for one in front:
        beside = f" + {one.servers:,}" if one.servers else ""
        table.add_row(
            f"{duration(one.seconds)}{' ←' if one is best else ''}",
            f"{one.gpu_hours:,.4g}" if one.gpu_hours < 1000 else f"{one.gpu_hours:,.0f}",
            *([] if price is None else [f"{one.gpu_hours * price:,.2f}"]),
            f"{one.workers:,}{beside}",
            one.strategy,
            f"{one.micro_batch} × {one.accumulation}",
            f"{one.batch:,}",
            f"{one.updates:,.0f}",
            f"{one.step_seconds:.4g}",
            f"{one.efficiency:.1%}",
        )
    print_fitting(printer, table)
