"""Questions about short passages, each of which is answered by a span of the passage (as in SQuAD)."""

import hashlib
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypedDict

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.files import parsed, read_bytes, utf8
from bigbatch.comm.schema import Count, check
from bigbatch.tasks.corpora import HELD_OUT, LARGEST_TEXT, Corpus, documentation

TRAINING, VALIDATION = 20_000, 1_000
"""Numbers of questions that are made, to train on and held out."""

FUNCTIONS = 3
"""Number of functions that a passage tells of."""

LONGEST_SUMMARY, LONGEST_NAME = 60, 24
"""Lengths of the longest summary and name that are used, in characters: three make a passage of about 60 byte pairs."""

SENTENCE = re.compile(r"[A-Z][a-z]+ [^:]+ [^:]+")
"""A summary of three words or more that is no rule of a grammar, and has no colon: that stands after a name."""


@dataclass(frozen=True)
class Question:
    """A question about a passage.

    Attributes:
        passage: the text that has the answer.
        question: what is asked.
        start: the first character of the answer in the passage.
        stop: the first character after it.
    """

    passage: str
    question: str
    start: int
    stop: int

    @property
    def answer(self) -> str:
        """The part of the passage that answers the question."""
        return self.passage[self.start : self.stop]


@dataclass(frozen=True)
class Questions:
    """Questions to train on, and questions held out for validation.

    Attributes:
        name: where the passages come from, in words for a reader.
        training: questions that the vocabulary and the model learn from.
        validation: questions that they never see while they learn, with other answers.
    """

    name: str
    training: tuple[Question, ...]
    validation: tuple[Question, ...]

    @property
    def sha256(self) -> str:
        """The SHA-256 digest (hexadecimal) of all questions, which identifies them and how they are divided."""
        content = json.dumps([[astuple(one) for one in split] for split in (self.training, self.validation)])
        return hashlib.sha256(content.encode()).hexdigest()

    def corpus(self) -> Corpus:
        """The passages and the questions, each distinct one once in a split: one vocabulary is learnt from both."""
        training, validation = (
            tuple(dict.fromkeys(text for one in split for text in (one.passage, one.question)))
            for split in (self.training, self.validation)
        )
        return Corpus(self.name, training, validation)


class SquadAnswer(TypedDict):
    """An answer in a file of SQuAD's format."""

    text: str
    answer_start: Count


class SquadQuestion(TypedDict):
    """A question in a file of SQuAD's format."""

    question: str
    answers: list[SquadAnswer]


class SquadParagraph(TypedDict):
    """A passage and its questions in a file of SQuAD's format."""

    context: str
    qas: list[SquadQuestion]


class SquadArticle(TypedDict):
    """An article in a file of SQuAD's format."""

    paragraphs: list[SquadParagraph]


class SquadFile(TypedDict):
    """A file of SQuAD's format (Rajpurkar et al. 2016)."""

    data: list[SquadArticle]


def function_questions(cache: Path) -> Questions:
    """Asks what functions of Python's standard library do; a passage has the summaries of three of them.

    A passage reads "abspath: Return an absolute path. getsize: Return the size of a file. isfile: Test whether a path
    is a regular file", and the question is "what does getsize do?". Every tenth summary is held out, and the functions
    that have it with it. In training the names are shuffled among the functions: what a name means is no help, so that
    a model must look for the name in the passage.

    Args:
        cache: the folder that keeps the documentation, since reading 600 modules takes seconds. It need not exist.

    Raises:
        ConfigurationError: this Python comes without its sources.
    """
    functions = list(dict.fromkeys(_functions(documentation(cache))))
    draw = random.Random(0)
    summaries = list(dict.fromkeys(summary for _, summary in functions))
    draw.shuffle(summaries)
    held_out = dict.fromkeys(summaries[::HELD_OUT])
    asked = [(name, summary) for name, summary in functions if summary in held_out]
    theirs = {name for name, _ in asked}
    names = list(dict.fromkeys(name for name, summary in functions if summary not in held_out and name not in theirs))
    learnt = [summary for summary in summaries if summary not in held_out]
    training = tuple(
        _question(draw.sample(names, FUNCTIONS), draw.sample(learnt, FUNCTIONS), draw) for _ in range(TRAINING)
    )
    validation = tuple(_question(*_different(asked, draw), draw) for _ in range(VALIDATION))
    return Questions(f"functions of Python {sys.version.split()[0]}", training, validation)


def read_questions(path: Path) -> Questions:
    """Reads questions in the format of SQuAD, versions 1 and 2; every tenth passage is held out.

    Of several answers to a question the first one counts. Questions without an answer are left out.

    Raises:
        ConfigurationError: the file cannot be read, is in another format, an answer is not where it is said to be, or
            there are too few passages with a question.
    """
    what = f"The file {path}"
    data = check(parsed(utf8(read_bytes(path, what, LARGEST_TEXT), what), what), SquadFile, what)["data"]
    asked: dict[str, list[Question]] = {}
    for paragraph in (paragraph for article in data for paragraph in article["paragraphs"]):
        passage = paragraph["context"]
        for question in paragraph["qas"]:
            for answer in question["answers"][:1]:
                start, stop = answer["answer_start"], answer["answer_start"] + len(answer["text"])
                if not answer["text"].strip() or passage[start:stop] != answer["text"]:
                    raise ConfigurationError(
                        f"{what} cannot be used: the answer {quoted(answer['text'])} to {quoted(question['question'])} "
                        f"does not stand at character {start} of its passage."
                    )
                asked.setdefault(passage, []).append(Question(passage, question["question"], start, stop))
    passages = list(asked)
    if len(passages) < 2:
        raise ConfigurationError(
            f"{what} has too few passages with an answered question: {len(passages)}. It takes two, one to learn from "
            "and one held out."
        )
    random.Random(0).shuffle(passages)
    held_out = set(passages[::HELD_OUT])
    validation, training = (
        tuple(question for passage in passages if (passage in held_out) is out for question in asked[passage])
        for out in (True, False)
    )
    return Questions(path.name, training, validation)


def _functions(documented: Iterable[Sequence[str]]) -> Iterator[tuple[str, str]]:
    """The public functions with a short summary, the first paragraph of their documentation: names and summaries."""
    for name, text in documented:
        summary = " ".join(text.partition("\n\n")[0].split())
        fits = 0 < len(name) <= LONGEST_NAME and len(summary) <= LONGEST_SUMMARY
        if fits and not name.startswith("_") and SENTENCE.fullmatch(summary):
            yield name, summary


def _different(functions: Sequence[tuple[str, str]], draw: random.Random) -> tuple[list[str], list[str]]:
    """Draws functions of different names with different summaries."""
    while True:
        names, summaries = (list(sides) for sides in zip(*draw.sample(functions, FUNCTIONS), strict=True))
        if len(set(names)) == len(set(summaries)) == FUNCTIONS:
            return names, summaries


def _question(names: Sequence[str], summaries: Sequence[str], draw: random.Random) -> Question:
    """Makes a passage, and asks for one of its functions."""
    asked = draw.randrange(FUNCTIONS)
    entries = [f"{name}: {summary}" for name, summary in zip(names, summaries, strict=True)]
    stop = len(" ".join(entries[: asked + 1]))
    return Question(" ".join(entries), f"what does {names[asked]} do?", stop - len(summaries[asked]), stop)
