"""`bigbatch-exp validate`: compares the simulator's predictions with measurements on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bigbatch.comm.kinds import MEMORY, SECONDS, Several, Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.commands.ranks import refuse_launchers

if TYPE_CHECKING:  # whoever only asks for help must not wait for what prints tables
    from rich.console import Console


@dataclass(frozen=True)
class ValidationSettings(Options):
    """The options of `validate`: what is predicted and measured.

    Attributes:
        bytes: sizes of the buffers, in bytes.
        ranks: numbers of workers to predict.
        seconds: seconds to spend on each calibration and each size.
        deadline: seconds after which a wait gives up.
    """

    title: ClassVar[str] = "Validation"

    bytes: tuple[int, ...] = option((4 * 2**20, 16 * 2**20, 32 * 2**20), Several(MEMORY), "Sizes of the buffers.")
    ranks: tuple[int, ...] = option(
        (3, 4), Several(Whole(most=10_000), ascending=True), "Numbers of workers to predict."
    )
    seconds: float = option(8.0, SECONDS, "Seconds to spend on each calibration and each size.")
    deadline: float = option(
        DEFAULT_DEADLINE, SECONDS, "Seconds without a message or a sign of life from a rank before the job ends."
    )


@click.command(cls=Command)
@takes(ValidationSettings, FolderSettings)
def validate(settings: ValidationSettings, output: FolderSettings) -> None:
    """Predict all-reduces and servers on more ranks from two ranks' messages, and then measure them here."""
    from bigbatch.experiments.commands.output import at_once, console, print_json, results_in, told
    from bigbatch.experiments.measuring.calibrate import compared, drift, measure_ranks, predict_all
    from bigbatch.experiments.runs.results import Results
    from bigbatch.experiments.runs.run import chosen_folder, environment

    refuse_launchers("validate starts the processes that it measures itself")
    sizes, ranks, seconds, deadline = settings.bytes, settings.ranks, settings.seconds, settings.deadline
    folder = chosen_folder(output.out, "validate")
    predicted = predict_all(sizes, ranks, seconds, deadline, folder, told(True))
    before = Results(folder)
    before.keep({"rows": predicted}, "predictions.json")  # before anything of it is measured
    rows = compared(predicted, measure_ranks(sizes, ranks, seconds, deadline, folder, told(True)))
    before.keep({"rows": rows, "environment": environment()})  # the rest takes a while
    drifted = drift(sizes, seconds, deadline, folder, told(True))

    def show() -> None:
        if output.json:
            print_json(rows)
            return
        with at_once():
            print_validation(console(), rows, drifted)

    def draw(path: Path) -> None:
        from bigbatch.experiments.figures.calibration import draw_validation

        draw_validation(rows, path)

    with results_in(folder, named=not output.json, failures=before.failures) as results:
        results.keep({"rows": rows, "drift": drifted, "environment": environment()})
        results.show(show)
        results.draw("validation.png", draw)


def print_validation(console: "Console", rows: Sequence[dict[str, Any]], drifted: float) -> None:
    """Print predicted and measured times, and by how much they differ; `drifted` is as `drift` has it."""
    import numpy as np

    from bigbatch.experiments.commands.output import new_table, print_fitting
    from bigbatch.experiments.measuring.bench import size_label
    from bigbatch.experiments.measuring.calibrate import WITHIN
    from bigbatch.experiments.training.launcher import usable_cores

    table = new_table("", "ranks", "predicted\nms", "measured\nms", "quartiles\nms", "error\n%")
    for size in dict.fromkeys(row["bytes"] for row in rows):
        table.add_row(f"[bold]{size_label(size)}[/bold]")
        for row in (row for row in rows if row["bytes"] == size):
            table.add_row(
                f"  {row['algorithm']}",
                str(row["ranks"]),
                f"{1e3 * row['predicted']:.2f}",
                f"{1e3 * row['seconds']:.2f}",
                f"{1e3 * row['seconds_low']:.2f} – {1e3 * row['seconds_high']:.2f}",
                f"{100 * row['error']:+.0f}",
            )
        table.add_section()
    print_fitting(console, table)
    errors = np.abs([row["error"] for row in rows])
    console.print(
        f"\n{np.count_nonzero(errors <= WITHIN)} of {len(errors)} predictions are within {100 * WITHIN:g} %; the "
        f"median |error| is {100 * np.median(errors):.0f} %, the largest {100 * errors.max():.0f} %. Predicted from "
        f"messages between two ranks and the number of cores ({usable_cores()}), before anything else was measured. "
        f"Error: predicted / measured − 1. Messages between two ranks take {drifted:.2f} × as long afterwards as they "
        "did when the predictions were made; far from 1, other programs came or went, and the errors are theirs too."
    )
