"""The command `simulate`: step time, throughput and scaling of clusters that nobody has at hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import UTILISATION, Stragglers, stragglers_named
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.commands.main import BYTES, FILE, POSITIVE, TOKENS, Count, console, told
from bigbatch.experiments.measuring.bench import size_label
from bigbatch.experiments.planning.simulate import (
    bare_row,
    crossover,
    simulate_row,
    strategy_named,
    traced_update,
)
from bigbatch.experiments.planning.updates import Row
from bigbatch.experiments.planning.workload import Workload
from bigbatch.experiments.runs.run import SUMMARY, TRACE, environment, make_folder, new_folder, write_json
from bigbatch.experiments.training.simulated import NETWORK, computing_on
from bigbatch.models.sizes import ModelSize, model_named, model_of

SEQUENCES = 8
"""Of the model's context length, that a worker computes in an update if nothing else is said."""

MAP_WORKERS = (4, 8, 16, 32, 64, 128, 256, 512)
MAP_BANDWIDTHS = (1e9 / 8, 10e9 / 8, 25e9 / 8, 100e9 / 8, 400e9 / 8)
"""What the map of crossovers is drawn over; bandwidths in bytes a second."""

MOST_WORKERS = 1 << 20
MOST_TRACED = 4
"""Ranks in the timeline; more cannot be read."""

NUMBER = Count("units", {"": 1, "k": 1_000, "M": 10**6, "G": 10**9, "B": 10**9}, "1300000000, 1.3e9 or 1.3G")


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers of something: 8..64 doubles from 8 to 64; 3,4,6 lists them.

    Args:
        name: of what.
        most: the largest that is taken.
    """

    def __init__(self, name: str = "workers", most: int = MOST_WORKERS) -> None:
        self.name = name
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """8..64,96 -> (8, 16, 32, 64, 96)."""
        if isinstance(value, tuple):
            return value
        found: set[int] = set()
        for word in str(value).split(","):
            first, dots, last = word.strip().partition("..")
            count, most = (int(end) if end.isdecimal() else 0 for end in (first, last if dots else first))
            if not 1 <= count <= most <= self._most:
                self.fail(
                    f"{word!r} is no number of {self.name}; write 64, or 8..4096, which doubles from 8; "
                    f"at least 1 and at most {self._most:,}",
                    param,
                    ctx,
                )
            while count <= most:
                found.add(count)
                count *= 2
        return tuple(sorted(found))


CLUSTER_OPTIONS = (
    click.option("--network", default=NETWORK, show_default=True, help="A preset's name or FILE.toml."),
    click.option("--node-size", type=POSITIVE, help="Ranks that share a node. [default: as the network says]"),
    click.option("--gpu", default="a100", show_default=True, help="What a worker computes on, or core: a laptop's."),
    click.option("--utilisation", type=click.FloatRange(0, 1, min_open=True), default=UTILISATION, show_default=True),
    click.option("--bucket-size", type=BYTES, default="25MB", show_default=True, help="Gradients sent as one, about."),
    click.option("--overlap/--no-overlap", default=True, show_default=True, help="Send while backward still runs."),
)
"""What cluster is simulated."""

OUTPUT_OPTIONS = (
    click.option("--out", type=FILE, help="The folder. [default: a new one below ./runs]"),
    click.option("--json", "as_rows", is_flag=True, help="Print the rows as JSON and no table."),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


def with_options(*options: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that gives a command all of these options, in their order."""

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


@click.command()
@click.argument("strategies", nargs=-1, required=True)
@click.option(
    "--workers", type=Counts(), default="8..256", show_default=True, help="64, or 8..4096, or a list of them."
)
@with_options(*CLUSTER_OPTIONS)
@click.option("--model", help="gpt2-small, llama2-7b ... [default: gpt2-small]")
@click.option("--parameters", type=NUMBER, help="Instead of --model: how many parameters.")
@click.option(
    "--flops-per-token", type=NUMBER, help="With --parameters: forward and backward. [default: 6 a parameter]"
)
@click.option("--tokens", type=TOKENS, help="That a worker computes in an update. [default: 8 sequences]")
@click.option("--accumulate", type=POSITIVE, default=1, show_default=True, help="Micro-batches these tokens come in.")
@click.option(
    "--straggler", default="none", show_default=True, help="exponential:0.3, lognormal:0.3, slow:RANK:FACTOR."
)
@click.option("--servers", type=POSITIVE, default=1, show_default=True, help="Of parameter servers.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random factors.")
@click.option("--bytes", "nbytes", type=BYTES, help="One sum of so many bytes instead of updates.")
@with_options(*OUTPUT_OPTIONS)
def simulate(
    strategies: tuple[str, ...],
    workers: tuple[int, ...],
    network: str,
    node_size: int | None,
    nbytes: int | None,
    servers: int,
    out: Path | None,
    as_rows: bool,
    debug: bool,  # noqa: ARG001 - the program looks at it
    **options: Any,
) -> None:
    """Time updates of large models on clusters of up to thousands of workers, by strategy; draw how they scale."""
    described = network_named(network)
    if node_size is not None:
        described = described.with_nodes(node_size)
    if nbytes is not None:
        bare(strategies, workers, described, nbytes, servers, as_rows)
        return
    size, load = workload_of(options)
    stragglers = stragglers_named(options["straggler"])
    stragglers.check_ranks(min(workers))
    for name in strategies:  # all names are looked up before anything takes long
        strategy_named(name, servers, min(workers))
    folder = out or new_folder("simulate")
    make_folder(folder)
    say = told(True)
    rows = []
    for name in strategies:
        for count in workers:
            say(f"{name}, {count:,} workers ...")
            rows.append(simulate_row(name, described, count, load, stragglers, servers=servers, seed=options["seed"]))
    title = f"{size.name}: {size.parameters:,} parameters, {load.tokens:,} tokens a worker and update, {options['gpu']}"
    write_json(
        folder / SUMMARY,
        {
            "rows": [asdict(row) for row in rows],
            "model": asdict(size),
            "network": {"name": described.name, "source": described.source},
            "gpu": options["gpu"],
            "utilisation": options["utilisation"],
            "straggler": options["straggler"],
            "accumulation": load.accumulation,
            "compute_seconds": load.compute,
            "servers": servers,
            "environment": environment(),
        },
    )
    draw_all(folder, rows, f"{title}, {described.name}", described, load, strategies[0], stragglers, servers)
    if as_rows:
        print(json.dumps([asdict(row) for row in rows], indent=2), flush=True)
        return
    print_rows(console(), rows)
    if not all(row.exact for row in rows):
        print(
            "\n≈: nearly. Either too many messages overtake others to be followed one by one, or no period was found."
        )
    print(f"\n{title}.\nms: an update, and of it computing, moving (exposed) and waiting; port: through the busiest.")
    print(f"Network {described.name}: {(described.source or 'your own').rstrip('.')}.")
    print(f"\n{folder}/: {', '.join(sorted(entry.name for entry in folder.iterdir()))}", flush=True)


def workload_of(options: dict[str, Any]) -> tuple[ModelSize, Workload]:
    """The model and what every worker does in an update, as a command's options have it.

    Raises:
        ConfigurationError: two models, an unknown one, or more micro-batches than tokens.
    """
    if options["parameters"] is None:
        if options["flops_per_token"] is not None:
            raise ConfigurationError("--flops-per-token goes with --parameters; a --model has its own.")
        size = model_named(options["model"] or "gpt2-small")
    elif options["model"] is not None:
        raise ConfigurationError("--model and --parameters both say how large the model is: leave one of them out.")
    else:
        size = model_of(options["parameters"], options["flops_per_token"])
    computing = computing_on(options["gpu"], size.flops_per_token, options["utilisation"])
    tokens = options["tokens"] or SEQUENCES * (size.context or 1024)
    load = Workload(size, tokens, computing, options["bucket_size"], options["overlap"], options["accumulate"])
    return size, load


def bare(
    strategies: Sequence[str], workers: Sequence[int], network: Network, nbytes: int, servers: int, as_rows: bool
) -> None:
    """Print how long one sum of so many bytes takes."""
    rows = [bare_row(name, network, count, nbytes, servers=servers) for name in strategies for count in workers]
    if as_rows:
        print(json.dumps(rows, indent=2), flush=True)
        return
    table = new_table("strategy", "workers", "size", "time, ms", "busbw, GB/s")
    for row in rows:
        seconds = row["communication_seconds"]
        busbw = 2 * (row["workers"] - 1) / row["workers"] * nbytes / seconds / 1e9 if seconds else float("nan")
        table.add_row(
            row["strategy"], f"{row['workers']:,}", size_label(nbytes), f"{1e3 * seconds:,.3f}", f"{busbw:,.2f}"
        )
    console().print(table)
    print(f"\nNetwork {network.name}: {(network.source or 'your own').rstrip('.')}.", flush=True)


def draw_all(
    folder: Path,
    rows: Sequence[Row],
    title: str,
    network: Network,
    load: Workload,
    first: str,
    stragglers: Stragglers,
    servers: int,
) -> None:
    """Draw how strategies scale, where a server beats a ring, and one update of the first strategy."""
    from bigbatch.comm.tracing.perfetto import write_trace
    from bigbatch.experiments.figures.simulation import draw_crossover, draw_scaling
    from bigbatch.experiments.figures.timeline import draw_timeline

    draw_scaling(rows, title, folder / "scaling.png")
    kinds = {"one server": lambda _: 1, "a server for 4 workers": lambda n: n // 4, "as many as workers": lambda n: n}
    nbytes = min(load.bucket_bytes, 4 * load.size.parameters)
    maps = {name: crossover(network, nbytes, MAP_WORKERS, MAP_BANDWIDTHS, count) for name, count in kinds.items()}
    what = f"A synchronous parameter server's time over a ring's, for {size_label(nbytes)}; bold where it is less"
    draw_crossover(maps, MAP_WORKERS, MAP_BANDWIDTHS, what, folder / "crossover.png")
    count = min(MOST_TRACED, rows[0].workers)
    spans = traced_update(first, network, count, load, stragglers, servers)
    write_trace(folder / TRACE, spans)
    draw_timeline(spans, folder / "timeline.png", f"One update over {first} on {count} workers, {network.name}")


def print_rows(printer: Console, rows: Sequence[Row]) -> None:
    """Print a line for each strategy and number of workers: milliseconds an update, and what is in them."""
    table = new_table("strategy", "workers", "ms", "computing", "moving", "waiting", "ktok/s", "efficiency", "port, MB")
    for row in rows:
        times = (row.step_seconds, row.compute_seconds, row.communication_seconds, row.waiting_seconds)
        table.add_row(
            row.strategy,
            f"{row.workers:,}" if row.exact else f"≈ {row.workers:,}",
            *(f"{1e3 * seconds:,.1f}" for seconds in times),
            f"{row.tokens_per_second / 1e3:,.0f}",
            f"{row.efficiency:.1%}",
            f"{row.busiest_port_bytes / 1e6:,.0f}",
        )
    printer.print(table)


def new_table(*heads: str) -> Table:
    """A table whose columns but the first are numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


COMMANDS = {"simulate": simulate}
