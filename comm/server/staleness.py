"""Staleness: what becomes of a gradient that was computed on parameters which have changed since."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # a command line that is only looked at must not wait for torch
    from torch import Tensor


class StaleGradients:
    """A way to treat them: as if they were fresh, unless overridden.

    τ is the number of updates that were made between the worker's reading and this one.

    Attributes:
        remembers: whether the values that each worker has read must be kept.
    """

    remembers: ClassVar[bool] = False

    def correct(self, gradient: "Tensor", weight: float, values: "Tensor", read: "Tensor | None") -> None:
        """Correct a gradient in place.

        Args:
            gradient: (elements,) summed over tokens.
            weight: those tokens.
            values: (elements,) the parameters as they are.
            read: (elements,) the parameters as the worker had read them, if they are remembered.
        """

    def rate(self, staleness: int) -> float:  # noqa: ARG002 - for others
        """By what to multiply the learning rate for a gradient with τ = `staleness`."""
        return 1.0


class Scaled(StaleGradients):
    """Take it at the rate η/max(1, τ).

    Source: Zhang et al., "Staleness-aware async-SGD for distributed deep learning" (2015), section 3.
    """

    def rate(self, staleness: int) -> float:
        """The learning rate is multiplied by 1/max(1, τ)."""
        return 1 / max(1, staleness)


class Compensated(StaleGradients):
    """Move it to where the parameters are now: g + λ·g⊙g⊙(w - w_read), a first step of a Taylor expansion.

    The squared gradient stands for the Hessian's diagonal.

    Args:
        compensation: λ; the best one depends on how large the gradients are.

    Source: Zheng et al., "Asynchronous stochastic gradient descent with delay compensation" (2017).
    """

    remembers: ClassVar[bool] = True

    def __init__(self, compensation: float) -> None:
        self._compensation = compensation

    def correct(self, gradient: "Tensor", weight: float, values: "Tensor", read: "Tensor | None") -> None:
        """Adds the correction for g, the mean over tokens, of which `gradient` is `weight` times as much."""
        if read is not None and weight:
            gradient.addcmul_(gradient * gradient, values - read, value=self._compensation / weight)


STALE: Mapping[str, Callable[..., StaleGradients]] = {
    "plain": StaleGradients,
    "scaled": Scaled,
    "compensated": Compensated,
}
"""The treatments of stale gradients, by the names that users write."""
