"""The bench: all-reduces side by side, as a table, as rows of JSON and as a figure."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bigbatch.comm.collective import Collective
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.launch import Launch
from bigbatch.comm.measure import Measurement, measure, memory_bandwidth
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.transport import Transport

REFERENCE = "mpi"
"""What the table compares with, if it is there."""


class Bench:
    """All-reduces by name, in the processes that one launcher started.

    Args:
        transport: on which the ranks start together; collectives that can, run on it, others get wires of their own.
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
        self._transport = transport
        self._launch = launch
        self._own_wires: list[Transport] = []
        self._collectives: dict[str, Collective] = {}
        self.skipped: dict[str, str] = {}
        for name in names or all_reduces():
            strategy = STRATEGIES.load(name)
            if not issubclass(strategy, AllReduce):
                raise ConfigurationError(f"{name} is not an all-reduce. A bench compares: {', '.join(all_reduces())}.")
            try:
                self._collectives[name] = self._collective(strategy)
            except ConfigurationError as error:
                if names:
                    raise
                self.skipped[name] = str(error)

    def _collective(self, strategy: type[AllReduce]) -> Collective:
        try:
            return strategy.collective(self._transport)
        except ConfigurationError:
            if strategy.connect.__func__ is AllReduce.connect.__func__:  # type: ignore[attr-defined]  # a bound method
                raise
        own = strategy.connect(self._launch, "cpu", self._transport.deadline)
        self._own_wires.append(own)
        return strategy.collective(own)

    def memory_bandwidth(self) -> float:
        """What the memory can do, in bytes a second over all ranks."""
        return memory_bandwidth(self._transport)

    def run(self, nbytes: int, budget: float) -> list[Measurement]:
        """Measure buffers of that many bytes for about `budget` seconds; every rank returns the same.

        Raises:
            ConfigurationError: on every rank, if a result was not exact.
        """
        rows = measure(self._collectives, self._transport, nbytes, budget)
        wrong = [row.algorithm for row in rows if not row.exact]
        if wrong:
            error = ConfigurationError(
                f"{', '.join(wrong)} gave a wrong sum of {nbytes} bytes over {self._transport.size} ranks, so its "
                "times mean nothing. bigbatch-exp show NAME --proof says what goes wrong."
            )
            error.everywhere = True
            raise error
        return rows

    def close(self) -> None:
        """Close the wires that were opened here; all ranks together."""
        for collective in self._collectives.values():
            collective.close()
        for transport in self._own_wires:
            transport.close()


def all_reduces() -> list[str]:
    """The names of all all-reduces that differ in how they move data."""
    return [name for name in STRATEGIES.names() if issubclass(STRATEGIES.load(name), AllReduce) and name != "auto"]


def as_json(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The rows in SI units: seconds (median and quartiles), bytes a second."""
    return [
        {
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
        for row in rows
    ]


def memory_limit(bandwidth: float, ranks: int) -> float:
    """The busbw, in bytes a second, that memory allows on one machine.

    Every rank's buffer must be read once and written once, 2pn bytes for p ranks of n: algbw is at most the
    bandwidth over 2p. Buffers that fit into the caches can be faster.
    """
    return bandwidth / (2 * ranks) * 2 * (ranks - 1) / ranks


def print_bench(console: Console, rows: Sequence[dict[str, Any]], bandwidth: float) -> None:
    """Print a block for every size, fastest first."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    reference = any(row["algorithm"] == REFERENCE for row in rows)
    heads = ("", "time, ms", "quartiles, ms", "algbw, GB/s", "busbw, GB/s", *([f"× {REFERENCE}"] if reference else []))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for size in dict.fromkeys(row["bytes"] for row in rows):
        block = sorted((row for row in rows if row["bytes"] == size), key=lambda row: row["seconds"])
        times = {row["algorithm"]: row["seconds"] for row in block}
        table.add_row(f"[bold]{size_label(size)}[/bold]")
        for row in block:
            speedup = [f"{times[REFERENCE] / row['seconds']:.2f}"] if reference else []
            table.add_row(
                f"  {row['algorithm']}",
                f"{1e3 * row['seconds']:.3f}",
                f"{1e3 * row['seconds_low']:.3f} – {1e3 * row['seconds_high']:.3f}",
                f"{row['algbw'] / 1e9:.2f}",
                f"{row['busbw'] / 1e9:.2f}",
                *speedup,
            )
        table.add_section()
    console.print(table)
    ranks = rows[0]["ranks"]
    console.print(
        f"\n{ranks} ranks, float32, in place; every result of every repetition was exact. Memory here copies "
        f"{bandwidth / 1e9:.1f} GB/s, read and written, over all ranks, which limits busbw to "
        f"{memory_limit(bandwidth, ranks) / 1e9:.2f} GB/s beyond the caches."
    )


def size_label(nbytes: int) -> str:
    """A size in the unit it was probably given in: 4096 is "4 KB"."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.4g} {unit}"
    return f"{nbytes} B"
