"""Descriptions: what a strategy sends in an update, as data that can be replayed on thousands of ranks at once.

A strategy describes itself by `describe`. One that does not, or whose description no longer fits because a subclass
changed what is sent, is simulated as it is, on a `Cluster`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from bigbatch.comm.collectives import Nodes, bind
from bigbatch.comm.collectives.barrier import barrier
from bigbatch.comm.collectives.recursive_doubling import recursive_doubling
from bigbatch.comm.schedules.schedule import Schedule
from bigbatch.comm.simulation.replay import Phase


@dataclass(frozen=True)
class Workload:
    """The gradients of one update, as far as the wires must know them.

    Attributes:
        buckets: elements of each bucket, in the order in which backward finishes them.
        ready: the share of the update's computing, from 0 to 1, after which each bucket is ready.
        itemsize: bytes an element on the wires.
        rounded: whether elements are sent in half precision, and so in another format than they have.
    """

    buckets: tuple[int, ...]
    ready: tuple[float, ...]
    itemsize: int = 4
    rounded: bool = False

    @classmethod
    def of_bytes(cls, nbytes: int) -> Self:
        """A workload of a single bucket of `nbytes` bytes, ready when everything is computed."""
        return cls((nbytes,), (1.0,), itemsize=1)

    @property
    def nbytes(self) -> int:
        """The size of all buckets together on the wires, in bytes."""
        return sum(self.buckets) * self.itemsize


@dataclass(frozen=True)
class Sum:
    """One sum of all gradients, with nothing else around it.

    Attributes:
        schedule: the rounds of the sum.
        ranks: how many ranks take part: workers, and servers if there are any.
    """

    schedule: Schedule
    ranks: int


@dataclass(frozen=True)
class Description:
    """Describes what a strategy sends in its updates, so that they can be simulated without running it.

    Attributes:
        phases: tells what every worker sends in an update, given the update's number within a period, from 0. Here
            `Phase.ready` counts in shares of the update's computing, from 0 to 1, instead of seconds. An update ends
            when its last phase and its computing have ended. None if the strategy has to be run to find out.
        period: after how many updates the strategy does the same again; None if that is not known.
        total: one bare sum over this strategy; None if it does more than add up.
    """

    phases: Callable[[int], Sequence[Phase]] | None = None
    period: int | None = None
    total: Sum | None = None


TOLD = 3
"""How many numbers each worker of an all-reduce tells the others in an update: tokens, loss, and faults."""


def all_reduced(algorithm: Callable[..., Any], workload: Workload, workers: int, nodes: Nodes) -> Description:
    """What `AllReduce` sends when its collective runs an algorithm of rounds.

    Every early bucket is summed after a barrier. Then come the numbers of tokens, the losses and the faults, and then
    the last bucket.

    Args:
        algorithm: yields the rounds; see `bigbatch.comm.collectives`.
        workload: the gradients of an update.
        workers: how many ranks there are.
        nodes: the ranks of each node.
    """

    def phases(_: int) -> list[Phase]:
        found = []
        for number, (elements, ready) in enumerate(zip(workload.buckets, workload.ready, strict=True), start=1):
            if number < len(workload.buckets):
                found.append(Phase(barrier, 1, ready, itemsize=1))
            else:
                found.append(Phase(recursive_doubling, TOLD, 1.0, itemsize=8))
            rounds = bind(algorithm, elements * workload.itemsize, nodes)
            found.append(Phase(rounds, elements, ready, workload.itemsize, rounded=workload.rounded))
        return found

    return Description(phases, period=1, total=Sum(bind(algorithm, workload.nbytes, nodes), workers))


SENDS_NOTHING = frozenset(
    {
        "check_rounds",
        "check_wire",
        "check_wire_here",
        "close",
        "configured",
        "connect",
        "describe",
        "described",
        "gradients_per_step",
        "in_step",
        "load_state_dict",
        "newest",
        "replicas",
        "state_dict",
        "statistics",
        "steps_per_update",
        "variant",
    }
)
"""Methods of a strategy that send nothing in an update: a subclass may override them, and what was said about the wires
still holds."""


def holds_for(strategy: type, said: str) -> bool:
    """Whether what a class says about what it sends still fits what the strategy does.

    It does unless a class further down than the one that says it overrides something that class has: such a method may
    send more, less or something else. Options and other plain values may differ, for methods can look at them.

    Args:
        strategy: the strategy.
        said: the attribute by which it is said: "describe" or "wires".
    """
    classes = strategy.__mro__
    author = next(place for place, owner in enumerate(classes) if said in vars(owner))
    return not any(
        hasattr(classes[author], name)
        for owner in classes[:author]
        for name, value in vars(owner).items()
        if hasattr(value, "__get__") and name not in SENDS_NOTHING and (name == "__init__" or not name.startswith("__"))
    )


def describes_itself(strategy: type) -> bool:
    """Whether `strategy.describe` still fits what the strategy does."""
    return holds_for(strategy, "describe")
