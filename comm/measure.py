"""Measuring all-reduces: how long each takes for a size, in turns, checking every result."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.agreement import share
from bigbatch.comm.collective import Collective
from bigbatch.comm.transport import Transport

FEWEST, MOST = 3, 50
"""Repetitions of a measurement, besides one to warm up."""

SHORT_BYTES, MOST_AT_ONCE = 256 * 1024, 16
"""Small buffers are reduced several at a time, one after the other, or the clock would measure the starting line."""

EXACT_BELOW = 2**24
"""Integers of which float32 holds every one."""

COPY_BYTES = 64 * 2**20
"""What is copied to measure the memory: more than a processor's own caches hold."""


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
) -> list[Measurement]:
    """Time an in-place sum of float32 by each collective, taking turns, so that what slows one slows all.

    Every repetition begins with distinct integers and its result is compared with their exact sum.

    Args:
        collectives: by name; each on a transport of its own or shared, but all with the same ranks.
        transport: on which the ranks start together and tell each other their times.
        nbytes: of each rank's buffer; less than one element counts as one.
        budget: about how many seconds to spend.
    """
    ranks, elements = transport.size, max(1, nbytes // 4)
    at_once = max(1, min(MOST_AT_ONCE, SHORT_BYTES // (4 * elements)))
    own, total = _distinct_integers(elements * at_once, transport.rank, ranks)
    memory = _memory(collectives, len(own))
    seconds: dict[str, list[float]] = {name: [] for name in collectives}
    exact = dict.fromkeys(collectives, True)

    def repeat(name: str) -> float:
        buffer = memory[name]
        buffer.copy_(own)
        transport.barrier()
        started = transport.now()
        for first in range(0, len(buffer), elements):
            collectives[name].reduce(buffer[first : first + elements])
        taken = transport.now() - started
        exact[name] &= bool(torch.equal(buffer, total))
        return taken / at_once

    started = transport.now()
    for name in collectives:  # to warm up
        repeat(name)
    once = max(share(transport, transport.now() - started, "say how long a repetition takes"))
    # A simulated clock may stand still, and repeats itself exactly.
    for _ in range(int(np.clip(budget / once, FEWEST, MOST)) if once else FEWEST):
        for name in collectives:
            seconds[name].append(repeat(name))
    everyone = share(transport, [seconds, exact], "tell its times")
    return [
        Measurement(
            name,
            ranks,
            4 * elements,
            np.max([theirs[name] for theirs, _ in everyone], axis=0),
            all(right[name] for _, right in everyone),
        )
        for name in collectives
    ]


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


def memory_bandwidth(transport: Transport) -> float:
    """Bytes a second that all ranks together read and write while each copies an array larger than the caches."""
    source = np.ones(COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    taken = []
    for _ in range(1 + FEWEST):
        transport.barrier()
        started = transport.now()
        np.copyto(target, source)
        taken.append(transport.now() - started)
    everyone = np.array(share(transport, taken[1:], "tell its times"))
    return float(2 * COPY_BYTES * transport.size / np.median(everyone.max(axis=0)))
