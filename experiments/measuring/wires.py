"""Wires for several all-reduces at once, in the processes that one launcher started."""

from collections.abc import Callable
from typing import TypeVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.wires.transport import Transport

Made = TypeVar("Made")


class Wires:
    """Finds every all-reduce a transport: the one that there is, or one of its own kind beside it.

    Args:
        transport: between all ranks, or those that reduce.
        launch: how the processes were started.
    """

    def __init__(self, transport: Transport, launch: Launch) -> None:
        self.transport = transport
        self._launch = launch
        self._opened: dict[type[AllReduce], Transport] = {}

    def on(self, strategy: type[AllReduce], make: Callable[[Transport], Made]) -> Made:
        """What `make` makes of a transport that suits the strategy: the strategy itself, or its collective.

        Raises:
            ConfigurationError: it can run on no wires here.
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
        """Close what was opened here; all ranks together."""
        for transport in self._opened.values():
            transport.close()
        self._opened.clear()


def all_reduce_named(name: str) -> type[AllReduce]:
    """The strategy of that name, if it is an all-reduce.

    Raises:
        ConfigurationError: there is none, or it is not of that family.
    """
    strategy: type[AllReduce] = STRATEGIES.load(name)
    if not issubclass(strategy, AllReduce):
        raise ConfigurationError(f"{name} is not an all-reduce. All-reduces are: {', '.join(all_reduces())}.")
    return strategy


def all_reduces() -> list[str]:
    """The names of all all-reduces that differ in how they move data."""
    return [name for name in STRATEGIES.names() if issubclass(STRATEGIES.load(name), AllReduce) and name != "auto"]
