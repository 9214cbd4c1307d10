"""Translation: of phrases, of numbers in words, or of the user's own pairs."""

from collections.abc import Sequence
from pathlib import Path

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.bible import bible
from bigbatch.tasks.debian import libreoffice_help
from bigbatch.tasks.hugging_face import hugging_face
from bigbatch.tasks.named_texts import NamedText, pairs_of
from bigbatch.tasks.number_words import number_words
from bigbatch.tasks.pairs import Pairs
from bigbatch.tasks.phrases import phrases
from bigbatch.tasks.scores import bleu, chrf, exact_match
from bigbatch.tasks.sequence_to_sequence import SequenceToSequence
from bigbatch.tasks.settings import DataSettings

SOURCE, TARGET = "en", "de"
"""The languages if the user names none."""

TEXTS: dict[str, NamedText] = {"libreoffice-help": libreoffice_help, "bible": bible, "hugging-face": hugging_face}
"""The texts that --text can name."""


class Translation(SequenceToSequence):
    """Translate dates, durations, money, measurements and names between two languages, or texts that exist in both."""

    takes = SequenceToSequence.takes | {"source", "target_language"}

    @classmethod
    def pairs(cls, settings: DataSettings, cache: Path) -> Pairs:
        """Phrases of two languages, or the pairs that the user names."""
        source, target = settings.source or SOURCE, settings.target_language or TARGET
        if settings.text is None:
            return phrases(source, target, cache)
        return pairs_of(settings.text, source, target, TEXTS)

    def scores(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Score by chrF, BLEU, and the share of outputs that are exactly right."""
        return {
            "chrF": chrf(outputs, references),
            "BLEU": bleu(outputs, references),
            "exact match": exact_match(outputs, references),
        }


class TranslationOfNumbers(Translation):
    """Translate numbers in words between two languages: "two hundred and seven" is "zweihundertsieben"."""

    default_tokens = 120_000

    @classmethod
    def pairs(cls, settings: DataSettings, cache: Path) -> Pairs:
        """Number words of two languages.

        Raises:
            ConfigurationError: the user names a text, or a language has no number words.
        """
        if settings.text is not None:
            raise ConfigurationError(
                f"The task {settings.task} makes its own pairs and reads no text: leave out --text, or use --task "
                "translation."
            )
        return number_words(settings.source or SOURCE, settings.target_language or TARGET, cache)

    def scores(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Score by chrF, and the share of outputs that are exactly right; BLEU asks for four words in a row."""
        return {"chrF": chrf(outputs, references), "exact match": exact_match(outputs, references)}
