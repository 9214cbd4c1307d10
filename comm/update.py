"""One update of parameters: divide the summed gradients, refuse what is not finite, let the optimiser step."""

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor
from torch.optim import Optimizer

from bigbatch.comm.errors import BigBatchError, ConfigurationError, MalformedError
from bigbatch.comm.foreign import failure
from bigbatch.comm.gradients import GradientViews
from bigbatch.comm.parameters import all_finite
from bigbatch.comm.values import ValueViews

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
    views: GradientViews,
    total: Tensor,
    weight: float,
    *,
    values: ValueViews,
    rest: Sequence[Tensor] = (),
    finite: bool = True,
    rate: float = 1.0,
) -> Outcome:
    """Divide summed gradients by the summed weight, once, and let the optimiser make its update.

    On a CPU each block is added up, divided and checked for NaNs and infinities while it is in cache. Parameters that
    got no gradient from anybody have none while the optimiser makes its step, so that it leaves them as they are.

    Args:
        optimizer: makes the step; None if it has no parameters.
        views: the optimiser's parameters and the memory of their gradients, where the mean gradient goes.
        total: (elements,) the sum of gradients, which may be that memory; else what it holds afterwards is not
            specified.
        weight: the number of tokens behind all the gradients.
        values: the optimiser's parameters and the memory of their values, where they are brought back to if the
            optimiser puts new ones elsewhere.
        rest: further gradients to add to `total`, (elements,) each.
        finite: whether all gradients have been found finite so far.
        rate: what the optimiser's learning rates are multiplied by, for this update alone.

    Returns:
        What became of the update. Unless it was applied, the parameters are what they were.

    Raises:
        ConfigurationError: the optimiser cannot make its step. It may have changed some of the parameters.
    """
    if not weight > 0:
        return Outcome.NO_DATA
    if not finite:
        return Outcome.NOT_FINITE
    if optimizer is None:
        return Outcome.APPLIED
    mean, absent = views.memory, views.absent([total, *rest])
    length = BLOCK_ELEMENTS if total.device.type == "cpu" else max(1, len(total))
    for first in range(0, len(total), length):
        block = slice(first, first + length)
        for gradient in rest:
            total[block].add_(gradient[block])
        if not all_finite(torch.div(total[block], weight, out=mean[block])):
            return Outcome.NOT_FINITE
    try:
        with views.without(absent):
            _step(optimizer, rate)
    except BigBatchError:
        raise
    except Exception as error:
        views.found(failure(f"The optimiser {type(optimizer).__name__}", "make its step", error))
        raise ConfigurationError(views.fault) from error
    if lost := values.restore():
        raise ConfigurationError(lost)
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
