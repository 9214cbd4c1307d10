"""Figures of a schedule: all rounds in one picture, or an animation of the chunks that move."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedules.schedule import Round, transfers
from bigbatch.experiments.figures.shown import Shown
from bigbatch.experiments.figures.style import BLUE, VERMILION, panels

SHADES = colormaps["cividis_r"]
"""Colour map from light, for one contribution, to dark, for all of them."""

MOST_LABELS = 60
"""Largest number of transfers that are drawn with the chunks' numbers."""

FLIGHT_FRAMES, REST_FRAMES = 8, 5
FRAMES_A_SECOND = 10
MOST_RANKS_MOVING, MOST_ROUNDS_MOVING = 16, 40


def draw_rounds(shown: Shown, path: Path) -> None:
    """Draw a schedule to a PNG file: every rank is a line through the rounds, every transfer an arrow between lines."""
    rounds, size = shown.rounds, shown.size
    width, height = np.clip(2.5 + 0.9 * len(rounds), 6, 24), np.clip(1.6 + 0.45 * size, 3, 16)
    figure, (axis,) = panels(1, 1, width=float(width), height=float(height))
    axis.grid(visible=False)
    axis.hlines(np.arange(size), 0, max(1, len(rounds)), color="#e4e4e4", linewidth=1, zorder=0)
    labelled = sum(len(round_) for round_ in rounds) <= MOST_LABELS
    for number, round_ in enumerate(rounds):
        _arrows(axis, number, round_, labelled)
    share = np.array([count.sum(axis=2).mean(axis=1) / size for count in shown.counts])
    place = np.indices(share.shape)
    dot = float(np.clip(90 - size, 8, 90))
    axis.scatter(
        place[0].ravel(),
        place[1].ravel(),
        c=share.ravel(),
        cmap=SHADES,
        vmin=0,
        vmax=1,
        s=dot,
        zorder=3,
        edgecolors="white",
        linewidths=0.6,
    )
    axis.set_xticks(np.arange(len(rounds) + 1), ["start", *map(str, range(1, len(rounds) + 1))])
    axis.locator_params(axis="x", nbins=30) if len(rounds) > 30 else None
    axis.set_yticks(np.arange(size) if size <= 32 else np.arange(0, size, size // 16))
    axis.invert_yaxis()
    axis.set_xlabel("round")
    axis.set_ylabel("rank")
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(
        f"{shown.name}, {size} ranks, {shown.chunks} chunk{'s' if shown.chunks > 1 else ''}", loc="left", fontsize=11
    )
    handles = [
        Line2D([], [], color=BLUE, label="adds"),
        Line2D([], [], color=VERMILION, linestyle="--", label="replaces"),
        Line2D([], [], marker="o", color="none", markerfacecolor=SHADES(1 / size), label="own contribution only"),
        Line2D([], [], marker="o", color="none", markerfacecolor=SHADES(1.0), label="everyone's"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path)


def _arrows(axis: Axes, number: int, round_: Round, labelled: bool) -> None:
    """One round's transfers, from the round before to this one."""
    for reduces, shade, line in ((True, BLUE, "-"), (False, VERMILION, "--")):
        rows = [row for row in transfers(round_) if row[4] == reduces]
        axis.add_collection(
            LineCollection(
                [[(number, source), (number + 1, target)] for source, target, *_ in rows],
                colors=shade,
                linestyles=line,
                linewidths=1.2 if labelled else 0.6,
                zorder=1,
            )
        )
        for source, target, first, stop, _ in rows if labelled else ():
            # Near the end of the arrow, where arrows that cross have parted.
            axis.text(
                number + 0.72,
                source + 0.72 * (target - source),
                str(first) if stop == first + 1 else f"{first}–{stop - 1}",
                fontsize=7,
                color=shade,
                ha="center",
                va="center",
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none"},
                zorder=2,
            )


def animate_rounds(shown: Shown, path: Path) -> None:
    """Animate the rounds as a GIF: a column per rank, a cell per chunk, and chunks that fly to their targets.

    Raises:
        ConfigurationError: there are too many ranks, rounds or chunks to follow with the eye.
    """
    if (
        shown.size > MOST_RANKS_MOVING
        or len(shown.rounds) > MOST_ROUNDS_MOVING
        or shown.chunks > 2 * MOST_ROUNDS_MOVING
    ):
        raise ConfigurationError(
            f"{shown.name} over {shown.size} ranks takes {len(shown.rounds)} rounds and {shown.chunks} chunks; an "
            f"animation can be followed up to {MOST_RANKS_MOVING} ranks and {MOST_ROUNDS_MOVING} rounds. Take fewer "
            "ranks with -n, or a smaller buffer with --bytes."
        )
    figure = Figure(figsize=(1.6 + 0.8 * shown.size, 1.6 + 0.45 * min(shown.chunks, 16)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    writer = PillowWriter(fps=FRAMES_A_SECOND)
    with writer.saving(figure, str(path), dpi=100):
        for title, have, flying in _frames(shown):
            _draw_frame(axis, shown, title, have, flying)
            writer.grab_frame()


Flying = list[tuple[float, int, int, bool]]
"""The transfers in flight: each one's column, first chunk, number of chunks, and whether it will be added."""


def _frames(shown: Shown) -> Iterator[tuple[str, np.ndarray, Flying]]:
    """(title, (ranks, chunks) number of contributions, what is in flight) of every frame."""
    have = [count.sum(axis=2) for count in shown.counts]
    for _ in range(REST_FRAMES):
        yield "start", have[0], []
    for number, round_ in enumerate(shown.rounds, start=1):
        for frame in range(1, FLIGHT_FRAMES + 1):
            part = frame / FLIGHT_FRAMES
            flying = [
                (source + part * (target - source), first, stop - first, reduce)
                for source, target, first, stop, reduce in transfers(round_)
            ]
            yield f"round {number} of {len(shown.rounds)}", have[number - 1], flying
        for _ in range(REST_FRAMES):
            yield f"round {number} of {len(shown.rounds)}", have[number], []
    for _ in range(3 * REST_FRAMES):
        yield "everyone has everything" if shown.proof.holds else "not an all-reduce", have[-1], []


def _draw_frame(axis: Axes, shown: Shown, title: str, have: np.ndarray, flying: Flying) -> None:
    axis.clear()
    axis.imshow(
        have.T / shown.size,
        cmap=SHADES,
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(-0.5, shown.size - 0.5, shown.chunks, 0),
    )
    if shown.chunks <= 16:
        for rank, chunk in np.ndindex(have.shape):
            shade = "white" if have[rank, chunk] > shown.size / 2 else "black"
            axis.text(rank, chunk + 0.5, str(have[rank, chunk]), ha="center", va="center", color=shade, fontsize=8)
    for edge in range(shown.size - 1):
        axis.axvline(edge + 0.5, color="white", linewidth=6, zorder=1)
    for column, first, number, reduces in flying:
        axis.add_patch(
            Rectangle(
                (column - 0.22, first + 0.15),
                0.44,
                number - 0.3,
                facecolor=BLUE if reduces else VERMILION,
                edgecolor="white",
                alpha=0.9,
                zorder=3,
            )
        )
    axis.set_xticks(range(shown.size), [f"rank {rank}" for rank in range(shown.size)], fontsize=8)
    axis.set_yticks([chunk + 0.5 for chunk in range(shown.chunks)] if shown.chunks <= 16 else [], None)
    if shown.chunks <= 16:
        axis.set_yticklabels([f"chunk {chunk}" for chunk in range(shown.chunks)], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{shown.name}: {title}", loc="left", fontsize=10)
    axis.set_xlabel("blue adds, red replaces; numbers: contributions in the chunk", fontsize=7)
