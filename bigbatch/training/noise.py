"""The gradient noise scale: how much the gradients of single examples differ, against how long their mean is.

Source: McCandlish, Kaplan, Amodei and the OpenAI Dota Team, "An empirical model of large-batch training" (2018),
section 2.2 and appendix A.1.
"""

import math
from collections.abc import Mapping

from bigbatch.comm.strategies.strategy import Squares

DECAY = 0.98
"""Of the averages, which so look back over about 1 / (1 - 0.98) = 50 updates. With the default model, four workers
and 16 examples an update, one update's estimate of |G|² has a standard deviation of 0.5 to 1 times its mean, and a
single odd example can make that of tr Σ several times as large. An average with this decay makes 0.5 to 1 into 0.05 to
0.1, and still follows |G|², which halves in the first hundred updates and changes more slowly later."""


def measurable(workers: int, accumulation: int, *, tells_squares: bool) -> bool:
    """Whether there is more than one draw of the gradient an update: a worker's, or a micro-batch's.

    Args:
        workers: how many compute for an update.
        accumulation: micro-batches behind the gradient of each.
        tells_squares: what their strategy says of itself.
    """
    return accumulation > 1 or (tells_squares and workers > 1)


def estimates(squares: Squares, small: int, large: int) -> tuple[float, float]:
    """|G|² and tr Σ, without bias, from the gradients of one update, none of which may be clipped.

    A mean gradient over n examples has the expected square |G|² + tr Σ/n, where G is the expected gradient and Σ the
    covariance of one example's: two sizes of n make two equations.

    Args:
        squares: of the means over `small` examples, and of the mean over all of them.
        small: examples behind each draw, the same number behind all.
        large: examples behind all draws together; more than `small`.

    Returns:
        (|G|², tr Σ); either can come out negative. Gradients are of the loss per token, in nats.
    """
    gradient_square = (large * squares.of_mean - small * squares.of_each) / (large - small)
    gradient_variance = (squares.of_each - squares.of_mean) / (1 / small - 1 / large)
    return gradient_square, gradient_variance


class NoiseScale:
    """The two estimates, each averaged over the updates; only then is one divided by the other.

    The averages are exponential and corrected for their start: those of the first n updates have the weights
    decay^(n-1), ..., decay, 1, divided by their sum. The ratio of averages is biased less than an average of ratios,
    whose denominators are noise around a small number.

    Args:
        decay: how much less an update counts than the one after it.
    """

    def __init__(self, decay: float = DECAY) -> None:
        self._decay = decay
        self._weight = self._gradient_square = self._gradient_variance = 0.0

    def add(self, squares: Squares, small: int, large: int) -> None:
        """One more update; it is left out if its gradients were not finite.

        Args:
            squares: of its gradients.
            small: examples behind each draw.
            large: examples behind all.
        """
        gradient_square, gradient_variance = estimates(squares, small, large)
        if not (math.isfinite(gradient_square) and math.isfinite(gradient_variance)):
            return
        keep = self._decay
        self._weight = keep * self._weight + 1 - keep
        self._gradient_square = keep * self._gradient_square + (1 - keep) * gradient_square
        self._gradient_variance = keep * self._gradient_variance + (1 - keep) * gradient_variance

    def state_dict(self) -> dict[str, float]:
        """The averages so far."""
        return {
            "weight": self._weight,
            "gradient_square": self._gradient_square,
            "gradient_variance": self._gradient_variance,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._weight = state["weight"]
        self._gradient_square, self._gradient_variance = state["gradient_square"], state["gradient_variance"]

    @property
    def gradient_square(self) -> float:
        """The average of |G|²; NaN before the first update."""
        return self._gradient_square / self._weight if self._weight else math.nan

    @property
    def gradient_variance(self) -> float:
        """The average of tr Σ, of one example; NaN before the first update."""
        return self._gradient_variance / self._weight if self._weight else math.nan


def noise_scale(gradient_square: float, gradient_variance: float) -> float:
    """B_simple = tr Σ / |G|² in examples; NaN if that is not known, because an average is not positive."""
    known = gradient_square > 0 and gradient_variance >= 0
    return gradient_variance / gradient_square if known else math.nan
