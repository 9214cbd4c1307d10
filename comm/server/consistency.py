"""Consistency: which gradients make an update, and how far ahead of the others a worker may read.

A shard counts the updates that it has finished: its clock. A worker counts the gradients that it has pushed: its
own clock.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from bigbatch.comm.errors import ConfigurationError


@dataclass
class Clocks:
    """Counts how many updates a shard has finished, and how far each worker is in pushing and reading.

    Attributes:
        done: updates that the shard has finished, applied or skipped.
        pushed: maps each worker that takes part to its clock: `done` when it joined, plus the gradients that it has
            pushed since.
        read: maps each worker that takes part to `done` when it last read.
    """

    done: int = 0
    pushed: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)


class Consistency(ABC):
    """The consistency rule of a parameter server: which gradients make an update, and who may read when.

    Attributes:
        alike: whether all workers compute on the same version, so that an update is everybody's.
        everyone: whether an update takes a gradient of every worker.
    """

    alike: ClassVar[bool] = False
    everyone: ClassVar[bool] = False

    @abstractmethod
    def update_of(self, clocks: Clocks, worker: int) -> int | None:
        """The number of the update that a gradient from `worker`, arriving now, goes into; None drops the gradient."""

    @abstractmethod
    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:
        """Whether update number `clocks.done` has all the gradients it takes."""

    @abstractmethod
    def readable(self, clocks: Clocks, worker: int) -> bool:
        """Whether `worker` may read now, to begin its next gradient."""

    def check(self, workers: int) -> None:  # noqa: B027 - most rules do with any number
        """Refuses a number of workers that the rule does not work with.

        Raises:
            ConfigurationError: the rule does not work with that many workers.
        """

    def updates_of(self, workers: int) -> int:  # noqa: ARG002 - for others
        """How many updates the shard makes while each of `workers` workers pushes one gradient."""
        return 1

    def gradients_of(self, workers: int) -> int:
        """How many gradients make one update while `workers` workers take part."""
        return workers

    def position(self, clocks: Clocks, worker: int) -> int:
        """The number of the batch of which `worker` computes its share next."""
        return clocks.pushed[worker]


class BoundedStaleness(Consistency):
    """Stale-synchronous: update c takes gradient c of every worker, and no worker gets more than s ahead.

    A worker may begin its gradient number c once the updates below c - s are made, so that what it reads has every
    gradient of clock c - s - 1 and before.

    Args:
        staleness: s, the number of gradients that a worker may be ahead.

    Source: Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server" (2013),
    section 3.
    """

    everyone: ClassVar[bool] = True

    def __init__(self, staleness: int) -> None:
        if staleness < 0:
            raise ConfigurationError(f"A staleness of {staleness} was asked for; it must be 0 or more.")
        self._staleness = staleness

    def update_of(self, clocks: Clocks, worker: int) -> int | None:
        """The update with the number of the worker's gradient; None if that update was made already."""
        return clocks.pushed[worker] if clocks.pushed[worker] >= clocks.done else None

    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:
        """Whether the gradients of all present workers are there; workers that have left are not waited for."""
        return bool(contributors) and contributors >= clocks.pushed.keys()

    def readable(self, clocks: Clocks, worker: int) -> bool:
        """Whether the worker is at most s gradients ahead of the updates that were made."""
        return clocks.done >= clocks.pushed[worker] - self._staleness


class Synchronous(BoundedStaleness):
    """Bounded staleness with s = 0: every update takes a gradient of the same version from every worker."""

    alike: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(0)


class Asynchronous(Consistency):
    """Every gradient makes an update of its own as it arrives, and no worker waits.

    Source: Dean et al., "Large scale distributed deep networks" (2012), section 4.1.
    """

    def update_of(self, clocks: Clocks, worker: int) -> int | None:  # noqa: ARG002 - it is the same for all
        """The next update: every gradient is applied as it comes."""
        return clocks.done

    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:  # noqa: ARG002 - it is always the same
        """Whether there is any gradient: a single one makes an update."""
        return bool(contributors)

    def updates_of(self, workers: int) -> int:
        """As many as there are workers: each gradient makes an update of its own."""
        return workers

    def gradients_of(self, workers: int) -> int:  # noqa: ARG002 - it is the same for any number
        """One: each gradient makes an update of its own."""
        return 1

    def readable(self, clocks: Clocks, worker: int) -> bool:  # noqa: ARG002 - it is always the same
        """True: an asynchronous server never lets a worker wait."""
        return True


class BackupWorkers(Consistency):
    """Of N + B workers the first N gradients of a version make the update; those that come later are dropped.

    Args:
        spares: B, the number of gradients of each version that are not waited for.

    Source: Chen et al., "Revisiting distributed synchronous SGD" (2016), section 3.
    """

    def __init__(self, spares: int) -> None:
        if spares < 0:
            raise ConfigurationError(f"{spares} spare workers were asked for; it must be 0 or more.")
        self._spares = spares

    def check(self, workers: int) -> None:
        """Refuses so many spares that no worker is left to wait for."""
        if self._spares >= workers:
            raise ConfigurationError(
                f"--spares {self._spares} leaves nobody of {workers} workers to wait for. Use {workers - 1} or less."
            )

    def update_of(self, clocks: Clocks, worker: int) -> int | None:
        """The next update, if the gradient was computed on the present version; else None."""
        return clocks.done if clocks.read[worker] == clocks.done else None

    def complete(self, clocks: Clocks, contributors: set[int]) -> bool:
        """Whether the gradients of all but B workers are there."""
        return len(contributors) >= self.gradients_of(len(clocks.pushed))

    def gradients_of(self, workers: int) -> int:
        """An update takes the gradients of all but B workers, and at least one."""
        return max(1, workers - self._spares)

    def readable(self, clocks: Clocks, worker: int) -> bool:
        """Whether there is a version that the worker has not computed on yet."""
        return clocks.done > clocks.read[worker]

    def position(self, clocks: Clocks, worker: int) -> int:  # noqa: ARG002 - it is the same for all
        """The number of the next update: a worker that came too late goes on with the others."""
        return clocks.done


CONSISTENCIES: Mapping[str, Callable[..., Consistency]] = {
    "sync": Synchronous,
    "async": Asynchronous,
    "ssp": BoundedStaleness,
    "backup": BackupWorkers,
}
"""The rules of consistency, by the names that users write."""
