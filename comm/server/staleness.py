"""Staleness: what becomes of a gradient that was computed on parameters which have changed since."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # a command line that is only looked at must not wait for torch
    from torch import Tensor


class StaleGradients:
    """A way to treat stale gradients: as if they were fresh, unless a subclass says otherwise.

    τ is the number of updates that were made between the worker's reading and this one.

    Attributes:
        remembers: whether the values that each worker has read must be kept.
    """

    remembers: ClassVar[bool] = False

    def correct(self, gradient: "Tensor", weight: float, values: "Tensor", read: "Tensor | None") -> None:
        """Corrects a stale gradient in place; this class leaves it as it is.

        Args:
            gradient: (elements,) summed over tokens.
            weight: the number of those tokens.
            values: (elements,) the parameters as they are.
            read: (elements,) the parameters as the worker had read them, if they are remembered.
        """

    def rate(self, staleness: int) -> float:  # noqa: ARG002 - for others
        """The factor for the learning rate of a gradient whose staleness τ is `staleness`."""
        return 1.0


class Scaled(StaleGradients):
    """Applies a stale gradient at the learning rate η/max(1, τ).

    Source: Zhang et al., "Staleness-aware async-SGD for distributed deep learning" (2015), section 3.
    """

    def rate(self, staleness: int) -> float:
        """The factor 1/max(1, τ) for the learning rate."""
        return 1 / max(1, staleness)


class Compensated(StaleGradients):
    """Moves a stale gradient to the present parameters: g + λ·g⊙g⊙(w - w_read), a first-order Taylor expansion.

    The squared gradient stands for the Hessian's diagonal.

    Args:
        compensation: λ; the best one depends on how large the gradients are.

    Source: Zheng et al., "Asynchronous stochastic gradient descent with delay compensation" (2017).
    """

    remembers: ClassVar[bool] = True

    def __init__(self, compensation: float) -> None:
        self._compensation = compensation

    def correct(self, gradient: "Tensor", weight: float, values: "Tensor", read: "Tensor | None") -> None:
        """Adds the correction for g, the gradient's mean over tokens; `gradient` is `weight` times g."""
        if read is not None and weight:
            # A product, so that the -0.0 of a parameter that got no gradient stays -0.0.
            gradient.mul_((values - read).mul_(gradient).mul_(self._compensation / weight).add_(1))


STALE: Mapping[str, Callable[..., StaleGradients]] = {
    "plain": StaleGradients,
    "scaled": Scaled,
    "compensated": Compensated,
}
"""The treatments of stale gradients, by the names that users write."""
