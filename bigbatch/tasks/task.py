"""Tasks: what is learnt. A task provides examples and computes a model's loss on them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.vocabulary import Vocabulary

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
        default_model: the kind of model that the task's batches are made for, by its name in the registry of models.
        default_tokens: tokens that an arm is trained on, if the user says nothing else.
        default_context: tokens in a sequence, at most, if the user says nothing else.
        default_positions: how a model is told where a token stands, if the user says nothing else; one of
            `bigbatch.models.settings.POSITIONS`.
        takes: names of those options for the data that not every task takes, and this one does; see
            `bigbatch.tasks.settings.FOR_SOME`.
        score: the metric that is measured whenever the validation loss is, too; None if only the loss is.
        corpus_sha256: digest that identifies the data.
        vocabulary_size: number of different tokens that a model must know.
        example_tokens: tokens that are predicted in an example: their mean number, or the same for all; a budget of
            tokens is divided by it to get examples.
        source_tokens: mean number of tokens of an example that are read and not predicted.
        sizes: number of examples in each split.
        vocabulary: the vocabulary of byte pairs, from which models of Hugging Face take the tokens that mean something
            special; None if the task has none.
        remarks: sentences without full stops about the data that the user should know.
    """

    default_model: ClassVar[str] = "decoder"
    default_tokens: ClassVar[int] = 500_000
    default_context: ClassVar[int] = 64
    default_positions: ClassVar[str] = "learnt"
    takes: ClassVar[frozenset[str]] = frozenset()
    score: ClassVar[str | None] = None
    corpus_sha256: str
    vocabulary_size: int
    example_tokens: float
    source_tokens: float = 0.0
    sizes: Mapping[Split, int]
    vocabulary: Vocabulary | None = None
    remarks: Sequence[str] = ()

    @classmethod
    @abstractmethod
    def prepare(cls, settings: DataSettings) -> Self:
        """Read and prepare the data that the task learns from.

        Args:
            settings: what the user chose about the data: the text, the vocabulary, the context. Where the user chose
                no tokens or no context, they are this task's defaults.

        Raises:
            ConfigurationError: the text is missing, empty, not text or too small.
        """

    @property
    def context(self) -> int:
        """The longest sequence that a model must take, in tokens; `example_tokens` unless this is overridden."""
        return math.ceil(self.example_tokens)

    def lengths(self, split: Split) -> NDArray[np.int64] | None:  # noqa: ARG002 - for others
        """The lengths of all examples, (examples, sequences), in tokens: of a source and its target, for example.

        Returns None, unless this is overridden, if the examples are as good as equally long. Otherwise examples of
        similar lengths are put into one micro-batch, in which each sequence is padded to the longest.
        """
        return None

    @abstractmethod
    def batch(self, split: Split, examples: NDArray[np.int64]) -> Batch:
        """Make one batch of the examples with these numbers, (examples,)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        """Compute the model's loss on a batch, summed over its tokens, in nats, and the number of those tokens."""

    def measure(self, model: nn.Module, batch: Any) -> list[Any]:  # noqa: ARG002 - for others
        """Measure a model on each held-out example of a batch, for `metrics`; nothing unless this is overridden.

        Args:
            model: the model in evaluation mode, with gradients switched off.
            batch: a batch of held-out examples, on the model's device.

        Returns:
            An entry for each example, in order, which JSON can write: ranks measure parts and send them to each other.
        """
        return []

    def metrics(self, measured: Sequence[Any]) -> dict[str, float]:  # noqa: ARG002 - for others
        """Compute the metrics other than the loss from what was measured on all examples; values by name."""
        return {}

    def predict(self, model: nn.Module, texts: Sequence[str]) -> list[str]:  # noqa: ARG002 - for others
        """What a trained model writes for inputs of the user's own, one for each.

        Args:
            model: the model in evaluation mode, with gradients switched off.
            texts: the inputs.

        Raises:
            ConfigurationError: an input is none for this task, and the message says what one looks like; or this is
                not overridden.
        """
        raise ConfigurationError(f"The task {type(self).__name__} makes no predictions from words.")


def check_taken(kind: type[Task], settings: DataSettings) -> None:
    """Refuses options that the user has set and a kind of task does not take.

    Raises:
        ConfigurationError: there is one; the message names it.
    """
    for flag in settings.not_taken(kind.takes):
        raise ConfigurationError(
            f"The task {settings.task} does not take {flag}, which is about another task: leave it out."
        )


def prepared(kind: type[Task], settings: DataSettings) -> Task:
    """Prepares a task, with its own defaults where the user has not chosen.

    Raises:
        ConfigurationError: the data cannot be used, or the user has set an option that this task does not take.
    """
    check_taken(kind, settings)
    tokens, context = settings.tokens or kind.default_tokens, settings.context or kind.default_context
    return kind.prepare(replace(settings, tokens=tokens, context=context))


def wrong_facts(task: Any) -> Iterator[str]:
    """Finds what is wrong with a prepared task's description of itself; one sentence each."""
    if not isinstance(task, Task):
        yield f"prepare returns {quoted(task)}, but must return the task."
        return
    if not _positive(number := getattr(task, "vocabulary_size", None)):
        yield f"vocabulary_size is {quoted(number)}, but must be a whole number of at least 1."
    tokens = getattr(task, "example_tokens", None)
    if not _positive(tokens) and not (isinstance(tokens, float) and 1 <= tokens < math.inf):
        yield f"example_tokens is {quoted(tokens)}, but must be a number of at least 1."
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
