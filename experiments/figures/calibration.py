"""The figures of `calibrate` and `validate`: measured messages with their fit, and predictions with measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from bigbatch.comm.simulation.network_file import network_from
from bigbatch.experiments.figures.bandwidth import MARKERS, seconds_label
from bigbatch.experiments.figures.style import BLUE, GREEN, GREY, ORANGE, colour, panels
from bigbatch.experiments.measuring.bench import size_label
from bigbatch.experiments.measuring.calibrate import WITHIN

MEASURED = (
    ("seconds", "both ways at once", BLUE, "o"),
    ("ping_pong_seconds", "one way (ping-pong)", GREY, "s"),
    ("incast_seconds", "four to one, each", ORANGE, "^"),
)


def draw_calibration(summary: dict[str, Any], path: Path) -> None:
    """Draw measured points and the fit, as time and as bandwidth, to a PNG file.

    Args:
        summary: the summary that `calibrated` makes.
        path: the PNG file to write.
    """
    figure, (time, bandwidth) = panels(1, 2, width=12, height=5)
    rows = summary["rows"]
    network = network_from(summary["network"], "fit")
    sizes = np.unique(np.geomspace(rows[0]["bytes"], rows[-1]["bytes"], 600).astype(np.int64))
    fitted = network.wires.latency(sizes) + network.wires.occupancy(sizes)
    for axis, measure in ((time, _time), (bandwidth, _bandwidth)):
        axis.plot(sizes, measure(sizes, fitted), color=BLUE, linewidth=1.3, label="its fit: α + m/B")
        for kind, label, tint, marker in MEASURED:
            own = [row for row in rows if row[kind] is not None]
            places = np.array([row["bytes"] for row in own])
            times = np.array([row[kind] for row in own])
            axis.plot(
                places, measure(places, times), color=tint, marker=marker, markersize=4, linestyle="", label=label
            )
        added = np.array([row["bytes"] for row in summary["adding"]])
        axis.plot(
            added,
            measure(added, np.array([row["seconds"] for row in summary["adding"]])),
            color=GREEN,
            marker="D",
            markersize=4,
            linestyle="",
            label="adding what has arrived",
        )
        axis.plot(added, measure(added, network.gamma * added), color=GREEN, linewidth=1.3, label="its fit: mγ")
        for piece in network.wires.pieces[1:]:
            axis.axvline(piece.least, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
    _scales(time, "time of a message", seconds_label)
    _scales(bandwidth, "bandwidth = size / time, each way", _bandwidth_label)
    for piece, following in zip(network.wires.pieces, (*network.wires.pieces[1:], None), strict=True):
        last = rows[-1]["bytes"] if following is None else following.least
        middle = np.sqrt(max(piece.least, rows[0]["bytes"]) * last)
        time.annotate(
            f"α = {1e6 * piece.alpha:.3g} µs\n{piece.bandwidth / 1e9:.3g} GB/s",
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            color=BLUE,
        )
    figure.legend(*time.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(
        f"Messages between two ranks here, {summary['memory'] / 2**20:g} MB of memory each; dotted: a new piece of the "
        "fit begins",
        x=0.01,
        ha="left",
    )
    figure.savefig(path)


def _time(_: NDArray[Any], seconds: NDArray[Any]) -> NDArray[Any]:
    return seconds


def _bandwidth(size: NDArray[Any], seconds: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(size / seconds)


def _bandwidth_label(value: float) -> str:
    unit, factor = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if value >= pair[1]), ("KB", 1e3))
    return f"{value / factor:g} {unit}/s"


def _scales(axis: Axes, title: str, label: Any) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([4 * 16**power for power in range(7)])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_label(round(value))))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.grid(visible=True, which="both", axis="y", color="#eeeeee", linewidth=0.5)
    axis.set_xlabel("size of the message, m")
    axis.set_title(title, loc="left", fontsize=10)


def draw_validation(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw predictions against measurements, and the signed errors, to a PNG file.

    Args:
        rows: the rows that `compared` makes.
        path: the PNG file to write.
    """
    figure, (against, errors) = panels(1, 2, width=12, height=5)
    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    ranks = sorted({row["ranks"] for row in rows})
    sizes = sorted({row["bytes"] for row in rows})
    times = np.array([[row["seconds"], row["predicted"]] for row in rows])
    line = np.array([times.min() / 1.5, times.max() * 1.5])
    against.fill_between(line, (1 - WITHIN) * line, (1 + WITHIN) * line, color="#e8e8e8", linewidth=0, zorder=0)
    against.plot(line, line, color=GREY, linewidth=0.8, zorder=1)
    errors.axhspan(-100 * WITHIN, 100 * WITHIN, color="#e8e8e8", linewidth=0, zorder=0)
    errors.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    groups = [(size, workers) for size in sizes for workers in ranks]
    for number, name in enumerate(names):
        own = [row for row in rows if row["algorithm"] == name]
        look: dict[str, Any] = {"color": colour(number), "marker": MARKERS[number], "markersize": 5, "linestyle": ""}
        low = [row["seconds"] - row["seconds_low"] for row in own]
        high = [row["seconds_high"] - row["seconds"] for row in own]
        against.errorbar(
            [row["seconds"] for row in own],
            [row["predicted"] for row in own],
            xerr=[low, high],
            elinewidth=0.7,
            label=name,
            **look,
        )
        places = [groups.index((row["bytes"], row["ranks"])) + 0.14 * (number - (len(names) - 1) / 2) for row in own]
        errors.plot(places, [100 * row["error"] for row in own], **look)
    against.set(xscale="log", yscale="log", xlim=line, ylim=line, xlabel="measured (median; bars: quartiles)")
    against.set_ylabel("predicted")
    for axis in (against.xaxis, against.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: seconds_label(value)))
    against.set_title("predicted against measured time", loc="left", fontsize=10)
    errors.set_xticks(
        range(len(groups)), [f"{size_label(size)}\n{workers} workers" for size, workers in groups], fontsize=8
    )
    errors.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0"))
    errors.set_title("predicted / measured − 1", loc="left", fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(
        f"Predicted from messages between two ranks alone; grey: within {100 * WITHIN:g} %", x=0.01, ha="left"
    )
    figure.savefig(path)
