"""`bigbatch-exp simulate`: update time, throughput and scaling of a large model on simulated clusters."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bigbatch.comm.precisions import FP32
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.planning.settings import SimulationRequest

if TYPE_CHECKING:  # whoever only asks for help must not wait for NumPy
    from rich.console import Console

    from bigbatch.comm.simulation.network import Network
    from bigbatch.comm.wires.recording import Span
    from bigbatch.experiments.planning.updates import Row
    from bigbatch.experiments.planning.workload import Workload
    from bigbatch.experiments.runs.results import Results

MAP_WORKERS = (4, 8, 16, 32, 64, 128, 256, 512)
MAP_BANDWIDTHS = (1e9 / 8, 10e9 / 8, 25e9 / 8, 100e9 / 8, 400e9 / 8)
"""The bandwidths of a port, in bytes per second, that the crossover map is drawn over."""

MOST_TRACED = 4
"""Largest number of ranks in the timeline; more could not be read."""


@click.command(cls=Command)
@click.argument("strategies", nargs=-1, required=True)
@takes(SimulationRequest, FolderSettings)
def simulate(request: SimulationRequest, output: FolderSettings, strategies: tuple[str, ...]) -> None:
    """Time updates of large models on clusters of up to thousands of workers, by strategy; draw how they scale."""
    from bigbatch.experiments.commands.output import at_once, console, print_json, results_in, told
    from bigbatch.experiments.planning.rows import (
        computed_on,
        network_of,
        precisions_of,
        stragglers_of,
        sum_rows,
        update_rows,
        workload_of,
        written,
    )
    from bigbatch.experiments.runs.run import chosen_folder, environment

    network = network_of(request.cluster)
    if request.bytes is not None:
        bare(sum_rows(strategies, request), network, request, output)
        return
    size, load = workload_of(request)
    stragglers_of(request)
    folder = chosen_folder(output.out, "simulate")
    rows = update_rows(strategies, request, told(True))
    computed = computed_on(request.cluster)
    title = f"{size.name}: {size.parameters:,} parameters, {load.tokens:,} tokens a worker and update, {computed}"
    summary = {
        "rows": written(rows, request.cluster),
        "model": asdict(size),
        "network": {"name": network.name, "source": network.source},
        "gpu": request.cluster.gpu,
        **precisions_of(request.cluster),
        "utilisation": request.cluster.utilisation,
        "straggler": request.straggler,
        "accumulation": load.accumulation,
        "compute_seconds": load.compute,
        "servers": request.servers,
        "environment": environment(),
    }

    def show() -> None:
        if output.json:
            print_json(summary["rows"])
            return
        with at_once():
            print_rows(console(), rows)
            if not all(row.exact for row in rows):
                print(
                    "\n≈: nearly. Either too many messages overtake others to be followed one by one, or no period was "
                    "found."
                )
            print(
                f"\n{title}.\nms: an update, and of it computing, moving (exposed) and waiting; port: through the "
                "busiest."
            )
            print(f"Network {network.name}: {(network.source or 'your own').rstrip('.')}.")

    with results_in(folder, named=not output.json) as results:
        results.keep(summary)
        results.show(show)
        draw_all(results, rows, f"{title}, {network.name}", network, load, strategies[0], request)


def bare(
    rows: Sequence[dict[str, Any]], network: "Network", request: SimulationRequest, output: FolderSettings
) -> None:
    """Print how long one sum takes with each strategy and number of workers, and the bus bandwidth on the wires.

    Args:
        rows: the simulated sums; see `bigbatch.experiments.planning.rows.sum_rows`.
        network: the simulated network.
        request: what was asked for.
        output: the options that say how to print.
    """
    from bigbatch.experiments.commands.output import console, new_table, print_fitting, print_json
    from bigbatch.experiments.measuring.bench import size_label
    from bigbatch.experiments.planning.workload import bytes_sent

    if output.json:
        print_json(rows)
        return
    cluster = request.cluster
    table = new_table("strategy", "workers", "size", "time, ms", "busbw, GB/s", gap=1)
    for row in rows:
        seconds, count = row["communication_seconds"], row["workers"]
        moved = 2 * (count - 1) / count * bytes_sent(cluster.wire, row["bytes"])
        busbw = moved / seconds / 1e9 if seconds else float("nan")
        table.add_row(row["strategy"], f"{count:,}", size_label(row["bytes"]), f"{1e3 * seconds:,.3f}", f"{busbw:,.2f}")
    print_fitting(console(), table)
    sent = "" if cluster.wire == FP32 else f"The numbers are sent in {cluster.wire}; busbw is of what is sent.\n"
    print(f"\n{sent}Network {network.name}: {(network.source or 'your own').rstrip('.')}.", flush=True)


def draw_all(
    results: "Results",
    rows: "Sequence[Row]",
    title: str,
    network: "Network",
    load: "Workload",
    first: str,
    request: SimulationRequest,
) -> None:
    """Draw how strategies scale, where a server beats a ring, and the timeline of one update of the first strategy."""
    from bigbatch.comm.tracing.perfetto import write_trace
    from bigbatch.experiments.measuring.bench import size_label
    from bigbatch.experiments.planning.rows import stragglers_of
    from bigbatch.experiments.planning.simulate import crossover, traced_update
    from bigbatch.experiments.planning.workload import ELEMENT_BYTES, bytes_sent
    from bigbatch.experiments.runs.run import TRACE

    def scaling(path: Path) -> None:
        from bigbatch.experiments.figures.simulation import draw_scaling

        draw_scaling(rows, title, path)

    def where_servers_win(path: Path) -> None:
        from bigbatch.experiments.figures.simulation import draw_crossover

        counts = {
            "one server": lambda _: 1,
            "a server for 4 workers": lambda n: n // 4,
            "as many as workers": lambda n: n,
        }
        nbytes, wire = min(load.bucket_bytes, ELEMENT_BYTES * load.size.parameters), request.cluster.wire
        maps = {
            name: crossover(network, nbytes, MAP_WORKERS, MAP_BANDWIDTHS, count, wire) for name, count in counts.items()
        }
        size = size_label(bytes_sent(wire, nbytes))
        what = f"A synchronous parameter server's time over a ring's, for {size}; bold where it is less"
        draw_crossover(maps, MAP_WORKERS, MAP_BANDWIDTHS, what, path)

    count = min(MOST_TRACED, rows[0].workers)

    @cache
    def spans() -> list[list["Span"]]:
        return traced_update(first, network, count, load, stragglers_of(request), request.servers)

    def timeline(path: Path) -> None:
        from bigbatch.experiments.figures.timeline import draw_timeline

        draw_timeline(spans(), path, f"One update over {first} on {count} workers, {network.name}")

    results.draw("scaling.png", scaling)
    results.draw("crossover.png", where_servers_win)
    trace = results.folder / TRACE
    results.attempt(f"The trace {trace} cannot be written", lambda: write_trace(trace, spans()))
    results.draw("timeline.png", timeline)


def print_rows(printer: "Console", rows: "Sequence[Row]") -> None:
    """Print a line for each strategy and number of workers: milliseconds per update, and how they are spent."""
    from bigbatch.experiments.commands.output import new_table, print_fitting

    heads = ("strategy", "workers", "ms", "computing", "moving", "waiting", "ktok/s", "efficiency", "port, MB")
    table = new_table(*heads, gap=1)
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
    print_fitting(printer, table)
