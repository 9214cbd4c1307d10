"""How a global batch is divided over workers and micro-batches, and which examples are in it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bigbatch.comm.errors import ConfigurationError

DEFAULT_BATCH, DEFAULT_ACCUMULATION = 64, 4

EXAMPLES, TOKENS = UNITS = ("examples", "tokens")
"""What batches can be counted in."""


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided: global batch = micro-batch × accumulation × workers.

    Attributes:
        micro_batch: number of examples that a worker computes at once; or of tokens, on the average.
        accumulation: number of micro-batches whose gradients a worker adds up before an update.
        workers: number of workers.
        unit: what batches are counted in, one of `UNITS`. A global batch of tokens has at most as many, each example
            counted as long as the longest in it.
    """

    micro_batch: int
    accumulation: int
    workers: int
    unit: str = EXAMPLES

    @property
    def global_batch(self) -> int:
        """Number of examples, or the most tokens, behind one update of all workers."""
        return self.micro_batch * self.accumulation * self.workers

    def examples_at_once(self, longest: int) -> int:
        """Number of examples in a micro-batch; of tokens, how many of the longest, of `longest` tokens, it takes."""
        return self.micro_batch if self.unit == EXAMPLES else max(1, self.micro_batch // longest)

    def micro_batch_tokens(self, predicted: float, read: float) -> float:
        """Computes the expected number of tokens that are predicted in a micro-batch.

        Args:
            predicted: mean number of tokens of an example that are predicted.
            read: mean number of those that are only read.
        """
        return self.micro_batch * (predicted if self.unit == EXAMPLES else predicted / (predicted + read))

    def expected_tokens(self, predicted: float, read: float) -> float:
        """Computes the expected number of tokens of all workers behind an update, as for `micro_batch_tokens`."""
        return self.workers * self.accumulation * self.micro_batch_tokens(predicted, read)

    def updates(self, examples: int) -> int:
        """Counts the updates that it takes to see this many examples; the last may have fewer than a full batch."""
        assert self.unit == EXAMPLES, "how many examples are in a batch of tokens depends on their lengths"
        return math.ceil(examples / self.global_batch)

    def micro_batches(self, update: int, worker: int, examples: int) -> Iterator[range]:
        """Lists the places in the data order of each micro-batch that one worker computes for one update.

        The order is the same for every plan with the same global batch. A last, short batch leaves some workers with
        fewer examples, or none.

        Args:
            update: the number of the update, from 0.
            worker: the worker's number, 0 to workers - 1.
            examples: number of examples in the whole run, at which the places end.
        """
        share = self.micro_batch * self.accumulation
        start = update * self.global_batch + worker * share
        stop = min(start + share, examples)
        for first in range(start, stop, self.micro_batch):
            yield range(first, min(first + self.micro_batch, stop))


def token_plan(tokens: int, workers: int | None = None, accumulation: int | None = None) -> BatchPlan:
    """Makes the plan of batches of at most `tokens` tokens; the micro-batches' sizes are rounded down.

    Args:
        tokens: tokens of a global batch, with padding.
        workers: number of workers; one by default.
        accumulation: number of micro-batches of a worker; `DEFAULT_ACCUMULATION` by default.

    Raises:
        ConfigurationError: a micro-batch would have no token.
    """
    workers, accumulation = workers or 1, accumulation or DEFAULT_ACCUMULATION
    if tokens < workers * accumulation:
        raise ConfigurationError(
            f"A batch of {tokens} tokens leaves none for each of {accumulation} micro-batches of {workers} workers: "
            f"use --batch-tokens {workers * accumulation} or more."
        )
    return BatchPlan(tokens // (workers * accumulation), accumulation, workers, TOKENS)


def derive_plan(
    workers: int | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    accumulation: int | None = None,
) -> BatchPlan:
    """Fill in the numbers that were left out of: batch size = micro-batch × accumulation × workers.

    Defaults fill in until only one number is missing: one worker, then an accumulation of 4, then a batch size of 64
    (rounded to one that the workers can share). The last missing number follows from the rest.

    Raises:
        ConfigurationError: the numbers contradict each other or do not divide; the message names the nearest that do.
    """
    for name, number in (
        ("workers", workers),
        ("batch size", batch_size),
        ("micro-batch", micro_batch),
        ("accumulation", accumulation),
    ):
        if number is not None and number < 1:
            raise ConfigurationError(f"The {name} must be at least 1, not {number}.")
    if batch_size and micro_batch and accumulation:
        product = micro_batch * accumulation
        if workers is None:
            workers = _divided(batch_size, product, f"micro-batch {micro_batch} × accumulation {accumulation}")
        elif batch_size != product * workers:
            raise ConfigurationError(
                f"Batch size {batch_size} is not micro-batch {micro_batch} × accumulation {accumulation} × {workers} "
                f"workers, which makes {product * workers}. Use --batch-size {product * workers}, or leave one out."
            )
        return BatchPlan(micro_batch, accumulation, workers)
    workers = workers or 1
    if batch_size and micro_batch:
        product = micro_batch * workers
        accumulation = _divided(batch_size, product, f"micro-batch {micro_batch} × {workers} workers")
        return BatchPlan(micro_batch, accumulation, workers)
    accumulation = accumulation or DEFAULT_ACCUMULATION
    share = accumulation * workers
    if micro_batch is None:
        if batch_size is None:
            batch_size = max(share, round(DEFAULT_BATCH / share) * share)
        micro_batch = _divided(batch_size, share, f"accumulation {accumulation} × {workers} workers")
    return BatchPlan(micro_batch, accumulation, workers)


def _divided(batch_size: int, divisor: int, of_what: str) -> int:
    quotient, rest = divmod(batch_size, divisor)
    if rest:
        nearest = [str(q * divisor) for q in (quotient, quotient + 1) if q]
        raise ConfigurationError(
            f"Batch size {batch_size} cannot be divided by {of_what} = {divisor}. The nearest batch "
            f"{'sizes that can are' if len(nearest) > 1 else 'size that can is'} {' and '.join(nearest)}."
        )
    return quotient


@dataclass(frozen=True)
class Arm:
    """One arm of an experiment: one way to divide batches. All arms of an experiment see the same tokens.

    Attributes:
        name: the arm's name: "large", "accumulated" or "small".
        plan: how the arm's batches are divided.
    """

    name: str
    plan: BatchPlan


ARMS = ("large", "accumulated", "small")


def arms_of(plan: BatchPlan) -> dict[str, Arm]:
    """Makes the three arms of an experiment from the plan of the accumulated arm.

    `large` has the same global batch, in one micro-batch per worker. `small` has one of the accumulated arm's
    micro-batches per worker, and so makes `accumulation` times as many updates.
    """
    return {
        "large": Arm("large", replace(plan, micro_batch=plan.micro_batch * plan.accumulation, accumulation=1)),
        "accumulated": Arm("accumulated", plan),
        "small": Arm("small", replace(plan, accumulation=1)),
    }
