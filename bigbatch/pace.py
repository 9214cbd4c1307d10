"""Pace: how long a worker computes, as far as a clock has to be told."""

from collections.abc import Iterator

FORWARD = 1 / 3
"""The share of an update's computing that is forward: backward multiplies with the weights and with the activations,
twice as many operations (Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1)."""


class Pace:
    """On a real clock computing takes its own time, and nobody has to be told."""

    def begin(self) -> None:
        """The worker begins an update."""

    def forward(self, tokens: int) -> float:  # noqa: ARG002 - it is always the same
        """Seconds to charge for the forward pass of so many tokens."""
        return 0.0

    def backward(self, tokens: int) -> float:  # noqa: ARG002 - it is always the same
        """Seconds to charge for their backward pass."""
        return 0.0


class SimulatedPace(Pace):
    """So many seconds a token, times a factor that is drawn for every update.

    Args:
        seconds_per_token: forward and backward together.
        factors: one for every update, of which the first is for the first.
    """

    def __init__(self, seconds_per_token: float, factors: Iterator[float]) -> None:
        self._seconds_per_token = seconds_per_token
        self._factors = factors
        self._now = seconds_per_token

    def begin(self) -> None:
        """Draw the factor."""
        self._now = self._seconds_per_token * next(self._factors)

    def forward(self, tokens: int) -> float:
        """A third of it."""
        return FORWARD * self._now * tokens

    def backward(self, tokens: int) -> float:
        """Two thirds of it."""
        return (1 - FORWARD) * self._now * tokens
