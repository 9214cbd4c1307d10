"""Learning rates: how they go from step to step (schedules), and how they grow with the batch (scaling rules).

A schedule is a function of (step, steps, warm_up): the number of an optimiser's step, from 1; how many there will be;
over how many of them the rate rises. It returns by what to multiply the peak rate.

Every schedule here rises by equal parts, t/w at step t of a warm-up of w, and is 1 at step w, its peak; without a
warm-up the peak is step 1. Where the linear scaling rule has raised the peak, the warm-up rises by equal parts from the
rate before that instead of from 0; see `warm_up_start`. Those that fall reach 0 one step after the last: no step is
wasted, and the last counts least.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer, RMSprop

from bigbatch.comm.errors import ConfigurationError

Schedule = Callable[[int, int, int], float]
"""(step from 1, steps in all, steps of warm-up) -> factor of the peak rate."""

ScalingRule = Callable[[Optimizer, int, int], None]
"""(optimiser as it was built, examples behind a step, examples for which its rates are meant) -> changes its groups."""


def constant(step: int, steps: int, warm_up: int) -> float:  # noqa: ARG001 - others do
    """The peak rate after the warm-up: min(1, t/w)."""
    return min(1.0, step / max(1, warm_up))


def linear(step: int, steps: int, warm_up: int) -> float:
    """Down by equal parts after the peak: (T + 1 - t)/(T + 1 - w); 1/(T + 1 - w) at the last step T."""
    return constant(step, steps, warm_up) if step <= warm_up else 1 - _progress(step, steps, warm_up)


def cosine(step: int, steps: int, warm_up: int) -> float:
    """Down along half a cosine after the peak: (1 + cos πp)/2, with p = (t - w)/(T + 1 - w).

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), section 3, with no
    restart and a least rate of 0.
    """
    if step <= warm_up:
        return constant(step, steps, warm_up)
    return (1 + math.cos(math.pi * _progress(step, steps, warm_up))) / 2


def noam(step: int, steps: int, warm_up: int) -> float:  # noqa: ARG001 - it falls for ever
    """In proportion to min(t^(-1/2), t·w^(-3/2)), and 1 at its peak t = w; without a warm-up w is 1.

    The paper's own peak is (d·w)^(-1/2), with d the model's width: take that as --learning-rate for the same rates.

    Source: Vaswani et al., "Attention is all you need" (2017), section 5.3.
    """
    warm_up = max(1, warm_up)
    return min(math.sqrt(warm_up / step), step / warm_up)


def wsd(step: int, steps: int, warm_up: int) -> float:
    """Warm-up, stable, decay: the peak rate until the last fifth of all steps, which falls by equal parts.

    With D = ⌈T/5⌉ it is min(1, t/w, (T + 1 - t)/(D + 1)); 1/(D + 1) at the last step T. A warm-up of more than
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


def unscaled(optimizer: Optimizer, batch: int, base: int) -> None:
    """The rates as they are, whatever the batch."""


def linear_scaling(optimizer: Optimizer, batch: int, base: int) -> None:
    """A batch of k times as many examples gets k times the rate.

    Source: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour" (2017), section 2.1.
    """
    for group in optimizer.param_groups:
        group["lr"] *= batch / base


def warm_up_start(rule: ScalingRule, batch: int, base: int) -> float:
    """The share of the peak rate from which a warm-up rises: the base rate's, 1/k, with the linear rule and k > 1.

    Every other rule's warm-up rises from 0, and so does that to a peak which is not above the base rate.

    Args:
        rule: by which the peak was scaled.
        batch: examples behind a step.
        base: examples for which the base rate is meant.

    Source: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour" (2017), section 2.2, gradual
    warm-up.
    """
    return base / batch if rule is linear_scaling and batch > base else 0.0


def sqrt_scaling(optimizer: Optimizer, batch: int, base: int) -> None:
    """A batch of k times as many examples gets √k times the rate; where there are moments, β → 1 - k(1 - β), ε → ε/√k.

    Those are every optimiser's `betas`, and the `alpha` of torch's RMSprop; an optimiser without ε keeps none.

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
