"""Prove a schedule correct: follow every rank's contribution to every rank's copy of every chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.schedules.schedule import Round, Schedule, chunk_count, rounds_of, transfers


@dataclass(frozen=True)
class Proof:
    """What a schedule does to the contributions.

    Attributes:
        count: (ranks, chunks, ranks) how often the contribution of the rank in the last place is in the copy
            that the rank in the first place ends with.
    """

    count: NDArray[np.int64]

    @property
    def missing(self) -> list[tuple[int, int, int]]:
        """(rank, chunk, contributor) of every contribution that did not arrive."""
        return [(r, c, k) for r, c, k in np.argwhere(self.count == 0).tolist()]

    @property
    def doubled(self) -> list[tuple[int, int, int]]:
        """(rank, chunk, contributor) of every contribution that was added more than once."""
        return [(r, c, k) for r, c, k in np.argwhere(self.count > 1).tolist()]

    @property
    def holds(self) -> bool:
        """Whether everybody ends with exactly one of each contribution."""
        return bool((self.count == 1).all())

    def __str__(self) -> str:
        ranks, chunks, _ = self.count.shape
        if self.holds:
            return f"proven: all {ranks} ranks end with every contribution once in each of {chunks} chunks"
        wrong = [
            f"rank {rank} {verb} the contribution of rank {contributor} in chunk {chunk}"
            for verb, rows in (("misses", self.missing), ("counts twice or more", self.doubled))
            for rank, chunk, contributor in rows[:3]
        ]
        rest = len(self.missing) + len(self.doubled) - len(wrong)
        return "refuted: " + "; ".join(wrong) + (f"; and {rest} more" if rest else "")


def prove(schedule: Schedule, size: int) -> Proof:
    """Follow the contributions through an all-reduce schedule for `size` ranks.

    Every rank starts with one contribution, its own, in every chunk; it must end with one of each.
    """
    *_, count = follow(rounds_of(schedule, size), size)
    return Proof(count)


def follow(rounds: Sequence[Round], size: int) -> Iterator[NDArray[np.int64]]:
    """The contributions before the first round and after each: (ranks, chunks, ranks), as in `Proof.count`."""
    count = np.zeros((size, chunk_count(rounds), size), dtype=np.int64)
    count[np.arange(size), :, np.arange(size)] = 1
    yield count.copy()
    for round_ in rounds:
        before = count.copy()
        for source, target, first, stop, reduce in transfers(round_):
            arriving = before[source, first:stop]
            count[target, first:stop] = arriving + (count[target, first:stop] if reduce else 0)
        yield count.copy()
