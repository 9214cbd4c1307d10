"""Language modelling of documents, each by itself."""

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
