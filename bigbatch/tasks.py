"""Tasks: what is learnt. A task draws examples and says how wrong a model is about them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import Registry
from bigbatch.corpus import Corpus, standard_library, text_file
from bigbatch.model import PADDING, summed_cross_entropy
from bigbatch.vocabulary import Vocabulary, learn_vocabulary

Split = Literal["training", "validation"]


class Batch(Protocol):
    """Examples that are computed at once."""

    def to(self, device: torch.device) -> Self:
        """The same on another device."""


class Task(ABC):
    """What is learnt: two methods, and the number of examples.

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
    def prepare(cls, text: Path | None, context: int, vocabulary: int) -> Self:
        """Read what the task learns from.

        Args:
            text: the user's own file, or None for the task's default.
            context: tokens a model sees at once.
            vocabulary: number of different tokens, at most.

        Raises:
            ConfigurationError: the text is missing, empty, not text or too small.
        """

    @abstractmethod
    def batch(self, split: Split, examples: NDArray[np.int64]) -> Batch:
        """The examples of those numbers, (examples,), as one batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        """The model's loss on a batch, summed over tokens, in nats; and the number of those tokens."""


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


class LanguageModelling(Task):
    """Predict the next token. The text is cut into windows of `context` tokens that do not overlap.

    Args:
        tokens: (tokens,) of each split.
        context: tokens in a window; the last window of a split may be shorter and is padded.
        vocabulary_size: number of different tokens.
        corpus_sha256: identifies the data.
    """

    def __init__(
        self,
        tokens: Mapping[Split, NDArray[np.int32]],
        context: int,
        vocabulary_size: int,
        corpus_sha256: str,
    ) -> None:
        self._tokens = tokens
        self.example_tokens = context
        self.vocabulary_size = vocabulary_size
        self.corpus_sha256 = corpus_sha256
        # The last token of a split is only ever a target.
        self.sizes = {split: -(-(len(numbers) - 1) // context) for split, numbers in tokens.items()}

    @classmethod
    def prepare(cls, text: Path | None, context: int, vocabulary: int) -> Self:
        """Read the text, learn its vocabulary, and encode it."""
        cache = cache_folder()
        corpus = standard_library(cache) if text is None else text_file(text)
        return cls.from_corpus(corpus, learn_vocabulary(corpus, vocabulary, cache), context)

    @classmethod
    def from_corpus(cls, corpus: Corpus, vocabulary: Vocabulary, context: int) -> Self:
        """Encode a corpus.

        Raises:
            ConfigurationError: a split has less than one window.
        """
        tokens: dict[Split, NDArray[np.int32]] = {
            "training": vocabulary.encode(corpus.training),
            "validation": vocabulary.encode(corpus.validation),
        }
        for split, numbers in tokens.items():
            if len(numbers) <= context:
                raise ConfigurationError(
                    f"The {split} part of {corpus.name} has {len(numbers)} tokens, too few for a context of {context}: "
                    f"name a longer text, or use --context {max(1, len(numbers) - 1)} or less."
                )
        return cls(tokens, context, vocabulary.size, corpus.sha256)

    def batch(self, split: Split, examples: NDArray[np.int64]) -> TokenBatch:
        """Windows by number: tokens, and the same moved on by one as targets."""
        numbers, context = self._tokens[split], self.example_tokens
        windows = np.full((len(examples), context + 1), PADDING, dtype=np.int64)
        for row, start in enumerate((examples * context).tolist()):
            window = numbers[start : start + context + 1]
            windows[row, : len(window)] = window
        # What stands in a padded place does not matter: nothing that counts comes after it.
        tokens = np.where(windows[:, :-1] == PADDING, 0, windows[:, :-1])
        return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(windows[:, 1:].copy()))

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
        """Summed cross-entropy of the next tokens."""
        return summed_cross_entropy(model(batch.tokens), batch.targets)


TASKS = Registry("task", "bigbatch.tasks", {"language-modelling": "bigbatch.tasks:LanguageModelling"})
"""All tasks; other packages add theirs as entry points of the group "bigbatch.tasks"."""
