"""Transports for several all-reduces at once, in the processes that one launcher started."""

from collections.abc import Callable
from typing import TypeVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.wires.transport import Transport

Made = TypeVar("Made")


class Wires:
    """Gives each all-reduce a transport that it can run on: the given one, or one that it opens itself.

    Args:
        transport: the transport between all ranks, or between those that reduce.
        launch: how the processes were started.
    """

    def __init__(self, transport: Transport, launch: Launch) -> None:
        self.transport = transport
        self._launch = launch
        self._opened: dict[type[AllReduce], Transport] = {}

    def on(self, strategy: type[AllReduce], make: Callable[[Transport], Made]) -> Made:
        """Calls `make` with a transport that suits the strategy, to make the strategy itself or its collective.

        Raises:
            ConfigurationError: the strategy can run on no transport here.
        """
        try:
            return make(self.transport)
        except ConfigurationError:
            if strategy.connect.__func__ is AllReduce.connect.__func__:  # type: ignore[attr-defined]  # a bound method
                raise
        return make(self._open(strategy))

    def _open(self, strategy: type[AllReduce]) -> Transport:
        """Wires of the strategy's own kind; all ranks together."""
        if self.transport.size < self._launch.size:
            raise ConfigurationError(
                f"{strategy.__name__} takes all {self._launch.size} processes that were started, and cannot run "
                f"between {self.transport.size} of them: leave --servers out."
            )
        if strategy not in self._opened:
            self._opened[strategy] = strategy.connect(self._launch, "cpu", self.transport.deadline)
        return self._opened[strategy]

    def close(self) -> None:
        """Closes the transports that were opened here; all ranks call it together."""
        for transport in self._opened.values():
            transport.close()
        self._opened.clear()


def all_reduce_named(name: str) -> type[AllReduce]:
    """Loads the strategy of this name, which must be an all-reduce.

    Raises:
        ConfigurationError: there is no such strategy, or it is not an all-reduce.
    """
    strategy: type[AllReduce] = STRATEGIES.load(name)
    if not issubclass(strategy, AllReduce):
        raise ConfigurationError(f"{name} is not an all-reduce. All-reduces are: {', '.join(all_reduces())}.")
    return strategy


def all_reduces() -> list[str]:
    """Lists the names of all all-reduces, except `auto`, which chooses one of the others."""
    return [name for name in STRATEGIES.names() if issubclass(STRATEGIES.load(name), AllReduce) and name != "auto"]
