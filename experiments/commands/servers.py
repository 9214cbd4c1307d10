"""The commands of servers on a network: `bigbatch-exp ps serve`, `worker`, `keys` and `status`."""

import json
import signal
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from bigbatch.comm.server.network.keys import Keys
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.network.snapshots import Snapshots
from bigbatch.comm.server.network.sockets import Dialer, Listener
from bigbatch.comm.strategies.parameter_server import ParameterServer
from bigbatch.comm.transports.launch import detect
from bigbatch.comm.wires.transport import DEFAULT_DEADLINE
from bigbatch.experiments.commands.main import (
    FILE,
    POSITIVE,
    POSITIVE_NUMBER,
    as_click,
    console,
    experiment_options,
    offered_by,
    plan_of,
    present,
    settings_of,
)
from bigbatch.experiments.runs.run import Run, new_folder
from bigbatch.experiments.runs.table import counted, verdict
from bigbatch.experiments.training.offer import Offer
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.served import ServedExperiment
from bigbatch.experiments.training.served_worker import NetworkWorker
from bigbatch.experiments.training.settings import resolve_device

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"

KEYS = click.option("--keys", "key_file", type=FILE, help="Keys, as `ps keys` makes them; the same on both sides.")
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
SERVERS = click.option(
    "--server", "addresses", multiple=True, default=(DEFAULT_ADDRESS,), show_default=True, help="Where; once for each."
)


class Part(click.ParamType[tuple[int, int]]):
    """A part of several: 2/3 is the second of three."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """2/3 -> (1, 3)."""
        if isinstance(value, tuple):
            return value
        part, _, parts = str(value).partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            self.fail(f"{value!r} is no part; write 1/2 for the first of two, and 2/2 for the other", param, ctx)
        return int(part) - 1, int(parts)


def serving_options(command: Any) -> Any:
    """An experiment's options, and those of a parameter server but for what only a job of ranks has."""
    own = [option for option in offered_by(ParameterServer) if option.name not in ("servers", "colocated")]
    named = {parameter.name: parameter for parameter in command.params}  # the last of a name is the function's own
    command.params = [parameter for name, parameter in named.items() if name not in UNUSED]
    command.params += [as_click(option) for option in own]
    return command


UNUSED = {
    "target": None,
    "bucket_size": 2**20,
    "overlap": False,
    "node_size": None,
    "device": "cpu",
    "deadline": DEFAULT_DEADLINE,
    "trace": False,
    "trace_updates": 1,
}
"""Settings of an experiment that a server on a network does nothing with."""


@click.command()
@click.option("--bind", default=DEFAULT_ADDRESS, show_default=True, help="Where to listen; port * takes a free one.")
@KEYS
@click.option("--part", type=Part(), default="1/1", show_default=True, help="The part of the parameters that it holds.")
@click.option("--snapshot", "snapshot_folder", type=FILE, help="Keep the state in this folder, and go on from there.")
@click.option("--snapshot-seconds", type=POSITIVE_NUMBER, default=10.0, show_default=True, help="How often.")
@click.option("--patience", type=POSITIVE_NUMBER, default=5.0, show_default=True, help="Seconds to await a heartbeat.")
@experiment_options
@click.option(
    "-n", "--workers", type=POSITIVE, default=1, show_default=True, help="Begin when so many are there; plan for them."
)
def serve(
    bind: str,
    key_file: Path | None,
    part: tuple[int, int],
    snapshot_folder: Path | None,
    snapshot_seconds: float,
    patience: float,
    **options: Any,
) -> None:
    """Serve parameters to workers that come and go."""
    own = [option.name for option in offered_by(ParameterServer) if option.name in options]
    choices = {name: options.pop(name) for name in own}
    options = {**options, **UNUSED}
    settings, plan = settings_of(options), plan_of(options, None)
    server = ParameterServer.configured({**choices, "servers": part[1]})
    setup = server.options
    name = f"ps:{setup.consistency}"
    settings.check(plan, name, server)
    snapshots = Snapshots(snapshot_folder) if snapshot_folder is not None else None
    keys = Keys.read(key_file) if key_file is not None else None
    folder = options["out"] or new_folder(f"ps-serve-{plan.workers}")
    reporter = Reporter(quiet=options["quiet"])
    listener = Listener(bind, keys)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        offer = Offer(name, setup, settings, plan, part[0], patience)
        ServedExperiment(offer, listener, folder, snapshots, snapshot_seconds, reporter.tell).run()
    except KeyboardInterrupt:
        if snapshots is not None:
            reporter.tell(f"Interrupted; the same command goes on from {snapshot_folder}")
        raise
    finally:
        listener.close()
    finished = Run.read(folder)
    present([finished], folder, finished.summary, verdict(finished.summary), options)


@click.command()
@SERVERS
@KEYS
@click.option("--text", type=FILE, help="Your copy of the text, if the servers were given one.")
@click.option("--task", help="Your copy of the task, FILE.py:Task, if the servers were given one.")
@click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Of torch.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--deadline", type=POSITIVE_NUMBER, default=DEFAULT_DEADLINE, show_default=True, help="Seconds to wait at most."
)
@click.option("--quiet", is_flag=True, help="No progress.")
@DEBUG
def worker(
    addresses: tuple[str, ...],
    key_file: Path | None,
    text: Path | None,
    task: str | None,
    threads: int,
    device: str,
    deadline: float,
    quiet: bool,
    debug: bool,  # noqa: ARG001 - `main` looks at it
) -> None:
    """Train what a server offers, beside other workers; join and leave as you like."""
    keys = Keys.read(key_file) if key_file is not None else None
    NetworkWorker(
        addresses,
        lambda address: Dialer(address, keys),
        text,
        task,
        resolve_device(device, detect()),
        threads,
        deadline,
        Reporter(quiet=quiet),
    ).run()


@click.command()
@click.argument("file", type=FILE)
@DEBUG
def keys(file: Path, debug: bool) -> None:  # noqa: ARG001 - `main` looks at it
    """Make keys: FILE for the server, and one without its secret to give to workers."""
    made = Keys.new()
    for_workers = file.with_name(f"{file.stem}.worker{file.suffix}")
    made.write(file)
    made.for_workers().write(for_workers)
    print(f"{file} is for the server (and works for workers, too); give {for_workers} to workers on other machines.")


@click.command()
@SERVERS
@KEYS
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("--deadline", type=POSITIVE_NUMBER, default=10.0, show_default=True, help="Seconds to wait at most.")
@DEBUG
def status(addresses: tuple[str, ...], key_file: Path | None, as_json: bool, deadline: float, debug: bool) -> None:  # noqa: ARG001 - `main` looks at it
    """Say how a server is: version, workers and their clocks, staleness, rates."""
    pair = Keys.read(key_file) if key_file is not None else None
    states = {}
    for address in addresses:
        shard = RemoteShard(Dialer(address, pair), 0, deadline)
        try:
            states[address] = shard.status()
        finally:
            shard.close()
    if as_json:
        print(json.dumps(states, indent=2))
        return
    for address, state in states.items():
        print_status(address, state)


def print_status(address: str, state: dict[str, Any]) -> None:
    """A block of lines for the server, and a line for each worker."""
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
    console().print(lines)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("worker", "clock", "pushed", "has version", "last heard", ""):
        table.add_column(head, justify="right" if head else "left")
    for one in state["workers"]:
        has = "none" if one["has_version"] is None else str(one["has_version"])
        waits = "waits" if one["waits"] else "computes"
        heard = f"{one['silent_seconds']:.1f} s ago"
        table.add_row(str(one["worker"]), str(one["clock"]), str(one["pushed"]), has, heard, waits)
    console().print(table if state["workers"] else "no worker takes part now")


COMMANDS = {command.name or "": command for command in (serving_options(serve), worker, keys, status)}
