"""Commands that measure on several ranks: the options they share, and the wires between the ranks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bigbatch.comm.errors import LaunchError
from bigbatch.comm.options import Number, Options, Whole, option
from bigbatch.comm.wires import DEFAULT_DEADLINE

if TYPE_CHECKING:  # whoever only asks for help must not wait for NumPy
    from bigbatch.comm.transports.launch import Launch
    from bigbatch.comm.wires.transport import Transport

RANKS_MEASURED = 2
"""How many ranks are started if nothing else is said."""


@dataclass(frozen=True)
class RankSettings(Options):
    """The ranks that measure.

    Attributes:
        workers: how many to start; None for `RANKS_MEASURED`.
        node_size: ranks to treat as one machine, or None for those that are.
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
        None, Whole(), "Number of ranks to treat as one machine.", missing="those that share one"
    )
    deadline: float = option(
        DEFAULT_DEADLINE, Number(above=0), "Seconds that a rank waits for another before it gives up."
    )


@contextmanager
def ranks_of(settings: RankSettings, servers: int = 0) -> Iterator[tuple["Transport", "Launch"]]:
    """The wires between the ranks that a launcher started; without a launcher, become one.

    Args:
        settings: how many ranks, and how they wait.
        servers: how many ranks are started besides.
    """
    from bigbatch.comm.strategies import STRATEGIES
    from bigbatch.comm.transports.launch import Launcher, detect
    from bigbatch.comm.wires.agreement import together
    from bigbatch.experiments.commands.output import report
    from bigbatch.experiments.training.conduct import connected
    from bigbatch.experiments.training.launcher import become, launch_command
    from bigbatch.experiments.training.progress import Reporter

    launch = detect()
    strategy = STRATEGIES.load("ring")
    ranks = (settings.workers or RANKS_MEASURED) + servers
    if launch.launcher is Launcher.NONE and ranks > 1:
        become(launch_command(strategy, ranks, sys.argv[1:]))
    tell = Reporter(quiet=False).tell
    with connected(lambda: strategy.connect(launch, "cpu", settings.deadline), report, tell) as transport:
        node_size = settings.node_size
        if node_size is not None:
            together(transport, lambda: transport.arrange(node_size))
        yield transport, launch


def refuse_launchers(what: str) -> None:
    """Refuse to run in processes that a launcher started.

    Args:
        what: why, as the first half of a sentence: "validate starts the processes that it measures itself".

    Raises:
        LaunchError: a launcher started this process.
    """
    from bigbatch.comm.transports.launch import Launcher, detect

    if detect().launcher is not Launcher.NONE:
        raise LaunchError(f"{what}: run it without mpirun or torchrun.")
