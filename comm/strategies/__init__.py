"""Strategies by name; `bigbatch-exp NAME` runs one."""

from inspect import isclass
from typing import Any

from bigbatch.comm.collectives import ALGORITHMS
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import Registry


class Strategies(Registry):
    """Every strategy; an algorithm of rounds, registered or in a file, is one too."""

    def names(self) -> list[str]:
        """The algorithms first, then the others."""
        return list(dict.fromkeys([*ALGORITHMS.names(), *super().names()]))

    def load(self, name: str) -> Any:
        """The strategy of that name: a class.

        Raises:
            ConfigurationError: there is none, or what is there is neither a strategy nor an algorithm.
        """
        from bigbatch.comm.strategies.all_reduce import all_reduce_by
        from bigbatch.comm.strategies.strategy import Strategy

        head, _, words = name.partition(":")
        if words and head in self.names():
            return self.load(head).variant(words)
        named_here = name in super().names() or name not in ALGORITHMS.names()
        found = super().load(name) if named_here else ALGORITHMS.load(name)
        if isclass(found) and issubclass(found, Strategy):
            return found
        if isclass(found) or not callable(found):
            raise ConfigurationError(
                f"{name!r} is neither a strategy (a class derived from bigbatch.comm.strategies.strategy.Strategy) nor "
                "an algorithm (a function of the number of ranks that yields rounds)."
            )
        return all_reduce_by(found)


STRATEGIES = Strategies(
    "strategy",
    "bigbatch.strategies",
    {
        "hierarchical": "bigbatch.comm.strategies.all_reduce:Hierarchical",
        "shared": "bigbatch.comm.strategies.all_reduce:Shared",
        "auto": "bigbatch.comm.strategies.auto:Auto",
        "mpi": "bigbatch.comm.strategies.all_reduce:MPI",
        "allreduce": "bigbatch.comm.strategies.all_reduce:TorchDistributed",
        "no-exchange": "bigbatch.comm.strategies.no_exchange:NoExchange",
        "ps": "bigbatch.comm.strategies.parameter_server:ParameterServer",
    },
)
"""All strategies; other packages add theirs as entry points of the group "bigbatch.strategies"."""
