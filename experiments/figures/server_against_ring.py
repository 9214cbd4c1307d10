"""The figure of the ratio of a parameter server's time to a ring's: maps, message sizes and stragglers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bigbatch.experiments.figures.labels import End, label_ends
from bigbatch.experiments.figures.simulation import draw_maps
from bigbatch.experiments.figures.style import GREY, LINES, colour, panels
from bigbatch.experiments.laboratory.claim import Finding
from bigbatch.experiments.planning.server_against_ring import GPU, MAP, MAP_BYTES, MODEL, NETWORK, SIZE, STRAGGLERS


def draw_server_against_ring(finding: Finding, path: Path) -> None:
    """Draw maps over bandwidth and workers, and below them a panel of message sizes and two of stragglers.

    Args:
        finding: the finding of the claim `crossover`, with its cells.
        path: the PNG file to write.
    """
    details = finding.details
    figure, axes = panels(2, 3, width=16.5, height=9.6)
    cells = details["cells"]
    names = list(dict.fromkeys(one["servers"] for one in cells if one["varied"] == MAP))
    shape = len(details["bandwidths"]), len(details["workers"])
    maps = {
        f"{name}: {MAP_BYTES / 1e6:.0f} MB": np.array(
            [one["ratios"][0] for one in cells if (one["varied"], one["servers"]) == (MAP, name)]
        ).reshape(shape)
        for name in names
    }
    draw_maps(figure, axes[:3], maps, details["workers"], details["bandwidths"])
    message, rates, ratios = axes[3:]
    ends = {
        message: _messages(message, [one for one in cells if one["varied"] == SIZE]),
        rates: _rates(rates, [one for one in cells if one["varied"] == STRAGGLERS]),
        ratios: _waiting(ratios, [one for one in cells if one["varied"] == STRAGGLERS]),
    }
    message.set_title(f"By message: {details['compared_workers']} workers, {NETWORK}", loc="left", fontsize=10)
    who = f"{details['straggler_workers']} workers, {MODEL} on {GPU}"
    rates.set_title(f"Stragglers: {who}", loc="left", fontsize=10)
    ratios.set_title("Stragglers: an asynchronous server's time a gradient", loc="left", fontsize=10)
    figure.suptitle(
        f"A parameter server's time over a ring's (below 1, bold: the server is ahead): the claim "
        f"{finding.verdict.value}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    label_ends(figure, ends)
    figure.savefig(path)


def _by_servers(cells: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(one["servers"] for one in cells)
    return {name: [one for one in cells if one["servers"] == name] for name in names}


def _over_the_ring(axis: Axes) -> None:
    """Give an axis the scale of a time over a ring's, with a line where the two are equal."""
    axis.axhline(1.0, color=GREY, linewidth=0.9)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("server's time over the ring's")


def _messages(axis: Axes, cells: Sequence[dict[str, Any]]) -> list[End]:
    ends = []
    _over_the_ring(axis)
    for number, (name, own) in enumerate(_by_servers(cells).items()):
        places, shade = [one["value"] for one in own], colour(number)
        axis.plot(places, [one["predicted"][0] for one in own], color=shade, linestyle=LINES[number % len(LINES)])
        heights = [one["ratios"][0] for one in own]
        axis.plot(places, heights, color=shade, marker="o", markersize=4, linestyle="none")
        ends.append(End(name, shade, places[-1], heights[-1]))
    axis.set_xscale("log", base=2)
    axis.set_xticks([1 << power for power in range(10, 31, 5)], ["1 KiB", "32 KiB", "1 MiB", "32 MiB", "1 GiB"])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("gradients (lines: formula, dots: simulated)")
    return ends


def _strengths(axis: Axes, cells: Sequence[dict[str, Any]]) -> None:
    """Label the strengths of stragglers at equal distances, since one of them is 0."""
    values = sorted({one["value"] for one in cells})
    axis.set_xticks(range(len(values)), [f"{value:.0%}" for value in values])
    axis.set_xlabel("mean delay, of the computing")


def _rates(axis: Axes, cells: Sequence[dict[str, Any]]) -> list[End]:
    by_servers = _by_servers(cells)
    lines = {f"async, {name}": [one["gradients_per_second"] for one in own] for name, own in by_servers.items()}
    lines["ring"] = [one["ring_gradients_per_second"] for one in next(iter(by_servers.values()))]
    ends = []
    for number, (name, seeds) in enumerate(lines.items()):
        shade = "#333333" if name == "ring" else colour(number)
        line = "-" if name == "ring" else LINES[number % len(LINES)]
        places, means = range(len(seeds)), [float(np.mean(own)) for own in seeds]
        axis.fill_between(places, list(map(min, seeds)), list(map(max, seeds)), color=shade, alpha=0.25, linewidth=0)
        axis.plot(places, means, color=shade, linestyle=line, marker="o", markersize=4)
        ends.append(End(name, shade, places[-1], means[-1]))
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylabel("gradients per second, all workers")
    _strengths(axis, cells)
    return ends


def _waiting(axis: Axes, cells: Sequence[dict[str, Any]]) -> list[End]:
    ends = []
    _over_the_ring(axis)
    for number, (name, own) in enumerate(_by_servers(cells).items()):
        shade, places = colour(number), range(len(own))
        low, high = ([one["predicted"][end] for one in own] for end in (0, 1))
        axis.fill_between(places, low, high, color=shade, alpha=0.18, linewidth=0)
        for heights in (low, high):
            axis.plot(places, heights, color=shade, linestyle=LINES[number % len(LINES)], linewidth=0.9)
        for place, one in zip(places, own, strict=True):  # a little aside of each other, so that none hides another
            axis.plot([place + 0.05 * (number - 1)] * len(one["ratios"]), one["ratios"], "o", color=shade, markersize=4)
        ends.append(End(name, shade, places[-1], float(np.mean(own[-1]["ratios"]))))
    _strengths(axis, cells)
    axis.set_xlabel("mean delay, of the computing (bands: bounds, dots: seeds)")
    return ends
