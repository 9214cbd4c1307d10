"""Tasks: what is learnt. A task draws examples and says how wrong a model is about them."""

import re
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
        """Windows by number: tokens, and the same moved on by one as targets; padded to the longest."""
        pieces = self._windows(split, examples)
        windows = np.full((len(pieces), max(map(len, pieces), default=1)), PADDING, dtype=np.int64)
        for row, piece in enumerate(pieces):
            windows[row, : len(piece)] = piece
        # What stands in a padded place does not matter: nothing that counts comes after it.
        tokens = np.where(windows[:, :-1] == PADDING, 0, windows[:, :-1])
        return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(windows[:, 1:].copy()))

    def _windows(self, split: Split, examples: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """The tokens of each example, and the one that follows the last."""
        numbers, context = self._tokens[split], self.example_tokens
        return [numbers[start : start + context + 1] for start in (examples * context).tolist()]

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
        """Summed cross-entropy of the next tokens."""
        return summed_cross_entropy(model(batch.tokens), batch.targets)


class Documents(LanguageModelling):
    """Predict the next token of each document by itself, as far as `context` tokens; the shorter ones are padded.

    Examples are as long as the documents are, so that micro-batches have different numbers of tokens.

    Args:
        tokens: (tokens,) of each split, `end` behind every document.
        end: that token.
        context: tokens of a document that are looked at.
        vocabulary_size: number of different tokens.
        corpus_sha256: identifies the data.

    Raises:
        ConfigurationError: a split has no document of more than one token.
    """

    def __init__(
        self,
        tokens: Mapping[Split, NDArray[np.int32]],
        end: int,
        context: int,
        vocabulary_size: int,
        corpus_sha256: str,
    ) -> None:
        super().__init__(tokens, context, vocabulary_size, corpus_sha256)
        self._spans = {split: spans(numbers, end, context) for split, numbers in tokens.items()}
        self.sizes = {split: len(found) for split, found in self._spans.items()}
        for split, size in self.sizes.items():
            if not size:
                raise ConfigurationError(f"The {split} part of the text has no document of more than one token.")

    @classmethod
    def from_corpus(cls, corpus: Corpus, vocabulary: Vocabulary, context: int) -> Self:
        """Encode a corpus; one of a single text is cut where lines are empty."""
        tokens: dict[Split, NDArray[np.int32]] = {
            "training": vocabulary.encode(paragraphs(corpus.training)),
            "validation": vocabulary.encode(paragraphs(corpus.validation)),
        }
        return cls(tokens, vocabulary.end, context, vocabulary.size, corpus.sha256)

    def _windows(self, split: Split, examples: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        return [self._tokens[split][first:stop] for first, stop in self._spans[split][examples].tolist()]


def paragraphs(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The texts, or the paragraphs of a single one, between which lines are empty."""
    return texts if len(texts) > 1 else tuple(part for part in re.split(r"\n\s*\n", texts[0]) if part.strip())


def spans(numbers: NDArray[np.int32], end: int, context: int) -> NDArray[np.int64]:
    """(documents, 2) where each document of more than one token begins, and where what is looked at of it ends.

    Args:
        numbers: (tokens,) with `end` behind every document.
        end: that token.
        context: tokens that are looked at; one more is the last target.
    """
    stops = np.flatnonzero(numbers == end) + 1
    starts = np.concatenate([[0], stops[:-1]])
    found = np.stack([starts, np.minimum(stops, starts + context + 1)], axis=1)
    longer: NDArray[np.int64] = found[found[:, 1] - found[:, 0] > 1]
    return longer


TASKS = Registry(
    "task",
    "bigbatch.tasks",
    {
        "language-modelling": "bigbatch.tasks:LanguageModelling",
        "documents": "bigbatch.tasks:Documents",
    },
)
"""All tasks; other packages add theirs as entry points of the group "bigbatch.tasks"."""
