"""Sweeps: the same training at several batch sizes, each with a learning rate that was tuned for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigbatch.experiments.laboratory.laboratory import Inquiry, Laboratory
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.runs.run import Run

STEP = 2.0
"""Learning rates are tried in factors of this."""

MOST_WIDENINGS = 6
"""How often a grid whose optimum lies at its edge is widened, at most."""

CERTAIN = 1.25
"""A learning rate is given up when it has made so many times as many updates as the best one so far took."""

SEED_ALLOWANCE = 3.0
"""Other seeds with the best learning rate may take so many times as many updates as the first."""


@dataclass(frozen=True)
class Tuned:
    """What came of one batch size.

    Attributes:
        batch: examples behind an update.
        rate: the learning rate that was best for the seed with which it was tuned.
        tried: learning rate -> how it did with that seed, as the sweep scores; infinity if it failed.
        scores: of each other seed, with the best rate: whoever was the best of several is not counted as if it had not
            been chosen.
        runs: of those seeds.
        others: runs with which the rate was tuned.
    """

    batch: int
    rate: float
    tried: Mapping[float, float]
    scores: tuple[float, ...]
    runs: tuple[Run, ...]
    others: tuple[Run, ...]

    @property
    def reached(self) -> list[float]:
        """The scores of the seeds that did not fail."""
        return [score for score in self.scores if math.isfinite(score)]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest that was tried, however often the grid was widened."""
        return self.rate in (min(self.tried), max(self.tried))


def only_arm(run: Run) -> dict[str, Any]:
    """The results of a point's run, which has one arm."""
    arm: dict[str, Any] = run.summary["arms"][0]
    return arm


def updates_to_target(run: Run) -> float:
    """How many updates a run took to its target, one at least; infinity if it did not reach it."""
    updates = only_arm(run)["updates_to_target"]
    return math.inf if updates is None else max(1.0, float(updates))


def validation_loss(run: Run) -> float:
    """A run's last validation loss, in nats per token; infinity if it is no number."""
    loss = only_arm(run)["validation_loss"]
    return math.inf if loss is None else float(loss)


@dataclass(frozen=True)
class Sweep:
    """The same training at several batch sizes.

    The grid of learning rates has steps of a factor of 2. It begins with `rate` and its two neighbours, and grows as
    long as the best is at its edge; if all three fail, the batch size is given up.

    Attributes:
        options: of all points.
        batches: examples behind an update.
        rate: the learning rate with which the search begins, by batch size.
        tokens: that a run may take, by batch size.
        score: of a run; the lower the better, infinity if it failed.
        seeds: which; the rate is tuned with the first, and the others are run with the best.
        races: whether the score is a number of updates, so that a rate can be given up once another was quicker. The
            schedule is then a constant one: others would be shorter for runs that may take fewer updates.
    """

    options: Mapping[str, Any]
    batches: Sequence[int]
    rate: Callable[[int], float]
    tokens: Callable[[int], int]
    score: Callable[[Run], float]
    seeds: Sequence[int]
    races: bool

    def run(self, laboratory: Laboratory) -> list[Tuned]:
        """Train it; what comes of each batch size, in the order of `batches`.

        Raises:
            BigBatchError: a point cannot be trained.
        """
        return run_all([self], laboratory)[0]

    def point(self, laboratory: Laboratory, batch: int, rate: float, updates: float, seed: int) -> Point:
        """One training: at most so many updates, rounded so that points are asked for alike again."""
        example = int(self.options["context"])
        tokens = min(self.tokens(batch), math.ceil(updates) * batch * example if math.isfinite(updates) else math.inf)
        plan = {"batch_size": batch, "learning_rate": rate, "tokens": int(tokens), "seed": seed}
        return Point({**laboratory.base, **self.options, **divided(batch), **plan})

    def tune(self, laboratory: Laboratory, batch: int) -> Inquiry[Tuned]:
        """Find the best rate of one batch size."""
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
        return Tuned(batch, rate, tried, tuple(map(self.score, own)), tuple(own), tuple(runs.values()))


def run_all(sweeps: Sequence[Sweep], laboratory: Laboratory) -> list[list[Tuned]]:
    """Train several sweeps at the same time, the largest batches first, as they mostly take longest.

    Raises:
        BigBatchError: a point cannot be trained.
    """
    asked = [(number, batch) for number, sweep in enumerate(sweeps) for batch in sweep.batches]
    asked.sort(key=lambda one: -one[1])
    found = laboratory.inquire([sweeps[number].tune(laboratory, batch) for number, batch in asked])
    by_batch = dict(zip(asked, found, strict=True))
    return [[by_batch[number, batch] for batch in sweep.batches] for number, sweep in enumerate(sweeps)]


MOST_AT_ONCE = 32
"""Examples of a micro-batch: more are not computed any faster here."""


def divided(batch: int) -> dict[str, int]:
    """How a batch is computed in one process: in two micro-batches at least, from which to measure the noise."""
    sizes = [size for size in range(1, min(MOST_AT_ONCE, batch // 2) + 1) if batch % size == 0]
    return {"micro_batch": max(sizes, default=1)}


CONTEXT = 32
"""Tokens of an example in the sweep that several figures share."""


def to_a_loss(*, quick: bool, seeds: int | None = None) -> Sweep:
    """The sweep from which several figures are made: updates of a small Transformer to a loss, by batch size.

    Bytes of real text; one layer and two seeds if it is quick, else two layers, a lower loss, more batch sizes and
    three seeds, besides the one to tune with. Adam without decay, at a constant rate. The noise scale is measured on
    the way.

    Args:
        quick: in its smallest form.
        seeds: fewer than those, to use some of its runs alone.
    """
    options = {
        "target": 2.6 if quick else 2.3,
        "layers": 1 if quick else 2,
        "width": 64,
        "heads": 4,
        "context": CONTEXT,
        "vocabulary": 257,
        "optimizer": "adam",
        "validation_tokens": 2048 if quick else 8192,
        "noise_scale": True,
    }
    return Sweep(
        options,
        batches=(4, 8, 16, 32, 64, 128, 256) if quick else (2, 4, 8, 16, 32, 64, 128, 256, 512),
        rate=lambda batch: 1e-3 if batch < 16 else 2e-3,
        tokens=lambda batch: (1_000_000 if quick else 2_000_000) + 20_000 * batch,
        score=updates_to_target,
        seeds=range(1 + (seeds or (2 if quick else 3))),
        races=True,
    )
