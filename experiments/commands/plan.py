"""The command `plan`: how many workers, how large a batch and which strategy a target is worth."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from bigbatch.comm.simulation.computing import GPUS, gpu_named
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.commands.main import FILE, POSITIVE_NUMBER, TOKENS, console, told
from bigbatch.experiments.commands.simulate import CLUSTER_OPTIONS, OUTPUT_OPTIONS, Counts, new_table, with_options
from bigbatch.experiments.planning.needs import Measured, fitting, known_from, memory_bytes
from bigbatch.experiments.planning.plan import (
    Candidate,
    Deployment,
    advice,
    candidates,
    duration,
    exact_front,
    ideal,
    planned,
    recommended,
)
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.runs.run import SUMMARY, environment, make_folder, new_folder, write_json
from bigbatch.experiments.training.simulated import CORE, computing_on
from bigbatch.models.sizes import model_named

MODEL = "gpt2-small"
"""That is planned for if none is named and none was measured."""

MOST_AT_ONCE = 4096
"""Sequences at once, and micro-batches in an update."""


@click.command()
@click.option(
    "--workers", type=Counts(), default="8..512", show_default=True, help="64, or 8..4096, or a list of them."
)
@click.option(
    "--strategies", default="ring,halving-doubling,ps", show_default=True, help="With commas; or FILE.py:name."
)
@click.option(
    "--servers", type=Counts("servers"), default="8", show_default=True, help="Of parameter servers; or a list."
)
@click.option("--model", help="gpt2-medium, llama2-7b ... [default: the model of --fit, else gpt2-small]")
@click.option("--target", type=POSITIVE_NUMBER, help="The loss to reach, in nats a token.")
@click.option("--critical-batch", type=TOKENS, help="Tokens, if known; with --least-updates.")
@click.option("--least-updates", type=POSITIVE_NUMBER, help="If known; with --critical-batch.")
@click.option("--fit", "fitted", type=FILE, help="A folder in which the two were fitted to measurements.")
@click.option(
    "--micro-batch",
    "micro_batches",
    type=Counts("sequences", MOST_AT_ONCE),
    default="1..16",
    show_default=True,
    help="Sequences that a worker computes at once; or a list.",
)
@click.option(
    "--accumulate",
    "accumulations",
    type=Counts("micro-batches", MOST_AT_ONCE),
    default="1..64",
    show_default=True,
    help="Micro-batches that it adds up for an update; or a list.",
)
@click.option("--price", type=POSITIVE_NUMBER, help="Of a GPU-hour, to have costs in money too.")
@with_options(*CLUSTER_OPTIONS)
@with_options(*OUTPUT_OPTIONS)
def plan(
    workers: tuple[int, ...],
    strategies: str,
    servers: tuple[int, ...],
    model: str | None,
    target: float | None,
    critical_batch: int | None,
    least_updates: float | None,
    fitted: Path | None,
    micro_batches: tuple[int, ...],
    accumulations: tuple[int, ...],
    price: float | None,
    out: Path | None,
    as_rows: bool,
    debug: bool,  # noqa: ARG001 - the program looks at it
    **options: Any,
) -> None:
    """Say on how many workers, with which batch and strategy, a loss is reached in what time, for what cost."""
    network = network_named(options["network"])
    if options["node_size"] is not None:
        network = network.with_nodes(options["node_size"])
    measured = Measured.read(fitted).size if fitted is not None else None
    size = measured if model is None and measured is not None else model_named(model or MODEL)
    gpu = options["gpu"]
    computing = computing_on(gpu, size.flops_per_token, options["utilisation"])
    known = known_from(size, target, critical_batch, least_updates, fitted)
    at_once = fitting(size, micro_batches, None if gpu == CORE else gpu_named(gpu))
    names = list(dict.fromkeys(name.strip() for name in strategies.split(",")))
    for name in names:  # all names are looked up before anything takes long
        planned(name, servers[0], max(workers))
    folder = out or new_folder("plan")
    make_folder(folder)
    cluster = Deployment(size, network, computing, options["bucket_size"], options["overlap"])
    say = told(True)
    found = candidates(cluster, known.tradeoff, names, workers, servers, at_once, accumulations, say)
    front, found = exact_front(cluster, known.tradeoff, found, say)
    best, what_to_do = recommended(front), advice(front)
    goal = f"a loss of {known.target:g}" if known.target is not None else "the target"
    title = f"{size.name} to {goal}, {gpu}, {network.name}"
    write_json(
        folder / SUMMARY,
        {
            "front": [asdict(one) for one in front],
            "recommended": asdict(best),
            "advice": what_to_do,
            "candidates": [asdict(one) for one in found],
            "updates": known.as_json(),
            "model": asdict(size),
            "network": {"name": network.name, "source": network.source},
            "gpu": gpu,
            "utilisation": options["utilisation"],
            "price": price,
            "memory_bytes": {str(number): memory_bytes(size, number) for number in at_once},
            "environment": environment(),
        },
    )
    _draw(folder, cluster, known.tradeoff, found, front, best, min(at_once), title, price)
    if as_rows:
        print(json.dumps([asdict(one) for one in front], indent=2), flush=True)
        return
    print_front(console(), front, best, price)
    print(
        "\nGPU-h: GPU-hours; each: sequences at once × micro-batches of a worker's update; batch: tokens of an update."
    )
    print(f"{title}; of {len(found):,} combinations, those of which no other is both faster and cheaper.")
    print(
        f"At least {known.tradeoff.least_updates:,.0f} updates, critical batch {known.tradeoff.critical_batch:,.0f} "
        f"tokens: {known.source}."
    )
    left_out = [number for number in micro_batches if number not in at_once]
    if gpu not in GPUS:
        print("Nothing is known of its memory, so that every micro-batch was taken to fit.")
    elif left_out:
        print(f"Too many sequences at once for the memory of {gpu}, and left out: {', '.join(map(str, left_out))}.")
    elif best.micro_batch == max(at_once) and memory_bytes(size, 2 * best.micro_batch) <= GPUS[gpu].memory_bytes:
        print(f"The memory of {gpu} has room for more than {best.micro_batch} sequences at once: see --micro-batch.")
    print(f"Network {network.name}: {(network.source or 'your own').rstrip('.')}.")
    print(f"\n{what_to_do}")
    print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


def _draw(
    folder: Path,
    cluster: Deployment,
    tradeoff: Tradeoff,
    found: Sequence[Candidate],
    front: Sequence[Candidate],
    best: Candidate,
    micro_batch: int,
    title: str,
    price: float | None,
) -> None:
    from bigbatch.experiments.figures.front import draw_front

    hours = np.geomspace(min(one.gpu_hours for one in front) / 10, 10 * max(one.gpu_hours for one in front), 2000)
    curve = ideal(tradeoff, cluster, micro_batch, hours), hours
    words = (
        "points: workers × sequences at once × micro-batches; ringed: the fastest at no more than twice the least cost"
    )
    draw_front(found, front, best, curve, f"{title}\n{words}", folder / "front.png", price)


def print_front(printer: Console, front: Sequence[Candidate], best: Candidate, price: float | None) -> None:
    """Print a line for each row of the front, the recommended one marked."""
    money = [] if price is None else ["price"]
    heads = ("time", "GPU-h", *money, "workers", "strategy", "each", "batch", "updates", "s/update", "efficiency")
    table = new_table(*heads)
    for one in front:
        beside = f" + {one.servers:,}" if one.servers else ""
        table.add_row(
            f"{duration(one.seconds)}{' ←' if one is best else ''}",
            f"{one.gpu_hours:,.4g}" if one.gpu_hours < 1000 else f"{one.gpu_hours:,.0f}",
            *([] if price is None else [f"{one.gpu_hours * price:,.2f}"]),
            f"{one.workers:,}{beside}",
            one.strategy,
            f"{one.micro_batch} × {one.accumulation}",
            f"{one.batch:,}",
            f"{one.updates:,.0f}",
            f"{one.step_seconds:.4g}",
            f"{one.efficiency:.1%}",
        )
    printer.print(table)


COMMANDS = {"plan": plan}
