"""One update of parameters: divide the summed gradients, refuse what is not finite, let the optimiser step."""

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor
from torch.optim import Optimizer

from bigbatch.comm.errors import MalformedError
from bigbatch.comm.parameters import all_finite

BLOCK_ELEMENTS = 1 << 17
"""Elements of a block: so many of the sum, a gradient and the mean stay in a core's second-level cache, of 2 MB on
today's servers."""


class Outcome(StrEnum):
    """What became of a gradient, or of an update that is made of several."""

    APPLIED = "applied"
    """The update changed the parameters."""
    NO_DATA = "no data"
    """There were no tokens behind the gradient, so that there was nothing to divide by."""
    NOT_FINITE = "not finite"
    """The gradient holds a NaN or an infinity; the parameters are what they were."""
    DROPPED = "dropped"
    """The gradient came too late for the update that it was computed for."""

    @property
    def code(self) -> int:
        """A number that stands for the outcome in messages which hold numbers only."""
        return list(Outcome).index(self)

    @staticmethod
    def of(code: float) -> "Outcome":
        """Returns the outcome whose `code` is the number.

        Raises:
            MalformedError: no outcome has that code.
        """
        for outcome in Outcome:
            if outcome.code == code:
                return outcome
        raise MalformedError(f"The number {code:g} arrived as what became of an update, but stands for nothing.")


def make_update(
    optimizer: Optimizer | None,
    total: Tensor,
    weight: float,
    *,
    rest: Sequence[Tensor] = (),
    mean: Tensor | None = None,
    finite: bool = True,
    rate: float = 1.0,
) -> Outcome:
    """Divide summed gradients by the summed weight, once, and let the optimiser make its update.

    On a CPU each block is added up, divided and checked for NaNs and infinities while it is in cache.

    Args:
        optimizer: makes its step on `mean`, which its parameters have as their gradients; None if it has no parameters.
        total: (elements,) the sum of gradients; what it holds afterwards is not specified.
        weight: the number of tokens behind all the gradients.
        rest: further gradients to add to `total`, (elements,) each.
        mean: (elements,) where the mean gradient goes; `total` itself if None.
        finite: whether all gradients have been found finite so far.
        rate: what the optimiser's learning rates are multiplied by, for this update alone.

    Returns:
        What became of the update. Unless it was applied, the parameters are what they were.
    """
    if not weight > 0:
        return Outcome.NO_DATA
    if not finite:
        return Outcome.NOT_FINITE
    if optimizer is None:
        return Outcome.APPLIED
    mean = total if mean is None else mean
    length = BLOCK_ELEMENTS if total.device.type == "cpu" else max(1, len(total))
    for first in range(0, len(total), length):
        block = slice(first, first + length)
        for values in rest:
            total[block].add_(values[block])
        if not all_finite(torch.div(total[block], weight, out=mean[block])):
            return Outcome.NOT_FINITE
    _step(optimizer, rate)
    return Outcome.APPLIED


def _step(optimizer: Optimizer, rate: float) -> None:
    if rate == 1:
        optimizer.step()
        return
    usual = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= rate
    optimizer.step()
    for group, unchanged in zip(optimizer.param_groups, usual, strict=True):
        group["lr"] = unchanged
