"""Optimisers by name. A strategy calls the factory, for the update is the strategy's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import OptimizerFactory, WholeFactory
from bigbatch.comm.registry import Registry

NamedOptimizer = Callable[[float], OptimizerFactory]
"""A learning rate -> a factory."""

OPTIMIZERS = Registry(
    "optimizer",
    "bigbatch.optimizers",
    {
        "sgd": "bigbatch.optimizers.standard:sgd",
        "adam": "bigbatch.optimizers.standard:adam",
        "adamw": "bigbatch.optimizers.standard:adamw",
        "lars": "bigbatch.optimizers.standard:lars",
        "lamb": "bigbatch.optimizers.standard:lamb",
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
