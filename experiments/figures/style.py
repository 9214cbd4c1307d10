"""One style for every figure: readable in print and for colour-blind readers."""

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by every kind of colour vision, and by brightness in print.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#999999"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
Line = str | tuple[int, tuple[int, ...]]
"""A line style, as matplotlib names or describes it."""

LINES: tuple[Line, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 2)))


def colour(index: int) -> str:
    """Returns the colour of the series with this index, as #rrggbb; after six they come from the map `cividis`."""
    if index < len(CYCLE):
        return CYCLE[index]
    red, green, blue, _ = colormaps["cividis"](index % 10 / 10)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def panels(rows: int, columns: int, width: float = 10.0, height: float = 7.0) -> tuple[Figure, list[Axes]]:
    """Makes a figure and its axes, row by row; sizes are in inches. It belongs to no window and needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes
