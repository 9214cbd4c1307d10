"""Tasks: what is learnt. A task draws examples and says how wrong a model is about them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.tasks.settings import DataSettings

Split = Literal["training", "validation"]


class Batch(Protocol):
    """Examples that are computed at once."""

    def to(self, device: torch.device) -> Self:
        """The same on another device."""


class Task(ABC):
    """What is learnt: how its data are prepared, what a batch is, its summed loss, and its metrics.

    To add one, derive from this class and name it in the entry-point group "bigbatch.tasks", or on the command line
    as FILE.py:Task.

    Attributes:
        corpus_sha256: identifies the data.
        vocabulary_size: number of different tokens a model must know.
        example_tokens: tokens in an example, at most; a budget of tokens is turned into examples by it.
        sizes: number of examples in each split.
    """

    corpus_sha256: str
    vocabulary_size: int
    example_tokens: int
    sizes: Mapping[Split, int]

    @classmethod
    @abstractmethod
    def prepare(cls, settings: DataSettings) -> Self:
        """Read what the task learns from.

        Args:
            settings: what the user chose about the data: the text, the context, the vocabulary.

        Raises:
            ConfigurationError: the text is missing, empty, not text or too small.
        """

    @abstractmethod
    def batch(self, split: Split, examples: NDArray[np.int64]) -> Batch:
        """The examples of those numbers, (examples,), as one batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        """The model's loss on a batch, summed over tokens, in nats; and the number of those tokens."""

    def metrics(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:  # noqa: ARG002 - for others
        """What else the task measures of a trained model, by name; nothing unless overridden.

        Args:
            model: in evaluation mode, with gradients switched off.
            batches: held-out examples, on the model's device.
        """
        return {}


@dataclass(frozen=True)
class TokenBatch:
    """Sequences and what follows each token in them.

    Attributes:
        tokens: (batch, sequence).
        targets: (batch, sequence), `PADDING` where nothing follows.
    """

    tokens: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.tokens.to(device), self.targets.to(device))
