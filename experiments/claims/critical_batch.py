"""The claim about how many updates and tokens it takes to reach a loss at each batch size."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from bigbatch.experiments.figures.style import BLUE, GREY, ORANGE, VERMILION, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.laboratory.sweep import Tuned, only_arm, to_a_loss
from bigbatch.experiments.planning.tradeoff import Fit, Tradeoff, fit
from bigbatch.models.sizes import ModelSize

CLOSE = 0.25
"""Largest relative distance of a batch size's mean from the curve at which the curve still describes it."""

REGIME = 3.0
"""Factor between the critical batch and the borders of the regimes.

Batches below a third of the critical batch scale about perfectly; those above three times are on the plateau.
"""

REGIMES = ("perfect scaling", "diminishing returns", "plateau")


class Figure(Claim):
    """Three regimes, and the critical batch between them."""

    claim = (
        "A bigger batch first saves as many updates as it is bigger (perfect scaling), then fewer (diminishing "
        "returns), at last none (plateau): S(B) = S_min (1 + B_c/B) updates reach a loss."
    )
    source = (
        "Shallue et al. 2018, 'Measuring the effects of data parallelism on neural network training', section 4.1; "
        "McCandlish et al. 2018, 'An empirical model of large-batch training', section 2.3"
    )
    criterion = (
        "held if the critical batch can be told (its 95 % interval is within a factor of 10, and the best value among "
        "the batches), there are batches in each of the regimes (below a third of it, around it, above three times), "
        "and the mean of every batch size lies within 25 % of the curve; failed if one does not; it cannot be told "
        "either if all runs of a batch size missed the loss"
    )
    minutes = Minutes(15, 2)

    def examine(self) -> Finding:
        """Tune the learning rate of each batch size, count updates to the loss, and fit."""
        study = self.laboratory.study
        sweep = to_a_loss(study, quick=self.quick)
        tuned = sweep.run(self.laboratory)
        rows = [row_of(own) for own in tuned]
        fitted = fit_of(tuned)
        for row in rows:
            row["fitted"] = fitted.tradeoff.updates(row["batch_tokens"]) if fitted is not None else None
            row["regime"] = regime(row["batch_tokens"], fitted.tradeoff) if fitted is not None else None
        verdict, sentence = judged(rows, fitted)
        noise = noise_of(tuned)
        if noise is not None and fitted is not None:
            sentence += (
                f" The gradient noise scale of the same runs, where they reached the loss, is {noise:,.0f} tokens, "
                f"{noise / fitted.tradeoff.critical_batch:.2g} times the critical batch."
            )
        if any(row["at_edge"] for row in rows):
            sentence += " At batches marked *, the best learning rate is at the edge of what was tried."
        options = sweep.options
        return Finding(
            verdict,
            sentence,
            f"{study.words} to a validation loss of {options['target']} {study.unit}, with {options['layers']} "
            f"layer(s) of width {options['width']}{study.model_words} and Adam at a constant rate; at each batch "
            "size the rate is the best of a grid of factors of 2 that grows until the optimum is inside, and "
            f"{len(sweep.seeds) - 1} other seeds are run with it and counted.",
            columns=(
                Column("batch_tokens", "batch, tokens"),
                Column("rate_text", "best rate"),
                Column("tried", "rates tried", 0),
                Column("updates", "updates"),
                Column("updates_least", "least"),
                Column("updates_most", "most"),
                Column("fitted", "fit"),
                Column("ktokens", "tokens, k"),
                Column("noise", "noise scale, tokens"),
                Column("regime", "regime"),
            ),
            rows=rows,
            details={
                "task": study.task,
                "unit": study.unit,
                "target": options["target"],
                "noise": noise,
                "fit": None if fitted is None else as_json(fitted, study.size(options), options["target"]),
            },
            runs=[run.folder for own in tuned for run in (*own.runs, *own.others)],
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw updates, tokens and learning rates against the batch size."""
        draw_critical(finding, path)


def row_of(own: Tuned) -> dict[str, Any]:
    """Makes the table's row for one batch size, from its tuning and its seeds."""
    reached, batch = own.reached, own.tokens
    updates = float(np.exp(np.mean(np.log(reached)))) if reached else None
    noise = noise_of([own])
    return {
        "batch_tokens": batch,
        "batch": own.batch,
        "rate": own.rate,
        "rate_text": f"{own.rate:g}{'*' if own.at_edge else ''}",
        "at_edge": own.at_edge,
        "tried": f"{min(own.tried):g} to {max(own.tried):g}",
        "rates": {f"{rate:g}": score if math.isfinite(score) else None for rate, score in sorted(own.tried.items())},
        "seeds": reached,
        "updates": updates,
        "updates_least": min(reached, default=None),
        "updates_most": max(reached, default=None),
        "not_reached": len(own.scores) - len(reached) if own.scores else 1,
        "ktokens": None if updates is None else updates * batch / 1e3,
        "noise": noise,
    }


def fit_of(tuned: Sequence[Tuned]) -> Fit | None:
    """Fits the trade-off of updates and tokens to the measured runs; None if no run reached the loss."""
    points = [(own.tokens, score) for own in tuned for score in own.reached]
    return fit(*zip(*points, strict=True)) if points else None


def noise_of(tuned: Sequence[Tuned]) -> float | None:
    """Computes the gradient noise scale at the end of the runs, in tokens, as a ratio of means; None if not known."""
    arms = [only_arm(run) for own in tuned for run in own.runs]
    pairs = [(arm.get("gradient_square"), arm.get("gradient_variance")) for arm in arms]
    known = [(square, variance) for square, variance in pairs if square is not None and variance is not None]
    return ratio_of_means(known, tuned[0].example_tokens)


def ratio_of_means(estimates: Sequence[tuple[float, float]], example_tokens: float) -> float | None:
    """Computes the noise scale in tokens; None if it is not known.

    Args:
        estimates: estimates of (|G|², tr Σ of one example).
        example_tokens: mean number of tokens in an example.
    """
    square, variance = (sum(column) for column in zip(*estimates, strict=True)) if estimates else (0.0, 0.0)
    return example_tokens * variance / square if square > 0 else None


def regime(batch: float, tradeoff: Tradeoff) -> str:
    """Returns the name of the regime of `REGIMES` that a batch, in tokens, lies in."""
    share = batch / tradeoff.critical_batch
    return REGIMES[0 if share < 1 / REGIME else 1 if share <= REGIME else 2]


def judged(rows: Sequence[dict[str, Any]], fitted: Fit | None) -> tuple[Verdict, str]:
    """Decides the verdict on the claim, and puts the numbers that decided it into a sentence."""
    if fitted is None:
        return Verdict.UNTOLD, "No run reached the loss."
    missed = sum(row["not_reached"] for row in rows)
    never = f" {missed} runs did not reach the loss, and are not in the fit." if missed else ""
    if fitted.untold is not None:
        return Verdict.UNTOLD, fitted.untold + never
    lost = [f"{row['batch_tokens']:,}" for row in rows if row["updates"] is None]
    if lost:
        return Verdict.UNTOLD, f"No run with a batch of {' or '.join(lost)} tokens reached the loss."
    off = {row["batch_tokens"]: row["updates"] / row["fitted"] - 1 for row in rows if row["updates"] is not None}
    worst = max(off, key=lambda batch: abs(off[batch]))
    (low, high), (least_low, least_high) = fitted.critical_batch, fitted.least_updates
    sentence = (
        f"B_c = {fitted.tradeoff.critical_batch:,.0f} tokens ({low:,.0f} to {high:,.0f}) and S_min = "
        f"{fitted.tradeoff.least_updates:,.0f} updates ({least_low:,.0f} to {least_high:,.0f}); the batch that fits "
        f"worst, {worst:,} tokens, took {abs(off[worst]):.0%} {'more' if off[worst] > 0 else 'fewer'} updates than the "
        f"curve has.{never}"
    )
    if abs(off[worst]) > CLOSE:
        return Verdict.FAILED, sentence
    seen = {regime(row["batch_tokens"], fitted.tradeoff) for row in rows}
    unseen = [name for name in REGIMES if name not in seen]
    if unseen:
        return Verdict.UNTOLD, f"{sentence} No batch is in the regime of {' or '.join(unseen)}."
    return Verdict.HELD, sentence


def as_json(fitted: Fit, size: ModelSize, target: float) -> dict[str, Any]:
    """Converts a fit to types that JSON can write, in the form that `plan --fit` and the drawing read.

    Args:
        fitted: the fit.
        size: the size of the model that was trained.
        target: the loss to which it was trained.
    """
    batches = np.geomspace(fitted.tradeoff.critical_batch / 64, fitted.tradeoff.critical_batch * 64, 97)
    low, high = fitted.band(batches)
    return {
        "target": target,
        "model": asdict(size),
        "least_updates": fitted.tradeoff.least_updates,
        "least_updates_interval": list(fitted.least_updates),
        "critical_batch": fitted.tradeoff.critical_batch,
        "critical_batch_interval": list(fitted.critical_batch),
        "scatter": fitted.scatter,
        "untold": fitted.untold,
        "band": {"batch": batches.tolist(), "low": low.tolist(), "high": high.tolist()},
    }


def draw_critical(finding: Finding, path: Path) -> None:
    """Draw updates, tokens and learning rates against the batch size to a PNG file."""
    rows = [row for row in finding.rows if row["updates"] is not None]
    fitted, noise = finding.details["fit"], finding.details["noise"]
    figure, (updates, tokens, rates) = panels(1, 3, width=15.5, height=5.2)
    batches = [row["batch_tokens"] for row in rows]
    places, counts = zip(*((row["batch_tokens"], seed) for row in rows for seed in row["seeds"]), strict=True)
    _seeds(updates, places, counts)
    _seeds(tokens, places, [place * count for place, count in zip(places, counts, strict=True)])
    if fitted is not None and batches:
        _fitted(updates, tokens, fitted, batches)
        for axis in (updates, tokens):
            _marks(axis, fitted, noise, named=axis is updates)
    _rates(rates, finding.rows)
    updates.set_ylabel("updates to the loss")
    updates.set_title("Updates", loc="left")
    tokens.set_ylabel("tokens to the loss")
    tokens.set_title("Tokens", loc="left")
    for axis in (updates, tokens, rates):
        axis.set_xscale("log", base=2)
        axis.set_xticks(*zip(*((row["batch_tokens"], f"{row['batch_tokens']:,}") for row in finding.rows), strict=True))
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("batch (tokens)")
    for axis in (updates, tokens):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_minor_locator(NullLocator())
    figure.suptitle(
        f"What a bigger batch buys, to a validation loss of {finding.details['target']} {finding.details['unit']}: "
        f"the claim {finding.verdict.value}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.savefig(path)


def _seeds(axis: Axes, places: Sequence[float], heights: Sequence[float]) -> None:
    """A dot for every seed that reached the loss."""
    axis.plot(places, heights, "o", color=BLUE, markersize=4.5, alpha=0.8, markeredgewidth=0)


def _fitted(updates: Axes, tokens: Axes, fitted: Any, batches: Sequence[float]) -> None:
    tradeoff = Tradeoff(fitted["least_updates"], fitted["critical_batch"])
    shown = np.array([0.7 * min(batches), 1.4 * max(batches)])
    band = {name: np.array(values) for name, values in fitted["band"].items()}
    inside = (band["batch"] >= shown[0]) & (band["batch"] <= shown[1])
    place, low, high = (band[name][inside] for name in ("batch", "low", "high"))
    curve = np.array([tradeoff.updates(batch) for batch in place])
    for axis, factor in ((updates, np.ones_like(place)), (tokens, place)):
        if np.isfinite(high).all():
            axis.fill_between(place, low * factor, high * factor, color=BLUE, alpha=0.15, linewidth=0)
        axis.plot(place, curve * factor, color=BLUE, linewidth=1.5)
    updates.plot(shown, tradeoff.least_tokens / shown, "--", color=GREY, linewidth=1)
    updates.axhline(tradeoff.least_updates, color=GREY, linestyle=":", linewidth=1)
    tokens.axhline(tradeoff.least_tokens, color=GREY, linestyle="--", linewidth=1)
    tokens.plot(shown, tradeoff.least_updates * shown, ":", color=GREY, linewidth=1)
    for axis in (updates, tokens):
        axis.set_xlim(*shown)
    updates.set_ylim(0.6 * tradeoff.least_updates, 1.6 * tradeoff.updates(shown[0]))
    tokens.set_ylim(0.6 * tradeoff.least_tokens, 1.6 * tradeoff.tokens(shown[1]))
    note = {"textcoords": "offset points", "fontsize": 8, "color": "#555555"}
    updates.annotate("S_min", (shown[0], tradeoff.least_updates), (3, 3), **note)  # type: ignore[arg-type]
    tokens.annotate("E_min", (shown[0], tradeoff.least_tokens), (3, -10), **note)  # type: ignore[arg-type]


def _marks(axis: Axes, fitted: Any, noise: float | None, *, named: bool) -> None:
    """Where the critical batch is, with its interval, and the noise scale; and the three regimes."""
    critical, (low, high) = fitted["critical_batch"], fitted["critical_batch_interval"]
    axis.axvline(critical, color=VERMILION, linewidth=1.3)
    if math.isfinite(high):
        axis.axvspan(low, high, color=VERMILION, alpha=0.12, linewidth=0)
    text = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8, "rotation": 90}
    axis.annotate("B_c, fitted", (critical, 0.03), (3, 0), color=VERMILION, **text)  # type: ignore[arg-type]
    if noise is not None:
        axis.axvline(noise, color=ORANGE, linewidth=1.3, linestyle="--")
        axis.annotate("noise scale", (noise, 0.03), (3, 0), color="#a06a00", **text)  # type: ignore[arg-type]
    if named:
        left, right = axis.get_xlim()
        borders = (left, critical / REGIME, critical * REGIME, right)
        for name, first, stop in zip(REGIMES, borders, borders[1:], strict=False):
            if first < stop:
                axis.annotate(
                    name.replace(" ", "\n"),
                    (math.sqrt(first * stop), 0.99),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    va="top",
                    fontsize=8,
                    color="#555555",
                    bbox={"color": "white", "alpha": 0.8, "pad": 1},
                )
    for border in (critical / REGIME, critical * REGIME):
        axis.axvline(border, color=GREY, linewidth=0.5)


def _rates(axis: Axes, rows: Sequence[Any]) -> None:
    """Learning rates that were tried, and the best."""
    failed = [
        (row["batch_tokens"], float(rate)) for row in rows for rate, score in row["rates"].items() if score is None
    ]
    tried = [(row["batch_tokens"], float(rate)) for row in rows for rate, score in row["rates"].items() if score]
    best = [(row["batch_tokens"], row["rate"]) for row in rows]
    axis.plot(*zip(*best, strict=True), "o-", color=BLUE, markersize=6, label="best")
    if tried:
        axis.plot(*zip(*tried, strict=True), "o", color=BLUE, markersize=6, fillstyle="none", label="reached the loss")
    if failed:
        axis.plot(*zip(*failed, strict=True), "x", color=VERMILION, markersize=6, label="given up")
    axis.set_yscale("log", base=2)
    everything = sorted({rate for _, rate in (*best, *tried, *failed)})
    axis.set_yticks(everything, [f"{rate:g}" for rate in everything])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylabel("learning rate")
    axis.set_title("Learning rates tried", loc="left")
    axis.legend(frameon=False, fontsize=8)
