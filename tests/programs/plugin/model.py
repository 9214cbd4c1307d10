import torch
from torch import nn

from bigbatch.models.model import Model


class Mine(Model):
    """A table of what comes after what."""

    @classmethod
    def build(cls, task, settings, seed):
        module = nn.Embedding(task.vocabulary_size, task.vocabulary_size)
        nn.init.normal_(module.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
        return module
