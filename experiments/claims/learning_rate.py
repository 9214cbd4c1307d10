"""The claim about how the best learning rate grows with the batch size, for SGD and for Adam."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from bigbatch.experiments.figures.style import BLUE, GREY, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.laboratory.sweep import STEP, Sweep, Tuned, run_all, validation_loss

SMALL = 8
"""Largest batch, in examples, that the exponent is fitted to: the rules hold well below the critical batch.

If the critical batch is about 30, as critical-batch finds in its quick form, and the best rate of SGD is
η_max/(1 + B_c/B) (McCandlish et al. 2018, section 2.2), the exponent from 1 to 8 is still 0.91 of that far below.
"""


@dataclass(frozen=True)
class Rule:
    """The claimed scaling rule of one optimiser: its best rate is proportional to a power of the batch size.

    Attributes:
        optimizer: name of the optimiser.
        options: the options with which it is tuned.
        exponent: the claimed power of the batch size.
        start: the learning rate with which tuning starts, meant for a batch of `SMALL` examples.
    """

    optimizer: str
    options: dict[str, Any]
    exponent: float
    start: float

    def factor(self, batch: int) -> float:
        """Returns the factor by which the scaling rule multiplies a learning rate at a batch size in examples."""
        return math.sqrt(batch / SMALL) if self.options.get("scaling") == "sqrt" else 1.0


RULES = (
    Rule("sgd", {"optimizer": "sgd"}, 1.0, 0.05),
    # The rule is one for the moments too, so they follow it, and the rate is tuned on top.
    Rule("adam", {"optimizer": "adam", "scaling": "sqrt", "base_batch": SMALL}, 0.5, 1e-3),
)


class Figure(Claim):
    """The best rate by batch size."""

    claim = (
        "Below the critical batch, the best learning rate is in proportion to the batch for SGD, and to its square "
        "root for Adam, whose moments then remember as many examples as before."
    )
    source = (
        "Goyal et al. 2017, 'Accurate, large minibatch SGD', section 2.1; Malladi et al. 2022, 'On the SDEs and "
        "scaling rules for adaptive gradient algorithms'"
    )
    criterion = (
        "held if the 95 % interval of the exponent, from the batches of at most 8 examples, has 1 and not ½ in it for "
        "SGD, and ½ but neither 0 nor 1 for Adam; failed if one does not have its own exponent in it; else it could "
        "not be told"
    )
    minutes = Minutes(7, 1)

    def examine(self) -> Finding:
        """Tune the rate of each optimiser, batch size and seed, on the same number of tokens, and fit the exponents."""
        study = self.laboratory.study
        tokens = 30_000 if self.quick else 200_000
        batches = (2, 8, 32) if self.quick else (1, 2, 4, 8, 16, 32, 64)
        seeds = range(2 if self.quick else 3)
        sweeps = [
            Sweep(
                {
                    "layers": 1,
                    "width": 64,
                    "heads": 4,
                    **study.options,
                    "validation_tokens": study.validation_tokens(8192),
                    **rule.options,
                },
                study.example_tokens,
                batches,
                rate=lambda _, rule=rule: rule.start,  # type: ignore[misc]
                tokens=lambda _: tokens,
                score=validation_loss,
                seeds=(seed,),
                races=False,
            )
            for rule in RULES
            for seed in seeds
        ]
        results = run_all(sweeps, self.laboratory)
        rows, exponents = [], {}
        for number, rule in enumerate(RULES):
            by_seed = results[number * len(seeds) : (number + 1) * len(seeds)]
            own = [row_of(rule, [result[place] for result in by_seed]) for place in range(len(batches))]
            exponents[rule.optimizer] = exponent_of(own)
            rows += own
        verdict, sentence = judged(exponents)
        return Finding(
            verdict,
            sentence,
            f"Trainings of one layer of width 64{study.model_words} on {tokens:,} {study.of_text}s each, {len(seeds)} "
            "seeds, each of which has its own grid of learning rates in factors of 2, as wide as it takes; the best is "
            "where a parabola through the best three has its least validation loss.",
            columns=(
                Column("optimizer", "optimiser"),
                Column("batch", "batch, examples"),
                Column("rate", "best rate", None),
                Column("rate_least", "least", None),
                Column("rate_most", "most", None),
                Column("loss", "its loss", 3),
                Column("tried", "rates tried"),
            ),
            rows=rows,
            details={"task": study.task, "unit": study.unit, "exponents": exponents, "small": SMALL},
            runs=[run.folder for result in results for tuned in result for run in (*tuned.runs, *tuned.others)],
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw best rates against batch sizes, and losses against rates, for each optimiser."""
        draw_rates(finding, path)


def row_of(rule: Rule, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """Makes the table's row for one optimiser and batch size, over the seeds."""
    batch = tuned[0].batch
    factor = rule.factor(batch)
    rates = [factor * refined(own) for own in tuned if math.isfinite(own.tried[own.rate])]
    everything = {rate for own in tuned for rate in own.tried}
    losses = {
        f"{factor * rate:.6g}": [own.tried[rate] for own in tuned if math.isfinite(own.tried.get(rate, math.inf))]
        for rate in sorted(everything)
    }
    return {
        "optimizer": rule.optimizer,
        "batch": batch,
        "rate": float(np.exp(np.mean(np.log(rates)))) if rates else None,
        "rate_least": min(rates, default=None),
        "rate_most": max(rates, default=None),
        "rates": rates,
        "loss": float(np.mean([own.tried[own.rate] for own in tuned])) if len(rates) == len(tuned) else None,
        "losses": losses,
        "tried": f"{factor * min(everything):.2g} to {factor * max(everything):.2g}"
        f"{'*' if any(own.at_edge for own in tuned) else ''}",
        "at_edge": any(own.at_edge for own in tuned),
    }


def refined(tuned: Tuned) -> float:
    """Refines the best rate: the minimum of a parabola, in log rate, through the best rate tried and its neighbours."""
    best = tuned.rate
    below, middle, above = (tuned.tried.get(rate, math.inf) for rate in (best / STEP, best, best * STEP))
    bend = below - 2 * middle + above
    if not math.isfinite(bend) or bend <= 0:
        return best
    return best * math.pow(STEP, min(0.5, max(-0.5, (below - above) / (2 * bend))))


def exponent_of(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Fits the slope of log best rate over log batch size, with its 95 % interval, to small batches and all seeds."""
    from scipy.special import stdtrit

    points = [
        (math.log(row["batch"]), math.log(rate)) for row in rows if row["batch"] <= SMALL for rate in row["rates"]
    ]
    places, heights = np.array(points).T
    spread = float(np.square(places - places.mean()).sum())
    slope = float(((places - places.mean()) * heights).sum() / spread)
    level = float(heights.mean() - slope * places.mean())
    spare = len(points) - 2
    error = math.sqrt(float(np.square(heights - level - slope * places).sum()) / spare / spread)
    half = float(stdtrit(spare, 0.975)) * error
    return {"exponent": slope, "low": slope - half, "high": slope + half, "level": level}


def judged(exponents: dict[str, dict[str, Any]]) -> tuple[Verdict, str]:
    """Decides the verdict on the claim, and puts the fitted exponents that decided it into a sentence."""

    def contains(name: str, value: float) -> bool:
        return bool(exponents[name]["low"] <= value <= exponents[name]["high"])

    clauses = [
        f"{rule.optimizer} {exponents[rule.optimizer]['exponent']:.2f} ({exponents[rule.optimizer]['low']:.2f} to "
        f"{exponents[rule.optimizer]['high']:.2f}), where {rule.exponent:g} is claimed"
        for rule in RULES
    ]
    sentence = f"The best rate grows with the batch to the power of: {'; '.join(clauses)}."
    own = [contains(rule.optimizer, rule.exponent) for rule in RULES]
    if not all(own):
        return Verdict.FAILED, sentence
    others = contains("sgd", 0.5) or contains("adam", 1.0) or contains("adam", 0.0)
    return (Verdict.UNTOLD if others else Verdict.HELD), sentence


def draw_rates(finding: Finding, path: Path) -> None:
    """Draw best rates against batch sizes, and losses against rates, for each optimiser."""
    figure, axes = panels(2, len(RULES), width=5.8 * len(RULES), height=8.4)
    for number, rule in enumerate(RULES):
        rows = [row for row in finding.rows if row["optimizer"] == rule.optimizer]
        best, losses = axes[number], axes[len(RULES) + number]
        batches = np.array([row["batch"] for row in rows], dtype=float)
        for row in rows:
            best.plot([row["batch"]] * len(row["rates"]), row["rates"], "o", color=BLUE, alpha=0.8, markersize=5)
        exponent = finding.details["exponents"][rule.optimizer]
        small = batches[batches <= SMALL]
        best.plot(small, np.exp(exponent["level"]) * small ** exponent["exponent"], color=BLUE, linewidth=1.6)
        middle = math.exp(float(np.log(small).mean()))
        height = math.exp(exponent["level"]) * middle ** exponent["exponent"]
        for power, line in ((0.5, ":"), (1.0, "--")):
            ideal = height * (batches / middle) ** power
            best.plot(batches, ideal, line, color=GREY, linewidth=1)
            label = "∝ √B" if power == 0.5 else "∝ B"
            best.annotate(
                label, (batches[-1], ideal[-1]), (3, -3), textcoords="offset points", color="#555555", fontsize=8
            )
        best.axvline(SMALL, color=GREY, linewidth=0.6)
        best.annotate(
            "fitted up to here",
            (SMALL, 0.02),
            (3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color="#555555",
        )
        best.set_xscale("log", base=2)
        best.set_yscale("log", base=2)
        best.set_xticks(batches, [f"{batch:g}" for batch in batches])
        best.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        best.xaxis.set_minor_locator(NullLocator())
        best.set_xlabel("batch (examples)")
        best.set_ylabel("best learning rate, a dot a seed")
        best.set_title(f"{rule.optimizer}: exponent {exponent['exponent']:.2f}, claimed {rule.exponent:g}", loc="left")
        _losses(losses, rows, finding.details["unit"])
    figure.suptitle(f"The best learning rate by batch size: the claim {finding.verdict.value}", x=0.01, ha="left")
    figure.savefig(path)


def _losses(axis: Any, rows: Sequence[Any], unit: str) -> None:
    """Mean loss over the seeds against the rate, a line for each batch size; those that came to nothing are cut off."""
    least = min((row["loss"] for row in rows if row["loss"] is not None), default=0.0)
    for number, row in enumerate(rows):
        points = [(float(rate), float(np.mean(found))) for rate, found in row["losses"].items() if found]
        points = [point for point in points if point[1] < least + 1.5]
        if not points:
            continue
        shade = (number + 0.5) / len(rows)
        colour = (*(np.array([0.0, 0.447, 0.698]) * (1 - shade) + np.array([0.835, 0.369, 0.0]) * shade),)
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, color=colour)
        at = min(points, key=lambda point: point[1])
        axis.annotate(
            f"{row['batch']}", at, (0, -11), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"validation loss ({unit})")
    axis.margins(y=0.12)
    axis.set_title("Loss by rate; at each minimum, the batch", loc="left", fontsize=10)
