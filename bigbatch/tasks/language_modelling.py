"""Language modelling: predict the next token of a long text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.tasks.corpora import Corpus, standard_library, text_file
from bigbatch.tasks.decoding import Generator, Recomputed, continued
from bigbatch.tasks.loss import PADDING, summed_cross_entropy
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.task import Split, Task, TokenBatch
from bigbatch.tasks.tokenizer_files import vocabulary_for
from bigbatch.tasks.vocabulary import Vocabulary


class LanguageModelling(Task):
    """Predict the next token. The text is cut into windows of `context` tokens that do not overlap.

    Args:
        tokens: (tokens,) token numbers of each split.
        context: tokens in a window; the last window of a split may be shorter and is padded.
        vocabulary_size: number of different tokens.
        corpus_sha256: digest that identifies the data.
        vocabulary: the vocabulary; None if it is not known, so that nothing can be said about texts and bytes.
        label_smoothing: share of a target's weight that the training loss spreads evenly over all tokens.
    """

    takes = frozenset({"label_smoothing"})

    def __init__(
        self,
        tokens: Mapping[Split, NDArray[np.int32]],
        context: int,
        vocabulary_size: int,
        corpus_sha256: str,
        vocabulary: Vocabulary | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self._tokens = tokens
        self.vocabulary = vocabulary
        nbytes = None if vocabulary is None else vocabulary.token_bytes()
        self._token_bytes = None if nbytes is None else torch.from_numpy(nbytes)
        self._smoothing = label_smoothing
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
        vocabulary = vocabulary_for(corpus, settings.vocabulary, cache)
        context = settings.context or cls.default_context
        return cls.from_corpus(corpus, vocabulary, context, settings.label_smoothing or 0.0)

    @classmethod
    def from_corpus(cls, corpus: Corpus, vocabulary: Vocabulary, context: int, label_smoothing: float = 0.0) -> Self:
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
        return cls(tokens, context, vocabulary.size, corpus.sha256, vocabulary, label_smoothing)

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
        numbers, context = self._tokens[split], self.context
        return [numbers[start : start + context + 1] for start in (examples * context).tolist()]

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
        """Compute the cross-entropy of the next tokens: its sum in nats, and the number of tokens that it is over."""
        smoothing = self._smoothing if model.training else 0.0
        return summed_cross_entropy(model(batch.tokens), batch.targets, smoothing)

    def measure(self, model: nn.Module, batch: TokenBatch) -> list[tuple[int, int, float, int]]:
        """Measure each window: tokens predicted right, tokens, summed loss in nats, and bytes of the tokens."""
        logits, targets = model(batch.tokens), batch.targets
        counts = targets != PADDING
        right = ((logits.argmax(-1) == targets) & counts).sum(-1)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=PADDING, reduction="none").sum(-1)
        nbytes = torch.zeros_like(right)
        if self._token_bytes is not None:
            nbytes = (self._token_bytes.to(targets.device)[targets.clamp(min=0)] * counts).sum(-1)
        return list(zip(right.tolist(), counts.sum(-1).tolist(), losses.tolist(), nbytes.tolist(), strict=True))

    def metrics(self, measured: Sequence[Any]) -> dict[str, float]:
        """Compute `accuracy` and `bits per byte`.

        Accuracy is the share of next tokens to which the model gives the highest probability. Bits per byte are the
        loss in bits over all bytes that the tokens stand for, so that different vocabularies can be compared.
        """
        if not measured:
            return {}
        right, counted, nats, nbytes = (sum(column) for column in zip(*measured, strict=True))
        metrics = {"accuracy": right / counted} if counted else {}
        return {**metrics, "bits per byte": nats / math.log(2) / nbytes} if nbytes else metrics

    def predict(self, model: nn.Module, texts: Sequence[str]) -> list[str]:
        """How the model goes on with each text, greedily, to the end of the document or of its context.

        Raises:
            ConfigurationError: a text leaves no room in the context, or is empty and the task is one of documents, or
                the task was made without a vocabulary.
        """
        vocabulary = self.vocabulary
        if vocabulary is None:
            raise ConfigurationError("This task was made from token numbers, without the vocabulary of the text.")
        device, texts_written = next(model.parameters()).device, []

        def recomputed() -> Generator:
            return Recomputed(lambda tokens, _: model(tokens), 1, device)

        for text, tokens in zip(texts, vocabulary.encode_each(texts), strict=True):
            prompt = torch.tensor(self._prompt(tokens, vocabulary.end), dtype=torch.int64, device=device)
            if len(prompt) > self.context:
                room = self.context - len(prompt) + len(tokens)
                raise ConfigurationError(
                    f"{quoted(text)} has {len(tokens)} tokens, and the model sees {room} of a text at once: shorten it."
                )
            if not len(prompt):
                raise ConfigurationError("A text is empty, and the model only goes on with what has begun.")
            room = self.context + 1 - len(prompt)
            (written,) = continued(model, (), recomputed, prompt[None], vocabulary.end, room)
            texts_written.append(vocabulary.decode(np.array([*tokens, *written], dtype=np.int32)))
        return texts_written

    def _prompt(self, tokens: list[int], end: int) -> list[int]:
        """What a model reads before it goes on with a text: where a window has the start of a document, and the text.

        There the end of the document before stands in front.
        """
        return [end, *tokens]
