"""The claim about what adding workers does to throughput, over an all-reduce and over parameter servers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bigbatch.comm.simulation.computing import Stragglers
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.figures.labels import End, label_ends
from bigbatch.experiments.figures.simulation import Lines, draw_by_workers, draw_throughput
from bigbatch.experiments.figures.style import GREY, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.planning.simulate import simulate_row
from bigbatch.experiments.planning.workload import ELEMENT_BYTES, Workload
from bigbatch.experiments.training.simulated import computing_on
from bigbatch.models.sizes import model_named

NETWORKS = ("ethernet-10g", "infiniband-hdr")
"""The networks that are simulated: a slow one and a fast one."""

MODEL, GPU, SEQUENCES = "gpt2-small", "a100", 8
BUCKET_BYTES = 25_000_000

DELAY = 0.1
"""Mean delay of stragglers, divided by the update's computing time: an exponential random time is added to it."""

SPAN = 4
"""Factor in the number of workers, up to the largest number, over which growth is measured."""

BOUND = 1.25
"""Largest time that an all-reduce may add to an update, in units of 2nβ; what is above 1 is for latency and adding."""

GROWS, STOPS = 0.75, 0.25
"""Least exponent of something that grows with the workers (ideally 1), and largest of something that does not (0)."""


@dataclass(frozen=True)
class Way:
    """One of the compared ways to combine gradients, with what is claimed of it.

    Attributes:
        strategy: name of the strategy.
        servers: the number of servers for a number of workers.
        bounded: whether it is claimed to add at most 2nβ seconds to an update.
        stops: whether its throughput is claimed to stop growing with the workers.
    """

    strategy: str
    servers: Callable[[int], int] = lambda _: 1
    bounded: bool = False
    stops: bool = False


WAYS = {
    "ring": Way("ring", bounded=True),
    "halving-doubling": Way("halving-doubling", bounded=True),
    "ps, 1 server": Way("ps", stops=True),
    "ps, W servers": Way("ps", servers=lambda workers: workers),
}


class Figure(Claim):
    """Throughput, efficiency and exposed communication against workers.

    Servers split the parameters in their order, so that few of them hold a bucket: everybody sends to those few while
    the others are idle. That is why as many servers as workers can add more than 2nβ, which is what they would take
    if everything were sent at once.
    """

    claim = (
        "However many workers there are, an all-reduce adds at most about 2nβ to an update (n bytes of gradients, β "
        "seconds a byte), so that throughput keeps growing with the workers; a single parameter server adds time in "
        "proportion to them, so that throughput stops growing; as many servers as workers mend that."
    )
    source = (
        "Patarasuk and Yuan 2009, 'Bandwidth optimal all-reduce algorithms for clusters of workstations'; "
        "Li et al. 2014, 'Scaling distributed machine learning with the parameter server'"
    )
    criterion = (
        "held if on both networks: an all-reduce adds at most 1.25 × 2nβ at every number of workers; over the last "
        "factor of 4 in workers, what one server adds grows with an exponent of at least 0.75, throughput over it with "
        "one of at most 0.25, and over everything else with one of at least 0.75; each of these is decided for every "
        "seed. Failed if one is wrong for all seeds; it could not be told if seeds disagree about one"
    )
    minutes = Minutes(5, 0.2)
    trains = False

    def examine(self) -> Finding:
        """Simulate every way on both networks, without stragglers and, for several seeds, with stragglers."""
        most, seeds, updates = (32, 2, 2) if self.quick else (64, 5, 8)
        workers = [1 << power for power in range(1, most.bit_length())]
        load = workload()
        rows = []
        for network in map(network_named, NETWORKS):
            for name in WAYS:
                for count in workers:
                    self.laboratory.tell(f"scaling: {name}, {count} workers, {network.name} ...")
                    rows.append(row_of(name, network, count, load, seeds, updates))
        verdict, sentence = judged(rows)
        return Finding(
            verdict,
            sentence,
            f"Simulated updates of {MODEL} on {most} workers at most with an {GPU} each, {load.tokens:,} tokens a "
            f"worker and update ({1e3 * load.compute:.0f} ms of computing), in buckets of "
            f"{BUCKET_BYTES / 1e6:.0f} MB that are sent while backward runs. {updates} updates without stragglers, "
            f"which tell what an exchange adds; and {updates} each for {seeds} seeds with every worker's computing "
            f"delayed by a random time of {DELAY:.0%} in the mean, which tell throughput and efficiency. "
            "This is what follows from the model of ports and latencies; whether a machine is like it, validate says.",
            columns=(
                Column("network", "network"),
                Column("way", "over"),
                Column("workers", "workers"),
                Column("ktokens", "ktok/s", 1),
                Column("spread", "spread, %", 1),
                Column("percent", "efficiency, %", 1),
                Column("added_ms", "adds, ms", 1),
                Column("share", "in 2nβ", 2),
            ),
            rows=rows,
            details={"exponents": exponents(rows), "alone": load.tokens / load.compute},
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw three panels for each network: efficiency, throughput, and the time that the exchange adds."""
        draw_networks(finding, path)


def workload() -> Workload:
    """Makes the workload of every worker in an update: `SEQUENCES` sequences of `MODEL` on one `GPU`."""
    size = model_named(MODEL)
    assert size.context is not None, "a language model has a context"
    return Workload(size, SEQUENCES * size.context, computing_on(GPU, size.flops_per_token), BUCKET_BYTES, overlap=True)


def row_of(name: str, network: Network, workers: int, load: Workload, seeds: int, updates: int) -> dict[str, Any]:
    """Simulates one way to combine gradients on one number of workers, and makes the table's row for it.

    Args:
        name: the way's name in `WAYS`.
        network: the network between the ranks.
        workers: number of workers.
        load: what every worker does in an update.
        seeds: number of seeds to simulate with stragglers.
        updates: number of updates in each simulation.
    """
    way = WAYS[name]
    servers = way.servers(workers)

    def simulated(stragglers: Stragglers, seed: int) -> Any:
        return simulate_row(
            way.strategy, network, workers, load, stragglers, servers=servers, seed=seed, updates=updates
        )

    undisturbed = simulated(Stragglers(), 0)
    delayed = [simulated(Stragglers(exponential=DELAY), seed) for seed in range(seeds)]
    rates = [row.tokens_per_second for row in delayed]
    added = undisturbed.step_seconds - load.compute
    bound = 2 * ELEMENT_BYTES * load.size.parameters / network.wires.pieces[-1].bandwidth
    return {
        "network": network.name,
        "way": name,
        "workers": workers,
        "bounded": way.bounded,
        "stops": way.stops,
        "tokens_per_second": rates,
        "efficiency": [row.efficiency for row in delayed],
        "added": added,
        "bound": bound,
        "ktokens": fmean(rates) / 1e3,
        "spread": 100 * (max(rates) - min(rates)) / fmean(rates),
        "percent": 100 * fmean(row.efficiency for row in delayed),
        "added_ms": 1e3 * added,
        "share": added / bound,
    }


def exponent(first: float, last: float, factor: float) -> float:
    """Solves `last` = `first` · `factor`^e for e, the exponent of growth."""
    return math.log(last / first) / math.log(factor)


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measures the growth over the last factor of `SPAN` in workers, for each network and way.

    Args:
        rows: rows of `row_of`; for each network and way, one must have the most workers and one a `SPAN`th of them.

    Returns:
        For each network and way: network, way, bounded, stops, the two numbers of workers, throughput's exponent for
        each seed, the exponent of the added time, and the largest added time at any number of workers in units of 2nβ.
    """
    found = []
    for network, way in dict.fromkeys((row["network"], row["way"]) for row in rows):
        own = {row["workers"]: row for row in rows if (row["network"], row["way"]) == (network, way)}
        last = own[max(own)]
        first = own[max(own) // SPAN]
        pairs = zip(first["tokens_per_second"], last["tokens_per_second"], strict=True)
        found.append(
            {
                "network": network,
                "way": way,
                "bounded": last["bounded"],
                "stops": last["stops"],
                "workers": [first["workers"], last["workers"]],
                "throughput": [exponent(*pair, SPAN) for pair in pairs],
                "added": exponent(first["added"], last["added"], SPAN) if min(first["added"], last["added"]) > 0 else 0,
                "share": max(row["added"] / row["bound"] for row in own.values()),
            }
        )
    return found


def judged(rows: Sequence[dict[str, Any]]) -> tuple[Verdict, str]:
    """Decides the verdict on the claim from rows of `row_of`, and puts the numbers that decided it into a sentence."""
    grown = exponents(rows)
    wrong, split, sentences = [], [], []
    for own in grown:
        where = f"{own['way']} on {own['network']}"
        asked = {f"throughput over {where}": [(e <= STOPS if own["stops"] else e >= GROWS) for e in own["throughput"]]}
        if own["stops"]:
            asked[f"what {where} adds"] = [own["added"] >= GROWS]
        if own["bounded"]:
            asked[f"what {where} adds"] = [own["share"] <= BOUND]
        wrong += [what for what, seeds in asked.items() if not any(seeds)]
        split += [what for what, seeds in asked.items() if any(seeds) and not all(seeds)]
    for network in dict.fromkeys(own["network"] for own in grown):
        here = [own for own in grown if own["network"] == network]
        growth = ", ".join(f"{fmean(own['throughput']):.2f} ({own['way']})" for own in here)
        adds = [f"{own['way']} adds at most {own['share']:.2f} × 2nβ" for own in here if own["bounded"]]
        adds += [f"what {own['way']} adds grows with {own['added']:.2f}" for own in here if own["stops"]]
        adds += [f"{own['way']} adds {own['share']:.2f} × 2nβ" for own in here if not own["bounded"] | own["stops"]]
        first, last = here[0]["workers"]
        sentences.append(
            f"On {network}, from {first} to {last} workers throughput grows with exponents of {growth}; "
            f"{'; '.join(adds)}."
        )
    if wrong:
        sentences.append(f"Against the claim: {'; '.join(wrong)}.")
    if split:
        sentences.append(f"Seeds disagree about {'; '.join(split)}.")
    verdict = Verdict.FAILED if wrong else Verdict.UNTOLD if split else Verdict.HELD
    return verdict, " ".join(sentences)


def draw_networks(finding: Finding, path: Path) -> None:
    """Draw the finding to a PNG file, with a row of panels for each network."""
    networks = list(dict.fromkeys(row["network"] for row in finding.rows))
    figure, axes = panels(len(networks), 3, width=16.0, height=0.6 + 4.2 * len(networks))
    ends: dict[Axes, Sequence[End]] = {}

    def lines(network: str, value: str) -> Lines:
        here = [row for row in finding.rows if row["network"] == network]
        return {
            way: {row["workers"]: np.atleast_1d(row[value]).tolist() for row in here if row["way"] == way}
            for way in dict.fromkeys(row["way"] for row in here)
        }

    for number, network in enumerate(networks):
        efficiency, throughput, added = axes[3 * number : 3 * number + 3]
        ends[efficiency] = draw_by_workers(efficiency, lines(network, "efficiency"))
        efficiency.set_yscale("log")
        efficiency.set_ylim(top=1.0)
        efficiency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        efficiency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        efficiency.yaxis.set_minor_formatter(NullFormatter())
        efficiency.set_ylabel("of the throughput without exchange and delays")
        efficiency.set_title(f"{network}: efficiency", loc="left")
        ends[throughput] = draw_throughput(throughput, lines(network, "tokens_per_second"), finding.details["alone"])
        throughput.set_title(f"{network}: throughput", loc="left")
        most = max(row["workers"] for row in finding.rows)
        ends[added] = [*draw_by_workers(added, lines(network, "share")), End("2nβ", "#666666", most, 1.0)]
        added.axhline(1.0, color=GREY, linewidth=0.8)
        added.set_yscale("log")
        added.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        added.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        added.yaxis.set_minor_formatter(NullFormatter())
        added.set_ylabel("times 2nβ, no stragglers")
        added.set_title(f"{network}: what the exchange adds to an update", loc="left")
    seeds = len(finding.rows[0]["tokens_per_second"])
    figure.suptitle(
        f"What adding workers does ({MODEL} on {GPU}): the claim {finding.verdict.value}. Efficiency and throughput "
        f"with stragglers: mean, least and most of {seeds} seeds",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    label_ends(figure, ends)
    figure.savefig(path)
