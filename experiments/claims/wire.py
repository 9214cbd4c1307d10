"""The claim that more workers make a sum in half precision worse over a ring, and not over a parameter server."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from bigbatch.comm.collectives.halving_doubling import halving_doubling
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.precisions import BF16, FP16
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.schedule import Schedule
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.format import WireFormat
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.figures.labels import label_ends
from bigbatch.experiments.figures.simulation import draw_by_workers
from bigbatch.experiments.figures.style import GREY, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict

ELEMENTS = 20_011
"""Elements of every worker's gradient: enough that a relative error is known to a percent, and no multiple of much."""

SAME = 1.1
"""Largest factor by which the error of a sum over a server may grow with the workers and still count as the same."""

MORE = 2.0
"""Least factor by which the error over a ring grows, and is above that over a server, with the most workers."""


@dataclass(frozen=True)
class Way:
    """A way to add up gradients.

    Attributes:
        schedule: the rounds.
        servers: number of ranks that only serve, and begin with zeros.
        rounded: (workers) the sums of how many workers' gradients are rounded while an element is added up, in any
            order: one number for each rounding. The whole sum is rounded once more.
    """

    schedule: Schedule
    rounded: Callable[[int], Sequence[int]]
    servers: int = 0


def halved(workers: int) -> list[int]:
    """How many workers are behind each sum that halving-doubling sends of an element: half of them alone, and so on."""
    return [1 << level for level in range(workers.bit_length() - 1) for _ in range(workers >> level + 1)]


RING, SERVER = "ring", "ps, 1 server"

WAYS: Mapping[str, Way] = {
    RING: Way(ring, lambda workers: range(1, workers)),
    "halving-doubling": Way(halving_doubling, halved),
    SERVER: Way(partial(synchronous_server, servers=1), lambda workers: [1] * workers, servers=1),
}

KINDS: Mapping[str, float] = {"independent": 0.0, "alike": 1.0}
"""The part that all workers' gradients have in common, in times of each one's own part."""


class Figure(Claim):
    """The relative error of a sum against the workers, by the way it is added up."""

    claim = (
        "A sum in half precision is off by no more on many workers than on two over a parameter server, which adds in "
        "float32 what every worker has rounded once, and rounds the sum once. Over a ring, where every hop rounds what "
        "has been added up so far, it is off by ever more, about in proportion to the root of the number of workers."
    )
    source = (
        "Higham 2002, 'Accuracy and stability of numerical algorithms', section 4.2: what each rounding adds is in "
        "proportion to the partial sum that is rounded; 2.8: independent roundings add up as their squares"
    )
    criterion = (
        "held if, from 2 workers to the most, in bf16 and in fp16, for independent gradients and for alike ones, the "
        "error over a server grows by at most a factor of 1.1, while that over a ring grows with every doubling, at "
        "least doubles altogether, and is at least twice the server's with the most workers. Each is decided for every "
        "seed: failed if one is wrong for all, it could not be told if seeds disagree about one"
    )
    minutes = Minutes(0.5, 0.1)
    trains = False

    def examine(self) -> Finding:
        """Add up gradients in every way, over as many simulated ranks as there are workers and servers."""
        most, seeds = (32, 2) if self.quick else (64, 5)
        workers = [1 << power for power in range(1, most.bit_length())]
        rows = []
        for precision in (BF16, FP16):
            for kind in KINDS:
                for name in WAYS:
                    self.laboratory.tell(f"wire: {name}, {kind} gradients, in {precision} ...")
                    rows += [row_of(name, kind, precision, count, seeds) for count in workers]
        verdict, sentence = judged(rows)
        return Finding(
            verdict,
            sentence,
            f"Sums of {ELEMENTS:,} normally distributed numbers of each worker, whose own parts are independent and as "
            f"large as the part that all have in common, where they are alike; {seeds} seeds. Every number is rounded "
            "when it is sent, and added in float32. The error is the norm of what the sum is off by over the norm of "
            "the sum in float64. Expected is what independent roundings come to.",
            columns=(
                Column("precision", "sent in"),
                Column("kind", "gradients"),
                Column("way", "over"),
                Column("workers", "workers"),
                Column("error", "off by", None),
                Column("spread", "spread, %", 1),
                Column("expected", "expected", None),
            ),
            rows=rows,
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw a panel for each precision and kind of gradients, with a line for each way."""
        draw_errors(finding, path)


def row_of(name: str, kind: str, precision: str, workers: int, seeds: int) -> dict[str, Any]:
    """Adds up gradients in one way for several seeds, and makes the table's row.

    Args:
        name: the way's name in `WAYS`.
        kind: the kind of gradients; see `KINDS`.
        precision: the precision in which they are sent.
        workers: number of workers.
        seeds: number of seeds.
    """
    errors = [error_of(WAYS[name], KINDS[kind], precision, workers, seed) for seed in range(seeds)]
    return {
        "precision": precision,
        "kind": kind,
        "way": name,
        "workers": workers,
        "error": fmean(errors),
        "spread": 100 * (max(errors) / min(errors) - 1),
        "expected": expected(WAYS[name], KINDS[kind], precision, workers),
        "errors": errors,
    }


def error_of(way: Way, common: float, precision: str, workers: int, seed: int) -> float:
    """Measures what a sum is off by, relatively: the largest error of any worker.

    Args:
        way: how the gradients are added up.
        common: the part that they have in common; see `KINDS`.
        precision: the precision in which they are sent.
        workers: number of workers.
        seed: seed of the gradients.
    """
    shared, *own = np.random.default_rng([seed, workers]).standard_normal((1 + workers, ELEMENTS))
    gradients = [(common * shared + part).astype(np.float32) for part in own]
    exact = np.sum(gradients, axis=0, dtype=np.float64)

    def add_up(transport: Transport) -> NDArray[np.float32]:
        serves = transport.rank >= workers
        buffer = np.zeros(ELEMENTS, np.float32) if serves else gradients[transport.rank].copy()
        execute(way.schedule, transport, buffer, wire=WireFormat(precision))
        return buffer

    sums = Cluster(workers + way.servers).run(add_up)[:workers]
    return max(float(np.linalg.norm(own - exact) / np.linalg.norm(exact)) for own in sums)


def expected(way: Way, common: float, precision: str, workers: int) -> float:
    """Computes the relative error of a sum whose roundings are independent.

    Rounding the sum of k gradients adds an error of variance u²·v(k), where v(k) = c²k² + k is the variance of that sum
    and u the error of rounding one number; the sum of all workers is rounded once more.

    Args:
        way: how the gradients are added up.
        common: c, the part that they have in common.
        precision: the precision in which they are sent.
        workers: number of workers.
    """

    def variance(number: int) -> float:
        return (common * number) ** 2 + number

    roundings = math.fsum(map(variance, way.rounded(workers))) / variance(workers)
    return rounding_error(precision) * math.sqrt(1 + roundings)


def rounding_error(precision: str) -> float:
    """Measures u, what normally distributed numbers are off by when they are rounded once, relatively."""
    numbers = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)
    rounded = numbers.copy()
    WireFormat(precision).round(rounded)
    return float(np.linalg.norm(rounded - numbers) / np.linalg.norm(numbers))


def judged(rows: Sequence[Mapping[str, Any]]) -> tuple[Verdict, str]:
    """Decides the verdict on the claim from rows of `row_of`, and puts the numbers that decided it into a sentence."""
    asked: dict[str, list[bool]] = {}
    sentences = []
    for precision, kind in dict.fromkeys((row["precision"], row["kind"]) for row in rows):
        here = [row for row in rows if (row["precision"], row["kind"]) == (precision, kind)]
        ways = {
            name: {row["workers"]: np.array(row["errors"]) for row in here if row["way"] == name}
            for name in dict.fromkeys(row["way"] for row in here)
        }
        around, served = ways[RING], ways[SERVER]
        counts = sorted(around)
        first, last = counts[0], counts[-1]
        where = f"{kind} gradients in {precision}"
        hops = np.stack([around[count] for count in counts])
        said = {
            "a server's error stays": served[last] <= SAME * served[first],
            "a ring's grows": np.all(np.diff(hops, axis=0) > 0, axis=0),
            "a ring's doubles": around[last] >= MORE * around[first],
            "a ring's is twice a server's": around[last] >= MORE * served[last],
        }
        asked |= {f"{what}, {where}": seeds.tolist() for what, seeds in said.items()}
        spans = (f"{own[first].mean():.1e} to {own[last].mean():.1e} ({name})" for name, own in ways.items())
        sentences.append(f"{where[0].upper()}{where[1:]}, from {first} to {last} workers: {', '.join(spans)}.")
    wrong = [what for what, seeds in asked.items() if not any(seeds)]
    split = [what for what, seeds in asked.items() if any(seeds) and not all(seeds)]
    if wrong:
        sentences.append(f"Not so: {'; '.join(wrong)}.")
    if split:
        sentences.append(f"Seeds disagree: {'; '.join(split)}.")
    verdict = Verdict.FAILED if wrong else Verdict.UNTOLD if split else Verdict.HELD
    return verdict, " ".join(sentences)


def draw_errors(finding: Finding, path: Path) -> None:
    """Draw the finding to a PNG file: dots are measured, and grey lines behind them expected."""
    cases = list(dict.fromkeys((row["precision"], row["kind"]) for row in finding.rows))
    figure, axes = panels(1, len(cases), width=1.0 + 4.6 * len(cases), height=4.4)
    ends = {}
    for axis, (precision, kind) in zip(axes, cases, strict=True):
        here = [row for row in finding.rows if (row["precision"], row["kind"]) == (precision, kind)]
        names = list(dict.fromkeys(row["way"] for row in here))
        for name in names:
            own = sorted((row["workers"], row["expected"]) for row in here if row["way"] == name)
            axis.plot(*zip(*own, strict=True), color=GREY, linewidth=3, alpha=0.5)
        lines = {name: {row["workers"]: row["errors"] for row in here if row["way"] == name} for name in names}
        ends[axis] = draw_by_workers(axis, lines)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{precision}, {kind} gradients", loc="left")
    axes[0].set_ylabel("relative error of the sum")
    figure.suptitle(
        f"Sums sent in half precision, added in float32: the claim {finding.verdict.value}. "
        "Grey: expected of independent roundings",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    label_ends(figure, ends)
    figure.savefig(path)
