"""Whether the gradient noise scale tells the critical batch, loss by loss."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from bigbatch.experiments.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.figures.style import ORANGE, VERMILION, panels
from bigbatch.experiments.run import Run, first_reaching
from bigbatch.experiments.sweep import CONTEXT, Tuned, only_arm, to_a_loss
from bigbatch.experiments.tradeoff import fit

SMALL_FACTOR = 3.0
"""Times that the noise scale may be more or less than the critical batch, to predict it."""

STEPS = 0.1
"""Losses looked at are so many nats apart ..."""

LOSSES = 6
"""... and so many, the last of which is the sweep's target."""


class Figure(Claim):
    """The noise scale beside the critical batch, as the loss falls."""

    claim = (
        "The gradient noise scale tr Σ/|G|², which one run can measure, predicts the critical batch, which takes a "
        "sweep, to a small factor; and it grows as the loss falls."
    )
    source = "McCandlish et al. 2018, 'An empirical model of large-batch training', sections 2.2 and 3.2"
    criterion = (
        "held if at every loss for which the critical batch can be told, the noise scale is within a factor of 3 of "
        "it, and it is larger at the last of these losses than at the first; failed if not; two such losses are needed"
    )
    minutes = Minutes(10, 2)

    def examine(self) -> Finding:
        """Fit the critical batch at several losses, from the same runs, and take their noise scales there."""
        sweep = to_a_loss(quick=self.quick, seeds=None if self.quick else 1)
        tuned = sweep.run(self.laboratory)
        target = float(sweep.options["target"])
        rows = [row_at(target + STEPS * step, tuned) for step in range(LOSSES - 1, -1, -1)]
        verdict, sentence = judged(rows)
        return Finding(
            verdict,
            sentence,
            f"The sweep of critical-batch with {len(sweep.seeds)} seed(s) a batch size: every run is looked at where "
            "it passed each loss. The noise scale is that of the runs with the best rates, smoothed over about 50 "
            "updates.",
            columns=(
                Column("loss", "loss, nats/byte", 1),
                Column("critical", "B_c, tokens"),
                Column("critical_low", "from"),
                Column("critical_high", "to"),
                Column("noise", "noise scale, tokens"),
                Column("noise_least", "least"),
                Column("noise_most", "most"),
                Column("ratio", "ratio", 2),
            ),
            rows=rows,
            details={"target": target},
            runs=[run.folder for own in tuned for run in (*own.runs, *own.others)],
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Both against the loss."""
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
        axis.set_xlabel("validation loss (nats per byte), falling as training goes on")
        axis.set_ylabel("batch (tokens)")
        axis.set_title(f"The noise scale and the critical batch: the claim {finding.verdict.value}", loc="left")
        figure.savefig(path)


def updates_to(run: Run, loss: float) -> float:
    """How many updates a run took to a loss that it passed on its way; infinity if it did not."""
    curve = run.curve(only_arm(run)["name"], "validation")
    found = first_reaching([record["update"] for record in curve], [record["loss"] for record in curve], loss)
    return math.inf if found is None else found


def estimates_at(run: Run, loss: float) -> tuple[float, float] | None:
    """(|G|², tr Σ of an example) as estimated where a run passed a loss; None if it did not, or had no estimate."""
    updates = updates_to(run, loss)
    if not math.isfinite(updates):
        return None
    curve = run.curve(only_arm(run)["name"], "update")
    record = curve[min(len(curve), max(1, round(updates))) - 1]
    square, variance = record.get("gradient_square"), record.get("gradient_variance")
    return None if square is None or variance is None else (square, variance)


def noise_at(runs: Sequence[Run], loss: float) -> float | None:
    """The noise scale of runs where they passed a loss, in tokens: the ratio of means; None if it is not known."""
    known = [estimates for run in runs if (estimates := estimates_at(run, loss)) is not None]
    square = sum(estimates[0] for estimates in known)
    return CONTEXT * sum(estimates[1] for estimates in known) / square if square > 0 else None


def row_at(loss: float, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """Critical batch and noise scale at one loss."""
    points = []
    for own in tuned:
        first = min(updates_to(run, loss) for run in (own.runs[0], *own.others))  # the rate that is best for this loss
        points += [(own.batch * CONTEXT, count) for count in (first, *(updates_to(run, loss) for run in own.runs[1:]))]
    reached = [point for point in points if math.isfinite(point[1])]
    fitted = fit(*zip(*reached, strict=True)) if reached else None
    told = fitted is not None and fitted.untold is None
    each = [noise for own in tuned if (noise := noise_at(own.runs, loss)) is not None]
    noise = noise_at([run for own in tuned for run in own.runs], loss)
    critical = fitted.tradeoff.critical_batch if fitted is not None and told else None
    return {
        "loss": loss,
        "critical": critical,
        "critical_low": fitted.critical_batch[0] if fitted is not None and told else None,
        "critical_high": fitted.critical_batch[1] if fitted is not None and told else None,
        "noise": noise,
        "noise_least": min(each, default=None),
        "noise_most": max(each, default=None),
        "ratio": noise / critical if noise is not None and critical is not None else None,
    }


def judged(rows: Sequence[dict[str, Any]]) -> tuple[Verdict, str]:
    """The verdict, and what it was decided by."""
    told = [row for row in rows if row["ratio"] is not None]
    if len(told) < 2:
        return Verdict.UNTOLD, f"The critical batch could be told at {len(told)} of {len(rows)} losses; it takes two."
    ratios = [row["ratio"] for row in told]
    first, last = told[0], told[-1]
    growth = last["noise"] / first["noise"]
    close = all(1 / SMALL_FACTOR <= ratio <= SMALL_FACTOR for ratio in ratios)
    sentence = (
        f"The noise scale is {min(ratios):.2g} to {max(ratios):.2g} times the critical batch at {len(told)} losses; "
        f"from {first['loss']:.1f} to {last['loss']:.1f} nats it becomes {growth:.2g} times as large, and the critical "
        f"batch {last['critical'] / first['critical']:.2g} times."
    )
    return (Verdict.HELD if close and growth > 1 else Verdict.FAILED), sentence
