"""What commands that measure on several ranks share: their options, and the transport between the ranks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bigbatch.comm.errors import LaunchError
from bigbatch.comm.kinds import RANKS, SECONDS, Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.wires import DEFAULT_DEADLINE

if TYPE_CHECKING:  # whoever only asks for help must not wait for NumPy
    from bigbatch.comm.transports.launch import Launch
    from bigbatch.comm.wires.transport import Transport

RANKS_MEASURED = 2
"""Number of ranks that are started by default."""


@dataclass(frozen=True)
class RankSettings(Options):
    """The options for the ranks that measure: how many there are, and how they are grouped.

    Attributes:
        workers: number of ranks to start; None for `RANKS_MEASURED`.
        node_size: number of ranks to treat as one machine; None for those that share one.
        deadline: seconds after which a wait gives up.
    """

    title: ClassVar[str] = "Ranks"

    workers: int | None = option(
        None,
        Whole(most=100_000),
        "Number of ranks to start, without mpirun.",
        missing=str(RANKS_MEASURED),
        short="-n",
    )
    node_size: int | None = option(
        None, RANKS, "Number of ranks to treat as one machine.", missing="those that share one"
    )
    deadline: float = option(
        DEFAULT_DEADLINE, SECONDS, "Seconds without a message or a sign of life from a rank before the job ends."
    )


@contextmanager
def ranks_of(settings: RankSettings, servers: int = 0) -> Iterator[tuple["Transport", "Launch"]]:
    """Connects the ranks that a launcher started; without a launcher, this process becomes one and starts them.

    Args:
        settings: number of ranks, how they are grouped, and how long they wait.
        servers: number of ranks to start in addition.
    """
    from bigbatch.comm.strategies import STRATEGIES
    from bigbatch.comm.transports.launch import detect
    from bigbatch.comm.wires.agreement import together
    from bigbatch.experiments.commands.output import report
    from bigbatch.experiments.training.conduct import connected
    from bigbatch.experiments.training.launcher import become, launch_command
    from bigbatch.experiments.training.progress import Reporter

    launch = detect()
    strategy = STRATEGIES.load("ring")
    ranks = (settings.workers or RANKS_MEASURED) + servers
    if launch.alone and ranks > 1:
        become(launch_command(strategy, ranks, sys.argv[1:]))
    tell = Reporter(quiet=False).tell
    with connected(lambda: strategy.connect(launch, "cpu", settings.deadline), report, tell) as transport:
        node_size = settings.node_size
        if node_size is not None:
            together(transport, lambda: transport.arrange(node_size))
        yield transport, launch


def refuse_launchers(what: str) -> None:
    """Refuse to run in one of several processes that a launcher started.

    Args:
        what: the reason, as the first half of a sentence: "validate starts the processes that it measures itself".

    Raises:
        LaunchError: a launcher started this process and others.
    """
    from bigbatch.comm.transports.launch import detect

    if not detect().alone:
        raise LaunchError(f"{what}: run it without mpirun or torchrun.")
