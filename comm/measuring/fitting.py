"""Fits a network to what was measured: latency, bandwidth by size, and the time to add."""

import math
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring.calibration import Points
from bigbatch.comm.simulation.network import FloatArray, Network, Piece, Wire

FEWEST_SIZES, PIECE_SIZES, MOST_PIECES = 4, 3, 4
"""A fit needs that many sizes, each of its pieces that many, and it has at most that many pieces."""

NEGLIGIBLE = 0.01
"""A mean relative error well below this one does not justify another piece."""


# Fitting.


def fit_network(points: Points, name: str = "this-machine", source: str = "") -> Network:
    """Fits a network to measured points: its ports' bandwidth and α to `duplex`, γ to `adding`.

    Raises:
        ConfigurationError: the points allow no fit; says why.
    """
    for size, seconds in points.adding.items():
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigurationError(f"To add {size} bytes took {seconds:g} s, which allows no fit: measure again.")
    gamma = float(np.median([seconds / size for size, seconds in points.adding.items()])) if points.adding else 0.0
    return Network(name, fit_wire(points.duplex), gamma=gamma, source=source)


def fit_wire(seconds: Mapping[int, float]) -> Wire:
    """Fits α and bandwidth, piece by piece, to the measured seconds of messages.

    Every piece is the line α + m/B for which the mean of |relative error| over its sizes is least; such a line goes
    through two of its points, or one if α is 0, so that all of those are tried, and a point far off does not pull. The
    number of pieces is the one with the least of 2N log(mean error) + 3K log(N), for N sizes and K pieces. No larger
    message is cheaper than a smaller one.

    Args:
        seconds: maps a message's bytes to its seconds.

    Raises:
        ConfigurationError: there are too few sizes, or a time is not a number above 0.

    Source: Schwarz, "Estimating the dimension of a model" (1978), for what a further piece must be worth.
    """
    if len(seconds) < FEWEST_SIZES:
        raise ConfigurationError(
            f"A wire cannot be fitted to {len(seconds)} size{'s' if len(seconds) != 1 else ''} of messages: measure at "
            f"least {FEWEST_SIZES}."
        )
    for size, taken in seconds.items():
        if size < 1 or not (math.isfinite(taken) and taken > 0):
            raise ConfigurationError(
                f"A message of {size} bytes took {taken:g} s, which allows no fit: a time is a number above 0. Measure "
                "on wires that take time."
            )
    sizes = np.array(sorted(seconds), np.float64)
    times = np.array([seconds[int(size)] for size in sizes])
    count = len(sizes)
    lines = {
        (first, stop): _line(sizes[first:stop], times[first:stop])
        for first in range(count)
        for stop in range(first + min(PIECE_SIZES, count), count + 1)
    }
    best: tuple[float, Wire] | None = None
    for pieces in range(1, MOST_PIECES + 1):
        for cuts in combinations(range(1, count), pieces - 1):
            ends = (0, *cuts, count)
            spans = list(pairwise(ends))
            if not all(span in lines for span in spans):
                continue
            chosen = [lines[span] for span in spans]
            if any(_falls(*pair, sizes[cut]) for pair, cut in zip(pairwise(chosen), cuts, strict=True)):
                continue
            error = sum(line.error for line in chosen) / count
            score = 2 * count * math.log(error + NEGLIGIBLE) + 3 * pieces * math.log(count)
            if best is None or score < best[0]:
                least = [0, *(int(sizes[cut]) for cut in cuts)]
                made = [
                    Piece(size, line.alpha, 1 / line.beta if line.beta else math.inf)
                    for size, line in zip(least, chosen, strict=True)
                ]
                best = score, Wire(*made)
    assert best is not None, "one piece always fits"
    return best[1]


class Line(NamedTuple):
    """Messages of m bytes take alpha + m·beta seconds; `error` is the sum of |relative error| over its sizes."""

    alpha: float
    beta: float
    error: float


def _line(sizes: FloatArray, times: FloatArray) -> Line:
    one, other = np.triu_indices(len(sizes), 1)
    slopes = (times[other] - times[one]) / (sizes[other] - sizes[one])
    beta = np.concatenate([slopes, times / sizes])
    alpha = np.concatenate([times[one] - slopes * sizes[one], np.zeros(len(sizes))])
    rounding = 1e-12 * times.max()
    alpha[np.abs(alpha) < rounding] = 0.0
    allowed = (alpha >= 0) & (beta >= 0)
    alpha, beta = alpha[allowed], beta[allowed]
    errors = np.abs((alpha[:, None] + beta[:, None] * sizes) / times - 1).sum(axis=1)
    best = int(np.argmin(errors))
    return Line(float(alpha[best]), float(beta[best]), float(errors[best]))


def _falls(line: Line, following: Line, size: float) -> bool:
    """Whether a message of the size at which the following line begins would be cheaper than one a byte smaller."""
    return following.alpha + following.beta * size < (line.alpha + line.beta * size) * (1 - 1e-9)
