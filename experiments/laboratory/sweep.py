"""Sweeps: the same training at several batch sizes, each with a learning rate that is tuned for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigbatch.experiments.laboratory.laboratory import Inquiry, Laboratory
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.study import MORE_TOKENS, Study
from bigbatch.experiments.runs.run import Run

STEP = 2.0
"""Factor between neighbouring learning rates of the grid."""

MOST_WIDENINGS = 6
"""Largest number of times that a grid whose optimum lies at its edge is widened."""

CERTAIN = 1.25
"""A learning rate is given up after this many times as many updates as the best rate so far took."""

SEED_ALLOWANCE = 3.0
"""Other seeds with the best learning rate may take up to this many times as many updates as the first seed."""


@dataclass(frozen=True)
class Tuned:
    """The results of a sweep at one batch size: the tuned learning rate and the scores with it.

    Attributes:
        batch: number of examples behind an update.
        rate: the learning rate that was best for the seed with which it was tuned.
        tried: the score of each learning rate that was tried with that seed; infinity if it failed.
        scores: the scores of the other seeds with the best rate. The tuning seed is left out, since its score was
            chosen as the best of several.
        runs: the runs of the other seeds.
        others: the runs with which the rate was tuned.
        example_tokens: mean number of tokens in an example.
    """

    batch: int
    rate: float
    tried: Mapping[float, float]
    scores: tuple[float, ...]
    runs: tuple[Run, ...]
    others: tuple[Run, ...]
    example_tokens: float

    @property
    def tokens(self) -> int:
        """The number of tokens behind an update, in the mean."""
        return round(self.batch * self.example_tokens)

    @property
    def reached(self) -> list[float]:
        """The scores of the other seeds that did not fail."""
        return [score for score in self.scores if math.isfinite(score)]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is still the lowest or the highest that was tried, after all widening."""
        return self.rate in (min(self.tried), max(self.tried))


def only_arm(run: Run) -> dict[str, Any]:
    """Returns the summary's row of the only arm of a point's run."""
    arm: dict[str, Any] = run.summary["arms"][0]
    return arm


def updates_to_target(run: Run) -> float:
    """Counts the updates that a run took to reach its target, at least one; infinity if it did not reach it."""
    updates = only_arm(run)["updates_to_target"]
    return math.inf if updates is None else max(1.0, float(updates))


def validation_loss(run: Run) -> float:
    """Returns a run's last validation loss, in nats per token; infinity if it is not a number."""
    loss = only_arm(run)["validation_loss"]
    return math.inf if loss is None else float(loss)


@dataclass(frozen=True)
class Sweep:
    """The same training at several batch sizes, with the learning rate tuned at each.

    The grid of learning rates has steps of a factor of 2. It starts with `rate` and its two neighbours, and grows as
    long as the best rate is at its edge. If the first three rates fail, the batch size is given up.

    Attributes:
        options: options of all points.
        example_tokens: mean number of tokens in an example.
        batches: batch sizes, in examples behind an update.
        rate: the learning rate with which the search starts, for each batch size.
        tokens: the most tokens that a run may train on, for each batch size.
        score: the score of a run, of which lower is better; infinity if the run failed.
        seeds: seeds of the runs; the rate is tuned with the first, and the others are run with the best rate.
        races: whether the score is a number of updates, so that a rate can be given up once another was quicker. The
            schedule must then be constant, since any other would change for runs that may make fewer updates.
    """

    options: Mapping[str, Any]
    example_tokens: float
    batches: Sequence[int]
    rate: Callable[[int], float]
    tokens: Callable[[int], int]
    score: Callable[[Run], float]
    seeds: Sequence[int]
    races: bool

    def run(self, laboratory: Laboratory) -> list[Tuned]:
        """Train the sweep, and return the results of each batch size in the order of `batches`.

        Raises:
            BigBatchError: a point cannot be trained.
        """
        return run_all([self], laboratory)[0]

    def point(self, laboratory: Laboratory, batch: int, rate: float, updates: float, seed: int) -> Point:
        """Makes the point of one training of at most `updates` updates, rounded up so that the same points recur."""
        most = math.ceil(updates) * batch * self.example_tokens if math.isfinite(updates) else math.inf
        tokens = min(self.tokens(batch), most)
        plan = {"batch_size": batch, "learning_rate": rate, "tokens": int(tokens), "seed": seed}
        return Point({**laboratory.base, **self.options, **divided(batch), **plan})

    def tune(self, laboratory: Laboratory, batch: int) -> Inquiry[Tuned]:
        """Tune the learning rate at one batch size, in examples, and run the other seeds with the best rate."""
        start = self.rate(batch)
        runs: dict[float, Run] = {}
        tried: dict[float, float] = {}

        def best() -> float:
            """The best rate; the lowest, if all have failed."""
            return min(sorted(tried), key=tried.__getitem__)

        wanted = [start]
        for _ in range(2 + MOST_WIDENINGS):
            patience = CERTAIN * tried[best()] if tried and self.races else math.inf
            made = yield [self.point(laboratory, batch, rate, patience, self.seeds[0]) for rate in wanted]
            runs |= zip(wanted, made, strict=True)
            tried |= {rate: self.score(run) for rate, run in zip(wanted, made, strict=True)}
            around = (best() / STEP, best() * STEP)
            wanted = [rate for rate in around if rate not in tried]
            hopeless = len(tried) >= 3 and not any(map(math.isfinite, tried.values()))
            if not wanted or hopeless:
                break
        rate = best()
        patience = SEED_ALLOWANCE * tried[rate] if self.races else math.inf
        seeds = self.seeds[1:] if math.isfinite(tried[rate]) else ()
        own = yield [self.point(laboratory, batch, rate, patience, seed) for seed in seeds]
        scores = tuple(map(self.score, own))
        return Tuned(batch, rate, tried, scores, tuple(own), tuple(runs.values()), self.example_tokens)


def run_all(sweeps: Sequence[Sweep], laboratory: Laboratory) -> list[list[Tuned]]:
    """Train several sweeps at the same time, with the largest batches first, since they mostly take longest.

    Raises:
        BigBatchError: a point cannot be trained.
    """
    asked = [(number, batch) for number, sweep in enumerate(sweeps) for batch in sweep.batches]
    asked.sort(key=lambda one: -one[1])
    found = laboratory.inquire([sweeps[number].tune(laboratory, batch) for number, batch in asked])
    by_batch = dict(zip(asked, found, strict=True))
    return [[by_batch[number, batch] for batch in sweep.batches] for number, sweep in enumerate(sweeps)]


MOST_AT_ONCE = 32
"""Largest micro-batch, in examples: larger ones are not computed any faster on a CPU core."""


def divided(batch: int) -> dict[str, int]:
    """Divides a batch for one process into at least two micro-batches, from which the noise scale can be measured."""
    sizes = [size for size in range(1, min(MOST_AT_ONCE, batch // 2) + 1) if batch % size == 0]
    return {"micro_batch": max(sizes, default=1)}


def to_a_loss(study: Study, *, quick: bool, seeds: int | None = None) -> Sweep:
    """Makes the sweep that several figures share: updates of a small Transformer to a loss, by batch size.

    The quick form has one layer and two seeds; the full form has two layers, a lower loss, more batch sizes and three
    seeds. One more seed is for tuning. The optimiser is Adam without weight decay, at a constant rate. The noise scale
    is measured during training.

    Args:
        study: what is trained, and how far.
        quick: whether to make the sweep in its smallest form.
        seeds: a smaller number of seeds, to use only some of the sweep's runs; None for all.

    Raises:
        ConfigurationError: the task's data cannot be used.
    """
    reach = study.reach(quick=quick)
    options = {
        "target": reach.target,
        "layers": 1 if quick else 2,
        "width": 64,
        "heads": 4,
        **study.options,
        "optimizer": "adam",
        "validation_tokens": reach.validation_tokens,
        "noise_scale": True,
    }
    return Sweep(
        options,
        study.example_tokens,
        batches=reach.batches,
        rate=lambda batch: study.rates[batch >= 16],
        tokens=lambda batch: reach.tokens + MORE_TOKENS * batch,
        score=updates_to_target,
        seeds=range(1 + (seeds or (2 if quick else 3))),
        races=True,
    )
