"""This machine as a network: the parts of `calibrate` and `validate` that start processes, write and print."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.measuring.calibration import Points
from bigbatch.comm.measuring.prediction import predict_reduction, predict_server
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.network_file import as_entries, as_toml, read_network
from bigbatch.comm.simulation.presets import THIS_MACHINE
from bigbatch.experiments.measuring.bench import size_label
from bigbatch.experiments.measuring.wires import all_reduce_named
from bigbatch.experiments.runs.run import SUMMARY
from bigbatch.experiments.training.launcher import launch_command, launch_environment

NETWORK_FILE = f"{THIS_MACHINE}.toml"

REDUCTIONS = ("ring", "halving-doubling", "recursive-doubling", "naive")
"""All-reduces that the simulator is validated with; they share ports in different ways."""

SERVER = "1 server"
"""The bench's name for a synchronous update through one server."""

WITHIN = 0.1
"""Largest relative error that predictions aim at."""

SECONDS_TO_END = 590
"""Seconds after which a measurement is taken to hang, and is ended."""


def cores_here() -> int:
    """Counts the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def source_of(memory: int) -> str:
    """Describes where a calibrated network's numbers come from, for its file; `memory` is in bytes per rank."""
    return (
        f"bigbatch-exp calibrate: two ranks, {memory / 2**20:g} MB of memory each, {cores_here()} cores; bandwidth is "
        "that of a port which sends and receives at the same time"
    )


def check_file(path: Path) -> None:
    """Check that a file can be written, before the measurement of its content takes long.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def keep_network(network: Network, path: Path) -> None:
    """Write a network's TOML file, whole or not at all.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(as_toml(network), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"The network {path} cannot be written: {error.strerror}. Name another with --network.")


# Calibrating.


def calibrated(points: Points, network: Network, memory: int) -> dict[str, Any]:
    """Makes the summary of a calibration in SI units: every size with its fitted time, and the other measurements."""
    rows = []
    for size, seconds in sorted(points.duplex.items()):
        latency, occupancy = network.wires.cost(size)
        fitted = latency + occupancy
        rows.append(
            {
                "bytes": size,
                "seconds": seconds,
                "fit_seconds": fitted,
                "error": fitted / seconds - 1,
                "bandwidth": size / seconds,
                "ping_pong_seconds": points.ping_pong.get(size),
                "incast_seconds": points.incast.get(size),
            }
        )
    adding = [
        {"bytes": size, "seconds": seconds, "fit_seconds": size * network.gamma}
        for size, seconds in sorted(points.adding.items())
    ]
    return {
        "network": as_entries(network),
        "memory": memory,
        "cores": cores_here(),
        "rows": rows,
        "adding": adding,
        "flops": points.flops,
    }


def print_calibration(console: Console, summary: dict[str, Any]) -> None:
    """Print the measured and fitted times of every size, and the fitted network."""
    table = _table("size", "both ways\nµs", "fit\nµs", "error\n%", "GB/s", "ping-pong\nµs", "4 to one\nµs each")
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
    console.print(table)
    network = summary["network"]
    pieces = _table("messages of at least", "α\nµs", "bandwidth of a port\nGB/s")
    for piece in ({"bytes": 0, **network}, *network.get("larger", ())):
        pieces.add_row(size_label(piece["bytes"]), _micro(piece["alpha"]), f"{piece['bandwidth'] / 1e9:.3g}")
    console.print()
    console.print(pieces)
    console.print(
        f"\nThe fit is of both ways: a message each way at once. Adding takes γ = {1e9 * network['gamma']:.3g} ns a "
        f"byte; a matrix product runs at {summary['flops'] / 1e9:.3g} GFLOP/s on a core. Medians, the slower rank's."
    )


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


# Validating.


def predict_all(
    sizes: Sequence[int], ranks: Sequence[int], seconds: float, deadline: float, folder: Path
) -> list[dict[str, Any]]:
    """Calibrate on two ranks, and predict every all-reduce and one server on more workers.

    Args:
        sizes: sizes of the buffers, in bytes.
        ranks: numbers of workers to predict.
        seconds: seconds to spend on the calibration.
        deadline: seconds that a rank waits for another before it gives up.
        folder: the folder of the validation, in which the calibration is kept.

    Returns:
        Rows with `algorithm`, `ranks`, `bytes` and `predicted`, in seconds.
    """
    network, cores = _calibrate(seconds, deadline, folder / "calibration"), cores_here()
    rows = []
    for size in sizes:
        for workers in ranks:
            predicted = {
                name: predict_reduction(bind(ALGORITHMS.load(name), size), network, workers, cores, size)
                for name in REDUCTIONS
            }
            predicted[SERVER] = predict_server(network, workers, cores, size)
            rows += [
                {"algorithm": name, "ranks": workers, "bytes": size, "predicted": time}
                for name, time in predicted.items()
            ]
    return rows


def drift(sizes: Sequence[int], seconds: float, deadline: float, folder: Path) -> float:
    """Measures how many times as long messages of the smallest size take now as when the predictions were made.

    Nothing is predicted from this ratio. It says whether the machine was in the same state for both, or whether other
    programs came or went.
    """
    before, now = (
        read_network(folder / "calibration" / NETWORK_FILE),
        _calibrate(seconds, deadline, folder / "calibration-after"),
    )
    first, later = (sum(network.wires.cost(min(sizes))) for network in (before, now))
    return later / first


def _calibrate(seconds: float, deadline: float, place: Path) -> Network:
    """What `calibrate` writes, measured in processes of its own."""
    arguments = ["calibrate", "--network", str(place / NETWORK_FILE), "--json"]
    _measure(place, 2, [*arguments, "--seconds", str(seconds), "--deadline", str(deadline)])
    return read_network(place / NETWORK_FILE)


def measure_ranks(
    sizes: Sequence[int], ranks: Sequence[int], seconds: float, deadline: float, folder: Path
) -> list[dict[str, Any]]:
    """Runs a bench for each number of workers, in processes of its own, and returns the rows of all of them."""
    rows = []
    for workers in ranks:
        place = folder / f"bench-{workers}"
        arguments = ["bench", "--algorithms", ",".join(REDUCTIONS), "--servers", "1", "--json"]
        arguments += ["--bytes", ",".join(map(str, sizes)), "--seconds", str(seconds), "--deadline", str(deadline)]
        rows += _measure(place, workers + 1, arguments)["rows"]
    return rows


def _measure(place: Path, ranks: int, arguments: Sequence[str]) -> dict[str, Any]:
    """The summary that a command writes which is started on so many ranks."""
    print(f"── {place.name}", file=sys.stderr, flush=True)
    command = launch_command(all_reduce_named("ring"), ranks, [*arguments, "--out", str(place)])
    try:
        result = subprocess.run(
            command, env=launch_environment(command), stdout=subprocess.DEVNULL, timeout=SECONDS_TO_END, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BigBatchError(
            f"The measurement {place.name} was not done after {SECONDS_TO_END} s, and was ended."
        ) from error
    if result.returncode:
        raise BigBatchError(f"The measurement {place.name} ended with exit status {result.returncode}; see above.")
    summary: dict[str, Any] = json.loads((place / SUMMARY).read_text(encoding="utf-8"))
    return summary


def compared(predicted: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins each prediction with its measurement: `seconds`, its quartiles, and `error`, predicted / measured - 1.

    Raises:
        ConfigurationError: something that was predicted was not measured.
    """
    found = {(row["algorithm"], row["ranks"], row["bytes"]): row for row in measured}
    rows = []
    for row in predicted:
        key = row["algorithm"], row["ranks"], row["bytes"]
        if key not in found:
            raise ConfigurationError(f"{key[0]} over {key[1]} ranks, {key[2]} bytes, was predicted but not measured.")
        times = {name: found[key][name] for name in ("seconds", "seconds_low", "seconds_high")}
        rows.append({**row, **times, "error": row["predicted"] / times["seconds"] - 1})
    return rows


def print_validation(console: Console, rows: Sequence[dict[str, Any]], drifted: float) -> None:
    """Print predicted and measured times and their errors; `drifted` is the ratio that `drift` measured."""
    table = _table("", "ranks", "predicted\nms", "measured\nms", "quartiles\nms", "error\n%")
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
    console.print(table)
    errors = np.abs([row["error"] for row in rows])
    console.print(
        f"\n{np.count_nonzero(errors <= WITHIN)} of {len(errors)} predictions are within {100 * WITHIN:g} %; the "
        f"median |error| is {100 * np.median(errors):.0f} %, the largest {100 * errors.max():.0f} %. Predicted from "
        f"messages between two ranks and the number of cores ({cores_here()}), before anything else was measured. "
        f"Error: predicted / measured − 1. Messages between two ranks take {drifted:.2f} × as long afterwards as they "
        "did when the predictions were made; far from 1, other programs came or went, and the errors are theirs too."
    )
