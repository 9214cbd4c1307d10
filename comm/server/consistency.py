"""Consistency: which gradients make an update, and how far ahead of the others a worker may read.

A shard counts the updates that it is through with: its clock. A worker counts the gradients that it has pushed: its
own clock.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from bigbatch.comm.errors import ConfigurationError


@dataclass
class Clocks:
    """Where a shard and its workers stand.

    Attributes:
        done: updates that the shard is through with, applied or skipped.
        pushed: worker -> gradients it has pushed; those who have left are not among them.
        read: worker -> `done` when it last read.
    """

    done: int = 0
    pushed: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)


class Consistency(ABC):
    """A rule of one kind of parameter server.

    Attributes:
        alike: whether all workers compute on the same version, so that an update is everybody's.
        everyone: whether an update takes a gradient of every worker.
    """

    alike: ClassVar[bool] = False
    everyone: ClassVar[bool] = False

    @abstractmethod
    def update_of(self, clocks: Clocks, worker: int) -> int | None:
        """The number of the update that a gradient which arrives now from `worker` goes into; None drops it."""

    @abstractmethod
    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:
        """Whether update number `clocks.done` has all the gradients it takes."""

    @abstractmethod
    def readable(self, clocks: Clocks, worker: int) -> bool:
        """Whether `worker` may read now, to begin its next gradient."""

    def check(self, workers: int) -> None:  # noqa: B027 - most rules do with any number
        """Refuse what cannot work with that many workers.

        Raises:
            ConfigurationError: it cannot.
        """

    def updates_of(self, workers: int) -> int:  # noqa: ARG002 - for others
        """How many updates are made of one gradient of every one of `workers`."""
        return 1

    def gradients_of(self, workers: int) -> int:
        """How many workers' gradients an update is made of, while all of `workers` take part."""
        return workers

    def position(self, clocks: Clocks, worker: int) -> int:
        """The number of the batch of which `worker` computes its share next."""
        return clocks.pushed[worker]


class BoundedStaleness(Consistency):
    """Stale-synchronous: update c is made of everybody's gradient number c, and nobody gets more than s ahead.

    A worker may begin its gradient number c once the updates below c - s are made, so that what it reads has every
    gradient of clock c - s - 1 and before.

    Args:
        staleness: s.

    Source: Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server" (2013),
    section 3.
    """

    everyone: ClassVar[bool] = True

    def __init__(self, staleness: int) -> None:
        if staleness < 0:
            raise ConfigurationError(f"A staleness of {staleness} was asked for; it must be 0 or more.")
        self._staleness = staleness

    def update_of(self, clocks: Clocks, worker: int) -> int | None:
        """The one with the number of the worker's gradient, unless that is made already."""
        return clocks.pushed[worker] if clocks.pushed[worker] >= clocks.done else None

    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:
        """Everybody's gradient is there; of those who have left, what there is."""
        return bool(contributors) and contributors >= clocks.pushed.keys()

    def readable(self, clocks: Clocks, worker: int) -> bool:
        """It is not more than s ahead."""
        return clocks.done >= clocks.pushed[worker] - self._staleness


class Synchronous(BoundedStaleness):
    """Bounded staleness with the bound 0: every update is made of everybody's gradient of the same version."""

    alike: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(0)


class Asynchronous(Consistency):
    """Every gradient is an update as it comes, and nobody waits.

    Source: Dean et al., "Large scale distributed deep networks" (2012), section 4.1.
    """

    def update_of(self, clocks: Clocks, worker: int) -> int | None:  # noqa: ARG002 - it is the same for all
        """Every gradient makes the next update."""
        return clocks.done

    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:  # noqa: ARG002 - it is always the same
        """A single gradient completes an update."""
        return bool(contributors)

    def updates_of(self, workers: int) -> int:
        """Each worker's gradient makes an update of its own."""
        return workers

    def gradients_of(self, workers: int) -> int:  # noqa: ARG002 - it is the same for any number
        """An update is made of one gradient."""
        return 1

    def readable(self, clocks: Clocks, worker: int) -> bool:  # noqa: ARG002 - it is always the same
        """True: an asynchronous server never lets a worker wait."""
        return True


class BackupWorkers(Consistency):
    """Of N + B workers the first N gradients of a version make the update; those that come later are dropped.

    Args:
        spares: B.

    Source: Chen et al., "Revisiting distributed synchronous SGD" (2016), section 3.
    """

    def __init__(self, spares: int) -> None:
        if spares < 0:
            raise ConfigurationError(f"{spares} spare workers were asked for; it must be 0 or more.")
        self._spares = spares

    def check(self, workers: int) -> None:
        """Somebody must be left to wait for."""
        if self._spares >= workers:
            raise ConfigurationError(
                f"--spares {self._spares} leaves nobody of {workers} workers to wait for. Use {workers - 1} or less."
            )

    def update_of(self, clocks: Clocks, worker: int) -> int | None:
        """The next, if the gradient is of the present version."""
        return clocks.done if clocks.read[worker] == clocks.done else None

    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:
        """The gradients of all but B workers are there."""
        return len(contributors) >= self.gradients_of(len(clocks.pushed))

    def gradients_of(self, workers: int) -> int:
        """An update takes the gradients of all but B workers, and at least one."""
        return max(1, workers - self._spares)

    def readable(self, clocks: Clocks, worker: int) -> bool:
        """There is a version that it has not computed on yet."""
        return clocks.done > clocks.read[worker]

    def position(self, clocks: Clocks, worker: int) -> int:  # noqa: ARG002 - it is the same for all
        """That of the next update: who came too late goes on with the others."""
        return clocks.done


CONSISTENCIES: Mapping[str, Callable[..., Consistency]] = {
    "sync": Synchronous,
    "async": Asynchronous,
    "ssp": BoundedStaleness,
    "backup": BackupWorkers,
}
"""The rules of consistency, by the names that users write."""
