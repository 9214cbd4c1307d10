"""Modules of the user's own as models: any class of `torch.nn.Module`, or a function that makes one."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bigbatch.comm.errors import ConfigurationError, quoted, suggestion
from bigbatch.comm.foreign import guarded
from bigbatch.comm.module import check_module
from bigbatch.models import MODELS
from bigbatch.models.fitting import check_fits
from bigbatch.models.model import Model, counted, seeded
from bigbatch.models.settings import STACKS, ModelSettings, value_of
from bigbatch.models.sizes import ModelSize
from bigbatch.tasks.task import Task


class OwnModule(Model):
    """A module of the user's own, FILE.py:Name, which is called with those of our arguments that it has a name for.

    The names are those of `arguments`. Whatever random numbers of torch it draws while it is made depend on the seed.
    """

    takes_options = True
    recomputes = True

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> nn.Module:
        """Calls the user's class or function, and looks whether the task can call what it made."""
        name = str(settings.model)
        make: Callable[..., Any] = MODELS.load(name)
        chosen = arguments_for(make, task, settings, seed)
        with seeded(seed):
            with guarded(f"The model {name!r}", "be made", "was made", make):
                module = make(**chosen)
            check_module(module)
            check_fits(module, task, f"The model {name}")
        return module  # type: ignore[no-any-return]  # it has been checked

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Counts the parameters of a module that is built for it, and the operations of a few examples, as torch does.

        Torch counts those of products of matrices, convolutions and attention. A module that recomputes counts as if
        backward computed all of forward once more.
        """
        module = cls.build(task, replace(settings, recompute=False), seed=0)
        numbers = np.arange(min(EXAMPLES_COUNTED, task.sizes["training"]))
        with seeded(0), FlopCounterMode(display=False) as counter:
            loss, tokens = task.loss(module, task.batch("training", numbers))
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        size = counted(module, task, str(settings.model), counter.get_total_flops() / max(1, tokens))
        return replace(size, recomputed=float(settings.recompute))


EXAMPLES_COUNTED = 16
"""Number of examples of which the operations are counted."""


def arguments(task: Task, settings: ModelSettings, seed: int) -> dict[str, Any]:
    """The arguments that we have for a module, by the names under which it can ask for them."""
    sizes = settings.sizes(stacks := STACKS.get(task.default_model, 1))
    return {
        "vocabulary_size": task.vocabulary_size,
        "context": task.context,
        "layers": sizes.blocks // stacks,
        "width": sizes.width,
        "heads": sizes.heads,
        "positions": settings.positions or task.default_positions,
        "norm": settings.norm,
        "dropout": settings.dropout,
        "recompute": settings.recompute,
        "seed": seed,
        "task": task,
    }


def arguments_for(make: Callable[..., Any], task: Task, settings: ModelSettings, seed: int) -> dict[str, Any]:
    """Chooses the arguments for a user's class or function: those that it names, and what --model-option sets.

    Raises:
        ConfigurationError: it asks for something else, or does not take what the user has set.
    """
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(make).parameters
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The model {settings.model!r} cannot be called: {error}.") from error
    ours = arguments(task, settings, seed)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: one for name, one in parameters.items() if one.kind not in several}
    assigned = settings.assigned()
    lacking = [
        name
        for name, one in named.items()
        if name not in ours and name not in assigned and one.default is inspect.Parameter.empty
    ]
    if lacking:
        raise ConfigurationError(
            f"The model {settings.model} asks for {lacking[0]!r}, which nobody gives it: set it by --model-option "
            f"{lacking[0]}=…, or take one of {', '.join(ours)}."
        )
    settings.refuse(ours.keys() - named.keys(), "which has no argument of that name")
    for name in assigned:
        if name not in named and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
            raise ConfigurationError(
                f"The model {settings.model} has no argument {quoted(name)}{suggestion(name, named)}, which "
                f"--model-option sets. It has: {', '.join(named) or 'none'}."
            )
        if name in ours:
            raise ConfigurationError(
                f"--model-option cannot set {name} of the model {settings.model}, which comes from the task or from an "
                f"option of its own{f': use --{name}' if name in settings.flat() else ''}."
            )
    return {
        **{name: value for name, value in ours.items() if name in named},
        **{name: value_of(text) for name, text in assigned.items()},
    }
