"""The figure of a bench: time and bus bandwidth against the size of the buffer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bigbatch.experiments.bench import size_label
from bigbatch.experiments.figures.style import GREY, LINES, colour, panels

MARKERS = "osD^vPX*<>"


def draw_bench(rows: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of a bench, as `as_json` gives them, to a PNG file.

    Args:
        rows: of one number of ranks.
        memory: a row for every size, of what memory allows.
        path: of the file.
    """
    ranks = rows[0]["ranks"]
    figure, (time, bus) = panels(1, 2, width=12, height=5)
    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    # Fastest for the largest size first, so that the legend reads like the lines.
    largest = max(row["bytes"] for row in rows)
    names.sort(key=lambda name: next(r["seconds"] for r in rows if (r["algorithm"], r["bytes"]) == (name, largest)))
    for number, name in enumerate(names):
        own = sorted((row for row in rows if row["algorithm"] == name), key=lambda row: row["bytes"])
        sizes = [row["bytes"] for row in own]
        look: dict[str, Any] = {
            "color": colour(number % 6),
            "linestyle": LINES[number // 6 % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.3,
        }
        time.plot(sizes, [row["seconds"] for row in own], label=name, **look)
        if len(sizes) > 1:
            time.fill_between(
                sizes,
                [row["seconds_low"] for row in own],
                [row["seconds_high"] for row in own],
                color=look["color"],
                alpha=0.12,
                linewidth=0,
            )
        bus.plot(sizes, [row["busbw"] for row in own], **look)
    sizes = [row["bytes"] for row in memory]
    limit: dict[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    time.plot(sizes, [row["seconds"] for row in memory], label="what memory allows", **limit)
    bus.plot(sizes, [row["busbw"] for row in memory], **limit)
    _scales(time, "time (median; shade: quartiles)", _seconds)
    _scales(bus, "bus bandwidth = 2(p−1)/p · size / time", lambda value: f"{value / 1e9:g} GB/s")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"All-reduce of float32 over {ranks} ranks, in place", x=0.01, ha="left")
    figure.savefig(path)


def _scales(axis: Axes, title: str, label: Any) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_label(round(value))))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.grid(visible=True, which="both", axis="y", color="#eeeeee", linewidth=0.5)
    axis.set_xlabel("buffer of each rank")
    axis.set_title(title, loc="left", fontsize=10)


def _seconds(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value / 1e-9:g} ns"
