"""`bigbatch-exp ps serve`: runs a parameter server on a network."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import RANKS, SECONDS, File, Kind, Whole
from bigbatch.comm.options import Options, option, options_of
from bigbatch.comm.server.network.address import Address
from bigbatch.comm.strategies.server_options import ServerOptions
from bigbatch.experiments.commands.options import Command, OutputSettings, configuration, flags
from bigbatch.experiments.commands.ps.status import DEFAULT_ADDRESS
from bigbatch.experiments.training.settings import Settings


class Part(Kind):
    """The kind of value that names one of several parts: 2/3 is the second of three."""

    metavar = "PART/PARTS"

    def read(self, value: Any) -> tuple[int, int]:
        """Reads the part's number, from 0, and the number of parts: "2/3" -> (1, 3)."""
        # What was read already counts parts from 0, as programs do.
        given = (value[0] + 1, value[1]) if isinstance(value, tuple) else str(value).split("/")
        try:
            part, parts = map(RANKS.read, given)
        except (ValueError, TypeError):
            part, parts = 1, 0
        if part > parts:
            raise ValueError("is no part; write 1/2 for the first of two, and 2/2 for the other")
        return part - 1, parts

    def write(self, value: Any) -> str:
        """Writes a part as the command line has it: (1, 3) -> "2/3"."""
        return f"{value[0] + 1}/{value[1]}"


@dataclass(frozen=True)
class ServingSettings(Options):
    """The options of a server on a network: its address, its part of the parameters, and its snapshots.

    Attributes:
        bind: address at which the server listens.
        keys: file of keys, or None without encryption.
        part: the part of the parameters that the server holds: its number from 0, and the number of parts.
        snapshot: folder in which the state is kept, or None to keep nothing.
        snapshot_seconds: seconds between two snapshots.
        patience: seconds of silence after which a worker no longer takes part.
        workers: number of workers that must join before training starts; batches are planned for them.
    """

    title: ClassVar[str] = "Server"

    bind: str = option(DEFAULT_ADDRESS, Address(any_port=True), "Address to listen at; the port * takes a free one.")
    keys: Path | None = option(
        None, File(), "File of keys, as `ps keys` makes them; the same on both sides.", missing="no encryption"
    )
    part: tuple[int, int] = option((0, 1), Part(), "Part of the parameters that this server holds.")
    snapshot: Path | None = option(
        None, File(), "Folder in which the state is kept, to go on from there.", missing="nothing is kept"
    )
    snapshot_seconds: float = option(10.0, SECONDS, "Seconds between two snapshots.")
    patience: float = option(5.0, SECONDS, "Seconds to wait for a worker's heartbeat.")
    workers: int = option(
        1, Whole(most=1024), "Number of workers that must be there to begin; batches are planned for them.", short="-n"
    )


UNUSED = {
    *("workers", "target", "bucket_size", "overlap", "node_size", "device", "deadline", "trace", "trace_updates"),
    *("simulate", "network", "straggler", "gpu", "servers", "colocated", "batch_tokens", "weights"),
}
"""Options of an experiment, or of servers among ranks, that a server on a network does not use."""


def _serve(**parameters: Any) -> None:
    """Serve parameters to workers that come and go."""
    from bigbatch.comm.files import claimed
    from bigbatch.comm.server.network.keys import Keys
    from bigbatch.comm.server.network.snapshots import Snapshots
    from bigbatch.comm.server.network.sockets import Listener
    from bigbatch.comm.strategies.parameter_server import ParameterServer
    from bigbatch.experiments import api
    from bigbatch.experiments.commands.output import present, results_in
    from bigbatch.experiments.runs.run import chosen_folder
    from bigbatch.experiments.runs.table import verdict
    from bigbatch.experiments.training.assemble import check
    from bigbatch.experiments.training.progress import Reporter
    from bigbatch.experiments.training.served.experiment import ServedExperiment
    from bigbatch.experiments.training.served.interrupts import interrupted_by_signals
    from bigbatch.experiments.training.served.offer import Offer
    from bigbatch.experiments.training.settings import Request

    def chosen(kind: type[Options]) -> dict[str, Any]:
        return {one.name: parameters[one.name] for one in options_of(kind) if one.name in parameters}

    serving, output = ServingSettings.of(chosen(ServingSettings)), OutputSettings.of(chosen(OutputSettings))
    settings = Settings.of(chosen(Settings))
    if isinstance(settings.data.vocabulary, Path):
        raise ConfigurationError(
            f"Workers on a network would not have the tokenizer in the folder {settings.data.vocabulary}: give "
            "--vocabulary a number, of which server and workers learn the same vocabulary."
        )
    part, parts = serving.part
    server = ParameterServer.configured({**chosen(ServerOptions), "servers": parts})
    request = Request(f"ps:{server.options.consistency}", settings)
    plan = settings.plan()
    check(request, plan, server)
    snapshots = Snapshots(serving.snapshot) if serving.snapshot is not None else None
    keys = Keys.read(serving.keys) if serving.keys is not None else None
    reporter = Reporter(quiet=output.quiet)
    listener = Listener(serving.bind, keys)
    interrupted_by_signals()
    try:
        folder = chosen_folder(output.out, f"ps-serve-{plan.workers}")
        offer = Offer(request, server, plan, part, serving.patience)
        served = ServedExperiment(offer, listener, folder, snapshots, serving.snapshot_seconds, reporter.tell)
        with nullcontext() if serving.snapshot is None else claimed(serving.snapshot, "--snapshot"):
            finished = served.run()
    except KeyboardInterrupt:
        if snapshots is not None:
            reporter.tell(f"Interrupted; the same command goes on from {serving.snapshot}")
        raise
    finally:
        listener.close()
    with results_in(folder, named=not (output.json or output.quiet), failures=finished.remarks) as results:
        results.show(lambda: present([finished], finished.summary, lambda: verdict(finished.summary), output))
        api.draw([finished], results)


def _flags() -> list[click.Option]:
    """The options that mean something to a server on a network."""
    experiment = [one for one in flags([Settings, ServerOptions]) if one.name not in UNUSED]
    return [*flags([ServingSettings]), *experiment, *flags([OutputSettings]), configuration()]


serve = Command("serve", params=_flags(), help=_serve.__doc__, callback=_serve)
"""The command `ps serve`, made from the fields of what it takes: a server among ranks shares most of them."""
