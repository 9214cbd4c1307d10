import numpy as np
import torch
from torch.nn import functional

from bigbatch.tasks.task import Task, TokenBatch


class Mine(Task):
    """Say the next number: after n comes n + 1."""

    corpus_sha256 = "numbers"
    vocabulary_size = 10

    def __init__(self, context):
        self.example_tokens = context
        self.sizes = {"training": 64, "validation": 8}

    @classmethod
    def prepare(cls, settings):
        return cls(settings.context)

    def batch(self, split, examples):
        tokens = torch.from_numpy((examples[:, None] + np.arange(self.example_tokens + 1)) % 10)
        return TokenBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def loss(self, model, batch):
        logits = model(batch.tokens)
        return functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"
        ), batch.targets.numel()

    def measure(self, model, batch):
        return (model(batch.tokens).argmax(-1) == batch.targets).double().mean(-1).tolist()

    def metrics(self, measured):
        return {"right": sum(measured) / len(measured)}
