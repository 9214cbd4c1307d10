"""The optimisers that have a name here. Each is a function from a learning rate to a factory of optimisers."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.foreign import guarded
from bigbatch.comm.kinds import Number, checked
from bigbatch.comm.parameters import OptimizerFactory, WholeFactory
from bigbatch.optimizers import OPTIMIZERS
from bigbatch.optimizers.layerwise import LAMB, LARS

NamedOptimizer = Callable[[float], OptimizerFactory]
"""A function from a learning rate to a factory of optimisers."""


WHOLE_OF_TORCH = ("Adafactor", "Muon")
"""Classes of torch.optim that look at whole tensors; not every version of torch has them."""


def optimizer_named(name: str, learning_rate: float) -> OptimizerFactory:
    """Makes the factory of a registered optimiser, of one in a file, or of any class: "torch.optim:RMSprop".

    Servers that split a parameter give each part to an optimiser of its own. That changes nothing for optimisers that
    treat every element by itself, as all of torch's do except Adafactor, Muon and LBFGS. For one that looks at whole
    tensors this returns a `WholeFactory`.

    Raises:
        ConfigurationError: there is no such optimiser, it makes no factory, or it must compute the loss several times
            in a step.
    """
    found: Any = OPTIMIZERS.load(name)
    if found is torch.optim.LBFGS:
        raise ConfigurationError(
            f"The optimiser {name!r} computes the loss several times in a step, which no worker does. Take another."
        )
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return factory_of(found, lr=learning_rate)
    who = f"The optimizer {name!r}"
    with guarded(who, "take a learning rate", "took a learning rate", found):
        made: Any = found(learning_rate)
    if not callable(made):
        raise ConfigurationError(
            f"{who} returns an object of the type {type(made).__name__} for a learning rate, but must return a "
            "factory, a function of named parameters that makes a torch.optim.Optimizer."
        )
    return WholeFactory(made.what, _making(who, made.make)) if isinstance(made, WholeFactory) else _making(who, made)


def factory_of(optimizer: Callable[..., Optimizer], **settings: Any) -> OptimizerFactory:
    """Makes a factory from any class of optimisers, or from a function that makes optimisers.

    Args:
        optimizer: the class or function, which is called with named parameters and the settings.
        settings: the keyword arguments that it is called with, such as `lr=1e-3`; those that are numbers are finite.

    Raises:
        ConfigurationError: a setting is no finite number, or the optimiser cannot be made with them; on every rank,
            before anybody waits for another.
    """
    if not callable(optimizer):
        raise ConfigurationError(
            f"The optimiser cannot be {quoted(optimizer)}: give a class such as torch.optim.SGD, or a function that "
            "makes one of named parameters."
        )
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    for key, value in settings.items():  # torch lets infinite rates pass, and some classes NaN
        for number in value if isinstance(value, tuple | list) else (value,):
            if hasattr(type(number), "__float__") and not isinstance(number, bool):
                checked(f"The setting {key} of {name}", Number(), number)
    make = _making(f"The optimiser {name}", partial(optimizer, **settings))
    weight = nn.Parameter(torch.zeros(1, 1))
    made = make([("weight", weight)])
    if isinstance(optimizer, type):  # a function's optimiser may hold other parameters
        weight.grad = torch.ones_like(weight)
        # The random numbers that it may draw are none of the training's.
        with torch.random.fork_rng(devices=[]), guarded(f"The optimiser {name}", "make a step", "made it", optimizer):
            made.step()
    return WholeFactory(f"torch.optim:{name}", make) if name in WHOLE_OF_TORCH else make


def _making(who: str, make: Callable[..., Any]) -> Callable[["Named"], Optimizer]:
    """A factory that lets nothing through but optimisers: whatever else is made would train nothing, silently."""

    def build(named: Named) -> Optimizer:
        with guarded(who, "be made", "was made", make):
            made = make(named)
        if not isinstance(made, Optimizer):
            raise ConfigurationError(
                f"{who} is made as an object of the type {type(made).__name__}, but must be a torch.optim.Optimizer."
            )
        return made

    return build


Named = list[tuple[str, nn.Parameter]]


def lean(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """Makes a subclass of a torch optimiser that computes the same without importing torch's compiler.

    Torch guards `add_param_group` and `step` against being compiled. To do so it imports the compiler when the first
    optimiser is made, which takes most of a second in every process, as long as importing torch itself. Our optimisers
    are never compiled, so they do without the guards.
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
