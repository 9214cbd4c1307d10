"""How the examples of a global batch are divided over workers and micro-batches.

A global batch is a set of examples, the same for every arm, strategy and number of workers. Examples of different
lengths are sorted, so that little padding is computed, and dealt out so that no worker computes longer than the others.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bigbatch.training.batches import EXAMPLES, BatchPlan
from bigbatch.training.order import DataOrder

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """The examples of one global batch by worker and micro-batch.

    Attributes:
        micro_batches: for each worker, the numbers of the examples in each of its micro-batches, (examples,).
        tokens: tokens of all examples, each counted once.
        padded: (workers,) tokens that each worker computes, padding included.
    """

    micro_batches: list[list[Numbers]]
    tokens: int
    padded: Numbers

    @property
    def padding(self) -> float:
        """The share of padding among the tokens that all workers compute; NaN if there are none."""
        total = self.padded.sum()
        return float(1 - self.tokens / total) if total else float("nan")

    @property
    def imbalance(self) -> float:
        """The tokens of the worker with the most, over the mean of all workers; NaN if there are none."""
        return float(self.padded.max() / self.padded.mean()) if self.padded.any() else float("nan")


class Batches:
    """The global batches of a training, and how each is divided.

    Args:
        plan: how many examples are behind an update, and how they are divided.
        order: the order in which examples are seen.
        examples: number of examples to see in all; the last batch may be short.
        lengths: (all examples, sequences) lengths in tokens; None if they are as good as equal.
    """

    def __init__(self, plan: BatchPlan, order: DataOrder, examples: int, lengths: Numbers | None = None) -> None:
        self.plan = plan
        self.examples = examples
        self._order = order
        self._lengths = lengths
        self._borders = None if plan.unit == EXAMPLES else self._filled()
        self._last: tuple[int, Division] | None = None

    @property
    def updates(self) -> int:
        """Number of global batches."""
        return self.plan.updates(self.examples) if self._borders is None else len(self._borders) - 1

    def places(self, update: int) -> range:
        """The places, in the order of the data, of the examples in an update's global batch."""
        if self._borders is not None:
            return range(self._borders[update], self._borders[update + 1])
        first = update * self.plan.global_batch
        return range(first, min(first + self.plan.global_batch, self.examples))

    def _filled(self) -> list[int]:
        """Cuts the order of the data where one more example would make a global batch too long.

        As is the custom (fairseq's --max-tokens), a batch has the number of its examples times the longest of them. So
        it has the same examples however it is divided, and no division makes more tokens of it. An example that is
        longer than a whole batch is one by itself.
        """
        assert self._lengths is not None, "tokens can be counted only if there are lengths"
        borders, longest = [0], 0
        lengths = self._lengths[self._order.at(range(self.examples))].sum(axis=1)
        for place, length in enumerate(lengths.tolist()):
            longest = max(longest, length)
            if place > borders[-1] and (place + 1 - borders[-1]) * longest > self.plan.global_batch:
                borders.append(place)
                longest = length
        return [*borders, self.examples]

    def micro_batches(self, update: int, worker: int) -> list[Numbers]:
        """Lists the numbers of the examples in each micro-batch that a worker computes for an update.

        Args:
            update: the number of the update, from 0.
            worker: the worker's number, 0 to workers - 1.
        """
        if self._lengths is None:
            return [self._order.at(places) for places in self.plan.micro_batches(update, worker, self.examples)]
        return self.division(update).micro_batches[worker]

    def waste(self, update: int) -> tuple[float, float]:
        """The padding and the imbalance of an update's division; NaN if examples have no lengths."""
        if self._lengths is None:
            return math.nan, math.nan
        division = self.division(update)
        return division.padding, division.imbalance

    def division(self, update: int) -> Division:
        """Divides the global batch of an update, whose examples have lengths."""
        assert self._lengths is not None, "examples without lengths are divided in order"
        if self._last is None or self._last[0] != update:
            plan = self.plan
            numbers = self._order.at(self.places(update))
            self._last = update, divide(numbers, self._lengths[numbers], plan.workers, plan.accumulation)
        return self._last[1]


def divide(numbers: Numbers, lengths: Numbers, workers: int, accumulation: int) -> Division:
    """Divides examples into micro-batches of about equal padded size, and these evenly among workers.

    The examples are sorted by length and cut into workers × accumulation pieces, so that the largest piece is as small
    as can be with its padding; where two sequences differ in length, that is a little larger. The pieces go to the
    workers from the largest to the smallest, each to the worker that has the fewest tokens so far and fewer pieces than
    `accumulation`.

    Args:
        numbers: (examples,) numbers of the examples.
        lengths: (examples, sequences) their lengths, in tokens; in a micro-batch each is padded to the longest.
        workers: number of workers.
        accumulation: number of micro-batches that a worker computes at most.
    """
    order = np.lexsort((numbers, *lengths.T, lengths.sum(axis=1)))[::-1]
    numbers, lengths = numbers[order], lengths[order]
    # In this order a piece is as wide as its first example, or a little wider where two sequences differ in length.
    # To cut by the true widths takes six times as long, and saves half a percent of padding (tests/bigbatch).
    widths = lengths.sum(axis=1).tolist()
    borders = _borders(widths, workers * accumulation)
    pieces = [(first, stop) for first, stop in pairwise(borders) if first < stop]
    costs = [(stop - first) * int(lengths[first:stop].max(axis=0).sum()) for first, stop in pieces]
    micro_batches: list[list[Numbers]] = [[] for _ in range(workers)]
    padded = [0] * workers
    for cost, (first, stop) in sorted(zip(costs, pieces, strict=True), key=lambda piece: -piece[0]):
        free = [worker for worker in range(workers) if len(micro_batches[worker]) < accumulation]
        least = min(free, key=lambda worker: (padded[worker], worker))
        micro_batches[least].append(numbers[first:stop])
        padded[least] += cost
    return Division(micro_batches, int(lengths.sum()), np.array(padded, dtype=np.int64))


def _borders(widths: list[int], pieces: int) -> list[int]:
    """Cuts examples, sorted from wide to narrow, so that the largest number of examples × widest is the smallest."""
    low, high = 1, max(widths, default=1) * len(widths)
    while low < high:
        middle = (low + high) // 2
        if len(_cut(widths, middle)) <= pieces + 1:
            high = middle
        else:
            low = middle + 1
    return _cut(widths, high)


def _cut(widths: list[int], most: int) -> list[int]:
    """The places at which examples are cut into pieces of at most `most` padded tokens, or of a single example."""
    borders = [0]
    while borders[-1] < len(widths):
        borders.append(min(len(widths), borders[-1] + max(1, most // widths[borders[-1]])))
    return borders
