"""Measures how long all-reduces and parameter servers take for a size, in turns, and checks every result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.precisions import BF16, FP16
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.wires.agreement import all_gather, together
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.transport import Transport

FEWEST_TURNS, MOST_TURNS = 2, 15
"""The fewest and the most turns that each operation gets."""

REPETITIONS = 4
"""How often it is timed in a turn, after once to warm up: what ran before it leaves its data in the caches."""

SHORT_BYTES, MOST_AT_ONCE = 256 * 1024, 16
"""Small buffers are reduced several at a time, one after the other, or the clock would measure the starting line."""

EXACT_BELOW = 2**24
"""Every integer below this one is exact in float32."""

EXACT_HALVES = {BF16: 2**8, FP16: 2**11}
"""The same for half precision."""

MEMORY = "memory"
"""The name under which `measure` reports what any sum must at least do to memory."""


@dataclass(frozen=True)
class Measurement:
    """How long one operation took to sum buffers of one size.

    Attributes:
        algorithm: the name of the operation.
        ranks: whose values were summed; ranks that only served are not counted.
        nbytes: bytes of each rank's buffer.
        seconds: (repetitions,) the seconds of the slowest of those ranks in each repetition.
        exact: whether every element of every repetition was right on every one of them.
    """

    algorithm: str
    ranks: int
    nbytes: int
    seconds: NDArray[np.float64]
    exact: bool

    @property
    def median(self) -> float:
        """The median of the repetitions, in seconds."""
        return float(np.median(self.seconds))

    @property
    def low(self) -> float:
        """The lower quartile of the repetitions, in seconds."""
        return float(np.quantile(self.seconds, 0.25))

    @property
    def high(self) -> float:
        """The upper quartile of the repetitions, in seconds."""
        return float(np.quantile(self.seconds, 0.75))

    @property
    def algbw(self) -> float:
        """Bytes a second as the caller sees it: buffer size over time."""
        return self.nbytes / self.median

    @property
    def busbw(self) -> float:
        """Bytes a second as a wire sees it: algbw · 2(p-1)/p, comparable across numbers of ranks (nccl-tests)."""
        return self.algbw * 2 * (self.ranks - 1) / self.ranks


class Operation:
    """Something to time: the first ranks, the workers, hand in values, and each ends with the sum of all.

    Other ranks may serve them meanwhile. This class is the part of a rank that only stands by.

    Args:
        workers: the number of ranks that hand in values.

    Attributes:
        workers: the number of ranks that hand in values.
        inputs: where this rank hands in, (elements,) float32 for every sum of a repetition; none if it does not.
        results: where it finds each sum; often the same memory.
        exact_below: every integer below this one is exact in whatever it sends.
    """

    exact_below = EXACT_BELOW

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.inputs: Sequence[Tensor] = ()
        self.results: Sequence[Tensor] = ()

    def prepare(self, parts: Sequence[Tensor]) -> None:
        """Get ready for as many sums as there are parts; all ranks together.

        Args:
            parts: (elements,) each, one after the other in memory that other operations use in their turn too.
        """

    def run(self, number: int) -> None:
        """Carries out this rank's part of the sum of that number, from 0."""

    def expected(self, own: Tensor, total: Callable[[int], Tensor]) -> Tensor:
        """What a worker ends with: `total(p)`, which the first p ranks have handed in, of which `own` is its own."""
        return own if self.workers == 1 else total(self.workers)


class Reducing(Operation):
    """Sums by an all-reduce, in place, to measure how long that takes.

    Args:
        collective: the all-reduce, on a transport of all workers.
        wire: the format in which numbers are sent.
    """

    def __init__(self, collective: Collective, wire: WireFormat = WHOLE) -> None:
        super().__init__(collective.transport.size)
        self._collective = collective
        self._wire = wire
        self.exact_below = EXACT_HALVES.get(wire.precision, EXACT_BELOW)

    def prepare(self, parts: Sequence[Tensor]) -> None:
        """Use memory of the collective's own if it wants a special kind."""
        if type(self._collective).allocate is not Collective.allocate:
            elements = len(parts[0])
            own = self._collective.allocate(len(parts) * elements, torch.float32, torch.device("cpu"))
            parts = _parts(own, elements)
        self.inputs = self.results = parts

    def run(self, number: int) -> None:
        """Sums the part of that number over all workers."""
        self._collective.reduce(self.inputs[number], self._wire)


class Touching(Operation):
    """Reads and writes every element once without any communication, to measure memory alone."""

    def prepare(self, parts: Sequence[Tensor]) -> None:
        """Takes the parts as both inputs and results."""
        self.inputs = self.results = parts

    def run(self, number: int) -> None:
        """Adds one to every element of the part of that number."""
        array = self.inputs[number].numpy()
        np.add(array, 1, out=array)

    def expected(self, own: Tensor, total: Callable[[int], Tensor]) -> Tensor:  # noqa: ARG002 - nobody else's matter
        """What a worker must end with: its own values plus one."""
        return own + 1


def measure(
    operations: Mapping[str, Operation], transport: Transport, nbytes: int, budget: float
) -> tuple[list[Measurement], Measurement]:
    """Time sums of float32 by each operation, taking turns, so that what slows one slows all.

    Every repetition begins with distinct integers and its result is compared with their exact sum. The clock stops
    on each worker when its part is done; the slowest worker counts.

    Args:
        operations: the operations by name, the same names in the same order on every rank.
        transport: on which the ranks start together and tell each other their times.
        nbytes: bytes of each worker's buffer; less than one element counts as one.
        budget: about how many seconds to spend.

    Returns:
        A measurement of each operation; and one, `MEMORY`, of what no sum in memory can do without: every worker
        reading and writing each element of its own buffer once, taking its turns with the others.

    Raises:
        ConfigurationError: on every rank, if one has too little memory for an operation.
    """
    elements = max(1, nbytes // 4)
    at_once = max(1, min(MOST_AT_ONCE, SHORT_BYTES // (4 * elements)))
    workers = max(operation.workers for operation in operations.values())
    works = {**operations, MEMORY: Touching(workers) if transport.rank < workers else Operation(workers)}
    handed_in = partial(_distinct_integers, elements * at_once, ranks=workers)

    @cache
    def own(below: int) -> Tensor:
        return handed_in(transport.rank, below=below).float()

    @cache
    def total(count: int, below: int) -> Tensor:
        every = (handed_in(rank, below=below) for rank in range(count))
        return sum(every, torch.zeros(1, dtype=torch.int64, device="cpu")).float()

    memory = torch.zeros(elements * at_once, device="cpu")

    def prepare() -> None:
        for work in works.values():
            work.prepare(_parts(memory, elements))

    together(transport, prepare)  # a rank may have too little memory to share
    expected = {
        name: work.expected(own(work.exact_below), partial(total, below=work.exact_below))
        for name, work in works.items()
        if transport.rank < work.workers
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    exact = dict.fromkeys(works, True)

    def repeat(name: str) -> float:
        work = works[name]
        for part, values in zip(work.inputs, _parts(own(work.exact_below), elements), strict=False):
            part.copy_(values)
        transport.barrier()
        started = transport.now()
        for number in range(at_once):
            work.run(number)
        taken = transport.now() - started
        transport.barrier()  # who is done must not take the processor from who is not
        if name in expected:
            exact[name] &= all(map(torch.equal, work.results, _parts(expected[name], elements)))
        return taken / at_once

    def turn(name: str) -> None:
        repeat(name)
        seconds[name] += [repeat(name) for _ in range(REPETITIONS)]

    started = transport.now()
    for name in works:  # to warm up
        repeat(name)
    round_seconds = (1 + REPETITIONS) * (transport.now() - started)
    longest = max(all_gather(transport, round_seconds, "say how long a turn takes"))
    # A simulated clock may stand still, and repeats itself exactly.
    turns = int(np.clip(budget / longest, FEWEST_TURNS, MOST_TURNS)) if longest else FEWEST_TURNS
    for _ in range(turns):
        for name in works:
            turn(name)
    everyone = all_gather(transport, [seconds, exact], "tell its times")
    rows = [
        Measurement(
            name,
            work.workers,
            4 * elements,
            np.max([theirs[name] for theirs, _ in everyone[: work.workers]], axis=0),
            all(right[name] for _, right in everyone[: work.workers]),
        )
        for name, work in works.items()
    ]
    return rows[:-1], rows[-1]


def _parts(memory: Tensor, elements: int) -> list[Tensor]:
    return [memory[first : first + elements] for first in range(0, len(memory), elements)]


def _distinct_integers(elements: int, rank: int, ranks: int, below: int) -> Tensor:
    """(elements,) int64, below that one as is their sum over all ranks, that differ between ranks and elements.

    The pattern of float32 repeats after 2^24/p², or more, elements: further apart than the chunks of a large buffer,
    and odd.
    """
    period = max(1, (below - 1) // ranks) | 1
    return (torch.arange(elements, dtype=torch.int64, device="cpu") * ranks + rank) % period
