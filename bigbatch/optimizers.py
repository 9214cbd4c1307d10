"""Optimisers by name, and what can be done to them. A strategy calls the factory, for the update is the strategy's."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import OptimizerFactory, WholeFactory
from bigbatch.comm.registry import Registry
from bigbatch.layerwise import LAMB, LARS
from bigbatch.rates import ScalingRule, Schedule

Named = list[tuple[str, nn.Parameter]]


def lean(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """The same optimiser, which does not import torch's compiler.

    Torch guards `add_param_group` and `step` against being compiled, and to do so imports the compiler when the first
    optimiser is made: most of a second in every process, as long as torch itself takes. Nobody compiles ours, so they
    go without the guards; what they compute is torch's own.
    """
    unguarded = {
        "add_param_group": inspect.unwrap(kind.add_param_group),
        "step": torch.no_grad()(inspect.unwrap(kind.step)),
    }
    return type(kind.__name__, (kind,), unguarded)


SGD, ADAM, ADAMW = map(lean, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


def sgd(learning_rate: float) -> OptimizerFactory:
    """Stochastic gradient descent with momentum 0.9 (Sutskever et al. 2013, in torch's form)."""
    return partial(SGD, lr=learning_rate, momentum=0.9, fused=True)


def adam(learning_rate: float) -> OptimizerFactory:
    """Adam (Kingma and Ba 2015), β = 0.9 and 0.95."""
    return partial(ADAM, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def adamw(learning_rate: float) -> OptimizerFactory:
    """Adam with decoupled weight decay 0.1 (Loshchilov and Hutter 2019), β = 0.9 and 0.95.

    Only matrices decay; biases and norms, which have one dimension, do not.
    """

    def build(named: Named) -> torch.optim.Optimizer:
        groups = [
            {"params": [(name, p) for name, p in named if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [(name, p) for name, p in named if p.dim() < 2], "weight_decay": 0.0},
        ]
        kept = [group for group in groups if group["params"]]
        return ADAMW(kept, lr=learning_rate, betas=(0.9, 0.95), fused=True)

    return build


def lars(learning_rate: float) -> OptimizerFactory:
    """LARS (You et al. 2017), momentum 0.9, weight decay 0.0005, c = 0.001; give it a rate above 1."""
    return WholeFactory("lars", lambda named: LARS(named, lr=learning_rate))


def lamb(learning_rate: float) -> OptimizerFactory:
    """LAMB (You et al. 2020), β = 0.9 and 0.95 and weight decay 0.1 as `adamw`, ε = 10⁻⁶."""
    return WholeFactory("lamb", lambda named: LAMB(named, lr=learning_rate))


NamedOptimizer = Callable[[float], OptimizerFactory]
"""A learning rate -> a factory."""

OPTIMIZERS = Registry(
    "optimizer",
    "bigbatch.optimizers",
    {
        "sgd": "bigbatch.optimizers:sgd",
        "adam": "bigbatch.optimizers:adam",
        "adamw": "bigbatch.optimizers:adamw",
        "lars": "bigbatch.optimizers:lars",
        "lamb": "bigbatch.optimizers:lamb",
    },
)
"""All optimisers; other packages add theirs as entry points of the group "bigbatch.optimizers"."""


WHOLE_OF_TORCH = ("Adafactor", "Muon")
"""Classes of torch.optim, which not every version has, that look at whole tensors."""


def optimizer_named(name: str, learning_rate: float) -> OptimizerFactory:
    """The factory of a registered optimiser, of one in a file, or of any class: "torch.optim:RMSprop".

    Servers that split a parameter give each part to an optimiser of its own, which is the same for those that treat
    every element by itself, as all of torch's do but Adafactor, Muon and LBFGS. Of those that do not this gives a
    `WholeFactory`.

    Raises:
        ConfigurationError: there is no such optimiser, or it must compute the loss several times in a step.
    """
    found: Any = OPTIMIZERS.load(name)
    if found is torch.optim.LBFGS:
        raise ConfigurationError(
            f"The optimiser {name!r} computes the loss several times in a step, which no worker does. Take another."
        )
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        build: Callable[..., torch.optim.Optimizer] = found
        make = partial(build, lr=learning_rate)
        return WholeFactory(name, make) if found.__name__ in WHOLE_OF_TORCH else make
    made: OptimizerFactory = found(learning_rate)
    return made


def scaled(make: OptimizerFactory, rule: ScalingRule, batch: int, base: int) -> OptimizerFactory:
    """The same optimisers, with their rates for another batch.

    Args:
        make: makes the optimisers.
        rule: changes their rates; raises ConfigurationError, when one is made, if it cannot.
        batch: examples behind a step.
        base: examples for which the rates are meant.
    """
    return _changed(make, lambda optimizer: rule(optimizer, batch, base))


def scheduled(
    make: OptimizerFactory, schedule: Schedule, steps: int, warm_up: int, start: float = 0.0
) -> OptimizerFactory:
    """The same optimisers, whose rate follows a schedule.

    Before a step the rate of every group is multiplied, and afterwards it is what it was, so that it goes together with
    whatever else changes rates, and a state always has the peak rate. The number of steps made is kept with the state,
    as `updates` of every group. Steps beyond `steps` are made at the last one's rate.

    Args:
        make: makes the optimisers.
        schedule: see `bigbatch.rates`.
        steps: how many there will be.
        warm_up: of them.
        start: the share s of the peak rate from which the warm-up rises; in it the schedule's factor f becomes
            s + (1 - s)f, so that a rise by equal parts remains one and ends where it did.

    Raises:
        ConfigurationError: the warm-up is longer than all; marked `everywhere`, for every rank finds the same.
    """
    if warm_up > steps:
        error = ConfigurationError(
            f"A warm-up of {warm_up} steps of the optimiser is longer than an arm, which has {steps}. Use a shorter "
            "--warmup, more --tokens or a smaller --batch-size."
        )
        error.everywhere = True
        raise error

    def follow(optimizer: Optimizer) -> None:
        peaks: list[float] = []

        def before(*_: Any) -> None:
            groups = optimizer.param_groups
            peaks[:] = [group["lr"] for group in groups]
            updates = groups[0].get("updates", 0) + 1
            step = min(updates, steps)
            factor = schedule(step, steps, warm_up)
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
    """The same optimisers, for which a longer gradient is shortened to the length `most`.

    That is the norm over all parameters of the mean gradient, which is what an optimiser gets. Gradients are changed in
    place.

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
