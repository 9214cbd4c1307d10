"""Kinds of models by what a user writes for one: a name, hf:KIND, a folder, or a class or function in a file."""

from inspect import isclass
from pathlib import Path
from typing import Any

from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.models import MODELS
from bigbatch.models.hugging_face.building import Configured, OnDisk
from bigbatch.models.hugging_face.configuration import PREFIX
from bigbatch.models.model import Model
from bigbatch.models.own_module import OwnModule


def kind_named(name: str) -> type[Model]:
    """Finds the kind of model that a name stands for; its `build` looks at the settings for the rest of the name.

    Args:
        name: a name in the registry of models, hf:KIND, the path of a folder, or FILE.py:Name for a kind of model, for
            a class of modules, or for a function that makes a module.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if name.startswith(PREFIX):
        return Configured
    if name not in MODELS.names() and (name.endswith("/") or Path(name).is_dir()):
        return OnDisk
    found: Any = MODELS.load(name)
    if isinstance(found, nn.Module):
        raise ConfigurationError(
            f"The model {name!r} is a module that is made already: name its class, or a function that makes it, so "
            "that every arm starts with a new one."
        )
    return found if isclass(found) and issubclass(found, Model) else OwnModule


def safe(name: str) -> bool:
    """Whether a name stands for a model without running or reading anything of the user's."""
    return name in MODELS.names() or name.startswith(PREFIX)
