"""What a user can choose about parameter servers."""

from dataclasses import dataclass
from typing import ClassVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import RANKS, UPDATES, Flag, Name, Number, Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.server.consistency import CONSISTENCIES, Consistency
from bigbatch.comm.server.staleness import STALE, StaleGradients


@dataclass(frozen=True)
class ServerOptions(Options):
    """The options of parameter servers: their consistency, stale gradients, and where servers run.

    Attributes:
        consistency: "sync", "async", "ssp" or "backup".
        staleness: how many gradients a worker may be ahead of the slowest, with "ssp".
        spares: how many gradients of a version are not waited for, with "backup".
        stale: "plain", "scaled" or "compensated".
        compensation: λ, with "compensated".
        servers: over how many servers the parameters are split.
        colocated: whether a server runs beside every worker's own work instead, so that there are as many.

    Raises:
        ConfigurationError: a value that an option does not take, or both `colocated` and a number of servers.
    """

    title: ClassVar[str] = "Parameter server"

    consistency: str = option(
        "sync", Name(lambda: CONSISTENCIES), "Rule that decides which gradients make an update and who may read when."
    )
    staleness: int = option(
        1,
        Whole(least=0, most=UPDATES.most),
        "Number of gradients that a worker may be ahead of the slowest one (with ssp).",
    )
    spares: int = option(
        1,
        Whole(least=0, most=RANKS.most),
        "Number of gradients of each version that the server does not wait for (with backup).",
    )
    stale: str = option("plain", Name(lambda: STALE), "Treatment of a gradient that was computed on an old version.")
    compensation: float = option(
        0.04, Number(least=0, most=1e6), "Factor λ by which a stale gradient is corrected (with compensated)."
    )
    servers: int = option(1, RANKS, "Number of servers over which the parameters are split.")
    colocated: bool = option(
        False, Flag(), "Run a server beside every worker's own work, instead of on ranks that only serve."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colocated and self.servers != ServerOptions.servers:
            raise ConfigurationError(
                f"--colocated puts a server beside every worker, so that --servers {self.servers} cannot be chosen. "
                "Leave one of the two out."
            )

    def rule(self) -> Consistency:
        """Makes the consistency rule, with the number that belongs to it."""
        numbers = {"ssp": (self.staleness,), "backup": (self.spares,)}
        return CONSISTENCIES[self.consistency](*numbers.get(self.consistency, ()))

    def treatment(self) -> StaleGradients:
        """Makes the treatment of stale gradients, with the number that belongs to it."""
        numbers = {"compensated": (self.compensation,)}
        return STALE[self.stale](*numbers.get(self.stale, ()))
