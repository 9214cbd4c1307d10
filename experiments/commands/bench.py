"""`bigbatch-exp bench`: all-reduces and synchronous servers, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bigbatch.comm.kinds import BYTES, Number, Several, Text, Whole
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.commands.ranks import RankSettings, ranks_of

if TYPE_CHECKING:  # whoever only asks for help must not wait for what prints tables
    from rich.console import Console


@dataclass(frozen=True)
class BenchSettings(Options):
    """The options of `bench`: which all-reduces and servers are measured, and with which sizes.

    Attributes:
        bytes: sizes of the buffers, in bytes.
        algorithms: names of the all-reduces; None for all that can run here.
        servers: numbers of servers to measure synchronous updates through; None for none.
        seconds: about how many seconds to spend on each size.
    """

    title: ClassVar[str] = "Bench"

    bytes: tuple[int, ...] = option(
        (4 * 2**10, 256 * 2**10, 4 * 2**20, 32 * 2**20), Several(BYTES), "Sizes of the buffers."
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
    seconds: float = option(2.0, Number(above=0), "Seconds to spend on each size, about.")


@click.command(cls=Command)
@takes(BenchSettings, RankSettings, FolderSettings)
def bench(settings: BenchSettings, ranks: RankSettings, output: FolderSettings) -> None:
    """Compare all-reduces: time, algbw and busbw by algorithm and size, with exact checks and a figure.

    With --servers, the last ranks are parameter servers; -n counts the others.
    """
    from bigbatch.comm.wires.agreement import together
    from bigbatch.experiments.commands.output import close, console, print_json, told
    from bigbatch.experiments.figures.bandwidth import draw_bench
    from bigbatch.experiments.measuring.bench import Bench, as_json, size_label
    from bigbatch.experiments.measuring.wires import all_reduce_named
    from bigbatch.experiments.runs.run import SUMMARY, chosen_folder, environment, write_json

    names, servers = settings.algorithms or (), settings.servers or ()
    for name in names:
        all_reduce_named(name)
    with ranks_of(ranks, max(servers, default=0)) as (transport, launch):
        speaking = transport.rank == 0
        compared = Bench(transport, launch, names, servers)
        name = f"bench-{transport.size}"
        folder = together(transport, lambda: chosen_folder(output.out, name) if speaking else None)
        summary: dict[str, Any] = {"rows": [], "memory": [], "skipped": compared.skipped}
        if servers:
            summary |= {"ports": [], "overhead_seconds": compared.overhead(settings.seconds)}
        for size in settings.bytes:
            told(speaking)(f"{size_label(size)} ...")
            results = compared.run(size, settings.seconds)
            summary["rows"] += results.as_json()
            summary["memory"].append(as_json(results.memory))
            if results.port is not None:
                summary["ports"].append(as_json(results.port))
        if folder is not None:
            write_json(folder / SUMMARY, {**summary, "environment": environment()})
            draw_bench(summary["rows"], summary["memory"], folder / "bench.png")
            if output.json:
                print_json(summary["rows"])
            else:
                limits = summary["memory"], summary.get("ports", ()), summary.get("overhead_seconds")
                print_bench(console(), summary["rows"], *limits)
                for name, reason in compared.skipped.items():
                    print(f"left out: {name}: {reason}")
                close(folder)
        compared.close()


def print_bench(
    console: "Console",
    rows: Sequence[dict[str, Any]],
    memory: Sequence[dict[str, Any]],
    ports: Sequence[dict[str, Any]] = (),
    overhead: float | None = None,
) -> None:
    """Print a block for every size, fastest first, below what memory allows and what a port can move."""
    from bigbatch.experiments.commands.output import new_table
    from bigbatch.experiments.measuring.bench import REFERENCE, size_label

    reference = any(row["algorithm"] == REFERENCE for row in rows)
    heads = ["", "time\nms", "quartiles\nms", "algbw\nGB/s", "busbw\nGB/s"]
    heads += [f"\n× {REFERENCE}"] if reference else []
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
                *([f"{1e3 * bound:.3f}", f"{bound / row['seconds']:.2f}"] if bound is not None else []),
            )
        table.add_section()
    console.print(table)
    console.print(
        f"\n{rows[0]['ranks']} ranks, float32, in place; every result of every repetition was exact. What memory "
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
