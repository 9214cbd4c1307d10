"""This machine as a network: what calibrating and validating write and start."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigbatch.comm.cache import write_whole
from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring.calibration import Points
from bigbatch.comm.measuring.prediction import predict_reduction, predict_server
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.network_file import as_entries, as_toml, read_network
from bigbatch.comm.simulation.presets import THIS_MACHINE
from bigbatch.experiments.measuring.started import measurement
from bigbatch.experiments.runs.run import SUMMARY
from bigbatch.experiments.training.launcher import usable_cores

NETWORK_FILE = f"{THIS_MACHINE}.toml"

REDUCTIONS = ("ring", "halving-doubling", "recursive-doubling", "naive")
"""All-reduces that the simulator is validated with; they share ports in different ways."""

SERVER = "1 server"
"""The bench's name for a synchronous update through one server."""

WITHIN = 0.1
"""Largest relative error that predictions aim at."""


def source_of(memory: int) -> str:
    """Describes where a calibrated network's numbers come from, for its file; `memory` is in bytes per rank."""
    return (
        f"bigbatch-exp calibrate: two ranks, {memory / 2**20:g} MB of memory each, {usable_cores()} cores; bandwidth "
        "is that of a port which sends and receives at the same time"
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
    try:
        write_whole(path, as_toml(network))
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
        "cores": usable_cores(),
        "rows": rows,
        "adding": adding,
        "flops": points.flops,
    }


# Validating.


def predict_all(
    sizes: Sequence[int],
    ranks: Sequence[int],
    seconds: float,
    deadline: float,
    folder: Path,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Calibrate on two ranks, and predict every all-reduce and one server on more workers.

    Args:
        sizes: sizes of the buffers, in bytes.
        ranks: numbers of workers to predict.
        seconds: seconds to spend on the calibration.
        deadline: seconds that a rank waits for another before it gives up.
        folder: the folder of the validation, in which the calibration is kept.
        tell: is told which measurement begins.

    Returns:
        Rows with `algorithm`, `ranks`, `bytes` and `predicted`, in seconds.
    """
    network, cores = _calibrate(seconds, deadline, folder / "calibration", tell), usable_cores()
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


def drift(sizes: Sequence[int], seconds: float, deadline: float, folder: Path, tell: Callable[[str], None]) -> float:
    """How many times as long messages of the smallest of the sizes take now as when the predictions were made.

    Nothing is predicted from this ratio. It says whether the machine was in the same state for both, or whether other
    programs came or went.
    """
    before, now = (
        read_network(folder / "calibration" / NETWORK_FILE),
        _calibrate(seconds, deadline, folder / "calibration-after", tell),
    )
    first, later = (sum(network.wires.cost(min(sizes))) for network in (before, now))
    return later / first


def _calibrate(seconds: float, deadline: float, place: Path, tell: Callable[[str], None]) -> Network:
    """What `calibrate` writes, measured in processes of its own."""
    arguments = ["calibrate", "--network", str(place / NETWORK_FILE), "--json"]
    _measure(place, 2, [*arguments, "--seconds", str(seconds), "--deadline", str(deadline)], tell)
    return read_network(place / NETWORK_FILE)


def measure_ranks(
    sizes: Sequence[int],
    ranks: Sequence[int],
    seconds: float,
    deadline: float,
    folder: Path,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Runs a bench for each number of workers, in processes of its own, and returns the rows of all of them."""
    rows = []
    for workers in ranks:
        place = folder / f"bench-{workers}"
        arguments = ["bench", "--algorithms", ",".join(REDUCTIONS), "--servers", "1", "--json"]
        arguments += ["--bytes", ",".join(map(str, sizes)), "--seconds", str(seconds), "--deadline", str(deadline)]
        rows += _measure(place, workers + 1, arguments, tell)["rows"]
    return rows


def _measure(place: Path, ranks: int, arguments: Sequence[str], tell: Callable[[str], None]) -> dict[str, Any]:
    """The summary that a command writes which is started on so many ranks."""
    measurement(place.name, ranks, [*arguments, "--out", str(place)], tell)
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
