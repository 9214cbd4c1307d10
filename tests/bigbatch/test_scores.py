"""Scores: published values, and their definitions as plain loops."""

import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.scores import (
    bleu,
    bleu_signature,
    chrf,
    chrf_signature,
    exact_match,
    normalised,
    rouge_l,
    squad_exact,
    squad_f1,
)

DOG = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
"""The example of sacrebleu's README, with its two sets of references."""
BITTEN = (
    ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
    ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
)

PAIRS = (
    (["le chat est noir", "deux €"], ["le chat noir dort", "deux euros"]),
    (["Größe: 3 km", "", "x"], ["Größe: 3,5 km", "nichts", "xy"]),
    (["три дня", "日本語 です"], ["три  дня назад", "日本語です。"]),
    (DOG, BITTEN[0]),
    (DOG, BITTEN[1]),
)


def ngrams(items, length):
    return Counter(tuple(items[first : first + length]) for first in range(len(items) - length + 1))


def common_found_wanted(outputs, references, length):
    """Counts n-grams over the whole corpus: those that occur in both, each pair by itself, and in either."""
    common = found = wanted = 0
    for output, reference in zip(outputs, references, strict=True):
        ours, theirs = ngrams(output, length), ngrams(reference, length)
        common += sum(min(ours[gram], theirs[gram]) for gram in ours)
        # Where a reference is too short to have n-grams, sacrebleu leaves the output's out of account.
        found += ours.total() if theirs else 0
        wanted += theirs.total()
    return common, found, wanted


def chrf_by_definition(outputs, references):
    """Popović 2015 with β = 2: precision and recall are averaged over the lengths of which there are n-grams."""
    squeezed = [["".join(text.split()) for text in texts] for texts in (outputs, references)]
    precisions, recalls = [], []
    for length in range(1, 7):
        common, found, wanted = common_found_wanted(*squeezed, length)
        if found and wanted:
            precisions.append(common / found)
            recalls.append(common / wanted)
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def bleu_by_definition(outputs, references):
    """Papineni et al. 2002, section 2.3, on texts of words and spaces."""
    words = [[text.split() for text in texts] for texts in (outputs, references)]
    precisions = []
    for length in range(1, 5):
        common = sum(common_found_wanted([ours], [theirs], length)[0] for ours, theirs in zip(*words, strict=True))
        precisions.append(common / sum(ngrams(ours, length).total() for ours in words[0]))
    written, wanted = (sum(map(len, texts)) for texts in words)
    brevity = math.exp(min(0.0, 1 - wanted / written))
    return 100 * brevity * math.prod(precisions) ** 0.25


@pytest.mark.parametrize(("outputs", "references"), PAIRS)
def test_chrf_is_what_its_paper_defines(outputs, references):
    assert chrf(outputs, references) == pytest.approx(chrf_by_definition(outputs, references), rel=1e-12)


@pytest.mark.parametrize(
    ("outputs", "references", "published"),
    [  # of sacrebleu's own tests (test/test_chrf.py), those in which precision equals recall, so that β has no part
        (["a"], ["a"], 100.0),
        ([""], ["reference"], 0.0),
        (["a b c"], ["abc"], 100.0),
        (["a", "b"], ["a", "c"], 50.0),
        (["aa"], ["ab"], 25.0),
    ],
)
def test_chrf_has_the_published_values(outputs, references, published):
    assert chrf(outputs, references) == pytest.approx(published, abs=1e-9)


def test_bleu_is_what_its_paper_defines():
    chosen = random.Random(0)
    for _ in range(5):
        references = [" ".join(chosen.choices("abcde", k=chosen.randrange(5, 15))) for _ in range(20)]
        outputs = [text[: chosen.randrange(9, 40)].strip() + " e" * chosen.randrange(2) for text in references]
        assert bleu(outputs, references) == pytest.approx(bleu_by_definition(outputs, references), rel=1e-12)


@pytest.mark.parametrize("score", [chrf, bleu, exact_match, squad_exact, squad_f1])
def test_what_equals_its_reference_scores_all(score):
    texts = ["The dog bit the man twice.", "Größe: 3 km in fünf Tagen", "one two three four"]
    assert score(texts, tuple(texts)) == pytest.approx(100 if score in (chrf, bleu) else 1)


def test_references_are_not_transposed():
    """sacrebleu 220: an output's reference alone in a list is the whole first set, so that all others are ignored."""
    from sacrebleu.metrics import CHRF

    transposed = CHRF().corpus_score(["abc", "uvw"], [["abc"], ["xyz"]]).score
    assert transposed == pytest.approx(100)  # which passes for perfect
    assert chrf(["abc", "uvw"], ["abc", "xyz"]) == pytest.approx(50)
    for score in (chrf, bleu, exact_match, squad_exact, squad_f1):
        with pytest.raises(ConfigurationError, match=r"^Number 0 of the references is \['abc'\], which is not text: "):
            score(["abc", "uvw"], [["abc"], ["xyz"]])


@pytest.mark.parametrize("score", [chrf, bleu])
def test_a_corpus_is_not_the_mean_of_its_parts(score):
    outputs, references = ["a b c d e f g h", "a b c d e x"], ["a b c d e f g h", "a b c d e f g h i j k"]
    parts = [score([output], [reference]) for output, reference in zip(outputs, references, strict=True)]
    assert score(outputs, references) != pytest.approx(sum(parts) / 2, abs=0.5)


def test_signatures_say_what_sacrebleu_says():
    import sacrebleu

    version = sacrebleu.__version__
    assert chrf_signature() == f"chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert bleu_signature() == f"BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"


def test_exact_match_is_to_the_letter():
    assert exact_match(["a", "a ", "A", "b"], ["a", "a", "a", "b"]) == 0.5


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        ("The Denver  Broncos!", "denver broncos"),
        ("An apple, a day;\tthe doctor", "apple day doctor"),
        ("theatre of Athens", "theatre of athens"),  # articles are whole words
        ("U.S.-led", "usled"),  # punctuation goes without a trace, before the articles are looked for
        ("'a' the-the", "thethe"),
        ("“the” École—№ 1", "“ ” école—№ 1"),  # only ASCII has punctuation in the official script
        ("the", ""),
        ("?!", ""),
    ],
)
def test_answers_are_normalised_as_in_the_official_script(answer, bare):
    assert normalised(answer) == bare


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("this is the best span", "this is a good span", 0, 0.75),  # AllenNLP's test of the official script
        ("the Denver Broncos.", "Denver broncos", 1, 1),
        ("to the Denver Broncos", "Denver Broncos", 0, 0.8),  # precision 2/3, recall 1
        ("b b c", "b c c c", 0, 4 / 7),  # a bag: b once and c once; 2/3 and 2/4
        ("Paris", "London", 0, 0),
        # helm 4315: what normalises to nothing has neither precision nor recall.
        ("the", "a", 1, 1),
        ("", "", 1, 1),
        ("the", "one", 0, 0),
        ("one", "...", 0, 0),
    ],
)
def test_answers_score_as_in_the_official_script(answer, reference, exact, f1):
    assert squad_exact([answer], [reference]) == exact
    assert squad_f1([answer], [reference]) == pytest.approx(f1)
    assert squad_f1([answer, "x"], [reference, "y"]) == pytest.approx(f1 / 2)
    assert squad_exact([answer, "x"], [reference, "x"]) == (exact + 1) / 2


@pytest.mark.parametrize("score", [chrf, bleu, exact_match, squad_exact, squad_f1])
@pytest.mark.parametrize(
    ("outputs", "references", "message"),
    [
        ([], [], r"^There are no outputs to score: "),
        (["a"], [], r"^There are 1 outputs and 0 references: "),
        ("ab", ["a", "b"], r"^The outputs are one text, 'ab': "),
        (["a", None], ["a", "b"], r"^Number 1 of the outputs is None, which is not text: "),
    ],
)
def test_what_cannot_be_scored_is_refused(score, outputs, references, message):
    with pytest.raises(ConfigurationError, match=message):
        score(outputs, references)


def test_rouge_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    with pytest.raises(
        ConfigurationError, match=r"^rouge-score is not installed, .*: pip install 'bigbatch\[rouge\]'$"
    ):
        rouge_l(["a"], ["a"])


@pytest.mark.parametrize(
    ("output", "reference", "f1"),
    [
        ("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 10 / 17),  # its README
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin 2004, section 3.1
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("der schlüssel ist größer", "Der Schlüssel ist größer!", 1),
        ("пять дней", "семь дней", 2 / 4),
        ("", "word", 0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(output, reference, f1):
    pytest.importorskip("rouge_score", reason="the extra is not installed")
    assert rouge_l([output], [reference]) == pytest.approx(100 * f1)
    assert rouge_l([output, "x"], [reference, "y"]) == pytest.approx(50 * f1)


def test_nothing_is_imported_before_it_is_needed():
    """sacrebleu takes longer to import than most commands take."""
    code = "import sys, bigbatch.tasks.scores; print({'sacrebleu', 'rouge_score', 'nltk'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
