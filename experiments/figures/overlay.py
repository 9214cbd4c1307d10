"""The overlay figure: the losses of any runs in one figure, with a line for every arm of every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from bigbatch.experiments.figures.comparison import smoothed
from bigbatch.experiments.figures.labels import LABEL_SIZE, End, label_ends
from bigbatch.experiments.figures.style import CYCLE, GREY, LINES, Line, panels
from bigbatch.experiments.runs.run import Run, names_of
from bigbatch.experiments.runs.table import incomparable

AXES = {
    "tokens": ("total_tokens", "tokens", "tokens seen by all workers"),
    "updates": ("number", "update", "updates"),
    "seconds": ("total_seconds", "seconds", "training time"),
}
"""Horizontal axes by name: the key in lines about updates, the key in lines about validation, and the label."""

MOST_LABELLED = 8
"""Largest number of lines that are labelled at their ends; more lines get a legend."""

LOGARITHMIC = 10
"""The axis is logarithmic if the longest line is at least this many times as long as the shortest."""


@dataclass(frozen=True)
class Curve:
    """One line of the figure: one arm of one run.

    Attributes:
        run: the run that the arm belongs to.
        arm: name of the arm.
        label: name of the line in the figure.
        colour: colour of the line; together with `line` it is the line's own.
        line: style of the line.
    """

    run: Run
    arm: str
    label: str
    colour: str
    line: Line

    def points(self, kind: str, by: str, value: str = "loss") -> tuple[list[float], list[float | None]]:
        """Reads the points (x, y) of the line from the run's metrics, in the order of x.

        Args:
            kind: kind of metrics, "update" or "validation".
            by: name of the horizontal axis in `AXES`.
            value: the key of y; metrics without this key are left out.
        """
        key = AXES[by][kind == "validation"]
        found = [record for record in self.run.curve(self.arm, kind) if value in record and record[key] is not None]
        found.sort(key=lambda record: record[key])
        return [record[key] for record in found], [record[value] for record in found]


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """Makes a line for every arm of every run, with names, colours and line styles that tell them apart.

    Runs are named after their strategies. If two have the same strategy, all are named after their folders.
    """
    strategies = [str(run.summary["strategy"]) for run in runs]
    repeated = len(set(strategies)) < len(strategies)
    names = names_of([run.folder for run in runs]) if repeated else strategies
    arms = [(run, name, str(arm["name"])) for run, name in zip(runs, names, strict=True) for arm in run.summary["arms"]]
    single = len({arm for *_, arm in arms}) == 1

    def label(name: str, arm: str) -> str:
        if len(runs) == 1:
            return arm
        return name if single else f"{name}, {arm}"

    return [
        Curve(
            run,
            arm,
            label(name, arm),
            CYCLE[number % len(CYCLE)],
            LINES[(number + number // len(CYCLE)) % len(LINES)],
        )
        for number, (run, name, arm) in enumerate(arms)
    ]


def draw_overlay(runs: Sequence[Run], target: Path | IO[bytes], by: str | None = None) -> None:
    """Write the overlay figure of runs to a PNG file; see `overlaid`."""
    overlaid(runs, by).savefig(target, format="png")


def overlaid(runs: Sequence[Run], by: str | None = None) -> Figure:
    """Draw the losses of runs, and below them the noise scale if any run has measured it.

    Args:
        runs: finished runs, each once.
        by: name of the horizontal axis in `AXES`, or None for a panel for each.
    """
    curves = curves_of(runs)
    shown = list(AXES) if by is None else [by]
    noisy = any(_noise(curve, shown[0]) for curve in curves)
    rows = len(shown) + noisy
    legend = 0.4 + 0.18 * len(curves) if len(curves) > MOST_LABELLED else 0.0
    figure, axes = panels(rows, 1, width=10, height=max(0.9 + 2.9 * rows, legend))
    ends = [_losses(axis, curves, name) for axis, name in zip(axes, shown, strict=False)]
    if noisy:
        ends.append(_noise_scales(axes[-1], curves, shown[0]))
    title = figure.suptitle("\n".join(filter(None, [_title(runs), incomparable(runs)])), x=0.01, ha="left", fontsize=10)
    title.set_parse_math(False)
    if len(curves) > MOST_LABELLED:
        _legend(figure, curves)
    else:
        label_ends(figure, dict(zip(axes, ends, strict=True)))
    return figure


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.summary["strategy"]) for run in runs))
    return f"Losses over {', '.join(names)}: training thin and smoothed, validation with markers"


def _losses(axis: Axes, curves: Sequence[Curve], by: str) -> list[End]:
    ends = []
    for curve in curves:
        x, y = curve.points("update", by)
        axis.plot(x, smoothed(y), color=curve.colour, linestyle=curve.line, linewidth=0.8, alpha=0.5)
        found = _numbers(*curve.points("validation", by))
        look: dict[str, Any] = {"linestyle": curve.line, "linewidth": 1.6, "marker": "o", "markersize": 3.5}
        axis.plot(*_columns(found), color=curve.colour, **look)
        ends += [End(curve.label, curve.colour, *found[-1])] if found else []
    axis.set_ylabel("loss (nats per token)")
    _scale(axis, curves, by)
    # A line that is a number at 0 alone ends nowhere on a logarithmic axis, and no label can lead there.
    return [end for end in ends if end.x > 0 or axis.get_xscale() != "log"]


def _numbers(x: Sequence[float], y: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(place, value) for place, value in zip(x, y, strict=True) if value is not None]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _noise(curve: Curve, by: str) -> list[tuple[float, float]]:
    return [(x, y) for x, y in _numbers(*curve.points("update", by, "noise_scale")) if y > 0]


def _noise_scales(axis: Axes, curves: Sequence[Curve], by: str) -> list[End]:
    ends = []
    for curve in curves:
        found = _noise(curve, by)
        axis.plot(*_columns(found), color=curve.colour, linestyle=curve.line, linewidth=1.3)
        ends += [End(curve.label, curve.colour, *found[-1])] if found else []
    axis.set_yscale("log")
    axis.set_ylabel("gradient noise scale (examples)")
    _scale(axis, curves, by)
    return ends


def _scale(axis: Axes, curves: Sequence[Curve], by: str) -> None:
    """Name the axis of x; logarithmic where lines differ so much in length that short ones could not be seen.

    A line without a number cannot be seen at all.
    """
    lines = [curve.points("update", by) for curve in curves]
    ends = [max(x) for x, y in lines if x and max(x) > 0 and any(loss is not None for loss in y)]
    label = AXES[by][2]
    if by == "seconds":
        simulated = [bool(curve.run.summary.get("simulated")) for curve in curves]
        if any(simulated):
            label += f", {'simulated' if all(simulated) else 'real or simulated'}"
    if ends and max(ends) >= LOGARITHMIC * min(ends):
        axis.set_xscale("log", nonpositive="mask")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        label += ", logarithmic"
    axis.xaxis.set_major_formatter(EngFormatter(unit="s") if by == "seconds" else EngFormatter(sep=""))
    axis.set_xlabel(label)


def _legend(figure: Figure, curves: Sequence[Curve]) -> None:
    looks: list[dict[str, Any]] = [{"color": curve.colour, "linestyle": curve.line} for curve in curves]
    handles = [Line2D([], [], marker="o", markersize=3.5, linewidth=1.6, **look) for look in looks]
    handles.append(Line2D([], [], color=GREY, linewidth=0.8))
    # Names come afterwards, since a legend leaves out what begins with an underscore.
    legend = figure.legend(
        handles, [" "] * len(handles), loc="outside right upper", frameon=False, fontsize=LABEL_SIZE, handlelength=4
    )
    for text, name in zip(legend.get_texts(), [*(curve.label for curve in curves), "training (thin)"], strict=True):
        text.set_parse_math(False)
        text.set_text(name)
