"""Models: what an experiment needs to know about a kind of model."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize, model_of
from bigbatch.tasks.task import Task


class Model(ABC):
    """A kind of model that an experiment can train.

    To add one, derive from this class, write `build`, and name the class in the entry-point group "bigbatch.models"
    or on the command line as FILE.py:Model.
    """

    @classmethod
    @abstractmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> nn.Module:
        """Builds a new module whose initial weights depend on the seed alone, so that all ranks make the same one.

        Args:
            task: the task that the model will learn; its `vocabulary_size` and `example_tokens` bound the inputs.
            settings: the sizes that the user chose.
            seed: seed for the initial weights.

        Raises:
            ConfigurationError: the model cannot be built for this task or with these sizes.
        """

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Says how many parameters the model has and how many operations a token costs, for simulated time.

        Unless this is overridden, the module is built without memory to count its parameters. Each parameter tensor
        then counts as one part of the model, and a token costs six operations per parameter.
        """
        with torch.device("meta"):
            module = cls.build(task, settings, seed=0)
        counts = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
        size = model_of(sum(counts), layers=1)
        return ModelSize(
            cls.__name__,
            len(counts),
            0,
            task.example_tokens,
            task.vocabulary_size,
            size.parameters,
            size.flops_per_token,
            tuple(reversed(counts)),
        )
