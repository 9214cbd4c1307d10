"""The claim about the time and the cost of reaching a loss: updates times seconds per update, checked by training."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.claims.critical_batch import fit_of
from bigbatch.experiments.figures.front import draw_front
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.study import Study
from bigbatch.experiments.laboratory.sweep import SEED_ALLOWANCE, Sweep, Tuned, only_arm, to_a_loss
from bigbatch.experiments.planning.plan import (
    Candidate,
    Deployment,
    candidates,
    duration,
    exact_front,
    ideal,
    recommended,
)
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.runs.run import Run
from bigbatch.experiments.training.simulated import computing_on
from bigbatch.experiments.training.simulation_settings import CORE

NETWORK = "ethernet-25g"

STRATEGIES = ("ring", "halving-doubling", "ps")

WORKERS, MICRO_BATCHES, ACCUMULATIONS = (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32), (1, 2, 4)

BUCKET_BYTES = 25 * 2**20

UNSEEN = 100
"""The first seed that the sweep does not use, so that its order of the data is new."""

CLOSE = 0.25
"""Largest relative difference between a training's time and its prediction that counts as held."""


class Figure(Claim):
    """The front of time against cost, predicted and then trained."""

    claim = (
        "Time to a loss is S(B) updates times the seconds of an update, and its cost is that times the workers: a "
        "bigger batch buys time for money along a curve, which communication bends away."
    )
    source = "McCandlish et al. 2018, 'An empirical model of large-batch training', section 2.3, equation 2.11"
    criterion = (
        "held if whole trainings on a simulated clock, of combinations along the predicted front, take the predicted "
        "time to within 25 % in the mean over seeds; failed if the 95 % interval of one of these means lies beyond; "
        "else it could not be told, as if the critical batch cannot, or if a training does not reach the loss"
    )
    minutes = Minutes(5, 3)

    def examine(self) -> Finding:
        """Predict the front from the sweep of critical-batch, then train some of it on a simulated clock."""
        study = self.laboratory.study
        sweep = to_a_loss(study, quick=True)  # the other one would take too long besides
        tuned = sweep.run(self.laboratory)
        fitted = fit_of(tuned)
        options = sweep.options
        asked = (
            f"Up to {WORKERS[-1]} simulated workers, each a laptop's core, over {NETWORK}, train the model of "
            f"critical-batch's quick form to {options['target']} {study.unit}: every way to make one of its batches."
        )
        behind = [run.folder for own in tuned for run in (*own.runs, *own.others)]
        if fitted is None or fitted.untold is not None:
            why = "No run reached the loss." if fitted is None else str(fitted.untold)
            return Finding(Verdict.UNTOLD, why, asked, COLUMNS, [], {"front": []}, behind)
        cluster = cluster_of(study)
        found, front = predicted(cluster, fitted.tradeoff, [own.batch for own in tuned if own.reached])
        chosen = along(front, 3 if self.quick else 5)
        trained = self._trained(sweep, tuned, chosen, range(UNSEEN, UNSEEN + (2 if self.quick else 4)))
        rows = [row_of(one, runs) for one, runs in zip(chosen, trained, strict=True)]
        verdict, sentence = judged(rows, recommended(front))
        return Finding(
            verdict,
            sentence,
            f"{asked} {len(chosen)} of the front are trained as a whole on the simulated clock, with the rates that "
            f"critical-batch has tuned and {len(trained[0])} seeds that it has not seen.",
            COLUMNS,
            rows,
            {
                "front": [asdict(one) for one in front],
                "candidates": [asdict(one) for one in found],
                "recommended": asdict(recommended(front)),
                "updates": {
                    "least_updates": fitted.tradeoff.least_updates,
                    "critical_batch": fitted.tradeoff.critical_batch,
                },
                "task": study.task,
                "unit": study.unit,
                "target": options["target"],
            },
            [*behind, *(run.folder for runs in trained for run in runs)],
        )

    def _trained(
        self, sweep: Sweep, tuned: Sequence[Tuned], chosen: Sequence[Candidate], seeds: Sequence[int]
    ) -> list[list[Run]]:
        """Whole trainings of some combinations, with those seeds each."""
        by_batch = {own.batch: own for own in tuned}
        points = [simulated_point(sweep, self.laboratory.base, by_batch, one, seed) for one in chosen for seed in seeds]
        runs = self.laboratory.runs(points)
        return [runs[first : first + len(seeds)] for first in range(0, len(runs), len(seeds))]

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw the predicted front of time and cost, with the times of the whole trainings."""
        draw_times(finding, self.laboratory.study, path)


COLUMNS = (
    Column("workers", "workers"),
    Column("strategy", "strategy"),
    Column("each", "each"),
    Column("batch", "batch, tokens"),
    Column("efficiency", "efficiency", 2),
    Column("cost", "core-seconds", 1),
    Column("predicted", "predicted, s", 1),
    Column("trained", "trained, s", 1),
    Column("trained_least", "least", 1),
    Column("trained_most", "most", 1),
    Column("ratio", "ratio", 2),
)


def cluster_of(study: Study) -> Deployment:
    """Describes the cluster on which the sweep's model is planned: a laptop's core per worker, over `NETWORK`."""
    sweep = to_a_loss(study, quick=True)
    size = study.size(sweep.options)
    computing = computing_on(CORE, size.flops_per_token)
    return Deployment(size, network_named(NETWORK), computing, BUCKET_BYTES, True, sweep.example_tokens)


def predicted(
    cluster: Deployment, tradeoff: Tradeoff, batches: Sequence[int]
) -> tuple[list[Candidate], list[Candidate]]:
    """Predicts all combinations whose batch is one of `batches`, in examples; returns them and their front."""
    everything = candidates(cluster, tradeoff, STRATEGIES, WORKERS, (1,), MICRO_BATCHES, ACCUMULATIONS)
    front, found = exact_front(cluster, tradeoff, [one for one in everything if one.examples in batches])
    return found, front


def along(front: Sequence[Candidate], count: int) -> list[Candidate]:
    """Picks `count` candidates of the front, evenly spread from end to end; fewer if the front is shorter."""
    places = np.unique(np.linspace(0, len(front) - 1, count).round().astype(int))
    return [front[place] for place in places]


def simulated_point(sweep: Sweep, base: dict[str, Any], tuned: dict[int, Tuned], one: Candidate, seed: int) -> Point:
    """Makes the point that trains one combination to the loss on a simulated clock.

    Args:
        sweep: the sweep that was tuned.
        base: options of every point, such as the user's own text.
        tuned: results of the sweep, by batch size in examples.
        one: the combination.
        seed: seed of the training.
    """
    own = tuned[one.examples]
    patience = SEED_ALLOWANCE * min(own.reached)
    options = {
        **base,
        **{name: value for name, value in sweep.options.items() if name != "noise_scale"},
        "simulate": one.workers,
        "network": NETWORK,
        "gpu": CORE,
        "micro_batch": one.micro_batch,
        "accumulate": one.accumulation,
        "learning_rate": own.rate,
        "tokens": math.ceil(patience) * one.batch,
        "seed": seed,
    }
    return Point(options, one.strategy)


def row_of(one: Candidate, runs: Sequence[Run]) -> dict[str, Any]:
    """Makes the table's row for one combination: the predicted time and the times of its trainings, in seconds."""
    seconds = [only_arm(run)["seconds_to_target"] for run in runs]
    reached = [value for value in seconds if value is not None]
    mean = float(np.exp(np.mean(np.log(reached)))) if len(reached) == len(runs) else None
    return {
        "workers": f"{one.workers}{f' + {one.servers}' if one.servers else ''}",
        "strategy": one.strategy,
        "each": f"{one.micro_batch} × {one.accumulation}",
        "batch": one.batch,
        "efficiency": one.efficiency,
        "cost": one.gpu_hours * 3600,
        "predicted": one.seconds,
        "trained": mean,
        "trained_least": min(reached, default=None),
        "trained_most": max(reached, default=None),
        "seconds": seconds,
        "ranks": one.ranks,
        "ratio": None if mean is None else mean / one.seconds,
        "uncertainty": factor_of(reached),
    }


def factor_of(seconds: Sequence[float]) -> float:
    """Computes the factor of the 95 % interval around the geometric mean of times; infinity for fewer than two."""
    from scipy.special import stdtrit

    if len(seconds) < 2:
        return math.inf
    spread = float(np.std(np.log(seconds), ddof=1)) / math.sqrt(len(seconds))
    return math.exp(float(stdtrit(len(seconds) - 1, 0.975)) * spread)


def judged(rows: Sequence[dict[str, Any]], best: Candidate) -> tuple[Verdict, str]:
    """Decides the verdict on the claim, and puts the numbers that decided it into a sentence."""
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    if len(ratios) < len(rows):
        return Verdict.UNTOLD, f"{len(rows) - len(ratios)} of {len(rows)} trainings did not reach the loss."
    sentence = (
        f"{len(rows)} whole trainings took {min(ratios):.2f} to {max(ratios):.2f} times as long as predicted. The "
        f"fastest is predicted to be {rows[-1]['predicted'] / rows[0]['predicted']:.2g} times as fast as the cheapest, "
        f"at {rows[0]['cost'] / rows[-1]['cost']:.2g} times the cost; the fastest at no more than twice the least cost "
        f"is {best.workers} worker(s) with {best.strategy}, in {duration(best.seconds)}."
    )
    if all(abs(ratio - 1) <= CLOSE for ratio in ratios):
        return Verdict.HELD, sentence
    beyond = [
        row
        for row in rows
        if row["ratio"] / row["uncertainty"] > 1 + CLOSE or row["ratio"] * row["uncertainty"] < 1 - CLOSE
    ]
    return (Verdict.FAILED if beyond else Verdict.UNTOLD), sentence


def draw_times(finding: Finding, study: Study, path: Path) -> None:
    """Draw the front as `plan` does to a PNG file, with the times of the whole trainings of a study's task."""
    front = [Candidate(**one) for one in finding.details["front"]]
    if not front:
        from bigbatch.experiments.figures.style import panels

        figure, (axis,) = panels(1, 1)
        axis.set_title(finding.sentence, loc="left", fontsize=9)
        figure.savefig(path)
        return
    found = [Candidate(**one) for one in finding.details["candidates"]]
    tradeoff = Tradeoff(**finding.details["updates"])
    cluster = cluster_of(study)
    hours = np.geomspace(min(one.gpu_hours for one in front) / 10, 10 * max(one.gpu_hours for one in front), 2000)
    trained = [
        (seconds, seconds * row["ranks"] / 3600)
        for row in finding.rows
        for seconds in row["seconds"]
        if seconds is not None
    ]
    draw_front(
        found,
        front,
        Candidate(**finding.details["recommended"]),
        (ideal(tradeoff, cluster, 1, hours), hours),
        f"A loss of {finding.details['target']} {finding.details['unit']} on cores of a laptop over {NETWORK}: "
        f"the claim {finding.verdict.value}\n"
        "points: workers × sequences at once × micro-batches; crosses: trained as a whole",
        path,
        trained=trained,
    )
