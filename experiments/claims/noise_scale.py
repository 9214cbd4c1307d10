"""The claim that the gradient noise scale predicts the critical batch, examined at several losses."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from bigbatch.experiments.claims.critical_batch import ratio_of_means
from bigbatch.experiments.figures.style import ORANGE, VERMILION, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.laboratory.sweep import Tuned, only_arm, to_a_loss
from bigbatch.experiments.planning.tradeoff import fit
from bigbatch.experiments.runs.run import Run, first_reaching

FEWEST_UPDATES = 100
"""Fewest updates behind an estimate: twice as many as the average looks back over."""

SMALL_FACTOR = 3.0
"""Largest factor between the noise scale and the critical batch that counts as a prediction."""

STEPS = 0.1
"""Distance in nats between two of the losses at which both are compared."""

LOSSES = 6
"""Number of losses at which both are compared; the last is the sweep's target."""


class Figure(Claim):
    """The noise scale beside the critical batch, as the loss falls."""

    claim = (
        "The gradient noise scale tr Σ/|G|², which one run can measure, predicts the critical batch, which takes a "
        "sweep, to a small factor; and it grows as the loss falls."
    )
    source = "McCandlish et al. 2018, 'An empirical model of large-batch training', sections 2.2 and 3.2"
    criterion = (
        "held if at every loss for which the critical batch can be told, the noise scale is within a factor of 3 of "
        "it, and the 95 % interval of its growth from the first to the last loss, over batch sizes, is above 1; failed "
        "if a ratio is not, or the interval is below 1; else it could not be told. Runs are left out of a loss that "
        "they reach in fewer than 100 updates: the average has then not forgotten how it began"
    )
    minutes = Minutes(9, 2)

    def examine(self) -> Finding:
        """Fit the critical batch at several losses from the same runs, and read the noise scale at each loss."""
        study = self.laboratory.study
        sweep = to_a_loss(study, quick=self.quick, seeds=None if self.quick else 1)
        tuned = sweep.run(self.laboratory)
        target = float(sweep.options["target"])
        rows = [row_at(target + STEPS * step, tuned) for step in range(LOSSES - 1, -1, -1)]
        verdict, sentence = judged(rows)
        return Finding(
            verdict,
            sentence,
            f"The sweep of critical-batch with {len(sweep.seeds) - 1} seed(s) a batch size: every run, with the rate "
            "that is best for the last loss, is looked at where it passed each loss. The noise scale is smoothed over "
            "about 50 updates.",
            columns=(
                Column("loss", f"loss, nats/{study.of_text}", 1),
                Column("critical", "B_c, tokens"),
                Column("critical_low", "from"),
                Column("critical_high", "to"),
                Column("noise", "noise scale, tokens"),
                Column("noise_least", "least"),
                Column("noise_most", "most"),
                Column("ratio", "ratio", 2),
            ),
            rows=rows,
            details={"task": study.task, "unit": study.unit, "target": target},
            runs=[run.folder for own in tuned for run in (*own.runs, *own.others)],
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw the critical batch and the noise scale, in tokens, against the validation loss."""
        figure, (axis,) = panels(1, 1, width=7.5, height=5.2)
        told = [row for row in finding.rows if row["critical"] is not None]
        noisy = [row for row in finding.rows if row["noise"] is not None]
        for rows, name, label, shade, marker in (
            (told, "critical", "critical batch, fitted (95 %)", VERMILION, "o"),
            (noisy, "noise", "noise scale (least and most of all batch sizes)", "#a06a00", "s"),
        ):
            if not rows:
                continue
            ends = ("_low", "_high") if name == "critical" else ("_least", "_most")
            places, heights = [row["loss"] for row in rows], [row[name] for row in rows]
            axis.fill_between(
                places,
                [row[name + ends[0]] for row in rows],
                [row[name + ends[1]] for row in rows],
                color=shade if name == "critical" else ORANGE,
                alpha=0.18,
                linewidth=0,
            )
            axis.plot(places, heights, color=shade, marker=marker, linestyle="-" if name == "critical" else "--")
            above = 14 if name == "critical" else -20
            axis.annotate(
                label, (places[0], heights[0]), (4, above), textcoords="offset points", color=shade, fontsize=9
            )
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.invert_xaxis()
        axis.set_xlabel(f"validation loss ({finding.details['unit']}), falling as training goes on")
        axis.set_ylabel("batch (tokens)")
        axis.set_title(f"The noise scale and the critical batch: the claim {finding.verdict.value}", loc="left")
        figure.savefig(path)


def updates_to(run: Run, loss: float) -> float:
    """Counts the updates that a run took to reach a loss; infinity if it did not reach it."""
    curve = run.curve(only_arm(run)["name"], "validation")
    found = first_reaching([record["update"] for record in curve], [record["loss"] for record in curve], loss)
    return math.inf if found is None else found


def estimates_at(run: Run, loss: float) -> tuple[float, float] | None:
    """Reads a run's estimates of (|G|², tr Σ of one example) at a loss; None if reached too early or not at all."""
    updates = updates_to(run, loss)
    if not FEWEST_UPDATES <= updates < math.inf:
        return None
    curve = run.curve(only_arm(run)["name"], "update")
    record = curve[min(len(curve), max(1, round(updates))) - 1]
    square, variance = record.get("gradient_square"), record.get("gradient_variance")
    return None if square is None or variance is None else (square, variance)


def noise_at(runs: Sequence[Run], loss: float, example_tokens: float) -> float | None:
    """Computes the noise scale at a loss over several runs, in tokens, as a ratio of means; None if not known."""
    known = [estimates for run in runs if (estimates := estimates_at(run, loss)) is not None]
    return ratio_of_means(known, example_tokens)


def row_at(loss: float, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """Makes the table's row for one loss: the critical batch and the noise scale there, in tokens."""
    example_tokens = tuned[0].example_tokens
    points = [(own.tokens, updates_to(run, loss)) for own in tuned for run in own.runs]
    reached = [point for point in points if math.isfinite(point[1])]
    fitted = fit(*zip(*reached, strict=True)) if reached else None
    told = fitted is not None and fitted.untold is None
    by_batch = {own.batch: noise for own in tuned if (noise := noise_at(own.runs, loss, example_tokens)) is not None}
    noise = noise_at([run for own in tuned for run in own.runs], loss, example_tokens)
    critical = fitted.tradeoff.critical_batch if fitted is not None and told else None
    return {
        "loss": loss,
        "critical": critical,
        "critical_low": fitted.critical_batch[0] if fitted is not None and told else None,
        "critical_high": fitted.critical_batch[1] if fitted is not None and told else None,
        "noise": noise,
        "noise_least": min(by_batch.values(), default=None),
        "noise_most": max(by_batch.values(), default=None),
        "by_batch": {str(batch): value for batch, value in by_batch.items()},
        "ratio": noise / critical if noise is not None and critical is not None else None,
    }


def judged(rows: Sequence[dict[str, Any]]) -> tuple[Verdict, str]:
    """Decides the verdict on the claim, and puts the numbers that decided it into a sentence."""
    told = [row for row in rows if row["ratio"] is not None]
    if len(told) < 2:
        critical = sum(row["critical"] is not None for row in rows)
        noise = sum(row["noise"] is not None for row in rows)
        return Verdict.UNTOLD, (
            f"Of {len(rows)} losses, the critical batch could be told at {critical} and the noise scale at {noise}; it "
            f"takes two with both, and there are {len(told)}."
        )
    ratios = [row["ratio"] for row in told]
    first, last = told[0], told[-1]
    middle, low, high = growth(first["by_batch"], last["by_batch"])
    sentence = (
        f"The noise scale is {min(ratios):.2g} to {max(ratios):.2g} times the critical batch at {len(told)} losses; "
        f"from {first['loss']:.1f} to {last['loss']:.1f} nats it becomes {middle:.2g} times as large ({low:.2g} to "
        f"{high:.2g}, by batch size), and the critical batch {last['critical'] / first['critical']:.2g} times."
    )
    if not all(1 / SMALL_FACTOR <= ratio <= SMALL_FACTOR for ratio in ratios) or high < 1:
        return Verdict.FAILED, sentence
    return (Verdict.HELD if low > 1 else Verdict.UNTOLD), sentence


def growth(first: dict[str, float], last: dict[str, float]) -> tuple[float, float, float]:
    """Computes by which factor the noise scale grew, with its 95 % interval over the batch sizes that have both values.

    The factor is a geometric mean, and the interval comes from Student's t of the logarithms. With fewer than two batch
    sizes the interval is unbounded.
    """
    from scipy.special import stdtrit

    logs = np.log([last[batch] / value for batch, value in first.items() if batch in last])
    if len(logs) < 2:
        return (math.exp(logs[0]) if len(logs) else math.nan), 0.0, math.inf
    half = float(stdtrit(len(logs) - 1, 0.975)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return math.exp(logs.mean()), math.exp(logs.mean() - half), math.exp(logs.mean() + half)
