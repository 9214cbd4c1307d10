"""`bigbatch-exp validate`: compares the simulator's predictions with measurements on this machine."""

from dataclasses import dataclass
from typing import ClassVar

import click

from bigbatch.comm.options import BYTES, Number, Options, Several, Whole, option
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.commands.ranks import refuse_launchers


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

    bytes: tuple[int, ...] = option((4 * 2**20, 16 * 2**20, 32 * 2**20), Several(BYTES), "Sizes of the buffers.")
    ranks: tuple[int, ...] = option(
        (3, 4), Several(Whole(most=10_000), ascending=True), "Numbers of workers to predict."
    )
    seconds: float = option(8.0, Number(above=0), "Seconds to spend on each calibration and each size.")
    deadline: float = option(
        DEFAULT_DEADLINE, Number(above=0), "Seconds that a rank waits for another before it gives up."
    )


@click.command(cls=Command)
@takes(ValidationSettings, FolderSettings)
def validate(settings: ValidationSettings, output: FolderSettings) -> None:
    """Predict all-reduces and servers on more ranks from two ranks' messages, and then measure them here."""
    from bigbatch.experiments.commands.output import close, console, print_json
    from bigbatch.experiments.figures.calibration import draw_validation
    from bigbatch.experiments.measuring.calibrate import compared, drift, measure_ranks, predict_all, print_validation
    from bigbatch.experiments.runs.run import SUMMARY, environment, make_folder, new_folder, write_json

    refuse_launchers("validate starts the processes that it measures itself")
    sizes, ranks, seconds, deadline = settings.bytes, settings.ranks, settings.seconds, settings.deadline
    folder = output.out or new_folder("validate")
    make_folder(folder)
    predicted = predict_all(sizes, ranks, seconds, deadline, folder)
    write_json(folder / "predictions.json", {"rows": predicted})  # before anything of it is measured
    rows = compared(predicted, measure_ranks(sizes, ranks, seconds, deadline, folder))
    drifted = drift(sizes, seconds, deadline, folder)
    write_json(folder / SUMMARY, {"rows": rows, "drift": drifted, "environment": environment()})
    draw_validation(rows, folder / "validation.png")
    if output.json:
        print_json(rows)
        return
    print_validation(console(), rows, drifted)
    close(folder)
