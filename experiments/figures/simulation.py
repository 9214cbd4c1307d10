"""Figures of simulated updates: how well strategies scale, and where a parameter server is faster than a ring."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from bigbatch.comm.simulation.network import FloatArray
from bigbatch.experiments.figures.labels import End, label_ends
from bigbatch.experiments.figures.style import BLUE, GREY, LINES, ORANGE, colour, panels
from bigbatch.experiments.planning.updates import Row

MOST_BARS = 8
"""Largest number of rows whose parts of the time are all drawn; of more, only those with the most workers are."""


MOST_SPREAD = 4.0
"""Largest power of 2 that the colours of ratios reach, so that ratios around 1 can be told apart."""

Lines = Mapping[str, Mapping[int, Sequence[float]]]
"""Lines by name: for each number of workers, the values, one per seed."""


def draw_scaling(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw efficiency and throughput against workers, with a line for each strategy, and where the time goes.

    Args:
        rows: rows of several strategies and numbers of workers.
        title: title of the figure.
        path: the PNG file to write.
    """
    figure, (efficiency, throughput, split) = panels(1, 3, width=16.5, height=5.0)
    counts = sorted({row.workers for row in rows})

    def lines(value: str) -> Lines:
        names = dict.fromkeys(row.strategy for row in rows)
        return {name: {row.workers: [getattr(row, value)] for row in rows if row.strategy == name} for name in names}

    alone = rows[0].tokens_per_second / rows[0].efficiency / rows[0].workers
    ends = {
        efficiency: draw_by_workers(efficiency, lines("efficiency")),
        throughput: draw_throughput(throughput, lines("tokens_per_second"), alone),
    }
    efficiency.set_ylim(0, 1.05)
    efficiency.yaxis.set_major_formatter(PercentFormatter(1.0))
    efficiency.set_ylabel("of the throughput without exchange")
    efficiency.set_title("Scaling efficiency", loc="left")
    most = [row for row in rows if row.workers == counts[-1]]
    _split(split, rows if len(rows) <= MOST_BARS else most)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    label_ends(figure, ends)
    figure.savefig(path)


def draw_by_workers(axis: Axes, lines: Lines) -> list[End]:
    """Draw means over seeds against workers, with a band from the least to the most.

    Args:
        axis: the panel.
        lines: the lines to draw; colours and line styles follow their order.

    Returns:
        The ends of the lines, for `label_ends`.
    """
    ends = []
    for number, (name, values) in enumerate(lines.items()):
        counts = sorted(values)
        means = [float(np.mean(values[count])) for count in counts]
        band = [min(values[count]) for count in counts], [max(values[count]) for count in counts]
        shade = colour(number)
        axis.fill_between(counts, *band, color=shade, alpha=0.25, linewidth=0)
        axis.plot(counts, means, color=shade, linestyle=LINES[number % len(LINES)], marker="o", markersize=4)
        ends.append(End(name, shade, counts[-1], means[-1]))
    counts = sorted({count for values in lines.values() for count in values})
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{count:,}" for count in counts], fontsize=8, rotation=45 if len(counts) > 6 else 0)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("workers")
    return ends


def draw_throughput(axis: Axes, lines: Lines, alone: float) -> list[End]:
    """Draw the throughput of all workers together, beside what they would reach if they exchanged nothing.

    Args:
        axis: the panel.
        lines: the lines to draw, in tokens per second.
        alone: tokens per second of one worker that exchanges nothing.

    Returns:
        The ends of the lines, for `label_ends`.
    """
    ends = draw_by_workers(axis, lines)
    counts = sorted({count for values in lines.values() for count in values})
    axis.plot(counts, [alone * count for count in counts], color=GREY, linewidth=0.8)
    axis.set_yscale("log")
    axis.set_ylabel("tokens per second, all workers")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title("Throughput", loc="left")
    return [*ends, End("no exchange", "#666666", counts[-1], alone * counts[-1])]


def _split(axis: Axes, rows: Sequence[Row]) -> None:
    bottom, whole = np.zeros(len(rows)), np.array([row.step_seconds for row in rows])
    parts = (("compute", GREY, ""), ("communication", BLUE, "//"), ("waiting", ORANGE, ".."))
    for name, shade, hatch in parts:
        values = np.array([getattr(row, f"{name}_seconds") for row in rows]) / whole
        axis.bar(range(len(rows)), values, bottom=bottom, color=shade, hatch=hatch, edgecolor="white", label=name)
        bottom += values
    axis.set_xticks(
        range(len(rows)), [f"{row.strategy}\n{row.workers:,}" for row in rows], fontsize=7, rotation=30, ha="right"
    )
    for place, seconds in enumerate(whole.tolist()):
        label = EngFormatter(unit="s", places=1)(seconds)
        axis.annotate(label, (place, bottom[place]), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axis.set_ylabel("share of an update, whose time is above")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylim(0, 1.2)
    axis.set_title("Where the time goes", loc="left")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")


def _short(ratio: float) -> str:
    """In as few digits as tell it: 0.96, 4.6, 17, 255."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def draw_crossover(
    maps: Mapping[str, FloatArray], workers: Sequence[int], bandwidths: Sequence[float], title: str, path: Path
) -> None:
    """Draw, for some numbers of servers, how much longer a parameter server takes than a ring.

    Args:
        maps: for each number of servers, in words, (bandwidths, workers) ratios of the server's time to the ring's.
        workers: numbers of workers.
        bandwidths: bandwidths of a port, in bytes per second.
        title: title of the figure.
        path: the PNG file to write.
    """
    figure, axes = panels(1, len(maps), width=1.5 + 4.6 * len(maps), height=4.6)
    draw_maps(figure, axes, maps, workers, bandwidths)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path)


def draw_maps(
    figure: Figure,
    axes: Sequence[Axes],
    maps: Mapping[str, FloatArray],
    workers: Sequence[int],
    bandwidths: Sequence[float],
) -> None:
    """Draw the maps of `draw_crossover` on existing panels, one for each map, with one colour scale for all."""
    widest = max(float(np.abs(np.log2(ratios)).max()) for ratios in maps.values())
    spread = min(max(widest, 1e-6), MOST_SPREAD)
    norm = TwoSlopeNorm(0.0, -spread, spread)
    for axis, (name, ratios) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow(np.log2(ratios), origin="lower", aspect="auto", cmap="PuOr_r", norm=norm)
        for row, column in np.ndindex(ratios.shape):
            dark = abs(np.log2(ratios[row, column])) > 0.7 * spread
            axis.text(
                column,
                row,
                _short(float(ratios[row, column])),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
                fontweight="bold" if ratios[row, column] < 1 else "normal",
            )
        axis.grid(visible=False)
        axis.set_xticks(range(len(workers)), [f"{count:,}" for count in workers], fontsize=8)
        axis.set_yticks(range(len(bandwidths)), [f"{bandwidth * 8 / 1e9:g}" for bandwidth in bandwidths], fontsize=8)
        axis.set_xlabel("workers")
        axis.set_title(name, loc="left", fontsize=10)
    axes[0].set_ylabel("bandwidth of a port (Gbit/s)")
    bar = figure.colorbar(shown, ax=axes, pad=0.01, extend="both" if widest > spread else "neither")
    bar.set_label("server's time over the ring's")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(2**value)))
