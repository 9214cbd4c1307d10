"""Small tasks, and models of transformers for them: nothing is downloaded."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.models.kinds import kind_named
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.corpora import Corpus
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.tasks.pairs import divided
from bigbatch.tasks.question_answering import QuestionAnswering
from bigbatch.tasks.questions import Question, Questions
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.translation import Translation
from bigbatch.tasks.vocabulary import learn_vocabulary

WORDS = "the of and to in is it for on that by this with not are as at be or from".split()  # noqa: SIM905 - a list of this length is no more legible


def sentences(number: int, seed: int) -> tuple[str, ...]:
    draw = random.Random(seed)
    return tuple(" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(number))


def language(cache: Path, context: int = 8) -> LanguageModelling:
    corpus = Corpus("words", sentences(200, 0), sentences(40, 1))
    return LanguageModelling.from_corpus(corpus, learn_vocabulary(corpus, 280, cache), context)


def translation(cache: Path, **settings: object) -> Translation:
    pairs = divided("words", zip(sentences(120, 2), sentences(120, 3), strict=True))
    chosen = DataSettings.of({"task": "translation", "context": 32, **settings})
    return Translation(pairs, learn_vocabulary(pairs.corpus(), 280, cache), chosen)


def answering(cache: Path) -> QuestionAnswering:
    asked = []
    for text in sentences(60, 4):
        first, *_, last = text.split()
        asked.append(Question(text, f"what is {first}?", len(text) - len(last), len(text)))
    questions = Questions("words", tuple(asked[:50]), tuple(asked[50:]))
    return QuestionAnswering(questions, learn_vocabulary(questions.corpus(), 280, cache), DataSettings(context=48))


TASKS = {"gpt2": language, "llama": language, "t5": translation, "bart": translation, "bert": answering}
SMALL = {"layers": 1, "width": 16, "heads": 2}


def built(kind: str, task, seed: int = 0, **settings):
    chosen = ModelSettings.of({"model": f"hf:{kind}", **SMALL, **settings})
    return kind_named(str(chosen.model)).build(task, chosen, seed)


def refusal(kind: str, task, **settings) -> str:
    with pytest.raises(ConfigurationError) as caught:
        built(kind, task, **settings)
    return str(caught.value)


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in float64 whose weights are no small numbers around zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def first(task, number: int = 6):
    return task.batch("training", np.arange(number))
