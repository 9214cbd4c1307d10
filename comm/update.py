"""One update of parameters: divide the summed gradients, refuse what is not finite, let the optimiser step."""

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor
from torch.optim import Optimizer

from bigbatch.comm.errors import MalformedError
from bigbatch.comm.parameters import all_finite

BLOCK_ELEMENTS = 1 << 17
"""So many of the sum, of a gradient and of the mean stay in a core's second-level cache, of 2 MB on today's servers."""


class Outcome(StrEnum):
    """What became of a gradient, or of an update that is made of several."""

    APPLIED = "applied"
    """The parameters have changed by it."""
    NO_DATA = "no data"
    """There were no tokens behind it, so that there was nothing to divide by."""
    NOT_FINITE = "not finite"
    """It holds a NaN or an infinity; the parameters are what they were."""
    DROPPED = "dropped"
    """It came too late for the update that it was computed for."""

    @property
    def code(self) -> int:
        """A number that stands for the outcome in messages which hold numbers only."""
        return list(Outcome).index(self)

    @staticmethod
    def of(code: float) -> "Outcome":
        """The outcome that a number stands for.

        Raises:
            MalformedError: it stands for none.
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

    On a CPU each block is added up, divided and looked at while it is in cache.

    Args:
        optimizer: steps on `mean`, in which its parameters have their gradients; None if it has no parameters.
        total: (elements,) the sum of gradients; what it holds afterwards is not specified.
        weight: tokens behind all the gradients.
        rest: (elements,) each, what is to be added to `total` still.
        mean: (elements,) where the mean gradient goes; `total` itself if None.
        finite: whether everybody has found the gradients finite so far.
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
