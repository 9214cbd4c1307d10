"""Strategies by name; `bigbatch-exp NAME` runs one."""

from inspect import isclass
from typing import Any

from bigbatch.comm.collectives import ALGORITHMS
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import Name, checked
from bigbatch.comm.options import Options
from bigbatch.comm.registry import Registry, import_object

NAMED = Name(list, "FILE.py:Name")
"""The kind of value that may name a strategy; the registry finds out whether it does."""


class Strategies(Registry):
    """The registry of strategies; an algorithm of rounds, registered or in a file, is a strategy too."""

    def names(self) -> list[str]:
        """The names of all strategies: those of the algorithms first, then the others."""
        return list(dict.fromkeys([*ALGORITHMS.names(), *super().names()]))

    def summary(self, name: str) -> str:
        """The first paragraph of what a strategy, or the algorithm behind it, says about itself."""
        head = name.partition(":")[0]
        if head in super().names():
            return super().summary(head)
        return ALGORITHMS.summary(head) if head in ALGORITHMS.names() else super().summary(name)

    def known(self, name: str) -> bool:
        """Whether a word can name a strategy: one that is registered, a variant of one, or a file's."""
        head = name.partition(":")[0]
        return head in self.names() or ":" in name

    def options(self, name: str) -> Options:
        """The options that a strategy offers, with their defaults; bigbatch's own are known without loading torch.

        Raises:
            ConfigurationError: there is no such strategy.
        """
        name = checked("The strategy", NAMED, name)
        head, _, variant = name.partition(":")
        if not variant and head in OPTIONS:
            kind: type[Options] = import_object(OPTIONS[head])
            return kind()
        if not variant and head in ALGORITHMS.names() and head not in super().names():
            return Options()
        offered: Options = self.load(name).options
        return offered

    def load(self, name: str) -> Any:
        """Loads the strategy of that name, a class derived from `Strategy`.

        Raises:
            ConfigurationError: nothing has that name, or what has it is neither a strategy nor an algorithm.
        """
        from bigbatch.comm.strategies.all_reduce import all_reduce_by
        from bigbatch.comm.strategies.strategy import Strategy

        name = checked("The strategy", NAMED, name)
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


OPTIONS = {
    **dict.fromkeys(("hierarchical", "shared", "auto", "mpi", "allreduce"), "bigbatch.comm.options:Options"),
    "ps": "bigbatch.comm.strategies.server_options:ServerOptions",
}
"""Built-in strategy -> its class of options: what a command line asks for before anybody waits for torch."""

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
