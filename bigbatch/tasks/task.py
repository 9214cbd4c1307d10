"""Tasks: what is learnt. A task provides examples and computes a model's loss on them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.errors import quoted
from bigbatch.tasks.settings import DataSettings

Split = Literal["training", "validation"]


class Batch(Protocol):
    """Examples that a worker computes at once, as one micro-batch."""

    def to(self, device: torch.device) -> Self:
        """Copies the batch to another device."""


class Task(ABC):
    """A training task: it prepares the data, makes batches, and computes the summed loss and other metrics.

    To add one, derive from this class and name it in the entry-point group "bigbatch.tasks", or on the command line
    as FILE.py:Task.

    Attributes:
        corpus_sha256: digest that identifies the data.
        vocabulary_size: number of different tokens that a model must know.
        example_tokens: tokens in an example, at most; a budget of tokens is divided by it to get examples.
        sizes: number of examples in each split.
    """

    corpus_sha256: str
    vocabulary_size: int
    example_tokens: int
    sizes: Mapping[Split, int]

    @classmethod
    @abstractmethod
    def prepare(cls, settings: DataSettings) -> Self:
        """Read and prepare the data that the task learns from.

        Args:
            settings: what the user chose about the data: the text, the context, the vocabulary.

        Raises:
            ConfigurationError: the text is missing, empty, not text or too small.
        """

    @abstractmethod
    def batch(self, split: Split, examples: NDArray[np.int64]) -> Batch:
        """Make one batch of the examples with these numbers, (examples,)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        """Compute the model's loss on a batch, summed over its tokens, in nats, and the number of those tokens."""

    def metrics(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:  # noqa: ARG002 - for others
        """Measure a trained model in other ways than its loss; returns values by name, none unless overridden.

        Args:
            model: the model in evaluation mode, with gradients switched off.
            batches: batches of held-out examples, on the model's device.
        """
        return {}


def wrong_facts(task: Any) -> Iterator[str]:
    """Finds what is wrong with a prepared task's description of itself; one sentence each."""
    if not isinstance(task, Task):
        yield f"prepare returns {quoted(task)}, but must return the task."
        return
    for name in ("example_tokens", "vocabulary_size"):
        number = getattr(task, name, None)
        if not _positive(number):
            yield f"{name} is {quoted(number)}, but must be a whole number of at least 1."
    sizes: Any = getattr(task, "sizes", {})
    for split in get_args(Split):
        size = sizes.get(split) if isinstance(sizes, Mapping) else sizes
        if not _positive(size):
            yield f"sizes[{split!r}] is {quoted(size)}, but must be the number of {split} examples, at least 1."
    digest: Any = getattr(task, "corpus_sha256", None)
    if not isinstance(digest, str):
        yield f"corpus_sha256 is {quoted(digest)}, but must be a text that identifies the data."


def _positive(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(number >= 1)


@dataclass(frozen=True)
class TokenBatch:
    """A batch of token sequences, and the token that follows each of their tokens.

    Attributes:
        tokens: (batch, sequence) token numbers.
        targets: (batch, sequence) numbers of the next tokens, `PADDING` where nothing follows.
    """

    tokens: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Self:
        """Copies the batch to another device."""
        return type(self)(self.tokens.to(device), self.targets.to(device))
