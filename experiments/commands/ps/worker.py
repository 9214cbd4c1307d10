"""`bigbatch-exp ps worker`: runs a worker that trains for servers on a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from bigbatch.comm.kinds import SECONDS, File, Flag, Name, Text, Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.experiments.commands.options import Command, takes
from bigbatch.experiments.commands.ps.status import SERVERS
from bigbatch.models import MODELS
from bigbatch.tasks import TASKS


@dataclass(frozen=True)
class WorkerSettings(Options):
    """The options of a worker of servers on a network: its own copies of files, and its machine.

    Attributes:
        keys: file of keys, or None without encryption.
        text: the worker's copy of the text, if the servers were given one.
        task: the worker's copy of the task, if that is not one of bigbatch's own.
        model: the worker's copy of the model, if that is not one of bigbatch's own.
        threads: number of threads that torch uses.
        device: device that the worker computes on: "auto", "cpu", "cuda" or "cuda:N".
        deadline: seconds after which a wait gives up.
        quiet: whether to show no progress.
    """

    title: ClassVar[str] = "Worker"

    keys: Path | None = option(
        None, File(), "File of keys, as `ps keys` makes them; the same on both sides.", missing="no encryption"
    )
    text: Path | None = option(
        None, File(), "This worker's copy of the text, if the servers were given one.", missing="the servers' default"
    )
    task: str | None = option(
        None, Name(TASKS.names, "FILE.py:Task"), "This worker's copy of the servers' task.", missing="the servers'"
    )
    model: str | None = option(
        None,
        Name(MODELS.names, "FOLDER/ or FILE.py:Model"),
        "This worker's copy of the servers' model.",
        missing="the servers'",
    )
    threads: int = option(1, Whole(most=1024), "Threads that torch uses.")
    device: str = option("auto", Text("DEVICE"), "Device to compute on: auto, cpu, cuda or cuda:N.")
    deadline: float = option(DEFAULT_DEADLINE, SECONDS, "Seconds to wait for a server before giving up.")
    quiet: bool = option(False, Flag(), "Show no progress.")


@click.command(cls=Command)
@SERVERS
@takes(WorkerSettings)
def worker(settings: WorkerSettings, addresses: tuple[str, ...]) -> None:
    """Train what a server offers, beside other workers; join and leave as you like."""
    from bigbatch.comm.server.network.keys import Keys
    from bigbatch.comm.server.network.sockets import Dialer
    from bigbatch.comm.transports.launch import detect
    from bigbatch.experiments.training.assemble import resolve_device
    from bigbatch.experiments.training.progress import Reporter
    from bigbatch.experiments.training.served.interrupts import interrupted_by_signals
    from bigbatch.experiments.training.served.worker import NetworkWorker

    interrupted_by_signals()
    pair = Keys.read(settings.keys) if settings.keys is not None else None
    NetworkWorker(
        addresses,
        lambda address: Dialer(address, pair),
        settings.text,
        settings.task,
        settings.model,
        resolve_device(settings.device, detect()),
        settings.threads,
        settings.deadline,
        Reporter(quiet=settings.quiet),
    ).run()
