"""Summarisation: of phrases into their shortest form, or of the user's own pairs of a text and its summary."""

from collections.abc import Sequence
from pathlib import Path

from bigbatch.tasks.pairs import Pairs, read_pairs
from bigbatch.tasks.phrases import shortening
from bigbatch.tasks.scores import chrf, exact_match
from bigbatch.tasks.sequence_to_sequence import SequenceToSequence
from bigbatch.tasks.settings import DataSettings

LANGUAGE = "en"
"""The language if the user names none."""

TEXT, SUMMARY = "text", "summary"
"""The names of the two columns in a file of the user's."""


class Summarisation(SequenceToSequence):
    """Shorten dates, durations, money and measurements of a language to their narrow form, or texts of a file."""

    takes = SequenceToSequence.takes | {"source"}

    @classmethod
    def pairs(cls, settings: DataSettings, cache: Path) -> Pairs:
        """Long and narrow phrases of a language, or the pairs of the user's file."""
        if settings.text is None:
            return shortening(settings.source or LANGUAGE, cache)
        return read_pairs(settings.text, TEXT, SUMMARY)

    def scores(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Score by chrF, and the share of outputs that are exactly right."""
        return {"chrF": chrf(outputs, references), "exact match": exact_match(outputs, references)}
