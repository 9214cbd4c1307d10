"""Question answering: find the span of a passage that answers a question, as in SQuAD (Rajpurkar et al. 2016)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.cache import cache_folder
from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.tasks.answers import AnsweringTask
from bigbatch.tasks.loss import PADDING
from bigbatch.tasks.questions import Question, Questions, function_questions, read_questions
from bigbatch.tasks.scores import squad_exact, squad_f1
from bigbatch.tasks.sequence_to_sequence import padded
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.task import Split
from bigbatch.tasks.tokenizer_files import vocabulary_for
from bigbatch.tasks.vocabulary import Vocabulary

LONGEST_ANSWER = 30
"""Tokens that an answer has at most, as in the evaluation of BERT (Devlin et al. 2018)."""

NAME = re.compile(r"^\w+: ")
"""The name of what a sentence tells about."""

Span = tuple[int, int]
"""The first token of an answer, and its last."""


@dataclass(frozen=True)
class SpanBatch:
    """A batch of questions and their passages, and where the answers are.

    Attributes:
        tokens: (batch, sequence) the question, the end token, the passage, and the end token; 0 where there is padding.
        mask: (batch, sequence) False at padding; None if there is none.
        passage: (batch, sequence) True at the tokens of the passage.
        targets: (batch, 2) places of the first and the last token of the answer.
        inputs: the question and the passage as text.
        references: the answers as texts.
        passages: the questions and passages, encoded.
    """

    tokens: Tensor
    mask: Tensor | None
    passage: Tensor
    targets: Tensor
    inputs: tuple[str, ...]
    references: tuple[str, ...]
    passages: tuple["Passage", ...]

    def to(self, device: torch.device) -> Self:
        """Copies the batch to another device."""
        mask = None if self.mask is None else self.mask.to(device)
        tokens, passage, targets = (part.to(device) for part in (self.tokens, self.passage, self.targets))
        return type(self)(tokens, mask, passage, targets, self.inputs, self.references, self.passages)


@dataclass(frozen=True)
class Passage:
    """A passage and a question about it, encoded.

    Attributes:
        question: what is asked.
        text: the passage.
        tokens: token numbers of the question, the end token, the passage, and the end token.
        first: place of the passage's first token among them.
        characters: for each token of the passage, its first character in the text and the one after its last.
    """

    question: str
    text: str
    tokens: list[int]
    first: int
    characters: list[tuple[int, int]]

    @property
    def input(self) -> str:
        """The passage and the question, for a reader."""
        return f"{self.text} {self.question}"

    def span(self, start: int, stop: int) -> Span:
        """Finds the tokens that stand for some characters of the passage: the places of the first and the last."""
        inside = [number for number, (first, last) in enumerate(self.characters) if first < stop and last > start]
        return self.first + inside[0], self.first + inside[-1]

    def cut(self, most: int) -> "Passage":
        """The same question with no more of its passage than fits into `most` tokens, with the end token."""
        if len(self.tokens) <= most:
            return self
        kept = max(0, most - 1 - self.first)
        tokens = [*self.tokens[: self.first + kept], self.tokens[-1]]
        return replace(self, tokens=tokens, characters=self.characters[:kept])

    def lacks(self, span: Span) -> bool:
        """Whether some tokens of a span have been cut off."""
        return span[1] >= self.first + len(self.characters)

    def answer(self, span: Span) -> str:
        """The text of the tokens from one place to another, without spaces around it."""
        start, stop = self.characters[span[0] - self.first][0], self.characters[span[1] - self.first][1]
        return self.text[start:stop].strip()


class QuestionAnswering(AnsweringTask):
    """Find the words of a passage that answer a question: what does this function do?

    A model scores every token as the first and as the last of the answer. The loss is the sum of the cross-entropies
    of the two, so that an example has two targets (Devlin et al. 2018, section 4.2).

    Args:
        questions: the questions.
        vocabulary: the vocabulary of questions and passages.
        settings: the context, and what becomes of longer passages.
    """

    default_model = "encoder"
    default_tokens = 32_000
    default_context = 160
    default_positions = "rotary"
    takes = frozenset({"too_long"})
    score = "exact match"
    trivial_answer = "the passage's first sentence"
    example_tokens = 2.0
    vocabulary: Vocabulary

    def __init__(self, questions: Questions, vocabulary: Vocabulary, settings: DataSettings) -> None:
        self.vocabulary = vocabulary
        self.corpus_sha256 = questions.sha256
        self.vocabulary_size = vocabulary.size
        texts: dict[Split, Sequence[Question]] = {
            "training": questions.training,
            "validation": questions.validation,
        }
        self._passages: dict[Split, list[Passage]] = {}
        self._spans: dict[Split, list[Span]] = {}
        self._references: dict[Split, list[str]] = {}
        self._lengths: dict[Split, NDArray[np.int64]] = {}
        left_out = cut = 0
        most, drop = settings.context or self.default_context, settings.too_long == "drop"
        for split, asked in texts.items():
            whole = self._encoded([(one.question, one.passage) for one in asked])
            spans = [passage.span(one.start, one.stop) for passage, one in zip(whole, asked, strict=True)]
            passages = [passage.cut(most) for passage in whole]
            kept = [
                number
                for number, (passage, span) in enumerate(zip(passages, spans, strict=True))
                if passage is whole[number] or not (drop or passage.lacks(span))
            ]
            left_out += len(whole) - len(kept)
            cut += sum(passages[number] is not whole[number] for number in kept)
            if not kept:
                raise ConfigurationError(
                    f"No {split} passage of {questions.name} has its answer within {most} tokens: use a larger "
                    "--context."
                )
            self._passages[split] = [passages[number] for number in kept]
            self._spans[split] = [spans[number] for number in kept]
            self._references[split] = [asked[number].answer for number in kept]
            self._lengths[split] = np.array([[len(passages[number].tokens)] for number in kept], dtype=np.int64)
        self._context = most
        self.sizes = {split: len(passages) for split, passages in self._passages.items()}
        self.source_tokens = float(self._lengths["training"].mean())
        self.remarks = tuple(
            f"{number:,} questions with a passage of over {most} tokens were {what}"
            for number, what in ((cut, "cut behind the answer"), (left_out, "left out"))
            if number
        )

    @classmethod
    def prepare(cls, settings: DataSettings) -> Self:
        """Read the questions, learn the vocabulary of questions and passages, and encode them."""
        cache = cache_folder()
        questions = function_questions(cache) if settings.text is None else read_questions(settings.text)
        return cls(questions, vocabulary_for(questions.corpus(), settings.vocabulary, cache), settings)

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[Passage]:
        """Encodes questions, and the passages that they are about.

        A space is put before a passage: its first word has then the byte pairs that it has in a question.
        """
        end = self.vocabulary.end
        questions = self.vocabulary.encode_each([question for question, _ in texts])
        passages = self.vocabulary.encode_with_places([f" {passage}" for _, passage in texts])
        return [
            Passage(
                question,
                text,
                [*asked, end, *tokens, end],
                len(asked) + 1,
                [(max(0, start - 1), stop - 1) for start, stop in places],
            )
            for (question, text), asked, (tokens, places) in zip(texts, questions, passages, strict=True)
        ]

    @property
    def context(self) -> int:
        """The longest question with its passage, in tokens."""
        return self._context

    def lengths(self, split: Split) -> NDArray[np.int64]:
        """The lengths of all questions with their passages, (examples, 1), in tokens."""
        return self._lengths[split]

    def batch(self, split: Split, examples: NDArray[np.int64]) -> SpanBatch:
        """Make a batch of the questions with these numbers, (examples,)."""
        numbers = examples.tolist()
        return self._batch(
            [self._passages[split][number] for number in numbers],
            [self._spans[split][number] for number in numbers],
            [self._references[split][number] for number in numbers],
        )

    def _batch(self, passages: Sequence[Passage], spans: Sequence[Span], references: Sequence[str]) -> SpanBatch:
        tokens = padded([passage.tokens for passage in passages])
        mask = tokens != PADDING
        place = torch.arange(tokens.shape[1])
        first = torch.tensor([passage.first for passage in passages], dtype=torch.int64)
        stop = torch.tensor([len(passage.tokens) - 1 for passage in passages], dtype=torch.int64)
        return SpanBatch(
            tokens.clamp(min=0),
            None if bool(mask.all()) else mask,
            (place >= first[:, None]) & (place < stop[:, None]),
            torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
            tuple(passage.input for passage in passages),
            tuple(references),
            tuple(passages),
        )

    def loss(self, model: nn.Module, batch: SpanBatch) -> tuple[Tensor, int]:
        """Compute the cross-entropies of the answers' first and last tokens among those of the passages."""
        scores = self._scores(model, batch)
        loss = F.cross_entropy(scores.transpose(1, 2).flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return loss, batch.targets.numel()

    def _scores(self, model: nn.Module, batch: SpanBatch) -> Tensor:
        """(batch, sequence, 2) logits; -∞ at tokens that are none of the passage."""
        scores: Tensor = model(batch.tokens, batch.passage, batch.mask)
        return scores.masked_fill(~batch.passage[:, :, None], -torch.inf)

    def answers(self, model: nn.Module, batch: SpanBatch) -> list[str]:
        """The most likely span in each passage: its last token does not come before its first.

        A model whose scores are no numbers, because training has diverged, gives empty answers.
        """
        starts, stops = self._scores(model, batch).log_softmax(1).unbind(2)
        together = starts[:, :, None] + stops[:, None, :]
        length = together.shape[1]
        fits = torch.ones(length, length, dtype=torch.bool, device=together.device).triu().tril(LONGEST_ANSWER - 1)
        best = together.masked_fill(~fits, -torch.inf).flatten(1).argmax(1).tolist()
        spans = [divmod(place, length) for place in best]
        known = (~starts.isnan().any(1)).tolist()
        return [
            passage.answer(span) if knows else ""
            for passage, span, knows in zip(batch.passages, spans, known, strict=True)
        ]

    def trivial(self, source: str) -> str:
        """The passage's first sentence, without the name that stands before it and a colon."""
        sentence, stop, _ = source.partition(". ")
        return NAME.sub("", sentence) + stop.strip()

    def scores(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Score by the share of exact matches, and by the F1 of words, as SQuAD does."""
        return {"exact match": squad_exact(outputs, references), "F1": squad_f1(outputs, references)}

    def predict(self, model: nn.Module, texts: Sequence[str]) -> list[str]:
        """The answers to questions, each of which stands after its passage and begins with its last sentence."""
        asked = [divided(text) for text in texts]
        passages = self._encoded(asked)
        for passage, text in zip(passages, texts, strict=True):
            if len(passage.tokens) > self._context:
                raise ConfigurationError(
                    f"The passage and question {quoted(text)} have {len(passage.tokens)} tokens, and the model takes "
                    f"{self._context}: shorten the passage."
                )
        device = next(model.parameters()).device
        nothing = self._batch(passages, [(passage.first, passage.first) for passage in passages], [""] * len(passages))
        return self.answers(model, nothing.to(device))


def divided(text: str) -> tuple[str, str]:
    """Divides a passage with a question at its end into the question and the passage.

    Raises:
        ConfigurationError: there is no question mark at the end, or no sentence before the question.
    """
    passage, stop, question = text.strip().rpartition(". ")
    if not passage or not question.endswith("?"):
        raise ConfigurationError(
            f"{quoted(text)} is no passage with a question at its end: write sentences, the question last, such as "
            "'abspath: Return an absolute path. getsize: Return the size of a file. what does getsize do?'."
        )
    return question, passage + stop.strip()
