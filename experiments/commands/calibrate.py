"""`bigbatch-exp calibrate`: measures this machine and describes it as a network for the simulator."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bigbatch.comm.kinds import MEMORY, SECONDS, File
from bigbatch.comm.options import Options, option
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.commands.ranks import RankSettings, ranks_of

if TYPE_CHECKING:  # whoever only asks for help must not wait for what prints tables
    from rich.console import Console


@dataclass(frozen=True)
class CalibrationSettings(Options):
    """The options of `calibrate`: how this machine is measured, and where the network is kept.

    Attributes:
        seconds: about how many seconds to spend in all.
        memory: bytes of memory that each rank works through.
        network: the file to write, or None for the one in the cache that `this-machine` names.
        deadline: seconds after which a wait gives up.
    """

    title: ClassVar[str] = "Calibration"

    seconds: float = option(10.0, SECONDS, "Seconds to spend on everything, about.")
    memory: int = option(
        128 * 2**20, MEMORY, "Memory that each rank works through; too little would stay in the caches."
    )
    network: Path | None = option(None, File(), "File to write.", missing="this-machine.toml in the cache")
    deadline: float = option(
        DEFAULT_DEADLINE, SECONDS, "Seconds without a message or a sign of life from a rank before the job ends."
    )


@click.command(cls=Command)
@takes(CalibrationSettings, FolderSettings)
def calibrate(settings: CalibrationSettings, output: FolderSettings) -> None:
    """Measure messages and adding between two ranks here, and keep them as the network "this-machine".

    Starts its two ranks itself, or is started with mpirun -n 2.
    """
    from bigbatch.comm.cache import cache_folder
    from bigbatch.comm.measuring.calibration import measure_points
    from bigbatch.comm.measuring.fitting import fit_network
    from bigbatch.comm.wires.agreement import together
    from bigbatch.experiments.commands.output import at_once, console, print_json, results_in, told
    from bigbatch.experiments.measuring.calibrate import (
        NETWORK_FILE,
        calibrated,
        check_file,
        keep_network,
        source_of,
    )
    from bigbatch.experiments.runs.results import Results
    from bigbatch.experiments.runs.run import chosen_folder, environment

    memory = settings.memory
    with ranks_of(RankSettings(workers=2, deadline=settings.deadline)) as (transport, _):
        speaking = transport.rank == 0
        path = settings.network or cache_folder() / NETWORK_FILE
        together(transport, lambda: check_file(path) if speaking else None)
        folder = together(transport, lambda: chosen_folder(output.out, "calibrate") if speaking else None)
        points = measure_points(transport, settings.seconds, memory, say=told(speaking))
        written = None if folder is None else Results(folder)
        if written is not None:
            written.keep(asdict(points), "points.json")  # there may be no fit to them
        network = together(transport, lambda: fit_network(points, source=source_of(memory)))
    if folder is None or written is None:
        return

    def show() -> None:
        if output.json:
            print_json(summary["rows"])
            return
        with at_once():
            print_calibration(console(), summary)
            print(f"\n{path}: the network, for {memory / 2**20:g} MB of memory in each of two ranks")

    def draw(to: Path) -> None:
        from bigbatch.experiments.figures.calibration import draw_calibration

        draw_calibration(summary, to)

    summary = {**calibrated(points, network, memory), "environment": environment()}
    with results_in(folder, named=not output.json, failures=written.failures) as results:
        results.keep(summary)
        results.attempt(f"The network {path} cannot be written", lambda: keep_network(network, path))
        results.show(show)
        results.draw("calibration.png", draw)


def print_calibration(console: "Console", summary: dict[str, Any]) -> None:
    """Print measured and fitted times of every size, and the network."""
    from bigbatch.experiments.commands.output import new_table, print_fitting
    from bigbatch.experiments.measuring.bench import size_label

    table = new_table("size", "both ways\nµs", "fit\nµs", "error\n%", "GB/s", "ping-pong\nµs", "4 to one\nµs each")
    for row in summary["rows"]:
        others = (row[kind] for kind in ("ping_pong_seconds", "incast_seconds"))
        table.add_row(
            size_label(row["bytes"]),
            _micro(row["seconds"]),
            _micro(row["fit_seconds"]),
            f"{100 * row['error']:+.1f}",
            f"{row['bandwidth'] / 1e9:.3g}",
            *("" if seconds is None else _micro(seconds) for seconds in others),
        )
    print_fitting(console, table)
    network = summary["network"]
    pieces = new_table("messages of at least", "α\nµs", "bandwidth of a port\nGB/s")
    for piece in ({"bytes": 0, **network}, *network.get("larger", ())):
        pieces.add_row(size_label(piece["bytes"]), _micro(piece["alpha"]), f"{piece['bandwidth'] / 1e9:.3g}")
    console.print()
    print_fitting(console, pieces)
    console.print(
        f"\nThe fit is of both ways: a message each way at once. Adding takes γ = {1e9 * network['gamma']:.3g} ns a "
        f"byte; a matrix product runs at {summary['flops'] / 1e9:.3g} GFLOP/s on a core. Medians, the slower rank's."
    )


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"
