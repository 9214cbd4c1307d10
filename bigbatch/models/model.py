"""Models: what an experiment needs to know about a kind of model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from bigbatch.models.blocks import TransformerShape
from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize, model_of
from bigbatch.tasks.task import Task


class SavesItself(ABC):
    """A module that is saved in a form of its own, in a folder, which other programs read.

    Attributes:
        remarks: sentences without full stops about how the module was read that the user should know.
    """

    remarks: Sequence[str] = ()

    @abstractmethod
    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the module with a state that `state_dict` returned; the folder need not exist.

        Raises:
            OSError: a file cannot be written.
        """


class Model(ABC):
    """A kind of model that an experiment can train.

    To add one, derive from this class, write `build`, and name the class in the entry-point group "bigbatch.models"
    or on the command line as FILE.py:Model.

    Attributes:
        drawn: whether the initial weights are drawn at random, by the seed.
        takes_options: whether `build` looks at the settings' `model_option`; if not, one that is set is refused.
        recomputes: whether `build` heeds `settings.recompute`; if not, `--recompute` is refused.
    """

    drawn: ClassVar[bool] = True
    takes_options: ClassVar[bool] = False
    recomputes: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> nn.Module:
        """Builds a new module whose initial weights depend on the seed alone, so that all ranks make the same one.

        Args:
            task: the task that the model will learn; its `vocabulary_size` and `context` bound the inputs.
            settings: what the user chose; its `sizes()` are the number of blocks, the width and the heads.
            seed: seed for the initial weights.

        Raises:
            ConfigurationError: the model cannot be built for this task or with these sizes.
        """

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Says how many parameters the model has and how many operations a token costs, for simulated time.

        Unless this is overridden, the module is built without memory to count its parameters. Each parameter tensor
        then counts as one part of the model, and a token costs six operations per parameter. A model that recomputes
        counts as if backward computed all of forward once more.
        """
        with torch.device("meta"):
            module = cls.build(task, settings, seed=0)
        return replace(counted(module, task, cls.__name__), recomputed=float(settings.recompute))


def counted(module: nn.Module, task: Task, name: str, flops_per_token: float | None = None) -> ModelSize:
    """Makes the size of a module of which nothing else is known; each parameter tensor is one part of it.

    Args:
        module: the module.
        task: the task that it will learn.
        name: the model's name in tables and figures.
        flops_per_token: operations for forward and backward of one target; None or 0 for six a parameter.
    """
    counts = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
    size = model_of(sum(counts), flops_per_token or None, layers=1)
    return ModelSize(
        name,
        len(counts),
        0,
        task.context,
        task.vocabulary_size,
        size.parameters,
        size.flops_per_token,
        tuple(reversed(counts)),
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Has torch's global generator on the CPU begin at a seed within the context; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def shape_for(task: Task, settings: ModelSettings, stacks: int = 1) -> TransformerShape:
    """Chooses the shape of a Transformer: the task's vocabulary and context, and the user's sizes.

    Args:
        task: the task that the model will learn.
        settings: what the user chose.
        stacks: number of stacks of blocks: 2 for an encoder and a decoder.
    """
    sizes = settings.sizes(stacks)
    return TransformerShape(
        task.vocabulary_size,
        task.context,
        sizes.blocks // stacks,
        sizes.width,
        sizes.heads,
        settings.told(task.default_positions),
        settings.norm == "pre",
        settings.dropout,
        settings.recompute,
    )
