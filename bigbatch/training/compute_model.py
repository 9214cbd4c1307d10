"""Compute models: how many seconds of computing a simulated clock is charged for."""

from collections.abc import Iterator

from bigbatch.comm.simulation.computing import Computing


class ComputeModel:
    """The compute model of a real clock, on which computing takes its own time and nothing is charged."""

    def begin(self) -> None:
        """Prepares the model for the next update; the worker calls it as the update starts."""

    def forward(self, tokens: int) -> float:  # noqa: ARG002 - it is always the same
        """Seconds to charge for the forward pass of this many tokens."""
        return 0.0

    def backward(self, tokens: int) -> float:  # noqa: ARG002 - it is always the same
        """Seconds to charge for the backward pass of this many tokens."""
        return 0.0


class SimulatedComputeModel(ComputeModel):
    """The compute model of a simulated clock: the time of the computing, times a factor drawn for each update.

    Args:
        computing: how long a worker computes when nothing slows it.
        factors: the factors of the updates in order, one per update.
        recomputed: the share of forward that backward computes once more.
    """

    def __init__(self, computing: Computing, factors: Iterator[float], recomputed: float = 0.0) -> None:
        self._computing = computing
        self._recomputed = recomputed
        self._factors = factors
        self._factor = 1.0

    def begin(self) -> None:
        """Draw the factor by which this update's computing is slowed."""
        self._factor = next(self._factors)

    def forward(self, tokens: int) -> float:
        """Seconds that the forward pass of this many tokens takes, slowed by this update's factor."""
        return self._factor * self._computing.forward(tokens)

    def backward(self, tokens: int) -> float:
        """Seconds that the backward pass of this many tokens takes, slowed by this update's factor."""
        return self._factor * self._computing.backward(tokens, self._recomputed)
