"""The gradient noise scale: how much the gradients of single examples differ, relative to the length of their mean.

Source: McCandlish, Kaplan, Amodei and the OpenAI Dota Team, "An empirical model of large-batch training" (2018),
section 2.2 and appendix A.1.
"""

import math
from collections.abc import Mapping

from bigbatch.comm.strategies.strategy import Squares

DECAY = 0.98
"""Decay of the averages, which look back over about 1 / (1 - 0.98) = 50 updates. With the default model, four workers
and 16 examples per update, one update's estimate of |G|² has a standard deviation of 0.5 to 1 times its mean, and a
single odd example can make that of tr Σ several times as large. An average with this decay makes 0.5 to 1 into 0.05 to
0.1, and still follows |G|², which halves in the first hundred updates and changes more slowly later."""


def measurable(workers: int, accumulation: int, *, tells_squares: bool) -> bool:
    """Whether the noise can be measured: each update has several samples of the gradient, of workers or micro-batches.

    Args:
        workers: number of workers that compute for an update.
        accumulation: number of micro-batches behind each worker's gradient.
        tells_squares: whether the strategy tells the squares of the workers' gradients; see `Strategy.tells_squares`.
    """
    return accumulation > 1 or (tells_squares and workers > 1)


def estimates(squares: Squares, small: int, large: int) -> tuple[float, float]:
    """Estimates |G|² and tr Σ without bias from the gradients of one update, none of which may be clipped.

    A mean gradient over n examples has the expected square |G|² + tr Σ/n, where G is the expected gradient and Σ the
    covariance of one example's gradient. Two different n make two equations, which are solved here.

    Args:
        squares: squared norms of the mean gradients over `small` examples, and of the mean gradient over all.
        small: number of examples behind each sample of the gradient, the same for all samples.
        large: number of examples behind all samples together; more than `small`.

    Returns:
        (|G|², tr Σ); either can come out negative. Gradients are of the loss per token, in nats.
    """
    gradient_square = (large * squares.of_mean - small * squares.of_each) / (large - small)
    gradient_variance = (squares.of_each - squares.of_mean) / (1 / small - 1 / large)
    return gradient_square, gradient_variance


class NoiseScale:
    """Averages the two estimates over the updates, before one is divided by the other.

    The averages are exponential and corrected for their start: after n updates the weights are decay^(n-1), ..., decay,
    1, divided by their sum. The ratio of averages is biased less than an average of ratios, whose denominators are
    noisy and close to 0.

    Args:
        decay: the weight of an update relative to the one after it.
    """

    def __init__(self, decay: float = DECAY) -> None:
        self._decay = decay
        self._weight = self._gradient_square = self._gradient_variance = 0.0

    def add(self, squares: Squares, small: int, large: int) -> None:
        """Adds one update to the averages; an update whose estimates are not finite is left out.

        Args:
            squares: squared norms of the update's gradients; see `estimates`.
            small: number of examples behind each sample of the gradient.
            large: number of examples behind all samples together.
        """
        gradient_square, gradient_variance = estimates(squares, small, large)
        if not (math.isfinite(gradient_square) and math.isfinite(gradient_variance)):
            return
        keep = self._decay
        self._weight = keep * self._weight + 1 - keep
        self._gradient_square = keep * self._gradient_square + (1 - keep) * gradient_square
        self._gradient_variance = keep * self._gradient_variance + (1 - keep) * gradient_variance

    def state_dict(self) -> dict[str, float]:
        """Returns the averages so far, for a checkpoint."""
        return {
            "weight": self._weight,
            "gradient_square": self._gradient_square,
            "gradient_variance": self._gradient_variance,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the averages that `state_dict` returned."""
        self._weight = state["weight"]
        self._gradient_square, self._gradient_variance = state["gradient_square"], state["gradient_variance"]

    @property
    def gradient_square(self) -> float:
        """The average of |G|²; NaN before the first update."""
        return self._gradient_square / self._weight if self._weight else math.nan

    @property
    def gradient_variance(self) -> float:
        """The average of tr Σ, the variance of one example's gradient; NaN before the first update."""
        return self._gradient_variance / self._weight if self._weight else math.nan


def noise_scale(gradient_square: float, gradient_variance: float) -> float:
    """Computes B_simple = tr Σ / |G|² in examples; NaN if |G|² is not above 0 or tr Σ is negative."""
    known = gradient_square > 0 and gradient_variance >= 0
    return gradient_variance / gradient_square if known else math.nan
