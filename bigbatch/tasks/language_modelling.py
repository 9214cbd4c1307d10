"""Language modelling: predict the next token of a long text."""

from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.corpora import Corpus, standard_library, text_file
from bigbatch.tasks.loss import PADDING, summed_cross_entropy
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.task import Split, Task, TokenBatch
from bigbatch.tasks.vocabulary import Vocabulary, learn_vocabulary


class LanguageModelling(Task):
    """Predict the next token. The text is cut into windows of `context` tokens that do not overlap.

    Args:
        tokens: (tokens,) token numbers of each split.
        context: tokens in a window; the last window of a split may be shorter and is padded.
        vocabulary_size: number of different tokens.
        corpus_sha256: digest that identifies the data.
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
    def prepare(cls, settings: DataSettings) -> Self:
        """Read the text, learn its vocabulary, and encode it."""
        cache = cache_folder()
        corpus = standard_library(cache) if settings.text is None else text_file(settings.text)
        return cls.from_corpus(corpus, learn_vocabulary(corpus, settings.vocabulary, cache), settings.context)

    @classmethod
    def from_corpus(cls, corpus: Corpus, vocabulary: Vocabulary, context: int) -> Self:
        """Encode a corpus as a task.

        Raises:
            ConfigurationError: a split is too short for one whole window.
        """
        tokens: dict[Split, NDArray[np.int32]] = {
            "training": vocabulary.encode(corpus.training),
            "validation": vocabulary.encode(corpus.validation),
        }
        split = min(tokens, key=lambda split: len(tokens[split]))
        count = len(tokens[split])
        have = f"The {split} part of {corpus.name} has {count} {'token' if count == 1 else 'tokens'}"
        if count < 2:
            raise ConfigurationError(f"{have}, so that none follows another: the text is too short. Name a longer one.")
        if count <= context:
            raise ConfigurationError(
                f"{have}, too few for a context of {context}: name a longer text, or use --context {count - 1} or less."
            )
        return cls(tokens, context, vocabulary.size, corpus.sha256)

    def batch(self, split: Split, examples: NDArray[np.int64]) -> TokenBatch:
        """Make a batch of windows by number, (examples,): tokens, and the next tokens as targets; padded."""
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
        """Compute the cross-entropy of the next tokens: its sum in nats, and the number of tokens that it is over."""
        return summed_cross_entropy(model(batch.tokens), batch.targets)

    def metrics(self, model: nn.Module, batches: Iterable[TokenBatch]) -> dict[str, float]:
        """Measure `accuracy`: the share of next tokens to which the model gives the highest probability."""
        right = counted = 0
        for batch in batches:
            counts = batch.targets != PADDING
            right += int((model(batch.tokens).argmax(-1) == batch.targets)[counts].sum())
            counted += int(counts.sum())
        return {"accuracy": right / counted} if counted else {}
