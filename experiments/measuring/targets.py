"""Speed targets: ratios of two times, each measured in one run, and the values that they are meant to reach."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigbatch.comm.files import parsed
from bigbatch.comm.schema import check
from bigbatch.experiments.measuring.bench import size_label
from bigbatch.experiments.measuring.check_speed import check_ratio
from bigbatch.experiments.measuring.noise_speed import noise_ratio
from bigbatch.experiments.measuring.optimizer_speed import optimizer_ratios
from bigbatch.experiments.measuring.race import DDP, NOTHING
from bigbatch.experiments.measuring.simulator_speed import ALLOWED, simulator_seconds
from bigbatch.experiments.measuring.started import measurement
from bigbatch.experiments.measuring.translation_speed import loop_ratio
from bigbatch.experiments.runs.records import BenchSummary, RaceRow
from bigbatch.experiments.runs.run import read_summary

MB = 2**20

Measured = dict[str, Any]
"""The results of measurements by name, as their commands wrote them."""


@dataclass(frozen=True)
class Target:
    """A speed target: a ratio that measurements are meant to reach.

    Attributes:
        what: the two things that are compared, in words.
        at_least: the smallest ratio that meets the target.
        ratios: computes from the measurements the ratio that was reached in each case, by the case's label.
    """

    what: str
    at_least: float
    ratios: Callable[[Measured], dict[str, float]]


def faster(
    algorithm: str, than: str, bench: str, least: int, most: int = 2**62
) -> Callable[[Measured], dict[str, float]]:
    """Compares two all-reduces: the ratio of `than`'s time to `algorithm`'s, for sizes of `least` to `most` bytes."""

    def ratios(measured: Measured) -> dict[str, float]:
        seconds = {(row["algorithm"], row["bytes"]): row["seconds"] for row in measured[bench]["rows"]}
        sizes = sorted({size for _, size in seconds if least <= size <= most})
        return {size_label(size): seconds[than, size] / seconds[algorithm, size] for size in sizes}

    return ratios


def against(other: str) -> Callable[[Measured], dict[str, float]]:
    """Compares training over shared memory with another contestant of the race: the ratio of tokens per second."""

    def ratios(measured: Measured) -> dict[str, float]:
        (row,) = (row for row in measured["race"] if row["contestant"] == "shared")
        return {f"{row['tokens_per_update']} tokens": row["against"][other]}

    return ratios


def near_bound(algorithm: str) -> Callable[[Measured], dict[str, float]]:
    """Compares servers with their incast bound: the ratio of the bound to the measured time, for every size."""

    def ratios(measured: Measured) -> dict[str, float]:
        rows = [row for row in measured["bench-servers"]["rows"] if row["algorithm"] == algorithm]
        return {size_label(row["bytes"]): row["bound_seconds"] / row["seconds"] for row in rows}

    return ratios


def request_overhead(measured: Measured) -> dict[str, float]:
    """Compares the overhead of a request to a server with its limit: the ratio of the limit to the overhead."""
    seconds = measured["bench-servers"]["overhead_seconds"]
    return {f"{1e3 * seconds:.3f} ms": OVERHEAD_AT_MOST / max(seconds, CLOCK_TICK)}


def simulator_allowance(measured: Measured) -> dict[str, float]:
    """Compares the simulator's times with its limits: the ratio of the limit to the time, for each piece of work."""
    return {name: ALLOWED[name] / seconds for name, seconds in measured["simulator"].items()}


def optimizer_allowance(measured: Measured) -> dict[str, float]:
    """Compares steps of our optimisers with their limit: the ratio of the limit to the time."""
    return {name: STEP_AT_MOST / ratio for name, ratio in measured["optimizers"].items()}


def noise_allowance(measured: Measured) -> dict[str, float]:
    """Compares an update that measures the noise scale with its limit: the ratio of the limit to the time."""
    return {f"{measured['noise']:.3f}": NOISE_AT_MOST / measured["noise"]}


def check_allowance(measured: Measured) -> dict[str, float]:
    """Compares what the checks of gradients and parameters take of an update with their limit: the limit's ratio."""
    return {f"{100 * measured['checks']:.3f} %": CHECKS_AT_MOST / measured["checks"]}


def loop_speed(measured: Measured) -> dict[str, float]:
    """Compares training translation with a plain loop: the ratio of target tokens per second."""
    return {"one worker": measured["translation"]}


CHECKS_AT_MOST = 0.002
"""Largest share of an update in which is seen to it that what torch writes is what is trained."""

NOISE_AT_MOST = 1.02
"""Largest time of an update that measures the gradient noise scale, in times of one that does not."""

STEP_AT_MOST = 1.3
"""Largest time of a step of our optimisers on 4 million parameters, in times of a step of torch's fused AdamW."""

OVERHEAD_AT_MOST = 0.3e-3
"""Largest cost of a request to a server besides moving and adding its bytes, in seconds."""

CLOCK_TICK = 1e-9
"""Smallest time that is divided by, in seconds, since a difference of two times may be 0 or negative."""

TARGETS = (
    Target("shared against mpi, 2 ranks", 4, faster("shared", "mpi", "bench-2", 4 * MB)),
    Target("shared against gloo, 2 ranks", 8, faster("shared", "allreduce", "bench-2", 4 * MB)),
    Target("shared against gloo, 4 ranks", 6, faster("shared", "allreduce", "bench-4", 4 * MB)),
    Target("ring against mpi, 2 ranks", 1.8, faster("ring", "mpi", "bench-2", 32 * MB)),
    Target("shared against mpi, 2 ranks", 2, faster("shared", "mpi", "bench-2", MB // 4, MB // 4)),
    Target("ring, bf16 against float32, 2 ranks", 1.6, faster("ring bf16", "ring", "bench-2", 32 * MB)),
    Target("gloo, bf16 against float32, 2 ranks", 1.6, faster("allreduce bf16", "allreduce", "bench-2", 32 * MB)),
    Target("training, shared against " + DDP, 1.25, against(DDP)),
    Target("training, shared against " + NOTHING, 0.95, against(NOTHING)),
    Target("1 server against its incast bound, 4 workers", 0.5, near_bound("1 server")),
    Target("0.3 ms against a request's overhead", 1, request_overhead),
    Target("the simulator's allowance against its time", 1, simulator_allowance),
    Target("1.3 steps of fused AdamW against one of LAMB", 1, optimizer_allowance),
    Target("1.02 updates against one that measures the noise scale", 1, noise_allowance),
    Target("0.2 % of an update against checking gradients and parameters", 1, check_allowance),
    Target("training translation against a plain loop", 0.9, loop_speed),
)
"""All speed targets. `mpi` is MPI_Allreduce in place; training is of 4 million parameters on 2 ranks.

The incast bound counts moving alone. Within one machine's memory, adding takes about as long as moving, so the target
is a half.
"""


def measure_all(folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every measurement, in processes of its own, and hold it against the targets.

    Args:
        folder: where the measurements are kept.
        tell: is told which measurement comes next.

    Returns:
        A row for each target: `what`, `at_least`, `reached` (in the worst case) and `cases`.

    Raises:
        BigBatchError: a measurement failed; it has printed the reason itself.
    """
    bench = ["bench", "--algorithms", "shared,ring,mpi,allreduce", "--seconds", "8", "--bytes"]
    commands = {
        "bench-2": (2, [*bench, "256KB,4MB,32MB,128MB", "--wires", "bf16"]),
        "bench-4": (4, [*bench, "4MB,32MB,128MB"]),
        "bench-servers": (
            5,
            ["bench", "--algorithms", "ring,naive", "--servers", "1", "--seconds", "8", "--bytes", "32MB"],
        ),
        "race": (2, ["race", "--json"]),
    }
    measured: Measured = {}
    for name, (ranks, arguments) in commands.items():
        place = folder / name
        out = ["--out", str(place)] if name.startswith("bench") else []
        printed = measurement(name, ranks, [*arguments, *out], tell)
        if out:
            measured[name] = read_summary(place, BenchSummary)
        else:
            what = f"What {name} printed"
            measured[name] = check(parsed(printed, what), list[RaceRow], what)
    tell("── simulator")
    measured["simulator"] = simulator_seconds()
    tell("── optimizers")
    measured["optimizers"] = optimizer_ratios()
    tell("── noise scale")
    measured["noise"] = noise_ratio()
    tell("── checks")
    measured["checks"] = check_ratio()
    tell("── translation")
    measured["translation"] = loop_ratio()
    return [
        {"what": target.what, "at_least": target.at_least, "reached": min(cases.values()), "cases": cases}
        for target in TARGETS
        for cases in [target.ratios(measured)]
    ]
