"""The figure of a bench: time and bus bandwidth against the size of the buffer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bigbatch.experiments.figures.style import GREY, LINES, colour, panels
from bigbatch.experiments.measuring.bench import size_label

MARKERS = "osD^vPX*<>"

SERVERS, LIGHTER = "#222222", "#777777"
"""Colours of the lines of servers and of their bounds; each number of servers has its own line style."""


def draw_bench(rows: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of a bench, as `as_json` gives them, to a PNG file.

    Args:
        rows: the measurements on one number of ranks; rows of servers hold their incast bound too.
        memory: a row for every size, with the time that memory bandwidth alone would allow.
        path: the PNG file to write.
    """
    ranks = rows[0]["ranks"]
    figure, (time, bus) = panels(1, 2, width=12, height=5)
    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    # Fastest for the largest size first, so that the legend reads like the lines.
    largest = max(row["bytes"] for row in rows)
    names.sort(key=lambda name: next(r["seconds"] for r in rows if (r["algorithm"], r["bytes"]) == (name, largest)))
    servers = {row["algorithm"]: row["servers"] for row in rows if "servers" in row}
    reducing, serving = [name for name in names if name not in servers], sorted(servers, key=lambda n: servers[n])
    for name in names:
        own = sorted((row for row in rows if row["algorithm"] == name), key=lambda row: row["bytes"])
        sizes = [row["bytes"] for row in own]
        look = _served(serving.index(name)) if name in servers else _reduced(reducing.index(name))
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
        if name in servers:
            bound = {**look, "color": LIGHTER, "marker": "", "linewidth": 0.9, "zorder": 1}
            time.plot(sizes, [row["bound_seconds"] for row in own], label=f"{name}: incast bound", **bound)
            bus.plot(sizes, [row["busbw"] * row["seconds"] / row["bound_seconds"] for row in own], **bound)
    sizes = [row["bytes"] for row in memory]
    limit: dict[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    time.plot(sizes, [row["seconds"] for row in memory], label="what memory allows", **limit)
    bus.plot(sizes, [row["busbw"] for row in memory], **limit)
    _scales(time, "time (median; shade: quartiles)", seconds_label)
    _scales(bus, "bus bandwidth = 2(p−1)/p · size / time", lambda value: f"{value / 1e9:g} GB/s")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"All-reduce of float32 over {ranks} ranks, in place", x=0.01, ha="left")
    figure.savefig(path)


def _reduced(number: int) -> dict[str, Any]:
    """How the all-reduce of that number looks."""
    marker = MARKERS[number % len(MARKERS)]
    line = LINES[number // 6 % len(LINES)]
    return {"color": colour(number % 6), "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.3}


def _served(number: int) -> dict[str, Any]:
    """How the servers of that number look, the fewest first."""
    line = LINES[number % len(LINES)]
    return {"color": SERVERS, "linestyle": line, "marker": "|", "markersize": 9, "linewidth": 1.3}


def _scales(axis: Axes, title: str, label: Any) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_label(round(value))))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.grid(visible=True, which="both", axis="y", color="#eeeeee", linewidth=0.5)
    axis.set_xlabel("buffer of each rank")
    axis.set_title(title, loc="left", fontsize=10)


def seconds_label(value: float) -> str:
    """Formats a time in seconds in the unit that suits it: 0.001 is "1 ms"."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value / 1e-9:g} ns"
