"""Language modelling of separate documents: no example reaches from one document into the next."""

import re
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.corpora import Corpus
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.tasks.task import Split
from bigbatch.tasks.vocabulary import Vocabulary


class Documents(LanguageModelling):
    """Predict the next token of each document by itself, as far as `context` tokens; the shorter ones are padded.

    Examples are as long as the documents are, so that micro-batches have different numbers of tokens.

    Args:
        tokens: (tokens,) token numbers of each split, with the token `end` after every document.
        end: the token that ends a document.
        context: number of tokens at the start of a document that are used, at most.
        vocabulary_size: number of different tokens.
        corpus_sha256: digest that identifies the data.
        vocabulary: the vocabulary; None if it is not known, so that nothing can be said about texts and bytes.
        label_smoothing: share of a target's weight that the training loss spreads evenly over all tokens.

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
        vocabulary: Vocabulary | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(tokens, context, vocabulary_size, corpus_sha256, vocabulary, label_smoothing)
        self._spans = {split: spans(numbers, end, context) for split, numbers in tokens.items()}
        self.sizes = {split: len(found) for split, found in self._spans.items()}
        for split, size in self.sizes.items():
            if not size:
                raise ConfigurationError(
                    f"The {split} part of the text has no document of more than one token: the text is too short. "
                    "Name a longer one."
                )

    @classmethod
    def from_corpus(cls, corpus: Corpus, vocabulary: Vocabulary, context: int, label_smoothing: float = 0.0) -> Self:
        """Encode a corpus as a task; a corpus of a single text is cut into documents at empty lines."""
        tokens: dict[Split, NDArray[np.int32]] = {
            "training": vocabulary.encode(paragraphs(corpus.training)),
            "validation": vocabulary.encode(paragraphs(corpus.validation)),
        }
        return cls(
            tokens,
            vocabulary.end,
            context,
            vocabulary.size,
            corpus.sha256,
            vocabulary,
            label_smoothing,
        )

    def _windows(self, split: Split, examples: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        return [self._tokens[split][first:stop] for first, stop in self._spans[split][examples].tolist()]

    def _prompt(self, tokens: list[int], end: int) -> list[int]:  # noqa: ARG002 - for the base class
        """The text alone: a document is an example by itself, in which nothing stands before its first token."""
        return tokens


def paragraphs(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Cuts a single text into paragraphs at empty lines; several texts are returned as they are."""
    return texts if len(texts) > 1 else tuple(part for part in re.split(r"\n\s*\n", texts[0]) if part.strip())


def spans(numbers: NDArray[np.int32], end: int, context: int) -> NDArray[np.int64]:
    """Finds each document of more than one token.

    Args:
        numbers: (tokens,) token numbers, with the token `end` after every document.
        end: the token that ends a document.
        context: number of tokens of a document that are used, at most; the token after them is the last target.

    Returns:
        (documents, 2) places in `numbers`: where each document starts, and where its used part stops.
    """
    stops = np.flatnonzero(numbers == end) + 1
    starts = np.concatenate([[0], stops])[: len(stops)]
    found = np.stack([starts, np.minimum(stops, starts + context + 1)], axis=1)
    longer: NDArray[np.int64] = found[found[:, 1] - found[:, 0] > 1]
    return longer
