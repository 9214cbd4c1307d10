"""Prove a schedule correct: follow every rank's contribution to every rank's copy of every chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedules.schedule import Round, Schedule, chunk_count, name_of, rounds_of, transfers


@dataclass(frozen=True)
class Proof:
    """Where each rank's contribution ends when a schedule is run, and where it must end.

    Attributes:
        count: (ranks, chunks, ranks) entry (r, c, k) says how often the contribution of rank k is in the copy of chunk
            c that rank r ends with.
        expected: (ranks, chunks, ranks) how often it must be there; None for an all-reduce, whose ranks must end with
            one of each. For an all-gather the last axis of both has one entry more, for what memory holds before
            anything arrives.
    """

    count: NDArray[np.int64]
    expected: NDArray[np.int64] | None = None

    @property
    def _due(self) -> NDArray[np.int64]:
        return np.ones_like(self.count) if self.expected is None else self.expected

    @property
    def missing(self) -> list[tuple[int, int, int]]:
        """(rank, chunk, contributor) of every contribution that did not arrive."""
        return [(r, c, k) for r, c, k in np.argwhere(self.count < self._due).tolist()]

    @property
    def doubled(self) -> list[tuple[int, int, int]]:
        """(rank, chunk, contributor) of every contribution that is there more often than it must be."""
        return [(r, c, k) for r, c, k in np.argwhere(self.count > self._due).tolist()]

    @property
    def holds(self) -> bool:
        """Whether every rank ends with each contribution exactly as often as it must."""
        return bool((self.count == self._due).all())

    def __str__(self) -> str:
        ranks, chunks, _ = self.count.shape
        if self.holds and self.expected is not None:
            return f"proven: all {ranks} ranks end with the chunk of every rank once"
        if self.holds:
            return f"proven: all {ranks} ranks end with every contribution once in each of {chunks} chunks"
        wrong = [
            f"rank {rank} {verb} {self._contribution(contributor)} in chunk {chunk}"
            for verb, rows in (("misses", self.missing), (self._too_often, self.doubled))
            for rank, chunk, contributor in rows[:3]
        ]
        rest = len(self.missing) + len(self.doubled) - len(wrong)
        return "refuted: " + "; ".join(wrong) + (f"; and {rest} more" if rest else "")

    def _contribution(self, contributor: int) -> str:
        return f"the contribution of rank {contributor}" if contributor < len(self.count) else "what lay there before"

    @property
    def _too_often(self) -> str:
        return "counts twice or more" if self.expected is None else "has where it does not belong"


def prove(schedule: Schedule, size: int) -> Proof:
    """Follow the contributions through an all-reduce schedule for `size` ranks.

    Every rank starts with one contribution, its own, in every chunk; it must end with one of each.
    """
    *_, count = follow(rounds_of(schedule, size), size)
    return Proof(count)


def refuse_unproven(schedule: Schedule, size: int, *, everywhere: bool = False) -> None:
    """Refuses rounds that do not end with everybody's sum, at any number of ranks.

    Up to `MOST_RANKS_PROVEN` ranks every contribution is followed. Beyond, where that would take minutes, random
    numbers are added up instead: see `wrong_sum`.

    Args:
        schedule: the rounds as a function of the number of ranks.
        size: the number of ranks.
        everywhere: whether all ranks of a job look at the same time, and so find the same.

    Raises:
        ConfigurationError: they are no all-reduce; says where.
    """
    if size <= MOST_RANKS_PROVEN:
        proof = prove(schedule, size)
        found = "" if proof.holds else str(proof)
    else:
        found = wrong_sum(schedule, size)
    if found:
        raise ConfigurationError(
            f"{name_of(schedule)} over {size} ranks is no all-reduce: {found}.", everywhere=everywhere
        )


MOST_RANKS_PROVEN = 64
"""The largest number of ranks for which every contribution is followed."""


def wrong_sum(schedule: Schedule, size: int) -> str:
    """Adds up random numbers of 64 bits by the rounds; returns what is wrong with the sums, or nothing.

    Every rank starts with a number of its own, the same in each chunk, and must end with the sum of all. Rounds that
    miss a contribution or count one twice pass by chance alone, once in about 2⁶⁴ cases. It takes as many additions as
    a rank makes, instead of that many times the number of ranks, so that it is quick for thousands of ranks.

    Source: Freivalds, "Probabilistic machines can use less running time" (1977), has the idea.
    """
    rounds = rounds_of(schedule, size)
    chunks = chunk_count(rounds)
    refuse_memory(8 * size * chunks, size, chunks)
    own = np.random.default_rng(size).integers(0, 2**64, size, dtype=np.uint64, endpoint=False)
    held = np.repeat(own[:, None], chunks, axis=1)
    for round_ in rounds:
        _add(round_, held)
    wrong = np.argwhere(held != own.sum())
    if not len(wrong):
        return ""
    rank, chunk = wrong[0].tolist()
    return f"refuted: rank {rank} ends with a wrong sum in chunk {chunk}, as {len(wrong)} of {held.size} copies do"


def _add(round_: Round, held: NDArray[np.uint64]) -> None:
    """Moves numbers by one round in place; at once, where the table's order does not matter."""
    widths = round_.stop - round_.first
    row = np.repeat(np.arange(len(round_)), widths)
    chunk = np.arange(len(row)) - np.repeat(np.cumsum(widths) - widths, widths) + round_.first[row]
    target, adds = round_.target[row], round_.reduce[row]
    cell = target * held.shape[1] + chunk
    replaced = np.unique(cell[~adds])
    if len(replaced) == np.count_nonzero(~adds) and not np.isin(cell[adds], replaced).any():
        arriving = held[round_.source[row], chunk]
        np.add.at(held, (target[adds], chunk[adds]), arriving[adds])
        held[target[~adds], chunk[~adds]] = arriving[~adds]
        return
    before = held.copy()
    for source, to, first, stop, reduce in transfers(round_):
        held[to, first:stop] = before[source, first:stop] + (held[to, first:stop] if reduce else np.uint64(0))


MOST_BYTES = 4 * 2**30
"""The most memory that the tables of contributions may take."""


def refuse_memory(nbytes: int, size: int, chunks: int) -> None:
    """Refuses to follow contributions through rounds if that takes more than `MOST_BYTES` bytes of memory."""
    if nbytes > MOST_BYTES:
        raise ConfigurationError(
            f"To follow {chunks:,} chunks over {size:,} ranks takes {nbytes / 2**30:,.0f} GiB of memory, and at most "
            f"{MOST_BYTES / 2**30:g} GiB are taken. Use fewer ranks, or fewer chunks."
        )


def prove_all_gather(schedule: Schedule, size: int) -> Proof:
    """Follow the chunks through an all-gather schedule for `size` ranks.

    Rank r starts with chunk r, and in all other chunks with whatever lies in memory; every rank must end with chunk c
    of rank c, once, and nothing else.

    Raises:
        ConfigurationError: the schedule does not cut the buffer into as many chunks as there are ranks.
    """
    rounds, rank = rounds_of(schedule, size), np.arange(size)
    if chunk_count(rounds) != size:
        raise ConfigurationError(
            f"An all-gather over {size} ranks has a chunk for each, but these rounds move {chunk_count(rounds)} "
            "chunks. Number them by the ranks that start with them."
        )
    expected = np.zeros((size, size, size + 1), dtype=np.int64)
    expected[:, rank, rank] = 1
    start = np.zeros_like(expected)
    start[:, :, size] = 1
    start[rank, rank] = expected[rank, rank]
    *_, count = follow(rounds, size, start)
    return Proof(count, expected)


def follow(rounds: Sequence[Round], size: int, start: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.int64]]:
    """Yields the contributions before the first round and after each: (ranks, chunks, ranks), as in `Proof.count`.

    Args:
        rounds: the rounds of the schedule.
        size: the number of ranks.
        start: the contributions before the first round; if None, every rank has its own in every chunk.
    """
    refuse_memory(8 * size * chunk_count(rounds) * size, size, chunk_count(rounds))
    if start is None:
        start = np.zeros((size, chunk_count(rounds), size), dtype=np.int64)
        start[np.arange(size), :, np.arange(size)] = 1
    count = start.copy()
    yield count.copy()
    for round_ in rounds:
        before = count.copy()
        for source, target, first, stop, reduce in transfers(round_):
            arriving = before[source, first:stop]
            count[target, first:stop] = arriving + (count[target, first:stop] if reduce else 0)
        yield count.copy()
