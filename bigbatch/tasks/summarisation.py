"""Summarisation: of phrases into their shortest form, or of the user's own pairs of a text and its summary."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.debian import debian_descriptions
from bigbatch.tasks.hugging_face import hugging_face
from bigbatch.tasks.named_texts import NamedText, pairs_of
from bigbatch.tasks.pair_files import SUMMARIES
from bigbatch.tasks.pairs import FIRST_WORDS, Pairs
from bigbatch.tasks.phrases import shortening
from bigbatch.tasks.scores import chrf, exact_match, has_rouge, rouge_l
from bigbatch.tasks.sequence_to_sequence import SequenceToSequence
from bigbatch.tasks.settings import DataSettings

LANGUAGE = "en"
"""The language if the user names none."""

TEXTS: dict[str, NamedText] = {"debian-descriptions": debian_descriptions, "hugging-face": hugging_face}
"""The texts that --text can name."""


class Summarisation(SequenceToSequence):
    """Shorten dates, durations, money and measurements to their narrow form, or texts to their summaries."""

    default_tokens = 120_000
    takes = SequenceToSequence.takes | {"source"}

    @classmethod
    def pairs(cls, settings: DataSettings, cache: Path) -> Pairs:
        """Long and narrow phrases of a language, or the texts and summaries that the user names.

        Raises:
            ConfigurationError: the user names a text and a language, which is that of phrases only.
        """
        if settings.text is None:
            return shortening(settings.source or LANGUAGE, cache)
        if settings.source is not None:
            raise ConfigurationError(
                f"--source {settings.source} is the language of phrases, and --text {settings.text} is read in "
                "whatever language it is: leave out one of the two."
            )
        return replace(pairs_of(settings.text, *SUMMARIES[0], TEXTS), trivial=FIRST_WORDS)

    def scores(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Score by chrF, by ROUGE-L if rouge-score is installed, and by the share of outputs that are exactly right."""
        rouge = {"ROUGE-L": rouge_l(outputs, references)} if has_rouge() else {}
        return {"chrF": chrf(outputs, references), **rouge, "exact match": exact_match(outputs, references)}
