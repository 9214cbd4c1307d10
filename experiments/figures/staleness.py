"""The staleness figure: how old the gradients were that the servers applied, and how many came too late."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.figures.style import BLUE, VERMILION, panels
from bigbatch.experiments.runs.run import Run
from bigbatch.experiments.runs.table import counted, has_staleness

DROPPED = "dropped"


def staleness(runs: Sequence[Run]) -> Figure:
    """Draw a histogram of the staleness of applied gradients for every arm of the runs that have staleness.

    Args:
        runs: finished runs.

    Raises:
        ConfigurationError: none of them has staleness.
    """
    histograms = [(run, arm) for run in runs if has_staleness(run.summary) for arm in run.summary["arms"]]
    if not histograms:
        raise ConfigurationError("No gradient was stale: only servers that are not synchronous have staleness to draw.")
    columns = min(3, len(histograms))
    rows = -(-len(histograms) // columns)
    figure, axes = panels(rows, columns, width=1.5 + 3.2 * columns, height=0.8 + 2.6 * rows)
    for axis in axes[len(histograms) :]:
        axis.remove()
    for axis, (run, arm) in zip(axes, histograms, strict=False):
        shares, dropped = staleness_shares(arm.get("servers", ()))
        late = [DROPPED] if dropped else []
        bars = axis.bar(range(len(shares) + len(late)), [*shares.values(), *([dropped] if dropped else [])], color=BLUE)
        if dropped:
            bars[-1].set_color(VERMILION)
        axis.bar_label(bars, labels=[f"{bar.get_height():.0%}" for bar in bars], fontsize=7)
        axis.set_xticks(range(len(shares) + len(late)), [*map(str, shares), *late], fontsize=8)
        axis.set_ylim(0, 1.1)
        mean = counted(arm.get("servers", ())).mean_staleness or 0.0
        axis.set_title(f"{run.summary['strategy']}, {arm['name']}: mean {mean:.2f}", loc="left", fontsize=9)
        axis.set_xlabel("staleness τ (updates)", fontsize=8)
        axis.set_ylabel("share of gradients", fontsize=8)
    figure.suptitle("How old gradients were when they were applied", x=0.01, ha="left")
    return figure


def draw_staleness(runs: Sequence[Run], path: Path) -> None:
    """Write the staleness figure of runs to a PNG file."""
    staleness(runs).savefig(path)


def staleness_shares(servers: Sequence[dict[str, Any]]) -> tuple[dict[int, float], float]:
    """Computes the shares of all received gradients that were applied with each staleness τ, and that were dropped."""
    counts = counted(servers)
    dropped = counts.dropped or 0
    total = sum(counts.staleness.values()) + dropped or 1
    steps = range(max(counts.staleness, default=0) + 1)
    return {tau: counts.staleness.get(tau, 0) / total for tau in steps}, dropped / total
