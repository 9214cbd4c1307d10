"""`bigbatch-exp bench`: all-reduces and synchronous servers, side by side."""

from dataclasses import dataclass
from typing import Any, ClassVar

import click

from bigbatch.comm.options import BYTES, Number, Options, Several, Text, Whole, option
from bigbatch.experiments.commands.options import Command, FolderSettings, takes
from bigbatch.experiments.commands.ranks import RankSettings, ranks_of


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
    from bigbatch.experiments.measuring.bench import Bench, as_json, print_bench, size_label
    from bigbatch.experiments.measuring.wires import all_reduce_named
    from bigbatch.experiments.runs.run import SUMMARY, environment, make_folder, new_folder, write_json

    names, servers = settings.algorithms or (), settings.servers or ()
    for name in names:
        all_reduce_named(name)
    with ranks_of(ranks, max(servers, default=0)) as (transport, launch):
        speaking = transport.rank == 0
        compared = Bench(transport, launch, names, servers)
        folder = output.out or new_folder(f"bench-{transport.size}")
        together(transport, lambda: make_folder(folder) if speaking else None)
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
        if speaking:
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
