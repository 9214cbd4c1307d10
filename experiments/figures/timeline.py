"""The timeline figure of a trace: a row per rank with what it did when, and arrows for messages between ranks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.tracing.gather import cut
from bigbatch.comm.tracing.perfetto import title as title_of
from bigbatch.comm.wires.recording import (
    ALL_REDUCE,
    ARM,
    COMPUTE,
    RECEIVE,
    REDUCE,
    SEND,
    UPDATE,
    UPDATES,
    WAIT,
    WORK,
    Span,
)
from bigbatch.experiments.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, panels

LOOKS: dict[str, tuple[str, str, str]] = {
    COMPUTE: (BLUE, "", "computes"),
    REDUCE: (GREEN, "xxxx", "adds"),
    WAIT: ("#eeeeee", "////", "waits"),
    ALL_REDUCE: (PURPLE, "", "in an all-reduce"),
    SEND: (ORANGE, "", "sends"),
    RECEIVE: (SKY, "....", "receives"),
}
"""The colour, the hatch and the word in the legend of each kind of span, in the order of the legend."""

MOST_ARROWS = 200
"""Largest number of messages that are drawn with arrows."""

MOST_RANKS = 64
"""Largest number of ranks; more rows could not be told apart."""

FIRST_SHOWN = 2
"""The update that is drawn by default: the second, since the first one is slower than the others."""

LARGER = 0.4
"""An exchange that takes less than this share of the range is drawn a second time, larger."""

HIDDEN = 0.99
"""An all-reduce of which at least this share is drawn over cannot be seen."""

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))

# Where in a rank's row, which is 1 high, its strips lie: (top, height).
MESSAGES_ROOM = 0.14
MAIN = (-0.20, 0.30)
BESIDES = (0.12, 0.12)
SENT, RECEIVED = (-0.40, MESSAGES_ROOM), (0.26, MESSAGES_ROOM)


def draw_timeline(
    ranks: Sequence[Sequence[Span]], path: Path, title: str, first: float | None = None, stop: float | None = None
) -> None:
    """Draw what every rank did when to a PNG file.

    A rank's row shows from top to bottom what it sends, what its main thread does, what other threads do, if any, and
    what it receives. An arrow leads from the start of a send to the end of its receive. A message lasts from its start
    until the rank has waited for it.

    Where the ranks exchange messages only at the end of the range, that part is drawn once more below, larger.

    Args:
        ranks: every rank's spans, with times in seconds.
        path: the PNG file to write.
        title: title of the figure; the names of the arms shown follow it.
        first: time to start from, in seconds on the spans' clock; None starts with the first span.
        stop: time to stop at, in seconds on the spans' clock; None stops with the last span.

    Raises:
        ConfigurationError: nothing was recorded in that range, or there are too many ranks to tell apart.
    """
    if len(ranks) > MOST_RANKS:
        raise ConfigurationError(
            f"A timeline of {len(ranks)} ranks cannot be read; up to {MOST_RANKS} can be drawn. Open trace.json in "
            "https://ui.perfetto.dev instead."
        )
    everything = [span for spans in ranks for span in spans]
    first = min((span.begin for span in everything), default=0.0) if first is None else first
    stop = max((span.end for span in everything), default=0.0) if stop is None else stop
    shown = _within(ranks, first, stop)
    if first >= stop or not any(shown):
        raise ConfigurationError(
            f"Nothing was recorded from {first:g} s to {stop:g} s: the trace reaches from "
            f"{min((span.begin for span in everything), default=0.0):g} s to "
            f"{max((span.end for span in everything), default=0.0):g} s. Choose another range."
        )
    windows = [(first, stop), *_exchange(shown, first, stop)]
    height = float(np.clip(0.8 + len(windows) * (1.1 + 0.8 * len(ranks)), 3.2, 40))
    figure, axes = panels(len(windows), 1, width=12.0, height=height)
    for axis, window in zip(axes, windows, strict=True):
        _panel(axis, ranks, *window)
    arms = dict.fromkeys(span.name for spans in shown for span in spans if span.kind == ARM)
    axes[0].set_title(", ".join([title, *arms]), loc="left", fontsize=11)
    for axis in axes[1:]:
        axis.set_title("from when the last rank has computed", loc="left", fontsize=9)
    present = {span.kind for spans in shown for span in spans if not _hidden(span, spans)}
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=_ink(kind), label=word, linewidth=0.4)
        for kind, (colour, hatch, word) in LOOKS.items()
        if kind in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1, frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def _within(ranks: Sequence[Sequence[Span]], first: float, stop: float) -> list[list[Span]]:
    return [[span for span in cut(spans, first, stop) if span.end > span.begin] for spans in ranks]


def _hidden(span: Span, spans: Sequence[Span]) -> bool:
    """Whether an all-reduce is drawn over by the waits and additions that it is made of."""
    if span.kind != ALL_REDUCE:
        return False
    parts = (s for s in spans if s.track == span.track and s.kind in (WAIT, REDUCE))
    return sum(s.end - s.begin for s in parts if span.begin <= s.begin and s.end <= span.end) > HIDDEN * (
        span.end - span.begin
    )


def _exchange(shown: Sequence[Sequence[Span]], first: float, stop: float) -> list[tuple[float, float]]:
    """(begin, end) of what is worth a second look, if anything is, with a little room on both sides."""
    workers = [[span for span in spans if span.kind == COMPUTE] for spans in shown]
    computed = [max(spans, key=lambda span: span.end - span.begin).end for spans in workers if spans]
    exchanged = [span.end for spans in shown for span in spans if span.kind == RECEIVE]
    begin, end = max(computed, default=first), max(exchanged, default=first)
    room = 0.1 * (end - begin)
    if not 0 < end - begin < LARGER * (stop - first):
        return []
    return [(max(first, begin - room), min(stop, end + room))]


def _panel(axis: Axes, ranks: Sequence[Sequence[Span]], first: float, stop: float) -> None:
    """Everybody's rows in a range of time, in seconds, and the arrows between them."""
    scale, unit = next(((size, name) for size, name in UNITS if stop - first >= size), UNITS[-1])
    axis.grid(visible=False)
    for rank, spans in enumerate(_within(ranks, first, stop)):
        _row(axis, rank, spans, first, scale)
        for begin, label in ((span.begin, title_of(span)) for span in ranks[rank] if span.kind == UPDATE):
            if first <= begin < stop:
                x = (begin - first) / scale
                axis.plot([x, x], [rank - 0.46, rank + 0.46], color="black", linewidth=0.8, linestyle=":", zorder=7)
                axis.text(x, rank - 0.45, f" {label}", fontsize=7, va="bottom", zorder=7)
    arrows = np.array(_arrows(ranks, first, stop)).reshape(-1, 2, 2)
    if len(arrows) <= MOST_ARROWS:
        arrows[:, :, 0] = (arrows[:, :, 0] - first) / scale
        width = float(np.clip(24 / (len(arrows) + 1), 0.35, 0.9))
        axis.add_collection(LineCollection(list(arrows), colors="#333333", linewidths=width, zorder=6, clip_on=False))
        dot = float(np.clip(400 / (len(arrows) + 1), 3, 9))
        axis.scatter(arrows[:, 1, 0], arrows[:, 1, 1], s=dot, color="#333333", zorder=6, clip_on=False)
    axis.set_xlim(0, (stop - first) / scale)
    axis.set_ylim(len(ranks) - 0.5, -0.62)
    axis.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in range(len(ranks))])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"time since {first:.4g} s in the trace, {unit}" if first else f"time, {unit}")


def _row(axis: Axes, rank: int, spans: Sequence[Span], first: float, scale: float) -> None:
    """One rank's strips; what is done within an all-reduce is drawn over it."""
    bars: dict[tuple[str, tuple[float, float]], list[tuple[float, float]]] = {}
    for span in spans:
        if span.track != UPDATES:
            times = ((span.begin - first) / scale, (span.end - span.begin) / scale)
            bars.setdefault((span.kind, _strip(span)), []).append(times)
    for (kind, (top, height)), ranges in sorted(bars.items(), key=lambda bar: bar[0][0] != ALL_REDUCE):
        colour, hatch, _ = LOOKS.get(kind, (GREY, "", kind))
        axis.broken_barh(
            ranges, (rank + top, height), facecolor=colour, hatch=hatch, edgecolor=_ink(kind), linewidth=0.3, zorder=3
        )


def _ink(kind: str) -> str:
    return {COMPUTE: "white", WAIT: "#777777", ALL_REDUCE: "white"}.get(kind, "#333333")


def _strip(span: Span) -> tuple[float, float]:
    """(top, height) within the row."""
    if span.kind in (SEND, RECEIVE):
        return SENT if span.kind == SEND else RECEIVED
    return MAIN if span.track == WORK else BESIDES


Ends = tuple[tuple[float, float], tuple[float, float]]


def _arrows(ranks: Sequence[Sequence[Span]], first: float, stop: float) -> list[Ends]:
    """((time, row) of the send's begin, (time, row) of the receive's end) of the messages wholly in the range."""
    sent = {span.message(rank): span.begin for rank, spans in enumerate(ranks) for span in spans if span.kind == SEND}
    found: list[Ends] = []
    for rank, spans in enumerate(ranks):
        for span in spans:
            begin = sent.get(span.message(rank)) if span.kind == RECEIVE else None
            if begin is not None and first <= begin and span.end <= stop and span.peer is not None:
                start = span.peer + SENT[0] + SENT[1] / 2
                found.append(((begin, start), (span.end, rank + RECEIVED[0] + RECEIVED[1] / 2)))
    return found


def range_of_updates(
    ranks: Sequence[Sequence[Span]], arm: str | None = None, numbers: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Finds when some updates of one arm ran: (start, end) in seconds, from the first rank's start to the last's end.

    Args:
        ranks: every rank's spans.
        arm: name of the arm, or None for the first arm.
        numbers: numbers of the first and the last update, from 1; None takes the second, or the only one.

    Raises:
        ConfigurationError: the arm or the updates were not recorded.
    """
    everything = [span for spans in ranks for span in spans]
    arms = sorted((span for span in everything if span.kind == ARM), key=lambda span: span.begin)
    known = list(dict.fromkeys(span.name for span in arms))
    if not known:
        raise ConfigurationError("The trace has no updates: choose a range of time with --from and --to.")
    if arm is not None and arm not in known:
        raise ConfigurationError(f"The trace has no arm {arm!r}. It has: {', '.join(known)}.")
    times = [(span.begin, span.end) for span in arms if span.name == (arm or known[0])]
    first, stop = min(begin for begin, _ in times), max(end for _, end in times)
    updates = [s for s in everything if s.kind == UPDATE and s.begin >= first and s.end <= stop]
    if not updates:
        raise ConfigurationError(f"The trace has no updates of the arm {arm or known[0]}: choose --from and --to.")
    last = max(span.number for span in updates)
    low, high = numbers or (min(FIRST_SHOWN, last), min(FIRST_SHOWN, last))
    chosen = [span for span in updates if low <= span.number <= high]
    if not chosen:
        raise ConfigurationError(
            f"The trace has the updates {min(span.number for span in updates)} to {last} of the arm "
            f"{arm or known[0]}, but --updates asks for {low}..{high}. Record more with --trace-updates."
        )
    return min(span.begin for span in chosen), max(span.end for span in chosen)
