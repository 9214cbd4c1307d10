"""The commands about this machine as a network: `bigbatch-exp calibrate` and `validate`."""

import json
from pathlib import Path
from typing import Any

import click

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import LaunchError
from bigbatch.comm.measuring.calibration import WALK_BYTES, measure_points
from bigbatch.comm.measuring.fitting import fit_network
from bigbatch.comm.transports.launch import Launcher, detect
from bigbatch.comm.wires.agreement import together
from bigbatch.comm.wires.transport import DEFAULT_DEADLINE
from bigbatch.experiments.commands.main import BYTES, FILE, POSITIVE_NUMBER, Numbers, Sizes, console, ranks_of, told
from bigbatch.experiments.measuring.bench import size_label
from bigbatch.experiments.measuring.calibrate import (
    NETWORK_FILE,
    calibrated,
    check_file,
    compared,
    drift,
    keep_network,
    measure_ranks,
    predict_all,
    print_calibration,
    print_validation,
    source_of,
)
from bigbatch.experiments.runs.run import SUMMARY, environment, make_folder, new_folder, write_json

OUT = click.option("--out", type=FILE, help="The folder of what was measured. [default: a new one below ./runs]")
JSON = click.option("--json", "as_rows", is_flag=True, help="Print the rows as JSON and no table.")
DEADLINE = click.option(
    "--deadline", type=POSITIVE_NUMBER, default=DEFAULT_DEADLINE, show_default=True, help="Seconds to wait at most."
)
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")


@click.command()
@click.option("--seconds", type=POSITIVE_NUMBER, default=10.0, show_default=True, help="To spend on it all, about.")
@click.option(
    "--memory",
    type=BYTES,
    default=size_label(WALK_BYTES).replace(" ", ""),
    show_default=True,
    help="That each rank works through: small memory stays in caches.",
)
@click.option("--network", "file", type=FILE, help=f"The file to write. [default: {NETWORK_FILE} in the cache]")
@OUT
@JSON
@DEADLINE
@DEBUG
def calibrate(seconds: float, memory: int, file: Path | None, out: Path | None, as_rows: bool, **options: Any) -> None:
    """Measure messages and adding between two ranks here, and keep them as the network "this-machine".

    Starts its two ranks itself, or is started with mpirun -n 2.
    """
    with ranks_of({**options, "workers": 2, "node_size": None}) as (transport, _):
        speaking = transport.rank == 0
        folder, path = out or new_folder("calibrate"), file or cache_folder() / NETWORK_FILE
        together(transport, lambda: make_folder(folder) if speaking else None)
        together(transport, lambda: check_file(path) if speaking else None)
        points = measure_points(transport, seconds, memory, say=told(speaking))
        network = together(transport, lambda: fit_network(points, source=source_of(memory)))
        together(transport, lambda: keep_network(network, path) if speaking else None)
        if speaking:
            from bigbatch.experiments.figures.calibration import draw_calibration

            summary = calibrated(points, network, memory)
            write_json(folder / SUMMARY, {**summary, "environment": environment()})
            draw_calibration(summary, folder / "calibration.png")
            if as_rows:
                print(json.dumps(summary["rows"], indent=2), flush=True)
            else:
                print_calibration(console(), summary)
                print(f"\n{path}: the network, for {memory / 2**20:g} MB of memory in each of two ranks")
                print(f"{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


@click.command()
@click.option("--bytes", "sizes", type=Sizes(), default="4MB,16MB,32MB", show_default=True, help="Sizes of buffers.")
@click.option("--ranks", type=Numbers(), default=(3, 4), show_default="3,4", help="Numbers of workers to predict.")
@click.option("--seconds", type=POSITIVE_NUMBER, default=8.0, show_default=True, help="For each calibration and size.")
@OUT
@JSON
@DEADLINE
@DEBUG
def validate(
    sizes: tuple[int, ...],
    ranks: tuple[int, ...],
    seconds: float,
    out: Path | None,
    as_rows: bool,
    deadline: float,
    debug: bool,  # noqa: ARG001 - where an error is reported asks for it
) -> None:
    """Predict all-reduces and servers on more ranks from two ranks' messages, and then measure them here."""
    if detect().launcher is not Launcher.NONE:
        raise LaunchError("validate starts the processes that it measures itself: run it without mpirun or torchrun.")
    from bigbatch.experiments.figures.calibration import draw_validation

    folder = out or new_folder("validate")
    make_folder(folder)
    predicted = predict_all(sizes, ranks, seconds, deadline, folder)
    write_json(folder / "predictions.json", {"rows": predicted})  # before anything of it is measured
    rows = compared(predicted, measure_ranks(sizes, ranks, seconds, deadline, folder))
    drifted = drift(sizes, seconds, deadline, folder)
    write_json(folder / SUMMARY, {"rows": rows, "drift": drifted, "environment": environment()})
    draw_validation(rows, folder / "validation.png")
    if as_rows:
        print(json.dumps(rows, indent=2), flush=True)
    else:
        print_validation(console(), rows, drifted)
        print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


COMMANDS = {"calibrate": calibrate, "validate": validate}
