"""Factories whose optimisers are changed as they are made: rates for another batch, a schedule, clipped gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import Number, checked
from bigbatch.comm.parameters import OptimizerFactory, WholeFactory
from bigbatch.comm.schedules.schedule import name_of
from bigbatch.optimizers.rates import ScalingRule, Schedule, refuse_wrong_factor, refuse_wrong_factors
from bigbatch.optimizers.standard import Named

RATE = Number(least=0)
"""The kind of value for a learning rate that a user's code computes."""


def scaled(make: OptimizerFactory, rule: ScalingRule, batch: int, base: int) -> OptimizerFactory:
    """Makes a factory of the same optimisers, with their learning rates scaled to another batch size.

    Args:
        make: the factory that makes the optimisers.
        rule: the scaling rule that changes their rates. If it cannot scale, or what it sets is no rate, the new factory
            raises ConfigurationError when it makes an optimiser.
        batch: number of examples behind one step.
        base: number of examples for which the unscaled rates are meant.
    """

    def scale(optimizer: Optimizer) -> None:
        rule(optimizer, batch, base)
        for group in optimizer.param_groups:
            group["lr"] = checked(f"The learning rate that the scaling rule {name_of(rule)} sets", RATE, group["lr"])

    return _changed(make, scale)


def scheduled(
    make: OptimizerFactory, schedule: Schedule, steps: int, warm_up: int, start: float = 0.0
) -> OptimizerFactory:
    """Makes a factory of the same optimisers, whose learning rate follows a schedule.

    Before a step the rate of every group is multiplied by the schedule's factor, and after the step it is restored. So
    schedules combine with anything else that changes rates, and a saved state always has the peak rate. The number of
    steps made is kept in the state, as `updates` of every group. Steps beyond `steps` use the rate of the last step.

    Args:
        make: the factory that makes the optimisers.
        schedule: the schedule; see `bigbatch.optimizers.rates`.
        steps: number of steps in the whole training.
        warm_up: number of those steps in which the rate rises.
        start: the share s of the peak rate from which the warm-up rises. During the warm-up the schedule's factor f
            becomes s + (1 - s)f, so that a linear rise stays linear and ends at the same rate.

    Raises:
        ConfigurationError: the warm-up is longer than the training, or a factor of the schedule is no rate; marked
            `everywhere`, since every rank finds the same.
    """
    if warm_up > steps:
        raise ConfigurationError(
            f"A warm-up of {warm_up} steps of the optimiser is longer than an arm, which has {steps}. Use a shorter "
            "--warmup, more --tokens or a smaller --batch-size.",
            everywhere=True,
        )

    refuse_wrong_factors(schedule, steps, warm_up)

    def follow(optimizer: Optimizer) -> None:
        peaks: list[float] = []

        def before(*_: Any) -> None:
            groups = optimizer.param_groups
            peaks[:] = [group["lr"] for group in groups]
            updates = groups[0].get("updates", 0) + 1
            step = min(updates, steps)
            factor = schedule(step, steps, warm_up)
            refuse_wrong_factor(schedule, factor, step, steps)
            if step <= warm_up:
                factor = start + (1 - start) * factor
            for group in groups:
                group["updates"] = updates
                group["lr"] *= factor

        def after(*_: Any) -> None:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    return _changed(make, follow)


def clipped(make: OptimizerFactory, most: float) -> OptimizerFactory:
    """Makes a factory of the same optimisers, which clip the gradient to the norm `most` before each step.

    The norm is taken over all parameters of the mean gradient, which is what an optimiser gets. Gradients are changed
    in place.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013), section 3.2.
    """

    def clip(optimizer: Optimizer) -> None:
        def before(*_: Any) -> None:
            every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            gradients = [parameter.grad for parameter in every if parameter.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_mul_(gradients, torch.clamp(most / norm, max=1.0))

        optimizer.register_step_pre_hook(before)

    return WholeFactory("--clip", _changed(make, clip))


def _changed(make: OptimizerFactory, change: Callable[[Optimizer], None]) -> OptimizerFactory:
    """A factory of optimisers that are changed as soon as they are made."""

    def build(named: Named) -> Optimizer:
        optimizer = make(named)
        change(optimizer)
        return optimizer

    return WholeFactory(make.what, build) if isinstance(make, WholeFactory) else build
