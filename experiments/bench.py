"""The bench: all-reduces side by side, as a table, as rows of JSON and as a figure."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bigbatch.comm.collective import Collective
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.launch import Launch
from bigbatch.comm.measure import Measurement, measure
from bigbatch.comm.transport import Transport
from bigbatch.experiments.wires import Wires, all_reduce_named, all_reduces

REFERENCE = "mpi"
"""What the table compares with, if it is there."""


class Bench:
    """All-reduces by name, in the processes that one launcher started.

    Args:
        transport: on which the ranks start together.
        launch: how the processes were started.
        names: strategies of the all-reduce family; none given, all that can run here.

    Attributes:
        skipped: names of those that cannot run here, and why.

    Raises:
        LaunchError: a single rank.
        ConfigurationError: a given name that is not of an all-reduce, or of one that cannot run here.
    """

    def __init__(self, transport: Transport, launch: Launch, names: Sequence[str]) -> None:
        if transport.size < 2:
            raise LaunchError("A bench needs at least two ranks: start it with mpirun -n 2 or more, or with -n 2.")
        self._wires = Wires(transport, launch)
        self._collectives: dict[str, Collective] = {}
        self.skipped: dict[str, str] = {}
        for name in names or all_reduces():
            strategy = all_reduce_named(name)
            try:
                self._collectives[name] = self._wires.on(strategy, strategy.collective)
            except ConfigurationError as error:
                if names:
                    raise
                self.skipped[name] = str(error)

    def run(self, nbytes: int, budget: float) -> tuple[list[Measurement], Measurement]:
        """Measure buffers of that many bytes for about `budget` seconds; every rank returns the same.

        Returns:
            A measurement of each all-reduce, and what memory allows; see `bigbatch.comm.measure.measure`.

        Raises:
            ConfigurationError: on every rank, if a result was not exact.
        """
        rows, memory = measure(self._collectives, self._wires.transport, nbytes, budget)
        wrong = [row.algorithm for row in rows if not row.exact]
        if wrong:
            error = ConfigurationError(
                f"{', '.join(wrong)} gave a wrong sum of {nbytes} bytes over {rows[0].ranks} ranks, so its times mean "
                "nothing. bigbatch-exp show NAME --proof says what goes wrong."
            )
            error.everywhere = True
            raise error
        return rows, memory

    def close(self) -> None:
        """Give back memory and wires; all ranks together."""
        for collective in self._collectives.values():
            collective.close()
        self._wires.close()


def as_json(row: Measurement) -> dict[str, Any]:
    """The measurement in SI units: seconds (median and quartiles), bytes a second."""
    return {
        "algorithm": row.algorithm,
        "ranks": row.ranks,
        "bytes": row.nbytes,
        "seconds": row.median,
        "seconds_low": row.low,
        "seconds_high": row.high,
        "algbw": row.algbw,
        "busbw": row.busbw,
        "exact": row.exact,
    }


def print_bench(console: Console, rows: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]]) -> None:
    """Print a block for every size, fastest first, below what memory allows."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    reference = any(row["algorithm"] == REFERENCE for row in rows)
    heads = ("", "time, ms", "quartiles, ms", "algbw, GB/s", "busbw, GB/s", *([f"× {REFERENCE}"] if reference else []))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for limit in memory:
        block = sorted((row for row in rows if row["bytes"] == limit["bytes"]), key=lambda row: row["seconds"])
        times = {row["algorithm"]: row["seconds"] for row in block}
        table.add_row(f"[bold]{size_label(limit['bytes'])}[/bold]")
        for row in (limit, *block):
            table.add_row(
                f"  {row['algorithm']}" if row is not limit else "  [dim]what memory allows[/dim]",
                f"{1e3 * row['seconds']:.3f}",
                f"{1e3 * row['seconds_low']:.3f} – {1e3 * row['seconds_high']:.3f}",
                f"{row['algbw'] / 1e9:.2f}",
                f"{row['busbw'] / 1e9:.2f}",
                *([f"{times[REFERENCE] / row['seconds']:.2f}"] if reference else []),
            )
        table.add_section()
    console.print(table)
    console.print(
        f"\n{rows[0]['ranks']} ranks, float32, in place; every result of every repetition was exact. What memory "
        "allows: every rank reads and writes its own buffer once, which no all-reduce in memory can do without."
    )


def size_label(nbytes: int) -> str:
    """A size in the unit it was probably given in: 4096 is "4 KB"."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.4g} {unit}"
    return f"{nbytes} B"
