"""Figures of simulated updates: how well strategies scale, and where a parameter server beats a ring."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator, PercentFormatter

from bigbatch.comm.simulation.network import FloatArray
from bigbatch.experiments.figures.style import BLUE, GREY, LINES, ORANGE, colour, panels
from bigbatch.experiments.simulate import Row

MOST_BARS = 8
"""Of as many the time's parts are drawn; of more rows, only those with the most workers."""


def draw_scaling(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw efficiency and throughput against workers, a line for each strategy, and where the time goes.

    Args:
        rows: of several strategies and numbers of workers.
        title: of the figure.
        path: of the PNG file.
    """
    names = list(dict.fromkeys(row.strategy for row in rows))
    figure, (efficiency, throughput, split) = panels(1, 3, width=15.0, height=5.0)
    counts = sorted({row.workers for row in rows})
    for number, name in enumerate(names):
        mine = sorted((row for row in rows if row.strategy == name), key=lambda row: row.workers)
        workers = [row.workers for row in mine]
        for axis, values in (
            (efficiency, [row.efficiency for row in mine]),
            (throughput, [row.tokens_per_second for row in mine]),
        ):
            line = LINES[number % len(LINES)]
            axis.plot(workers, values, label=name, color=colour(number), linestyle=line, marker="o", markersize=4)
    ideal = [rows[0].tokens_per_second / rows[0].efficiency / rows[0].workers * count for count in counts]
    throughput.plot(counts, ideal, color=GREY, linewidth=0.8, label="no exchange")
    throughput.set_yscale("log")
    throughput.set_ylabel("tokens per second, all workers")
    throughput.yaxis.set_major_formatter(EngFormatter(sep=""))
    throughput.set_title("Throughput", loc="left")
    efficiency.set_ylim(0, 1.05)
    efficiency.yaxis.set_major_formatter(PercentFormatter(1.0))
    efficiency.set_ylabel("of the throughput without exchange")
    efficiency.set_title("Scaling efficiency", loc="left")
    for axis in (efficiency, throughput):
        _by_workers(axis, counts)
        axis.legend(frameon=False, fontsize=8)
    most = [row for row in rows if row.workers == counts[-1]]
    _split(split, rows if len(rows) <= MOST_BARS else most)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path)


def _by_workers(axis: Axes, counts: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{count:,}" for count in counts], fontsize=8, rotation=45 if len(counts) > 6 else 0)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("workers")


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
        maps: how many servers, in words -> (bandwidths, workers) the server's time over the ring's.
        workers: numbers of them.
        bandwidths: of a port, in bytes a second.
        title: of the figure.
        path: of the PNG file.
    """
    figure, axes = panels(1, len(maps), width=1.5 + 4.6 * len(maps), height=4.6)
    spread = max(float(np.abs(np.log2(ratios)).max()) for ratios in maps.values())
    norm = TwoSlopeNorm(0.0, -max(spread, 1e-6), max(spread, 1e-6))
    for axis, (name, ratios) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow(np.log2(ratios), origin="lower", aspect="auto", cmap="PuOr_r", norm=norm)
        for row, column in np.ndindex(ratios.shape):
            dark = abs(np.log2(ratios[row, column])) > 0.6 * spread
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
    bar = figure.colorbar(shown, ax=axes, pad=0.01)
    bar.set_label("server's time over the ring's")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(2**value)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path)
