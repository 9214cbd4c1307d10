"""A small task of sequence to sequence on made-up pairs of ragged lengths, for tests of training and measuring."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bigbatch.models.encoder_decoder import EncoderDecoder, EncoderDecoderTransformer
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.pairs import Pairs
from bigbatch.tasks.sequence_to_sequence import SequenceToSequence
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.translation import Translation
from bigbatch.tasks.vocabulary import Vocabulary, learn_vocabulary

TRAINING, VALIDATION = 53, 23
SIZES = ModelSettings(layers=1, width=8, heads=2)


@cache
def made_up_pairs() -> Pairs:
    """Words of letters, of 1 to 12 words, and the same words backwards, some left out."""
    random = np.random.default_rng(11)

    def pair() -> tuple[str, str]:
        words = ["".join(random.choice(list("abcd"), random.integers(1, 4))) for _ in range(random.integers(1, 13))]
        return " ".join(words), " ".join(words[:: -random.integers(1, 3)])

    found: dict[str, str] = {}
    while len(found) < TRAINING + VALIDATION:
        source, target = pair()
        found.setdefault(source, target)
    pairs = tuple(found.items())
    return Pairs("made up", pairs[:TRAINING], pairs[TRAINING:])


@cache
def vocabulary() -> Vocabulary:
    with TemporaryDirectory() as folder:
        return learn_vocabulary(made_up_pairs().corpus(), 280, Path(folder))


def made_up_task(kind: type[SequenceToSequence] = Translation, **settings: Any) -> SequenceToSequence:
    """A task on the pairs; `settings` are those of the data."""
    return kind(made_up_pairs(), vocabulary(), DataSettings(**{"context": 40, **settings}))


def new_model(task: SequenceToSequence, seed: int = 3) -> EncoderDecoderTransformer:
    return EncoderDecoder.build(task, SIZES, seed)
