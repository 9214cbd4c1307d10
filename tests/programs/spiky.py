"""A task in half precision whose gradients are known: whole numbers, mostly small, and in some examples too large."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from bigbatch.models.model import Model
from bigbatch.tasks.task import Task

WIDTH, EXAMPLES = 4, 120
SPIKES = (17, 64, 65)
"""Examples whose gradient overflows in fp16 until the scale is small enough: by 3, by 1 and by 1 halvings."""

GRADIENTS = np.random.default_rng(5).integers(-2, 3, (EXAMPLES, WIDTH)).astype(np.float64) / 8
GRADIENTS[list(SPIKES)] = [[20, 0, 0, 1], [0, 5, 0, 0], [0, 0, -5, 0]]


class Spiky(Task):
    """The loss of an example is the product of its gradient with the weights; every example has one token."""

    corpus_sha256, vocabulary_size, example_tokens = "none", 2, 1
    sizes = {"training": EXAMPLES, "validation": 4}  # noqa: RUF012 - nobody adds to it

    @classmethod
    def prepare(cls, _: object) -> "Spiky":
        return cls()

    def batch(self, _: str, examples: np.ndarray) -> Tensor:
        return torch.from_numpy(GRADIENTS[examples]).float()

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return model(batch).float().sum(), len(batch)


class Product(Model):
    """A product with the weights, which autocast computes in half precision."""

    @classmethod
    def build(cls, *_: object, **__: object) -> nn.Module:
        model = nn.Linear(WIDTH, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model


def halvings(
    batches: Iterator[list[np.ndarray]], expected: float, scale: float = 2.0**16
) -> Iterator[tuple[bool, float]]:
    """Whether each update is applied, and S in it: by hand, from the gradients that come together in a micro-batch."""
    for micro_batches in batches:
        finite = all(np.abs(GRADIENTS[each].sum(0)).max() * scale / expected <= 65504 for each in micro_batches)
        yield finite, scale
        scale = scale if finite else scale / 2
