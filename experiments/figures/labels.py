"""Labels beside a panel, at the height where its lines end."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

LABEL_SIZE = 8
"""Font size of the labels, in points."""

BESIDE = 1.02
"""Where labels start, in widths of their panel."""

LEADER = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.6, "shrinkA": 2, "shrinkB": 3, "relpos": (0.0, 0.5)}
"""Look of the leader, which connects a label's left side to the end of its line."""


class End(NamedTuple):
    """The end of a line in a panel, where its label goes.

    Attributes:
        label: name of the line.
        colour: colour of the line and of its label.
        x, y: place of the end, in the panel's data units.
    """

    label: str
    colour: str
    x: float
    y: float


def label_ends(figure: Figure, ends: Mapping[Axes, Sequence[End]]) -> None:
    """Label every line beside its panel, near its end; leaders connect labels to ends, and labels do not overlap.

    Args:
        figure: the figure with all its panels, whose scales must be final.
        ends: the ends of the lines in each panel.
    """
    labels = {axis: _labels(axis, own) for axis, own in ends.items()}
    figure.draw_without_rendering()
    for axis, own in labels.items():
        _spread(axis, own, figure.dpi)


def _labels(axis: Axes, ends: Sequence[End]) -> list[Annotation]:
    labels = []
    for end in ends:
        leader: dict[str, Any] = {**LEADER, "color": end.colour}
        label = axis.annotate(
            end.label,
            (end.x, end.y),
            xytext=(BESIDE, _height(axis, end.y)),
            textcoords="axes fraction",
            fontsize=LABEL_SIZE,
            color=end.colour,
            va="center",
            annotation_clip=False,
            arrowprops=leader,
        )
        label.set_parse_math(False)
        labels.append(label)
    return labels


def _height(axis: Axes, y: float) -> float:
    """Where a value lies between the bottom, 0, and the top, 1, of its panel."""
    return float((axis.transScale + axis.transLimits).transform((axis.get_xlim()[1], y))[1])


def _spread(axis: Axes, labels: Sequence[Annotation], dpi: float) -> None:
    """Move labels up and down until none overlaps another; their order is that of the lines' ends."""
    least = 1.25 * LABEL_SIZE * dpi / 72 / axis.get_window_extent().height
    ordered = sorted(labels, key=lambda label: label.xyann[1])
    heights = [label.xyann[1] for label in ordered]
    for label, height in zip(ordered, spread(heights, least), strict=True):
        label.xyann = (BESIDE, height)


def spread(heights: Sequence[float], least: float, top: float = 1.0) -> list[float]:
    """Moves ascending heights apart, so that each is at least `least` above the one before and none is above `top`.

    If there are too many heights for the room, the lowest lie below 0.
    """
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + least) if places else height)
    for number in reversed(range(len(places))):
        top = min(places[number], top)
        places[number] = top
        top -= least
    return places
