"""Pairs of texts to learn from, a source and its target: how they are divided, and pairs that are generated."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from bigbatch.comm.cache import keep, kept_json
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import LONGEST_LINE
from bigbatch.tasks.corpora import HELD_OUT, Corpus

GENERATED = 62_000
"""Number of pairs that are generated, where there are as many different ones."""

GENERATED_VALIDATION = 2_000
"""Number of generated sources that are held out for validation, at most."""


class Trivial(NamedTuple):
    """An answer that takes no learning, against which a model's answers are held.

    Attributes:
        name: what is done, in words for a reader, such as "copying the source".
        answer: answers a source.
    """

    name: str
    answer: Callable[[str], str]


COPYING = Trivial("copying the source", str)

FIRST_WORDS = Trivial("the first eight words", lambda source: " ".join(source.split()[:8]))
"""For a text and its summary: what a text is about stands at its beginning, and copying all of it shortens nothing."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of a source and the target that a model should write for it, to train on and for validation.

    A source that is in one of the two is not in the other.

    Attributes:
        name: where the pairs come from, in words for a reader.
        training: pairs that the vocabulary and the model learn from.
        validation: pairs that they never see while they learn.
        left_out: number of entries of a file that are no pair: one of the sides is empty, or it is not translated.
        trivial: the answer that a model should surpass.
    """

    name: str
    training: tuple[tuple[str, str], ...]
    validation: tuple[tuple[str, str], ...]
    left_out: int = 0
    trivial: Trivial = COPYING

    @property
    def sha256(self) -> str:
        """The SHA-256 digest (hexadecimal) of all pairs, which identifies them and how they are divided."""
        content = json.dumps([self.training, self.validation], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def corpus(self) -> Corpus:
        """The texts of both sides, each distinct one once in a split: one vocabulary is learnt from both together."""
        training, validation = (
            tuple(dict.fromkeys(text for pair in pairs for text in pair)) for pairs in (self.training, self.validation)
        )
        return Corpus(self.name, training, validation)


def divided(
    name: str, pairs: Iterable[tuple[str, str]], left_out: int = 0, validation: int = GENERATED_VALIDATION
) -> Pairs:
    """Divides pairs by their sources, so that all pairs with the same source go to the same split.

    A repeated pair counts once. The sources are shuffled with a fixed seed.

    Args:
        name: where the pairs come from, in words for a reader.
        pairs: the pairs.
        left_out: number of entries that are no pair.
        validation: number of sources that are held out; fewer where that would be more than every tenth.
    """
    targets: dict[str, list[str]] = {}
    for source, target in dict.fromkeys(pairs):
        targets.setdefault(source, []).append(target)
    sources = list(targets)
    random.Random(0).shuffle(sources)
    border = min(validation, -(-len(sources) // HELD_OUT))
    held_out, learnt = (
        tuple((source, target) for source in part for target in targets[source])
        for part in (sources[:border], sources[border:])
    )
    return Pairs(name, learnt, held_out, left_out)


def generated(name: str, file: Path, candidates: Callable[[], Iterable[tuple[str, str]]]) -> Pairs:
    """Collects generated pairs, as many as `GENERATED` of different sources, and keeps them in a file of the cache.

    Args:
        name: where the pairs come from, in words for a reader.
        file: the file that keeps them; its name tells everything that they depend on, but for their number.
        candidates: generates pairs, the same ones every time. Of several with the same source the first one counts.
    """
    file = file.with_stem(f"{file.stem}-{GENERATED}")
    found: list[list[str]] | None = kept_json(file, list[list[str]])
    if found is None:
        targets: dict[str, str] = {}
        for source, target in islice(candidates(), 4 * GENERATED):  # a poor language repeats itself
            targets.setdefault(source, target)
            if len(targets) == GENERATED:
                break
        found = [[source, target] for source, target in targets.items()]
        keep(file, json.dumps(found, ensure_ascii=False))
    return divided(name, ((source, target) for source, target in found))


Entries = Iterator[tuple[str, str, str]]
"""What a file has: where, such as "line 3", and the two sides, which may be empty."""


def collected(name: str, what: str, entries: Entries) -> Pairs:
    """Makes pairs of what a file or a data set has; every tenth source is held out.

    Args:
        name: where the pairs come from, in words for a reader.
        what: what has them, at the start of a sentence, such as "The file pairs.tsv".
        entries: where each entry is, and its two sides.

    Raises:
        ConfigurationError: a side is no text that can be learnt from, or there are too few pairs.
    """
    found, left_out, first = [], 0, ""
    for where, *texts in entries:
        given, wanted = (checked(text, what, where).strip() for text in texts)
        if given and wanted:
            found.append((given, wanted))
        else:
            left_out, first = left_out + 1, first or where
    pairs = divided(name, found, left_out, len(found))
    if not pairs.training:
        empty = (
            f" {left_out} are left out because a side is empty or not translated, the first one in {first}."
            if left_out
            else ""
        )
        raise ConfigurationError(
            f"{what} has too few pairs of a source and a target: {len(pairs.validation)}.{empty} It takes two with "
            "different sources, one to learn from and one held out."
        )
    return pairs


def checked(text: str, what: str, where: str) -> str:
    """Returns a text that can be learnt from.

    Raises:
        ConfigurationError: it cannot be.
    """
    if "\0" in text:
        raise ConfigurationError(
            f"{what} is not text: {where} has a NUL. If it is in UTF-16, convert it to UTF-8 first."
        )
    if len(text) > LONGEST_LINE:
        raise ConfigurationError(f"{what} cannot be used: {where} is longer than {LONGEST_LINE:,} characters.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{what} cannot be used: {where} has half a character, {error.object[error.start]!a}."
        ) from error
    return text
