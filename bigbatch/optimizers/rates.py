"""Learning rates: how they change from step to step (schedules), and how they grow with the batch (scaling rules).

A schedule is a function of (step, steps, warm_up): the number of the optimiser's step, from 1; the number of steps in
all; the number of steps in which the rate rises. It returns the factor that multiplies the peak rate.

Every schedule here rises linearly, t/w at step t of a warm-up of w steps, and is 1 at step w, its peak; without a
warm-up the peak is step 1. Where the linear scaling rule has raised the peak, the warm-up rises linearly from the
unscaled rate instead of from 0; see `warm_up_start`. A schedule that falls to 0 gets there one step after the last, so
that the last step still counts, if least of all.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.optim import Optimizer, RMSprop

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.foreign import failure, guarded
from bigbatch.comm.schedules.schedule import name_of

Schedule = Callable[[int, int, int], float]
"""A schedule: (step from 1, steps in all, steps of warm-up) -> factor of the peak rate."""

ScalingRule = Callable[[Optimizer, int, int], None]
"""A scaling rule changes the groups of (a new optimiser, examples behind a step, examples its rates are meant for)."""


def constant(step: int, steps: int, warm_up: int) -> float:  # noqa: ARG001 - others do
    """Stays at the peak rate after the warm-up: min(1, t/w)."""
    return min(1.0, step / max(1, warm_up))


def linear(step: int, steps: int, warm_up: int) -> float:
    """Falls linearly after the peak: (T + 1 - t)/(T + 1 - w), which is 1/(T + 1 - w) at the last step T."""
    return constant(step, steps, warm_up) if step <= warm_up else 1 - _progress(step, steps, warm_up)


def cosine(step: int, steps: int, warm_up: int) -> float:
    """Falls along half a cosine after the peak: (1 + cos πp)/2, with p = (t - w)/(T + 1 - w).

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), section 3, with no
    restart and a minimum rate of 0.
    """
    if step <= warm_up:
        return constant(step, steps, warm_up)
    return (1 + math.cos(math.pi * _progress(step, steps, warm_up))) / 2


def noam(step: int, steps: int, warm_up: int) -> float:  # noqa: ARG001 - it falls for ever
    """Is proportional to min(t^(-1/2), t·w^(-3/2)), and 1 at its peak t = w; without a warm-up w is 1.

    The paper's own peak rate is (d·w)^(-1/2), where d is the model's width: use that as --learning-rate to get the
    paper's rates.

    Source: Vaswani et al., "Attention is all you need" (2017), section 5.3.
    """
    warm_up = max(1, warm_up)
    return min(math.sqrt(warm_up / step), step / warm_up)


def wsd(step: int, steps: int, warm_up: int) -> float:
    """Warm-up, stable, decay: stays at the peak rate until the last fifth of all steps, in which it falls linearly.

    With D = ⌈T/5⌉ it is min(1, t/w, (T + 1 - t)/(D + 1)), which is 1/(D + 1) at the last step T. A warm-up of more than
    T - D steps never reaches the peak.

    Source: Hu et al., "MiniCPM: unveiling the potential of small language models with scalable training strategies"
    (2024), section 4.
    """
    decay = math.ceil(steps / 5)
    return min(constant(step, steps, warm_up), (steps + 1 - step) / (decay + 1))


def _progress(step: int, steps: int, warm_up: int) -> float:
    """0 at the peak, 1 one step after the last."""
    peak = max(1, warm_up)
    return (step - peak) / (steps + 1 - peak)


def wrong_factor(factor: Any) -> str:
    """What is wrong with a factor of the learning rate, as the end of a sentence; nothing if it is a number from 0."""
    if isinstance(factor, bool) or not isinstance(factor, int | float | np.floating | np.integer):
        return f"{factor!r}, which is no number"
    if not math.isfinite(factor) or factor < 0:
        return f"{factor:g}, but must be a finite number of at least 0"
    return ""


MOST_STEPS_LOOKED_AT = 10_000
"""The largest number of steps for which a schedule is looked at before a training; of more, so many of all."""


def refuse_wrong_factors(schedule: Schedule, steps: int, warm_up: int) -> None:
    """Refuses a schedule whose factors are no rates, before anything is trained.

    Raises:
        ConfigurationError: a factor is no finite number of at least 0, or the schedule fails; names the step, and is
            marked `everywhere`, since every rank finds the same.
    """
    who = f"The schedule {name_of(schedule)}"
    every = max(1, -(-steps // MOST_STEPS_LOOKED_AT))
    try:
        with guarded(who, "give its factors", "gave its factors", schedule):  # once: a guard costs a millisecond
            for step in [*range(1, steps + 1, every), steps]:
                try:
                    factor = schedule(step, steps, warm_up)
                except Exception as error:
                    said = failure(who, f"give a factor for step {step} of {steps}", error, schedule)
                    raise ConfigurationError(said) from error
                refuse_wrong_factor(schedule, factor, step, steps)
    except ConfigurationError as error:
        error.everywhere = True
        raise


def refuse_wrong_factor(schedule: Schedule, factor: Any, step: int, steps: int) -> None:
    """Refuses what a schedule has returned at a step, if it is no rate.

    Raises:
        ConfigurationError: the factor is no finite number of at least 0; names the step.
    """
    if wrong := wrong_factor(factor):
        raise ConfigurationError(
            f"The schedule {name_of(schedule)} says at step {step} of {steps} that the factor of the learning rate is "
            f"{wrong}."
        )


def unscaled(optimizer: Optimizer, batch: int, base: int) -> None:
    """Leaves the learning rates unchanged, whatever the batch size."""


def linear_scaling(optimizer: Optimizer, batch: int, base: int) -> None:
    """Multiplies the learning rate by k for a batch of k times as many examples.

    Source: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour" (2017), section 2.1.
    """
    for group in optimizer.param_groups:
        group["lr"] *= batch / base


def warm_up_start(rule: ScalingRule, batch: int, base: int) -> float:
    """Says from which share of the peak rate a warm-up rises: 1/k, the base rate, with the linear rule and k > 1.

    With every other rule, and where the peak is not above the base rate, the warm-up rises from 0.

    Args:
        rule: the scaling rule that the peak was scaled by.
        batch: number of examples behind one step.
        base: number of examples for which the base rate is meant.

    Source: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour" (2017), section 2.2, gradual
    warm-up.
    """
    return base / batch if rule is linear_scaling and batch > base else 0.0


def sqrt_scaling(optimizer: Optimizer, batch: int, base: int) -> None:
    """Multiplies the rate by √k for k times as many examples, and scales moments: β → 1 - k(1 - β), ε → ε/√k.

    The β are an optimiser's `betas`, or the `alpha` of torch's RMSprop. An optimiser without moments or without ε is
    changed only in what it has.

    Raises:
        ConfigurationError: k(1 - β) is not below 1, so that a moment would remember nothing.

    Source: Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms" (2022), section 5, for
    RMSprop and for Adam.
    """
    factor = batch / base
    for group in optimizer.param_groups:
        group["lr"] *= math.sqrt(factor)
        betas = (group["alpha"],) if isinstance(optimizer, RMSprop) else group.get("betas", ())
        if not betas or batch == base:
            continue
        beta = min(betas)
        rest = round(1 - beta, 12)  # 1 - 0.9 is a little less than a tenth
        if factor * rest >= 1:
            largest = math.ceil(round(base / rest, 6)) - 1
            raise ConfigurationError(
                f"The scaling rule 'sqrt' cannot take k = {batch} / {base} = {factor:g} with β = {beta:g}, for "
                f"k(1 - β) must be below 1. The largest batch for an update is {largest} examples: use a smaller "
                "--batch-size, a larger --base-batch, or --scaling linear."
            )
        scaled = tuple(1 - factor * (1 - beta) for beta in betas)
        group.update({"alpha": scaled[0]} if isinstance(optimizer, RMSprop) else {"betas": scaled})
        if "eps" in group:
            group["eps"] /= math.sqrt(factor)
