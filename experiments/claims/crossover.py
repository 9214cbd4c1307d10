"""The claim about where a parameter server is faster than a ring: by workers, bandwidth, message, stragglers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.figures.server_against_ring import draw_server_against_ring
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.planning.server_against_ring import (
    GPU,
    MANY,
    MAP,
    MAP_BYTES,
    MODEL,
    NETWORK,
    ONE,
    OVERLAPPED,
    SIZE,
    STRAGGLERS,
    map_cells,
    size_cells,
    straggler_cells,
    workload,
)

MARGIN = 1.1
"""The formulas tell server and ring apart if the two predicted times differ by more than this factor."""


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
        """Simulate every cell, and compare it with its formulas."""
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
        """Draw three maps, and below them message sizes and stragglers."""
        draw_server_against_ring(finding, path)


def set_apart(one: dict[str, Any]) -> int:
    """1 if by the formulas the server takes over `MARGIN` times as long as the ring, -1 the other way, else 0."""
    least, most = one["predicted"]
    return 1 if least > MARGIN else -1 if most < 1 / MARGIN else 0


def agreeing(one: dict[str, Any]) -> list[bool]:
    """Says for each seed whether the simulation has the same one of server and ring ahead as the formulas."""
    return [math.log(ratio) * set_apart(one) > 0 for ratio in one["ratios"]]


def counted(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes the table's rows: how many cells of each kind there are, and how many agree with the formulas."""
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
    """Describes a cell in words: servers, workers, the varied value, and both ratios."""
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
    """Maps each statement of the claim that has cells, in words, to whether it is true, for each seed."""

    def ratios(
        varied: str, servers: str, pick: Callable[[Sequence[float]], float] | None = None
    ) -> list[tuple[float, ...]]:
        """For each seed, the ratios of all cells of a kind, or of the one cell whose value is picked."""
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
    """Decides the verdict on the claim, and puts the numbers that decided it into a sentence.

    Args:
        cells: the compared cells; see `bigbatch.experiments.planning.server_against_ring.cell`.
    """
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
    """Whether a statement is true for no seed, given its truth for each."""
    return not any(seeds)


def sometimes(seeds: Sequence[bool]) -> bool:
    """Whether a statement is true for some seeds but not for all, given its truth for each."""
    return any(seeds) and not all(seeds)
