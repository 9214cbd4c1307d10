"""Measuring all-reduces: how long each takes for a size, in turns, checking every result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.agreement import share
from bigbatch.comm.collective import Collective
from bigbatch.comm.transport import Transport

FEWEST_TURNS, MOST_TURNS = 2, 15
"""Turns that each all-reduce gets."""

REPETITIONS = 4
"""How often it is timed in a turn, after once to warm up: what ran before it leaves its data in the caches."""

SHORT_BYTES, MOST_AT_ONCE = 256 * 1024, 16
"""Small buffers are reduced several at a time, one after the other, or the clock would measure the starting line."""

EXACT_BELOW = 2**24
"""Integers of which float32 holds every one."""

MEMORY = "memory"
"""The name under which `measure` reports what any all-reduce must at least do to memory."""


@dataclass(frozen=True)
class Measurement:
    """How long an all-reduce took.

    Attributes:
        algorithm: its name.
        ranks: how many took part.
        nbytes: of each rank's buffer.
        seconds: (repetitions,) of the slowest rank each time.
        exact: whether every element of every repetition was right on every rank.
    """

    algorithm: str
    ranks: int
    nbytes: int
    seconds: NDArray[np.float64]
    exact: bool

    @property
    def median(self) -> float:
        """Seconds, the median of the repetitions."""
        return float(np.median(self.seconds))

    @property
    def low(self) -> float:
        """Seconds, the lower quartile."""
        return float(np.quantile(self.seconds, 0.25))

    @property
    def high(self) -> float:
        """Seconds, the upper quartile."""
        return float(np.quantile(self.seconds, 0.75))

    @property
    def algbw(self) -> float:
        """Bytes a second as the caller sees it: buffer size over time."""
        return self.nbytes / self.median

    @property
    def busbw(self) -> float:
        """Bytes a second as a wire sees it: algbw · 2(p-1)/p, comparable across numbers of ranks (nccl-tests)."""
        return self.algbw * 2 * (self.ranks - 1) / self.ranks


def measure(
    collectives: Mapping[str, Collective], transport: Transport, nbytes: int, budget: float
) -> tuple[list[Measurement], Measurement]:
    """Time an in-place sum of float32 by each collective, taking turns, so that what slows one slows all.

    Every repetition begins with distinct integers and its result is compared with their exact sum. The clock stops
    on each rank when its part is done; the slowest rank counts.

    Args:
        collectives: by name; each on a transport of its own or shared, but all with the same ranks.
        transport: on which the ranks start together and tell each other their times.
        nbytes: of each rank's buffer; less than one element counts as one.
        budget: about how many seconds to spend.

    Returns:
        A measurement of each collective; and one, `MEMORY`, of what no all-reduce in memory can do without: every
        rank reading and writing each element of its own buffer once, taking its turns with the others.
    """
    ranks, elements = transport.size, max(1, nbytes // 4)
    at_once = max(1, min(MOST_AT_ONCE, SHORT_BYTES // (4 * elements)))
    own, total = _distinct_integers(elements * at_once, transport.rank, ranks)
    memory = _memory(collectives, len(own))
    works: dict[str, Callable[[Tensor], object]] = {name: c.reduce for name, c in collectives.items()}
    works[MEMORY], memory[MEMORY] = _touch, torch.zeros(len(own))
    results = {**dict.fromkeys(collectives, total), MEMORY: own + 1}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    exact = dict.fromkeys(works, True)

    def repeat(name: str) -> float:
        buffer, work = memory[name], works[name]
        buffer.copy_(own)
        parts = [buffer[first : first + elements] for first in range(0, len(buffer), elements)]
        transport.barrier()
        started = transport.now()
        for part in parts:
            work(part)
        taken = transport.now() - started
        transport.barrier()  # who is done must not take the processor from who is not
        exact[name] &= bool(torch.equal(buffer, results[name]))
        return taken / at_once

    def turn(name: str) -> None:
        repeat(name)
        seconds[name] += [repeat(name) for _ in range(REPETITIONS)]

    started = transport.now()
    for name in works:  # to warm up
        repeat(name)
    round_seconds = (1 + REPETITIONS) * (transport.now() - started)
    longest = max(share(transport, round_seconds, "say how long a turn takes"))
    # A simulated clock may stand still, and repeats itself exactly.
    turns = int(np.clip(budget / longest, FEWEST_TURNS, MOST_TURNS)) if longest else FEWEST_TURNS
    for _ in range(turns):
        for name in works:
            turn(name)
    everyone = share(transport, [seconds, exact], "tell its times")
    rows = [
        Measurement(
            name,
            ranks,
            4 * elements,
            np.max([theirs[name] for theirs, _ in everyone], axis=0),
            all(right[name] for _, right in everyone),
        )
        for name in works
    ]
    return rows[:-1], rows[-1]


def _touch(buffer: Tensor) -> None:
    """Read and write every element once."""
    array = buffer.numpy()
    np.add(array, 1, out=array)


def _distinct_integers(elements: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """(elements,) float32 that differ from rank to rank and element to element, and their sum over all ranks.

    The pattern repeats after 2^24/p², or more, elements: further apart than the chunks of a large buffer, and odd.
    """
    period = (EXACT_BELOW - 1) // ranks | 1
    place = torch.arange(elements, dtype=torch.int64) * ranks
    own = (place + rank) % period
    total = torch.zeros(elements, dtype=torch.int64)
    for other in range(ranks):
        total += (place + other) % period
    return own.float(), total.float()


def _memory(collectives: Mapping[str, Collective], elements: int) -> dict[str, Tensor]:
    """Memory for each to reduce: its own where it wants a special kind, else one for all."""
    ordinary = torch.zeros(elements)
    return {
        name: ordinary
        if type(collective).allocate is Collective.allocate
        else collective.allocate(elements, torch.float32, torch.device("cpu"))
        for name, collective in collectives.items()
    }
