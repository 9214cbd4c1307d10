"""Optimisers by name. A strategy calls the factory, for the update is the strategy's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import OptimizerFactory
from bigbatch.comm.registry import Registry

Named = list[tuple[str, nn.Parameter]]


def sgd(learning_rate: float) -> OptimizerFactory:
    """Stochastic gradient descent with momentum 0.9 (Sutskever et al. 2013, in torch's form)."""
    return lambda named: torch.optim.SGD(named, lr=learning_rate, momentum=0.9, fused=True)


def adam(learning_rate: float) -> OptimizerFactory:
    """Adam (Kingma and Ba 2015), β = 0.9 and 0.95."""
    return lambda named: torch.optim.Adam(named, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def adamw(learning_rate: float) -> OptimizerFactory:
    """Adam with decoupled weight decay 0.1 (Loshchilov and Hutter 2019), β = 0.9 and 0.95.

    Only matrices decay; biases and norms, which have one dimension, do not.
    """

    def build(named: Named) -> torch.optim.Optimizer:
        groups = [
            {"params": [(name, p) for name, p in named if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [(name, p) for name, p in named if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=learning_rate, betas=(0.9, 0.95), fused=True
        )

    return build


NamedOptimizer = Callable[[float], OptimizerFactory]
"""A learning rate -> a factory."""

OPTIMIZERS = Registry(
    "optimizer",
    "bigbatch.optimizers",
    {
        "sgd": "bigbatch.optimizers:sgd",
        "adam": "bigbatch.optimizers:adam",
        "adamw": "bigbatch.optimizers:adamw",
    },
)
"""All optimisers; other packages add theirs as entry points of the group "bigbatch.optimizers"."""


def optimizer_named(name: str, learning_rate: float) -> OptimizerFactory:
    """The factory of a registered optimiser, of one in a file, or of any class: "torch.optim:RMSprop".

    Servers that split a parameter give each part to an optimiser of its own, which is the same for those that treat
    every element by itself, as all of torch's do but Adafactor, Muon and LBFGS.

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
        return partial(build, lr=learning_rate)
    made: OptimizerFactory = found(learning_rate)
    return made
