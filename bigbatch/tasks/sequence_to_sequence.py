"""Sequence to sequence: write a text after reading another, such as its translation or its short form."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.answers import AnsweringTask
from bigbatch.tasks.decoding import Generator, Recomputed, beam, continued, generator_of
from bigbatch.tasks.loss import PADDING, shifted, summed_cross_entropy
from bigbatch.tasks.pairs import Pairs
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.task import Split
from bigbatch.tasks.tokenizer_files import vocabulary_for
from bigbatch.tasks.vocabulary import Vocabulary

LENGTH_PENALTY = 0.6
"""The exponent that Vaswani et al. 2017, section 6.1, use."""


@dataclass(frozen=True)
class PairBatch:
    """A batch of sources and targets, each padded to the longest.

    Attributes:
        source: (batch, source sequence) token numbers of what is read, the end token last; 0 where there is padding.
        mask: (batch, source sequence) False at padding; None if there is none.
        targets: (batch, target sequence) token numbers of what is written, the end token last; `PADDING` where there is
            padding.
        inputs: the sources as texts.
        references: the targets as texts.
    """

    source: Tensor
    mask: Tensor | None
    targets: Tensor
    inputs: tuple[str, ...]
    references: tuple[str, ...]

    def to(self, device: torch.device) -> Self:
        """Copies the batch to another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return type(self)(self.source.to(device), mask, self.targets.to(device), self.inputs, self.references)


class SequenceToSequence(AnsweringTask):
    """Write the target of a pair of texts after reading its source.

    Args:
        pairs: the pairs.
        vocabulary: the vocabulary of both sides.
        settings: the context, what becomes of longer texts, label smoothing, and how to decode.

    Raises:
        ConfigurationError: no pair of a split is short enough, or there is a length penalty and no beam.
    """

    default_model = "encoder-decoder"
    takes = frozenset({"too_long", "label_smoothing", "beam", "length_penalty"})
    default_tokens = 350_000
    score = "chrF"
    vocabulary: Vocabulary

    def __init__(self, pairs: Pairs, vocabulary: Vocabulary, settings: DataSettings) -> None:
        self.vocabulary = vocabulary
        self._trivial = pairs.trivial
        self.trivial_answer = pairs.trivial.name
        self._context = context = settings.context or self.default_context
        self._smoothing = settings.label_smoothing or 0.0
        self._beam = settings.decoding.beam or 1
        penalty = settings.decoding.length_penalty
        if penalty is not None and settings.decoding.beam is None:
            raise ConfigurationError(
                f"--length-penalty {penalty:g} is about beam search, and decoding is greedy without --beam: add --beam "
                "4, or leave it out."
            )
        self._length_penalty = LENGTH_PENALTY if penalty is None else penalty
        self.corpus_sha256 = pairs.sha256
        self.vocabulary_size = vocabulary.size
        drop = settings.too_long == "drop"
        texts: dict[Split, Sequence[tuple[str, str]]] = {"training": pairs.training, "validation": pairs.validation}
        self._examples = {split: Examples.of(texts[split], vocabulary, context, drop=drop) for split in texts}
        for split, examples in self._examples.items():
            if not examples.texts:
                raise ConfigurationError(
                    f"No {split} pair of {pairs.name} has at most {context} tokens a side: use a larger "
                    "--context, or --too-long cut."
                )
        self.sizes = {split: len(examples.texts) for split, examples in self._examples.items()}
        self.source_tokens, self.example_tokens = self._examples["training"].lengths.mean(axis=0).tolist()
        too_long = sum(examples.too_long for examples in self._examples.values())
        if too_long:
            what = "were left out" if drop else "were cut"
            self.remarks = (f"{too_long:,} pairs with a side of over {context} tokens {what}",)
        if pairs.left_out:
            self.remarks = (*self.remarks, f"{pairs.left_out:,} entries of {pairs.name} are no pair and were left out")

    @classmethod
    def prepare(cls, settings: DataSettings) -> Self:
        """Read or generate the pairs, learn the vocabulary of both sides, and encode them."""
        cache = cache_folder()
        pairs = cls.pairs(settings, cache)
        return cls(pairs, vocabulary_for(pairs.corpus(), settings.vocabulary, cache), settings)

    @classmethod
    @abstractmethod
    def pairs(cls, settings: DataSettings, cache: Path) -> Pairs:
        """Read or generate the pairs that the settings ask for; `cache` keeps what takes long to make.

        Raises:
            ConfigurationError: there are no such pairs.
        """

    @property
    def context(self) -> int:
        """The longest source or target that a model must take, in tokens, with the token at its end or start."""
        return self._context

    def lengths(self, split: Split) -> NDArray[np.int64]:
        """The lengths of all sources and targets, (examples, 2), in tokens, each with the token at its end."""
        return self._examples[split].lengths

    def batch(self, split: Split, examples: NDArray[np.int64]) -> PairBatch:
        """Make a batch of the pairs with these numbers, (examples,)."""
        found = self._examples[split]
        texts = [found.texts[number] for number in examples.tolist()]
        sources = [found.sources[number] for number in examples.tolist()]
        written = [found.targets[number] for number in examples.tolist()]
        return self._batch(texts, sources, written)

    def _batch(
        self, texts: Sequence[tuple[str, str]], sources: Sequence[list[int]], written: Sequence[list[int]]
    ) -> PairBatch:
        end = self.vocabulary.end
        source = padded([[*tokens, end] for tokens in sources])
        mask = source != PADDING
        targets = padded([[*tokens, end] for tokens in written])
        inputs, references = (tuple(side) for side in (zip(*texts, strict=True) if texts else ((), ())))
        return PairBatch(source.clamp(min=0), None if bool(mask.all()) else mask, targets, inputs, references)

    def loss(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Compute the cross-entropy of the targets' tokens, which is smoothed if the model is in training mode."""
        # What is read in a padded place does not matter: nothing that counts comes after it.
        logits = model(batch.source, shifted(batch.targets, self._start(model)), batch.mask)
        return summed_cross_entropy(logits, batch.targets, self._smoothing if model.training else 0.0)

    def _start(self, model: nn.Module) -> int:
        """The token that stands before a target: the one that the model knows for it, or else the end token."""
        known: int | None = getattr(model, "start_token", None)
        return self.vocabulary.end if known is None else known

    def answers(self, model: nn.Module, batch: PairBatch) -> list[str]:
        """What the model writes after reading each source, greedily or by beam search.

        It writes at most as many tokens as the longest target that it learns from.
        """
        end, longest = self.vocabulary.end, int(self._examples["training"].lengths[:, 1].max())
        start = torch.full_like(batch.source[:, 0], self._start(model))
        if self._beam == 1:
            written = continued(model, given(batch), recomputed(model, batch), start[:, None], end, longest)
        else:
            own = generator_of(model, given(batch), recomputed(model, batch))
            written = beam(own, start, end, longest, self._beam, self._length_penalty)
        return [self.vocabulary.decode(np.array(tokens, dtype=np.int32)) for tokens in written]

    def predict(self, model: nn.Module, texts: Sequence[str]) -> list[str]:
        """What the model writes after reading each text, of which it reads as much as its context takes."""
        sources = [tokens[: self._context - 1] for tokens in self.vocabulary.encode_each(texts)]
        device = next(model.parameters()).device
        return self.answers(model, self._batch([(text, "") for text in texts], sources, [[] for _ in texts]).to(device))

    def trivial(self, source: str) -> str:
        """What the pairs' trivial answer makes of the source, such as the source itself."""
        return self._trivial.answer(source)


@dataclass(frozen=True)
class Examples:
    """The pairs of one split, encoded.

    Attributes:
        texts: the pairs.
        sources: token numbers of each source, without the token at its end.
        targets: token numbers of each target, without the token at its end.
        lengths: (pairs, 2) numbers of tokens of source and target, each with the token at its end.
        too_long: number of pairs of which a side was too long.
    """

    texts: Sequence[tuple[str, str]]
    sources: Sequence[list[int]]
    targets: Sequence[list[int]]
    lengths: NDArray[np.int64]
    too_long: int

    @classmethod
    def of(cls, texts: Sequence[tuple[str, str]], vocabulary: Vocabulary, context: int, *, drop: bool) -> Self:
        """Encode pairs; those with a side of more than `context` tokens, its end included, are dropped or cut."""
        sources, targets = (vocabulary.encode_each([pair[side] for pair in texts]) for side in (0, 1))
        most = context - 1
        fits = [len(source) <= most and len(target) <= most for source, target in zip(sources, targets, strict=True)]
        kept = [number for number, fit in enumerate(fits) if fit or not drop]
        sources, targets = ([side[number][:most] for number in kept] for side in (sources, targets))
        lengths = np.array(
            [(len(source) + 1, len(target) + 1) for source, target in zip(sources, targets, strict=True)],
            dtype=np.int64,
        ).reshape(-1, 2)
        return cls([texts[number] for number in kept], sources, targets, lengths, fits.count(False))


def padded(sequences: Sequence[list[int]]) -> Tensor:
    """Puts sequences into the rows of a tensor, (sequences, longest), with `PADDING` after the shorter ones."""
    longest = max(map(len, sequences), default=1)
    rows = [[*tokens, *[PADDING] * (longest - len(tokens))] for tokens in sequences]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, longest)


def given(batch: PairBatch) -> tuple[Tensor, Tensor | None]:
    """What a model reads before it writes."""
    return batch.source, batch.mask


def recomputed(model: nn.Module, batch: PairBatch) -> Callable[[], Generator]:
    """Makes generators of targets for a model that offers none; they compute everything anew for each token."""

    def logits(tokens: Tensor, rows: Tensor) -> Tensor:
        mask = None if batch.mask is None else batch.mask[rows]
        predicted: Tensor = model(batch.source[rows], tokens, mask)
        return predicted

    return lambda: Recomputed(logits, len(batch.source), batch.source.device)
