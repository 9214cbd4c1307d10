"""The bench: measures all-reduces and servers side by side, as a table and as rows of JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.measuring.served import PlainMessages, Served, incast_bound
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.reducers.measure import Measurement, Operation, Reducing, measure
from bigbatch.comm.schema import plain
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.wires.agreement import all_gather, together
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.measuring.wires import Wires, all_reduce_named, all_reduces
from bigbatch.experiments.runs.records import BenchRow

REFERENCE = "mpi"
"""Name of the all-reduce that the table compares the others with, if it was measured."""

PORT = "one port"
"""Name of the measurement of how fast one worker and one server can exchange a buffer."""


@dataclass(frozen=True)
class SizeResults:
    """The measurements with one size of buffer.

    Attributes:
        rows: one measurement per all-reduce, then one per number of servers.
        servers: number of servers by the row's name, for the rows of servers.
        memory: the time that memory bandwidth alone allows; see `bigbatch.comm.reducers.measure.measure`.
        port: the time of only the messages of one worker's update through one server; None if no servers are measured.
    """

    rows: list[Measurement]
    servers: Mapping[str, int]
    memory: Measurement
    port: Measurement | None

    def as_json(self) -> list[dict[str, Any]]:
        """Converts the rows to SI units; rows of servers also get `servers` and `bound_seconds`, the incast bound."""
        rows = []
        for row in self.rows:
            entry = as_json(row)
            if self.port is not None and row.algorithm in self.servers:
                servers = self.servers[row.algorithm]
                entry |= {
                    "servers": servers,
                    "bound_seconds": incast_bound(row.ranks, servers, self.port.median),
                }
            rows.append(entry)
        return rows


class Bench:
    """Measures all-reduces by name, and sums through parameter servers, in the processes that one launcher started.

    The last ranks are servers, as many as the largest number that was asked for; a smaller number of servers uses the
    first of them. All-reduces run between the other ranks, the workers.

    Args:
        transport: the transport between all ranks.
        launch: how the processes were started.
        names: names of strategies of the all-reduce family; if empty, all that can run here.
        servers: numbers of servers to measure synchronous updates through.
        wires: half precisions in which the same all-reduces send, measured beside those in float32.

    Attributes:
        skipped: names of the all-reduces that cannot run here, and the reasons.

    Raises:
        LaunchError: on every rank, if there are fewer than two workers.
        ConfigurationError: on every rank, if a given name is not an all-reduce, or one that cannot run here.
    """

    def __init__(
        self,
        transport: Transport,
        launch: Launch,
        names: Sequence[str],
        servers: Sequence[int] = (),
        wires: Sequence[str] = (),
    ) -> None:
        most = max(servers, default=0)
        self._transport = transport
        self._workers = transport.size - most
        self._servers = {f"{number} server{'s' if number > 1 else ''}": number for number in servers}
        self._opened: list[Transport] = []
        self._check()
        between = self._split(range(self._workers)) if most else transport
        self._wires = None if between is None else Wires(between, launch)
        self._formats = {f"{name} {wire}": WireFormat(wire) for name in names or all_reduces() for wire in wires}
        made = together(transport, lambda: self._make(names, wires))
        self._collectives: dict[str, Collective] = made[0]
        kept: list[str]
        kept, self.skipped = all_gather(transport, [list(self._collectives), made[1]])[0]
        self._operations = {
            name: Reducing(self._collectives[name], self._formats.get(name, WHOLE))
            if self._collectives
            else Operation(self._workers)
            for name in kept
        }
        for name, number in self._servers.items():
            ranks = self._split(range(self._workers + number))
            self._operations[name] = Operation(self._workers) if ranks is None else Served(ranks, number)
        self._pair = self._split((0, self._workers)) if most else None
        if most:
            self._operations[PORT] = Operation(1) if self._pair is None else PlainMessages(self._pair)

    def run(self, nbytes: int, budget: float) -> SizeResults:
        """Measure buffers of `nbytes` bytes for about `budget` seconds; every rank returns the same.

        Raises:
            ConfigurationError: on every rank, if a result was not exact.
        """
        rows, memory = measure(self._operations, self._transport, nbytes, budget)
        _refuse_wrong([row.algorithm for row in rows if not row.exact], nbytes, self._workers)
        port = rows.pop() if self._servers else None
        return SizeResults(rows, self._servers, memory, port)

    def overhead(self, budget: float) -> float:
        """Measures the seconds that a request to a server costs besides moving and adding, counting both ends.

        The cost is how much longer one worker's update of 4 bytes through one server takes than its messages alone.
        The other ranks wait meanwhile. Every rank returns the same.

        Args:
            budget: about how many seconds to spend.

        Raises:
            ConfigurationError: on every rank, if a result was not exact.
        """
        found: tuple[float, list[str]] = 0.0, []
        if self._pair is not None:
            operations = {"update": Served(self._pair, 1), PORT: PlainMessages(self._pair)}
            rows, _ = measure(operations, self._pair, 4, budget)
            found = rows[0].median - rows[1].median, [row.algorithm for row in rows if not row.exact]
        seconds: float
        seconds, wrong = all_gather(self._transport, found, "hear how long a request takes")[0]
        _refuse_wrong(wrong, nbytes=4, ranks=1)
        return seconds

    def close(self) -> None:
        """Releases the memory and the transports of the bench; all ranks call it together."""
        for collective in self._collectives.values():
            collective.close()
        if self._wires is not None:
            self._wires.close()
        for transport in self._opened:
            transport.close()

    def _check(self) -> None:
        if self._workers < 2:
            most = self._transport.size - self._workers
            besides = f" besides the {most} that serve{'s' if most == 1 else ''}" if most else ""
            raise LaunchError(
                f"A bench needs at least two ranks{besides}: start it with mpirun -n {2 + most} or more, or with -n 2.",
                everywhere=True,
            )

    def _split(self, ranks: Sequence[int]) -> Transport | None:
        """Wires between those ranks; None on the others."""
        if self._transport.rank not in ranks:
            return None
        self._opened.append(self._transport.split(ranks))
        return self._opened[-1]

    def _make(self, names: Sequence[str], wires: Sequence[str]) -> tuple[dict[str, Collective], dict[str, str]]:
        """The all-reduces by name, and why others cannot run; all workers together, and nothing on servers.

        The name of one that sends in half precision has that behind it: "ring bf16".
        """
        collectives: dict[str, Collective] = {}
        skipped: dict[str, str] = {}
        if self._wires is None:
            return collectives, skipped
        for name in names or all_reduces():
            strategy = all_reduce_named(name)
            try:
                collectives[name] = self._wires.on(strategy, strategy.collective)
            except ConfigurationError as error:
                if names:
                    raise
                skipped[name] = str(error)
                continue
            for wire in wires:
                half = f"{name} {wire}"
                try:
                    strategy.check_wire(wire)
                    made = self._wires.on(strategy, strategy.collective)
                    made.admit(self._formats[half])
                    collectives[half] = made
                except ConfigurationError as error:
                    skipped[half] = str(error)
        return collectives, skipped


def _refuse_wrong(names: Sequence[str], nbytes: int, ranks: int) -> None:
    """Raise an error, which every rank does, if there is a name of something whose result was not exact."""
    if names:
        raise ConfigurationError(
            f"{', '.join(names)} gave a wrong sum of {nbytes} bytes over {ranks} ranks, so its times mean nothing. "
            "bigbatch-exp show NAME --proof says what goes wrong with an all-reduce.",
            everywhere=True,
        )


def as_json(row: Measurement) -> dict[str, Any]:
    """Converts a measurement to SI units: seconds (median and quartiles), and bytes per second."""
    written: BenchRow = {
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
    return plain(written)


def size_label(nbytes: int) -> str:
    """Formats a size in bytes in the unit that it was probably given in: 4096 is "4 KB"."""
    for unit, factor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.4g} {unit}"
    return f"{nbytes} B"
