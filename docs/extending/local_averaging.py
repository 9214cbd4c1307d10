"""Local averaging: the workers train by themselves, and average their parameters now and then.

bigbatch-exp docs/extending/local_averaging.py:LocalAveraging -n 4 --period 8
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bigbatch.comm.kinds import Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.strategies.replicated import Replicated
from bigbatch.comm.update import Outcome


@dataclass(frozen=True)
class Averaging(Options):
    """How often the workers average."""

    period: int = option(4, Whole(), "Number of updates from one average of the parameters to the next.")


class LocalAveraging(Replicated):
    """Every worker makes its own updates; after every `--period` of them, all take the mean of their parameters.

    Optimisers' states stay each worker's own.

    Cost: a ring all-reduce of the parameters, a period-th part of it per update.

    Source: Stich, "Local SGD converges fast and communicates little" (2019).
    """

    options = Averaging()

    def update(self, weight: float) -> Outcome:
        """Make this worker's own update; average if it is time."""
        outcome = super().update(weight)
        if (self.steps + 1) % self.options.period == 0:
            with self.communicating():
                self._average()
        return outcome

    @contextmanager
    def newest(self, *, together: bool) -> Iterator[None]:
        """Look at the mean once all workers have ended; until then, a worker has its own parameters only."""
        with self.parameters.kept():
            if together:
                self._average()
            yield

    def _average(self) -> None:
        self.all_reduce(self.parameters.values)
        self.parameters.values.div_(self.workers)
