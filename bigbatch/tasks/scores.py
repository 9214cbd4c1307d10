"""Scores: how close a model's outputs come to the references, over a whole corpus.

Every score takes all outputs at once, on one rank: chrF and BLEU count over the corpus before they divide, so that the
scores of its parts cannot be averaged. There is one reference for each output. chrF, BLEU and ROUGE-L go from 0 to 100,
as is the custom; exact match and F1 are shares, from 0 to 1.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from bigbatch.comm.errors import ConfigurationError, quoted


def chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Scores by characters: chrF2, from 0 to 100 (Popović 2015), the F-score of n-grams of 1 to 6 characters.

    Spaces do not count, and recall weighs twice as much as precision. It needs no notion of a word, so that it suits
    every language and short texts.

    Raises:
        ConfigurationError: there is nothing to score, or not one reference for each output.
    """
    from sacrebleu.metrics.chrf import CHRF

    _check(outputs, references)
    # One set of references, which has one for each output (sacrebleu 220).
    return float(CHRF().corpus_score(outputs, [references]).score)


def bleu(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Scores by words: BLEU, from 0 to 100 (Papineni et al. 2002), as sacrebleu computes it by default (Post 2018).

    It is the geometric mean of the precisions of 1 to 4 words, less a penalty for brevity. Words are those of its
    tokeniser "13a", which finds none in Chinese, Japanese or Thai: use chrF there.

    Raises:
        ConfigurationError: there is nothing to score, or not one reference for each output.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check(outputs, references)
    return float(BLEU().corpus_score(outputs, [references]).score)


def chrf_signature() -> str:
    """Says how `chrf` is computed, in the form that papers quote: "chrF2|nrefs:1|…|version:2.6.0"."""
    from sacrebleu.metrics.chrf import CHRF

    return f"chrF2|{CHRF(references=[['']]).get_signature()}"


def bleu_signature() -> str:
    """Says how `bleu` is computed, in the form that papers quote: "BLEU|nrefs:1|…|version:2.6.0"."""
    from sacrebleu.metrics.bleu import BLEU

    return f"BLEU|{BLEU(references=[['']]).get_signature()}"


def rouge_l(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Scores summaries: ROUGE-L, from 0 to 100 (Lin 2004), the mean F1 of the longest common subsequence of words.

    It is computed by Google's package rouge-score, without stemming. Words are runs of letters and digits in lower
    case: in ASCII the package's own words, but it would drop every other letter.

    Raises:
        ConfigurationError: rouge-score is not installed, there is nothing to score, or not one reference for each
            output.
    """
    try:
        from rouge_score.rouge_scorer import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
            RougeScorer,
        )
    except ImportError:
        raise ConfigurationError(
            "rouge-score is not installed, so that there is no ROUGE-L: pip install 'bigbatch[rouge]'"
        ) from None
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return 100 * _mean(
        lambda output, reference: scorer.score(reference, output)["rougeL"].fmeasure, outputs, references
    )


def has_rouge() -> bool:
    """Says whether rouge-score is installed, so that `rouge_l` can be computed."""
    return find_spec("rouge_score") is not None


class _Words:
    """The words of a text, for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def exact_match(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Measures the share of outputs, from 0 to 1, that equal their references to the letter.

    Raises:
        ConfigurationError: there is nothing to score, or not one reference for each output.
    """
    return _mean(lambda output, reference: output == reference, outputs, references)


def squad_exact(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Measures the share of answers, from 0 to 1, that equal their references when both are normalised.

    Rajpurkar et al., "SQuAD: 100,000+ questions for machine comprehension of text" (2016), section 6.1.

    Raises:
        ConfigurationError: there is nothing to score, or not one reference for each answer.
    """
    return _mean(lambda output, reference: normalised(output) == normalised(reference), outputs, references)


def squad_f1(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Measures the mean F1 of answers, from 0 to 1, on their normalised words, each counted as often as it occurs.

    Rajpurkar et al. 2016, section 6.1. An answer without words, such as "the", is right if its reference has none
    either, and otherwise wrong, as in the official script of SQuAD 2.0.

    Raises:
        ConfigurationError: there is nothing to score, or not one reference for each answer.
    """
    return _mean(_word_f1, outputs, references)


def _word_f1(output: str, reference: str) -> float:
    found, wanted = normalised(output).split(), normalised(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))  # 2PR / (P + R), with P = common / found and R = common / wanted


def normalised(answer: str) -> str:
    """Normalises an answer as SQuAD does: lower case, no ASCII punctuation, no a, an or the, and single spaces."""
    bare = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _mean(score: Callable[[str, str], float], outputs: Sequence[str], references: Sequence[str]) -> float:
    _check(outputs, references)
    return sum(map(score, outputs, references)) / len(outputs)


def _check(outputs: Sequence[str], references: Sequence[str]) -> None:
    for what, texts in (("outputs", outputs), ("references", references)):
        if isinstance(texts, str):
            raise ConfigurationError(f"The {what} are one text, {quoted(texts)}: give a list of texts.")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigurationError(
                    f"Number {number} of the {what} is {quoted(text)}, which is not text: give a list of texts, one "
                    "reference for each output."
                )
    if len(outputs) != len(references):
        raise ConfigurationError(
            f"There are {len(outputs):,} outputs and {len(references):,} references: give one reference for each of "
            "the outputs."
        )
    if not outputs:
        raise ConfigurationError("There are no outputs to score: take at least one example.")
