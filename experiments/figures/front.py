"""The figure of a plan: the time and cost of all candidates, and the front of those that no other beats."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bigbatch.comm.simulation.network import FloatArray
from bigbatch.experiments.figures.style import GREY, colour, panels
from bigbatch.experiments.planning.plan import Candidate

MARKERS = "osD^vP"
"""Markers of the strategies, in addition to their colours."""

APART = 0.045
"""Share of the figure's height that two labels must be apart."""

MARKS = {
    length * number: f"{number:,} {unit}{'s' if unit == 'day' and number > 1 else ''}"
    for unit, length, numbers in (
        ("s", 1, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)),
        ("min", 60, (1, 3, 10, 30)),
        ("h", 3600, (1, 3, 10)),
        ("day", 86400, (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)),
    )
    for number in numbers
}
"""Ticks of the time axis: their places in seconds, and their labels."""


def draw_front(
    candidates: Sequence[Candidate],
    front: Sequence[Candidate],
    best: Candidate,
    ideal: tuple[FloatArray, FloatArray],
    title: str,
    path: Path,
    price: float | None = None,
    trained: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw time against cost: all candidates faintly, and the front of those that no other beats.

    Args:
        candidates: all candidates.
        front: the candidates that no other beats in time and cost, fastest first.
        best: the recommended candidate of the front.
        ideal: (points,) seconds and (points,) GPU-hours of the curve without communication.
        title: title of the figure.
        path: the PNG file to write.
        price: price of a GPU-hour, which gives the cost axis a second scale; None for no second scale.
        trained: (seconds, GPU-hours) of trainings that were really made.
    """
    figure, (axis,) = panels(1, 1, width=10.0, height=6.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    names = list(dict.fromkeys(one.strategy for one in candidates))
    for number, name in enumerate(names):
        shade, marker = colour(number), MARKERS[number % len(MARKERS)]
        for rows, size, strength in ((candidates, 3.0, 0.22), (front, 7.0, 1.0)):
            mine = [one for one in rows if one.strategy == name]
            axis.plot(
                [one.seconds for one in mine],
                [one.gpu_hours for one in mine],
                linestyle="none",
                marker=marker,
                markersize=size,
                color=shade,
                alpha=strength,
                markeredgewidth=0.6 if strength == 1 else 0,
                markeredgecolor="black",
                zorder=3 if strength == 1 else 1,
                label=name if strength < 1 else None,
            )
    axis.plot([one.seconds for one in front], [one.gpu_hours for one in front], color="black", linewidth=1.6, zorder=2)
    axis.plot(
        [best.seconds], [best.gpu_hours], marker="o", markersize=15, markerfacecolor="none", color="black", zorder=4
    )
    if trained:
        axis.plot(*zip(*trained, strict=True), "x", color="black", markersize=7, markeredgewidth=1.4, zorder=5)
    seconds, hours = ideal
    _limits(axis, candidates, front, float(seconds.min()))
    axis.plot(seconds, hours, color=GREY, linestyle="--", linewidth=1.4, zorder=2)
    _label_ideal(axis, seconds, hours)
    _label_front(axis, front, best)
    shown = [mark for mark in MARKS if axis.get_xlim()[0] <= mark <= axis.get_xlim()[1]]
    axis.set_xticks(shown, [MARKS[mark] for mark in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("time to the target")
    axis.set_ylabel("cost (GPU-hours)")
    if price is not None:
        money = axis.secondary_yaxis("right", functions=(partial(np.multiply, price), partial(np.multiply, 1 / price)))
        money.set_ylabel(f"cost, at {price:g} a GPU-hour")
        money.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        money.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        money.yaxis.set_minor_formatter(NullFormatter())
    legend = figure.legend(frameon=False, fontsize=9, loc="outside right upper", title="faint: not on the front")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path)


def _limits(axis: Axes, candidates: Sequence[Candidate], front: Sequence[Candidate], least: float) -> None:
    """From the least time without communication on; what is far slower or dearer than the front would press it flat."""
    times, costs = [one.seconds for one in candidates], [one.gpu_hours for one in front]
    axis.set_xlim(least / 1.3, min(max(times), 15 * front[-1].seconds) * 1.2)
    axis.set_ylim(min(costs) / 4, max(costs) * 6)


def _label_ideal(axis: Axes, seconds: FloatArray, hours: FloatArray) -> None:
    """Say what the curve is, at its steepest part."""
    (low, high), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    inside = np.flatnonzero((seconds >= low) & (seconds <= high) & (hours >= bottom) & (hours <= top))
    if len(inside):
        at = int(inside[int(len(inside) * 0.9)])
        axis.annotate(
            "without communication,\non as many GPUs as it takes",
            (float(seconds[at]), float(hours[at])),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#666666",
        )


def _label_front(axis: Axes, front: Sequence[Candidate], best: Candidate) -> None:
    """Name the recommended row, the ends, and of the others as many as have room."""
    bottom, top = (math.log(end) for end in axis.get_ylim())
    left, right = (math.log(end) for end in axis.get_xlim())
    taken: list[tuple[float, float]] = []
    for one in [best, front[0], front[-1], *front]:
        place = (math.log(one.seconds) - left) / (right - left), (math.log(one.gpu_hours) - bottom) / (top - bottom)
        if any(abs(place[1] - other[1]) < APART and abs(place[0] - other[0]) < 0.2 for other in taken):
            continue
        taken.append(place)
        beside = f" + {one.servers:,}" if one.servers else ""
        axis.annotate(
            f"{one.workers:,}{beside} × {one.micro_batch} × {one.accumulation}",
            (one.seconds, one.gpu_hours),
            (-10, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            fontweight="bold" if one is best else "normal",
        )
