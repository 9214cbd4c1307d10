"""`bigbatch-exp bench`: all-reduces and synchronous servers, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.kinds import MEMORY, SECONDS, Name, Several, Text, Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.precisions import BF16, FP16
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.commands.ranks import RankSettings, ranks_of

if TYPE_CHECKING:  # whoever only asks for help must not wait for what prints tables
    from rich.console import Console


HALVES = (BF16, FP16)


@dataclass(frozen=True)
class BenchSettings(Options):
    """The options of `bench`: which all-reduces and servers are measured, and with which sizes.

    Attributes:
        bytes: sizes of the buffers, in bytes.
        algorithms: names of the all-reduces; None for all that can run here.
        servers: numbers of servers to measure synchronous updates through; None for none.
        wires: half precisions in which the all-reduces send besides; None for none.
        seconds: about how many seconds to spend on each size.
    """

    title: ClassVar[str] = "Bench"

    bytes: tuple[int, ...] = option(
        (4 * 2**10, 256 * 2**10, 4 * 2**20, 32 * 2**20), Several(MEMORY), "Sizes of the buffers."
    )
    algorithms: tuple[str, ...] | None = option(
        None, Several(Text("NAME")), "All-reduces to measure.", missing="all that can run"
    )
    servers: tuple[int, ...] | None = option(
        None,
        Several(Whole(most=10_000), ascending=True),
        "Numbers of servers, through each of which synchronous updates are measured too.",
        missing="none",
    )
    wires: tuple[str, ...] | None = option(
        None,
        Several(Name(lambda: HALVES)),
        "Half precisions in which the all-reduces send their numbers, measured beside those in float32.",
        missing="none",
    )
    seconds: float = option(2.0, SECONDS, "Seconds to spend on each size, about.")


@click.command(cls=Command)
@takes(BenchSettings, RankSettings, FolderSettings)
def bench(settings: BenchSettings, ranks: RankSettings, output: FolderSettings) -> None:
    """Compare all-reduces: time, algbw and busbw by algorithm and size, with exact checks and a figure.

    With --servers, the last ranks are parameter servers; -n counts the others.
    """
    from bigbatch.comm.wires.agreement import together
    from bigbatch.experiments.commands.output import print_json, results_in, told
    from bigbatch.experiments.measuring.bench import Bench, as_json, size_label
    from bigbatch.experiments.measuring.wires import all_reduce_named
    from bigbatch.experiments.runs.results import Results
    from bigbatch.experiments.runs.run import chosen_folder, environment

    names, servers = settings.algorithms or (), settings.servers or ()
    for name in names:
        all_reduce_named(name)
    with ranks_of(ranks, max(servers, default=0)) as (transport, launch):
        speaking = transport.rank == 0
        compared = Bench(transport, launch, names, servers, settings.wires or ())
        name = f"bench-{transport.size}"
        folder = together(transport, lambda: chosen_folder(output.out, name) if speaking else None)
        written = None if folder is None else Results(folder)
        summary: dict[str, Any] = {"rows": [], "memory": [], "skipped": compared.skipped}
        summary |= {"environment": environment()}
        if servers:
            summary |= {"ports": [], "overhead_seconds": compared.overhead(settings.seconds)}
        try:
            for size in settings.bytes:
                told(speaking)(f"{size_label(size)} ...")
                results = compared.run(size, settings.seconds)
                summary["rows"] += results.as_json()
                summary["memory"].append(as_json(results.memory))
                if results.port is not None:
                    summary["ports"].append(as_json(results.port))
                if written is not None:
                    written.keep(summary)  # what comes next may end this process
        except BigBatchError:
            if written is not None and summary["rows"] and not output.json:
                written.show(lambda: show(summary))
            raise
        compared.close()
    if folder is None or written is None:
        return
    with results_in(folder, named=not output.json, failures=written.failures) as shown:
        shown.show(lambda: print_json(summary["rows"]) if output.json else show(summary))
        shown.draw("bench.png", lambda path: _draw(summary, path))


def show(summary: dict[str, Any]) -> None:
    """Print the table of a bench, and what was left out of it."""
    from bigbatch.experiments.commands.output import at_once, console

    with at_once():
        print_bench(
            console(), summary["rows"], summary["memory"], summary.get("ports", ()), summary.get("overhead_seconds")
        )
        for name, reason in summary["skipped"].items():
            print(f"left out: {name}: {reason}")


def _draw(summary: dict[str, Any], path: Path) -> None:
    from bigbatch.experiments.figures.bandwidth import draw_bench

    draw_bench(summary["rows"], summary["memory"], path)


def print_bench(
    console: "Console",
    rows: Sequence[dict[str, Any]],
    memory: Sequence[dict[str, Any]],
    ports: Sequence[dict[str, Any]] = (),
    overhead: float | None = None,
) -> None:
    """Print a block for every size, fastest first, below what memory allows and what a port can move."""
    from bigbatch.experiments.commands.output import new_table, print_fitting
    from bigbatch.experiments.measuring.bench import REFERENCE, size_label

    reference = any(row["algorithm"] == REFERENCE for row in rows)
    halves = {
        row["algorithm"]: row["algorithm"].removesuffix(f" {wire}")
        for wire in HALVES
        for row in rows
        if row["algorithm"].endswith(f" {wire}")
    }
    heads = ["", "time\nms", "quartiles\nms", "algbw\nGB/s", "busbw\nGB/s"]
    heads += [f"\n× {REFERENCE}"] if reference else []
    heads += ["\n× float32"] if halves else []
    heads += ["bound\nms", "bound\n÷ time"] if ports else []
    table = new_table(*heads)
    for limit in memory:
        block = sorted((row for row in rows if row["bytes"] == limit["bytes"]), key=lambda row: row["seconds"])
        times = {row["algorithm"]: row["seconds"] for row in block}
        limits = [("what memory allows", limit)]
        limits += [("one port, both ways", port) for port in ports if port["bytes"] == limit["bytes"]]
        table.add_row(f"[bold]{size_label(limit['bytes'])}[/bold]")
        for name, row in [(f"[dim]{name}[/dim]", row) for name, row in limits] + [(r["algorithm"], r) for r in block]:
            bound = row.get("bound_seconds")
            table.add_row(
                f"  {name}",
                f"{1e3 * row['seconds']:.3f}",
                f"{1e3 * row['seconds_low']:.3f} – {1e3 * row['seconds_high']:.3f}",
                f"{row['algbw'] / 1e9:.2f}",
                f"{row['busbw'] / 1e9:.2f}" if row["ranks"] > 1 else "",
                *([f"{times[REFERENCE] / row['seconds']:.2f}" if row["ranks"] > 1 else ""] if reference else []),
                *([f"{times[halves[name]] / row['seconds']:.2f}" if name in halves else ""] if halves else []),
                *([f"{1e3 * bound:.3f}", f"{bound / row['seconds']:.2f}"] if bound is not None else []),
            )
        table.add_section()
    print_fitting(console, table)
    console.print(
        f"\n{rows[0]['ranks']} ranks, float32{', sent as named' if halves else ''}, in place; every "
        "result of every repetition was exact. What memory "
        "allows: every rank reads and writes its own buffer once, which no all-reduce in memory can do without."
    )
    if overhead is not None:
        console.print(
            "\nServers are ranks besides those; they make a synchronous update as in training, whose new values are "
            "the sums. One port: one worker and one server send the buffer there and back while nobody else moves "
            "anything. Bound: max(1, W/K) times that for W workers and K servers, the incast of W buffers on K ports. "
            "It leaves adding out, and has every port as fast as one alone; on one machine all ports are the same "
            "cores and the same memory, so that K servers do not reach a K-th.\n\n"
            f"A request costs {1e3 * overhead:.3f} ms apart from moving and adding: an update of 4 bytes by one worker "
            "takes so much longer than its messages alone."
        )
