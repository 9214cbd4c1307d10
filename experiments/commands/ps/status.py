"""`bigbatch-exp ps status`: asks servers on a network for their status and prints it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click

from bigbatch.comm.kinds import File, Flag, Number, Text
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"
"""Default address at which a server listens, and at which workers look for it."""

SERVERS = click.option(
    "--server",
    "addresses",
    multiple=True,
    type=Value(Text("ADDRESS")),
    default=(DEFAULT_ADDRESS,),
    show_default=True,
    help="Address of a server; given once for each.",
)


@dataclass(frozen=True)
class StatusSettings(Options):
    """The options of `ps status`.

    Attributes:
        keys: file of keys, or None without encryption.
        json: whether to print JSON instead of tables.
        deadline: seconds to wait for a server's answer.
    """

    title: ClassVar[str] = "Status"

    keys: Path | None = option(
        None, File(), "File of keys, as `ps keys` makes them; the same on both sides.", missing="no encryption"
    )
    json: bool = option(False, Flag(), "Print the status as JSON instead of tables.")
    deadline: float = option(10.0, Number(above=0), "Seconds to wait for an answer.")


@click.command(cls=Command)
@SERVERS
@takes(StatusSettings)
def status(settings: StatusSettings, addresses: tuple[str, ...]) -> None:
    """Say how a server is: version, workers and their clocks, staleness, rates."""
    from bigbatch.comm.server.network.keys import Keys
    from bigbatch.comm.server.network.remote_shard import RemoteShard
    from bigbatch.comm.server.network.sockets import Dialer
    from bigbatch.experiments.commands.output import console, print_json

    pair = Keys.read(settings.keys) if settings.keys is not None else None
    states = {}
    for address in addresses:
        shard = RemoteShard(Dialer(address, pair), 0, settings.deadline)
        try:
            states[address] = shard.status()
            described(address, states[address])
        finally:
            shard.close()
    if settings.json:
        print_json(states)
        return
    for address, state in states.items():
        for block in described(address, state):
            console().print(block)


def described(address: str, state: Any) -> list[Any]:
    """Describes a server's status: a block of lines about the server, and a line for each worker.

    Raises:
        MismatchError: the server of another bigbatch has sent a status that is not understood.
    """
    from bigbatch.comm.errors import MismatchError

    try:
        return list(_blocks(address, state))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MismatchError(
            f"The server at {address} describes itself in a way that this bigbatch does not understand "
            f"({type(error).__name__}: {error}). Install the same version on both sides."
        ) from error


def _blocks(address: str, state: dict[str, Any]) -> Iterator[Any]:
    from rich.table import Table

    from bigbatch.experiments.runs.table import counted

    shares, counts = state["shares"], state["counts"]
    mean = counted([state]).mean_staleness or 0.0
    lines = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    lines.add_row("server", address)
    lines.add_row("version", str(state["versions"]))
    lines.add_row("shares of the data", f"{shares['handed_out'] - shares['returned']} of {shares['of']} given out")
    lines.add_row("rates", f"{state['updates_per_second']:.2f} updates/s, {state['tokens_per_second']:,.0f} tokens/s")
    fates = f"{state['gradients_taken']} taken, {state['gradients_dropped']} dropped, {state['gradients_lost']} lost"
    lines.add_row("gradients", f"{fates} with an earlier server")
    lines.add_row("staleness", f"mean {mean:.2f}; " + ", ".join(f"{tau}: {n}" for tau, n in state["staleness"].items()))
    lines.add_row("messages", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none")
    yield lines
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("worker", "clock", "pushed", "has version", "last heard", ""):
        table.add_column(head, justify="right" if head else "left")
    for one in state["workers"]:
        has = "none" if one["has_version"] is None else str(one["has_version"])
        waits = "waits" if one["waits"] else "computes"
        heard = f"{one['silent_seconds']:.1f} s ago"
        table.add_row(str(one["worker"]), str(one["clock"]), str(one["pushed"]), has, heard, waits)
    yield table if state["workers"] else "no worker takes part now"
