"""Compute models: how long a worker computes, as far as a clock has to be told."""

from collections.abc import Iterator

from bigbatch.comm.simulation.computing import Computing


class ComputeModel:
    """On a real clock computing takes its own time, and nobody has to be told."""

    def begin(self) -> None:
        """The worker begins an update."""

    def forward(self, tokens: int) -> float:  # noqa: ARG002 - it is always the same
        """Seconds to charge for the forward pass of so many tokens."""
        return 0.0

    def backward(self, tokens: int) -> float:  # noqa: ARG002 - it is always the same
        """Seconds to charge for their backward pass."""
        return 0.0


class SimulatedComputeModel(ComputeModel):
    """So long as its computing takes, times a factor that is drawn for every update.

    Args:
        computing: what it takes without the factor.
        factors: one for every update, of which the first is for the first.
    """

    def __init__(self, computing: Computing, factors: Iterator[float]) -> None:
        self._computing = computing
        self._factors = factors
        self._factor = 1.0

    def begin(self) -> None:
        """Draw the factor."""
        self._factor = next(self._factors)

    def forward(self, tokens: int) -> float:
        """Its share."""
        return self._factor * self._computing.forward(tokens)

    def backward(self, tokens: int) -> float:
        """Its share."""
        return self._factor * self._computing.backward(tokens)
