"""Where a parameter server takes less time than a ring: by workers, bandwidth, message and stragglers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bigbatch.comm.simulation.computing import Stragglers, expected_synchronous
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.figures.labels import End, label_ends
from bigbatch.experiments.figures.simulation import draw_maps
from bigbatch.experiments.figures.style import GREY, LINES, colour, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.planning.simulate import bare_row, crossover, simulate_row
from bigbatch.experiments.planning.workload import ELEMENT_BYTES, Workload
from bigbatch.experiments.training.simulated import computing_on
from bigbatch.models.sizes import model_named

NETWORK = "infiniband-hdr"
"""Its bandwidth is changed in the maps."""

MAP_BYTES = 25_000_000
"""Of the gradients in the maps: one bucket."""

MODEL, GPU, SEQUENCES = "gpt2-small", "a100", 8
"""What stragglers are looked at with."""

MARGIN = 1.1
"""Formulas that are within such a factor of each other set nothing apart."""

SEGMENTS = 16
"""Pieces in which parts travel where values of one move beside gradients of the next."""


@dataclass(frozen=True)
class Servers:
    """A number of servers.

    Attributes:
        count: for a number of workers.
        segments: into which each server's part is cut.
    """

    count: Callable[[int], int]
    segments: int = 1


ONE, MANY, OVERLAPPED = "1 server", "W servers", "W servers, overlapped"

SERVERS = {
    ONE: Servers(lambda _: 1),
    "W/4 servers": Servers(lambda workers: workers // 4),
    MANY: Servers(lambda workers: workers),
}

MAP, SIZE, STRAGGLERS = "bandwidth", "message", "stragglers"
"""What is varied."""


class Figure(Claim):
    """Maps of bandwidth and workers, and what messages and stragglers change."""

    claim = (
        "One parameter server loses to a ring wherever bandwidth counts, by more the more workers there are. As many "
        "server machines as workers need 2α + 2nβ against the ring's 2(p-1)α + 2((p-1)/p)nβ: they win where messages "
        "are small or workers many, and where messages are large too, by up to a factor of 2, if values travel while "
        "gradients still do. And a server need not wait for slow workers: asynchronously, it takes more gradients a "
        "second."
    )
    source = (
        "Li et al. 2014, 'Scaling distributed machine learning with the parameter server'; Jiang et al. "
        "2020, 'A unified architecture for accelerating distributed DNN training in heterogeneous GPU/CPU clusters', "
        "section 2"
    )
    criterion = (
        "held if one server is behind in all of its map, and as many as workers are ahead at the smallest message, in "
        "part of their map, at the largest message if overlapped, and asynchronously at the longest delays; and if in "
        "every cell in which the closed formulas set a server and the ring apart by more than 10 %, the simulation has "
        "the same one ahead (for an asynchronous server they are a pair of bounds, both of which must be on one side). "
        "Each is decided for every seed: failed if one is wrong for all, it could not be told if seeds disagree"
    )
    minutes = Minutes(2, 0.1)
    trains = False

    def examine(self) -> Finding:
        """Simulate every cell, and set it beside its formulas."""
        quick = self.quick
        workers = (4, 16, 64) if quick else (4, 8, 16, 32, 64, 128, 256, 512)
        bandwidths = [gigabits * 1e9 / 8 for gigabits in ((1, 25, 400) if quick else (1, 10, 25, 100, 400))]
        sizes = [1 << power for power in range(10, 31, 5 if quick else 2)]
        strengths = (0.0, 0.3, 1.0) if quick else (0.0, 0.1, 0.3, 1.0)
        compared, waiting, seeds, updates = (8, 8, 3, 6) if quick else (32, 16, 5, 40)
        network = network_named(NETWORK)
        self.laboratory.tell("crossover: maps ...")
        cells = map_cells(network, workers, bandwidths)
        self.laboratory.tell("crossover: message sizes ...")
        cells += size_cells(network, compared, sizes)
        for strength in strengths:
            self.laboratory.tell(f"crossover: stragglers, exponential:{strength:g} ...")
            cells += straggler_cells(network, waiting, strength, seeds, updates)
        verdict, sentence = judged(cells)
        load = workload()
        return Finding(
            verdict,
            sentence,
            f"Simulated on {network.name}. Sums of {MAP_BYTES / 1e6:.0f} MB on {workers[0]} to {workers[-1]} workers "
            f"with ports of {bandwidths[0] * 8e-9:g} to {bandwidths[-1] * 8e-9:g} Gbit/s; sums of 1 KiB to 1 GiB on "
            f"{compared} workers; and updates of {MODEL} on {waiting} workers with an {GPU} each "
            f"({1e3 * load.compute:.0f} ms of computing), delayed by an exponential random time, over a ring and over "
            f"asynchronous servers: {updates} gradients a worker, {seeds} seeds. That last part counts gradients a "
            "second, not how much they help: stale ones may help less. This is what follows from the model of ports "
            "and latencies; whether a machine is like it, validate says.",
            columns=(
                Column("varied", "varied"),
                Column("servers", "servers"),
                Column("cells", "cells"),
                Column("apart", "set apart"),
                Column("ahead", "server ahead"),
                Column("agree", "agree"),
                Column("least", "least ratio", None),
                Column("most", "most", None),
                Column("off", "off, %", 1),
            ),
            rows=counted(cells),
            details={
                "workers": list(workers),
                "bandwidths": bandwidths,
                "compared_workers": compared,
                "straggler_workers": waiting,
                "cells": cells,
            },
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Three maps, and three panels below them."""
        draw_crossovers(finding, path)


# Formulas.


def ring_seconds(network: Network, workers: int, nbytes: float) -> float:
    """2(p-1)α + 2((p-1)/p)nβ + ((p-1)/p)nγ: a ring of p workers on a sum of n bytes.

    Long messages come in packets, and a ring then hides part of its adding: it may take less, by up to that.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    alpha, beta = prices(network)
    return 2 * (workers - 1) * alpha + (workers - 1) / workers * nbytes * (2 * beta + network.gamma)


def server_seconds(network: Network, workers: int, nbytes: float, servers: int, segments: int = 1) -> float:
    """(K+1)(α + (n/K)β·max(1, W/S)) + (n/(KS))γ: S synchronous servers and W workers on a sum of n bytes in K segments.

    In several segments all but the last one's adding is behind messages, if γ ≤ β.
    """
    alpha, beta = prices(network)
    piece = nbytes / segments
    return (segments + 1) * (alpha + piece * beta * max(1.0, workers / servers)) + piece / servers * network.gamma


def asynchronous_seconds(
    network: Network, workers: int, nbytes: float, servers: int, delta: float, mu: float
) -> tuple[float, float]:
    """(least, most) mean seconds a gradient over S asynchronous servers, of W workers that compute Δ + Exp(mean μ).

    At least what a worker takes that meets nobody, over W, and at least what the servers' ports and adding take; at
    most what a worker takes that meets everybody every time, over W.

    Source: the asymptotic bounds of Lazowska et al. 1984, "Quantitative system performance", chapter 5.
    """
    alone = delta + mu + server_seconds(network, 1, nbytes, servers)
    capacity = nbytes * (prices(network)[1] + network.gamma) / servers
    crowded = delta + mu + server_seconds(network, workers, nbytes, servers)
    crowded += (workers - 1) * nbytes / servers * network.gamma
    return max(alone / workers, capacity), crowded / workers


def prices(network: Network) -> tuple[float, float]:
    """(α, β) of a network on which they are the same for all messages."""
    (piece,) = network.wires.pieces
    return piece.alpha, 1 / piece.bandwidth


# Cells: a time over the ring's, simulated and by formula.


def cell(
    varied: str, servers: str, workers: int, value: float, predicted: tuple[float, float], ratios: Sequence[float]
) -> dict[str, Any]:
    """One comparison, in types that JSON can write.

    Args:
        varied: `MAP`, `SIZE` or `STRAGGLERS`.
        servers: how many, in words.
        workers: how many.
        value: of what is varied: bytes a second, bytes, or the mean delay over the computing.
        predicted: (least, most) time over the ring's, by formula.
        ratios: simulated, one of every seed.
    """
    return {
        "varied": varied,
        "servers": servers,
        "workers": workers,
        "value": value,
        "predicted": list(predicted),
        "ratios": list(ratios),
    }


def predicted_ratio(network: Network, workers: int, nbytes: int, kind: Servers) -> tuple[float, float]:
    """A synchronous server's time over a ring's, twice."""
    ratio = server_seconds(network, workers, nbytes, kind.count(workers), kind.segments)
    ratio /= ring_seconds(network, workers, nbytes)
    return ratio, ratio


def map_cells(network: Network, workers: Sequence[int], bandwidths: Sequence[float]) -> list[dict[str, Any]]:
    """Sums of `MAP_BYTES`."""
    cells = []
    for name, kind in SERVERS.items():
        ratios = crossover(network, MAP_BYTES, workers, bandwidths, kind.count)
        for row, bandwidth in enumerate(bandwidths):
            changed = replace(network, wires=wire(prices(network)[0], bandwidth))
            for column, count in enumerate(workers):
                predicted = predicted_ratio(changed, count, MAP_BYTES, kind)
                cells.append(cell(MAP, name, count, bandwidth, predicted, [float(ratios[row, column])]))
    return cells


def size_cells(network: Network, workers: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Sums of several sizes."""
    cells = []
    for nbytes in sizes:
        ring = bare_row("ring", network, workers, nbytes)["communication_seconds"]
        for name, kind in {**SERVERS, OVERLAPPED: Servers(SERVERS[MANY].count, SEGMENTS)}.items():
            row = bare_row("ps", network, workers, nbytes, servers=kind.count(workers), segments=kind.segments)
            predicted = predicted_ratio(network, workers, nbytes, kind)
            cells.append(cell(SIZE, name, workers, nbytes, predicted, [row["communication_seconds"] / ring]))
    return cells


def workload() -> Workload:
    """What every worker does in an update: all its gradients are sent at its end, as the formulas have it."""
    size = model_named(MODEL)
    assert size.context is not None, "a language model has a context"
    computing = computing_on(GPU, size.flops_per_token)
    return Workload(size, SEQUENCES * size.context, computing, ELEMENT_BYTES * size.parameters, overlap=False)


def straggler_cells(network: Network, workers: int, strength: float, seeds: int, updates: int) -> list[dict[str, Any]]:
    """Updates with stragglers: over a ring, which waits, and over asynchronous servers.

    Args:
        network: what messages cost.
        workers: how many.
        strength: an update's mean delay over its computing.
        seeds: how many are tried; one if nothing is random.
        updates: gradients that each worker makes.

    Returns:
        A cell for each number of servers, with two more entries: `gradients_per_second` and `ring_gradients_per_second`
        of every seed.
    """
    load = workload()
    nbytes, delta, mu = ELEMENT_BYTES * load.size.parameters, load.compute, strength * load.compute
    stragglers = Stragglers(exponential=strength)
    tried = range(seeds if strength else 1)

    def rates(name: str, servers: int) -> list[float]:
        steps = (
            simulate_row(name, network, workers, load, stragglers, servers=servers, seed=seed, updates=updates)
            for seed in tried
        )
        return [workers / row.step_seconds for row in steps]

    ring = rates("ring", 1)
    expected = (expected_synchronous(delta, mu, workers) + ring_seconds(network, workers, nbytes)) / workers
    cells = []
    for name, kind in SERVERS.items():
        servers = kind.count(workers)
        own = rates("ps:async", servers)
        least, most = asynchronous_seconds(network, workers, nbytes, servers, delta, mu)
        ratios = [one / other for one, other in zip(ring, own, strict=True)]
        made = cell(STRAGGLERS, name, workers, strength, (least / expected, most / expected), ratios)
        cells.append({**made, "gradients_per_second": own, "ring_gradients_per_second": ring})
    return cells


# What to make of them.


def set_apart(one: dict[str, Any]) -> int:
    """1 if by the formulas the server takes over `MARGIN` times as long as the ring, -1 if the ring does, else 0."""
    least, most = one["predicted"]
    return 1 if least > MARGIN else -1 if most < 1 / MARGIN else 0


def agreeing(one: dict[str, Any]) -> list[bool]:
    """For each seed, whether the simulation has the same one ahead as the formulas."""
    return [math.log(ratio) * set_apart(one) > 0 for ratio in one["ratios"]]


def counted(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table: how many cells there are of each kind, and how they came out."""
    rows = []
    for varied, servers in dict.fromkeys((one["varied"], one["servers"]) for one in cells):
        own = [one for one in cells if (one["varied"], one["servers"]) == (varied, servers)]
        ratios = [ratio for one in own for ratio in one["ratios"]]
        off = [
            max(one["predicted"][0] / ratio, ratio / one["predicted"][1], 1.0) - 1
            for one in own
            for ratio in one["ratios"]
        ]
        rows.append(
            {
                "varied": varied,
                "servers": servers,
                "cells": len(own),
                "apart": sum(set_apart(one) != 0 for one in own),
                "ahead": sum(set_apart(one) < 0 for one in own),
                "agree": sum(set_apart(one) != 0 and all(agreeing(one)) for one in own),
                "least": min(ratios),
                "most": max(ratios),
                "off": 100 * max(off),
            }
        )
    return rows


def words_of(one: dict[str, Any]) -> str:
    """Which cell it is."""
    value = {
        MAP: lambda value: f"{8e-9 * value:g} Gbit/s",
        SIZE: lambda value: f"{value:,.0f} bytes",
        STRAGGLERS: lambda value: f"delays of {value:.0%}",
    }[one["varied"]](one["value"])
    least, most = min(one["ratios"]), max(one["ratios"])
    simulated = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
    least, most = one["predicted"]
    predicted = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
    return f"{one['servers']} for {one['workers']} workers at {value} ({simulated} times the ring's, not {predicted})"


def claimed(cells: Sequence[dict[str, Any]]) -> dict[str, list[bool]]:
    """What the claim says in words -> for each seed, whether it is so; without what there are no cells of."""

    def ratios(
        varied: str, servers: str, pick: Callable[[Sequence[float]], float] | None = None
    ) -> list[tuple[float, ...]]:
        """For each seed, those of all cells, or of the cell whose value is picked."""
        own = [each for each in cells if (each["varied"], each["servers"]) == (varied, servers)]
        if pick is not None and own:
            place = pick([each["value"] for each in own])
            own = [each for each in own if each["value"] == place]
        return list(zip(*(each["ratios"] for each in own), strict=True))

    said = {
        "1 server is behind in its map": [min(own) > 1 for own in ratios(MAP, ONE)],
        "W servers are ahead in part of their map": [min(own) < 1 for own in ratios(MAP, MANY)],
        "W servers are ahead at the smallest message": [max(own) < 1 for own in ratios(SIZE, MANY, min)],
        "W servers, overlapped, are ahead at the largest": [max(own) < 1 for own in ratios(SIZE, OVERLAPPED, max)],
        "W servers, asynchronous, are ahead at the longest delays": [
            max(own) < 1 for own in ratios(STRAGGLERS, MANY, max)
        ],
    }
    return {what: seeds for what, seeds in said.items() if seeds}


def judged(cells: Sequence[dict[str, Any]]) -> tuple[Verdict, str]:
    """The verdict, and what it was decided by; of cells as `cell` has them."""
    apart = [one for one in cells if set_apart(one)]
    if not apart:
        return Verdict.UNTOLD, "The formulas set nothing apart."
    asked = {words_of(one): agreeing(one) for one in apart}
    parts = []
    for varied in dict.fromkeys(one["varied"] for one in apart):
        own = [one for one in apart if one["varied"] == varied]
        parts.append(f"{varied}, {sum(all(agreeing(one)) for one in own)} of {len(own)}")
    sentence = (
        f"In {len(apart)} of {len(cells)} cells the formulas set server and ring apart by more than 10 %; the "
        f"simulation has the same one ahead, by what is varied: {'; '.join(parts)}."
    )
    words = claimed(cells)
    wrong, split = ([what for what, seeds in words.items() if kind(seeds)] for kind in (never, sometimes))
    if words and not wrong and not split:
        sentence += f" So it is with all else that was claimed: {'; '.join(words)}."
    for what, some in (("Not so", wrong), ("Seeds disagree", split)):
        if some:
            sentence += f" {what}: {'; '.join(some)}."
    off, doubtful = ([what for what, seeds in asked.items() if kind(seeds)] for kind in (never, sometimes))
    for what, some in (("The other one is ahead", off), ("Seeds disagree", doubtful)):
        if some:
            sentence += f" {what} in {len(some)}, such as {some[0]}."
    return (Verdict.FAILED if wrong or off else Verdict.UNTOLD if split or doubtful else Verdict.HELD), sentence


def never(seeds: Sequence[bool]) -> bool:
    """Whether something is so for no seed."""
    return not any(seeds)


def sometimes(seeds: Sequence[bool]) -> bool:
    """Whether something is so for some seeds and not for others."""
    return any(seeds) and not all(seeds)


# Drawing.


def draw_crossovers(finding: Finding, path: Path) -> None:
    """Draw maps of bandwidth and workers; below them message sizes, and stragglers twice."""
    details = finding.details
    figure, axes = panels(2, 3, width=16.5, height=9.6)
    cells = details["cells"]
    names = list(dict.fromkeys(one["servers"] for one in cells if one["varied"] == MAP))
    shape = len(details["bandwidths"]), len(details["workers"])
    maps = {
        f"{name}: {MAP_BYTES / 1e6:.0f} MB": np.array(
            [one["ratios"][0] for one in cells if (one["varied"], one["servers"]) == (MAP, name)]
        ).reshape(shape)
        for name in names
    }
    draw_maps(figure, axes[:3], maps, details["workers"], details["bandwidths"])
    message, rates, ratios = axes[3:]
    ends = {
        message: _messages(message, [one for one in cells if one["varied"] == SIZE]),
        rates: _rates(rates, [one for one in cells if one["varied"] == STRAGGLERS]),
        ratios: _waiting(ratios, [one for one in cells if one["varied"] == STRAGGLERS]),
    }
    message.set_title(f"By message: {details['compared_workers']} workers, {NETWORK}", loc="left", fontsize=10)
    who = f"{details['straggler_workers']} workers, {MODEL} on {GPU}"
    rates.set_title(f"Stragglers: {who}", loc="left", fontsize=10)
    ratios.set_title("Stragglers: an asynchronous server's time a gradient", loc="left", fontsize=10)
    figure.suptitle(
        f"A parameter server's time over a ring's (below 1, bold: the server is ahead): the claim "
        f"{finding.verdict.value}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    label_ends(figure, ends)
    figure.savefig(path)


def _by_servers(cells: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(one["servers"] for one in cells)
    return {name: [one for one in cells if one["servers"] == name] for name in names}


def _over_the_ring(axis: Axes) -> None:
    """The scale of a time over a ring's."""
    axis.axhline(1.0, color=GREY, linewidth=0.9)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("server's time over the ring's")


def _messages(axis: Axes, cells: Sequence[dict[str, Any]]) -> list[End]:
    ends = []
    _over_the_ring(axis)
    for number, (name, own) in enumerate(_by_servers(cells).items()):
        places, shade = [one["value"] for one in own], colour(number)
        axis.plot(places, [one["predicted"][0] for one in own], color=shade, linestyle=LINES[number % len(LINES)])
        heights = [one["ratios"][0] for one in own]
        axis.plot(places, heights, color=shade, marker="o", markersize=4, linestyle="none")
        ends.append(End(name, shade, places[-1], heights[-1]))
    axis.set_xscale("log", base=2)
    axis.set_xticks([1 << power for power in range(10, 31, 5)], ["1 KiB", "32 KiB", "1 MiB", "32 MiB", "1 GiB"])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("gradients (lines: formula, dots: simulated)")
    return ends


def _strengths(axis: Axes, cells: Sequence[dict[str, Any]]) -> None:
    """Strengths side by side, since one of them is 0."""
    values = sorted({one["value"] for one in cells})
    axis.set_xticks(range(len(values)), [f"{value:.0%}" for value in values])
    axis.set_xlabel("mean delay, of the computing")


def _rates(axis: Axes, cells: Sequence[dict[str, Any]]) -> list[End]:
    by_servers = _by_servers(cells)
    lines = {f"async, {name}": [one["gradients_per_second"] for one in own] for name, own in by_servers.items()}
    lines["ring"] = [one["ring_gradients_per_second"] for one in next(iter(by_servers.values()))]
    ends = []
    for number, (name, seeds) in enumerate(lines.items()):
        shade = "#333333" if name == "ring" else colour(number)
        line = "-" if name == "ring" else LINES[number % len(LINES)]
        places, means = range(len(seeds)), [float(np.mean(own)) for own in seeds]
        axis.fill_between(places, list(map(min, seeds)), list(map(max, seeds)), color=shade, alpha=0.25, linewidth=0)
        axis.plot(places, means, color=shade, linestyle=line, marker="o", markersize=4)
        ends.append(End(name, shade, places[-1], means[-1]))
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylabel("gradients per second, all workers")
    _strengths(axis, cells)
    return ends


def _waiting(axis: Axes, cells: Sequence[dict[str, Any]]) -> list[End]:
    ends = []
    _over_the_ring(axis)
    for number, (name, own) in enumerate(_by_servers(cells).items()):
        shade, places = colour(number), range(len(own))
        low, high = ([one["predicted"][end] for one in own] for end in (0, 1))
        axis.fill_between(places, low, high, color=shade, alpha=0.18, linewidth=0)
        for heights in (low, high):
            axis.plot(places, heights, color=shade, linestyle=LINES[number % len(LINES)], linewidth=0.9)
        for place, one in zip(places, own, strict=True):  # a little aside of each other, so that none hides another
            axis.plot([place + 0.05 * (number - 1)] * len(one["ratios"]), one["ratios"], "o", color=shade, markersize=4)
        ends.append(End(name, shade, places[-1], float(np.mean(own[-1]["ratios"]))))
    _strengths(axis, cells)
    axis.set_xlabel("mean delay, of the computing (bands: bounds, dots: seeds)")
    return ends
