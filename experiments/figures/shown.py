"""Showing a schedule as text: its rounds, its proof, and what it sends."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.schedules.account import account
from bigbatch.comm.schedules.prove import Proof, follow, refuse_memory
from bigbatch.comm.schedules.schedule import Round, Schedule, check_repeats, chunk_count, rounds_of, transfers

MOST_RANKS_DRAWN, MOST_CHUNKS_DRAWN = 8, 16
"""Limits of the text's table of who has what, which no longer fits on a line beyond them."""

MOST_ROUNDS = 40
"""Largest number of rounds that are printed; the rest are only counted."""

COLUMNS = 100


class Shown:
    """A schedule for a number of ranks, through which every rank's contribution is followed.

    Args:
        name: name of the schedule.
        schedule: the schedule, which makes the rounds.
        size: number of ranks.

    Attributes:
        rounds: all rounds of the schedule.
        counts: the contributions before the first round and after each round; see `follow`.
        proof: whether the schedule is an all-reduce.

    Raises:
        ConfigurationError: the rounds are not valid, differ from call to call, or are too many to be followed.
    """

    def __init__(self, name: str, schedule: Schedule, size: int) -> None:
        self.name = name
        self.size = size
        self._schedule = schedule
        self.chunks = 1

        def admit(number: int, round_: Round) -> None:
            self.chunks = max(self.chunks, chunk_count([round_]))
            refuse_memory(8 * (number + 1) * size * self.chunks * size, size, self.chunks)

        self.rounds = rounds_of(schedule, size, admit)
        check_repeats(schedule, size)
        self.counts: list[NDArray[np.int64]] = list(follow(self.rounds, size))
        self.proof = Proof(self.counts[-1])

    def text(self) -> Iterator[str]:
        """Yields the rounds line by line: who sends which chunk to whom, and which contributions each rank then has."""
        chunks = "1 chunk" if self.chunks == 1 else f"{self.chunks} chunks"
        yield f"{self.name} over {self.size} ranks: {len(self.rounds)} rounds, the buffer in {chunks}"
        yield "0→1 +2 is: rank 0 sends chunk 2 to rank 1, which adds it to its own; =2: which replaces its own by it"
        drawn = self.size <= MOST_RANKS_DRAWN and self.chunks <= MOST_CHUNKS_DRAWN
        if drawn:
            yield "below each round: how many ranks' contributions every rank then has in each of its chunks"
            yield ""
            yield from _wrapped("start", self._state(0), "   ")
        for number, round_ in enumerate(self.rounds[:MOST_ROUNDS], start=1):
            yield ""
            yield from _wrapped(f"round {number}", _moves(round_), "   ")
            if drawn:
                yield from _wrapped("", self._state(number), "   ")
        if len(self.rounds) > MOST_ROUNDS:
            yield f"... and {len(self.rounds) - MOST_ROUNDS} rounds more"

    def _state(self, after: int) -> list[str]:
        have = self.counts[after].sum(axis=2)
        return [f"{rank}: {' '.join(map(str, row))}" for rank, row in enumerate(have.tolist())]

    def proof_text(self) -> Iterator[str]:
        """Yields lines that say what is proven, and how the sum of every chunk comes about."""
        yield str(self.proof)
        for chunk in range(min(self.chunks, MOST_CHUNKS_DRAWN)):
            yield f"chunk {chunk}: every rank starts with its own contribution"
            for number, (before, after) in enumerate(zip(self.counts, self.counts[1:], strict=False), start=1):
                changed = np.flatnonzero((before[:, chunk] != after[:, chunk]).any(axis=1)).tolist()
                if changed:
                    have = [f"rank {rank} has {_contributors(after[rank, chunk])}" for rank in changed]
                    yield from _wrapped(f"  round {number}", have, ", ")
        if self.chunks > MOST_CHUNKS_DRAWN:
            yield f"... and {self.chunks - MOST_CHUNKS_DRAWN} chunks more, followed in the same way"

    def account_text(self, nbytes: int) -> Iterator[str]:
        """Yields lines that say what each rank sends for `nbytes` bytes of float32, beside the least possible."""
        counted = account(self._schedule, self.size, max(1, nbytes // 4), 4)
        yield f"{counted.rounds} rounds; for {nbytes:,} bytes:"
        yield f"{'rank':>6}{'messages':>12}{'bytes sent':>16}{'bytes received':>16}"
        for rank in range(self.size):
            row = counted.messages[rank], counted.sent[rank], counted.received[rank]
            yield f"{rank:>6}{row[0]:>12,}{row[1]:>16,}{row[2]:>16,}"
        busiest = int(counted.sent.max(initial=0))
        yield f"busiest rank: {busiest:,} bytes; no all-reduce can do with less than 2(p-1)/p·n = " + (
            f"{counted.lower_bound:,.0f}, which is {busiest / counted.lower_bound:.2f} × that"
            if counted.lower_bound
            else "0"
        )


def _moves(round_: Round) -> list[str]:
    return [
        f"{source}→{target} {'+' if reduce else '='}{first if stop == first + 1 else f'{first}–{stop - 1}'}"
        for source, target, first, stop, reduce in transfers(round_)
    ]


def _contributors(counts: NDArray[np.int64]) -> str:
    """{0, 1, 2×3}: of ranks 0 and 1 once, of rank 2 three times."""
    present = [f"{rank}" if count == 1 else f"{rank}×{count}" for rank, count in enumerate(counts.tolist()) if count]
    return f"{{{', '.join(present)}}}"


def _wrapped(head: str, pieces: Sequence[str], between: str) -> Iterator[str]:
    """The pieces behind a head, on as many lines as they need."""
    margin = " " * 10
    line = f"{head:<10}" if len(head) < len(margin) else f"{head}  "
    empty = True
    for piece in pieces:
        if not empty and len(line) + len(between) + len(piece) > COLUMNS:
            yield line
            line, empty = margin, True
        line += piece if empty else between + piece
        empty = False
    yield line
