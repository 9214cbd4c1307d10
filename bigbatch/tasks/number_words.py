"""Numbers in words to translate: "two hundred and seven" is "zweihundertsieben"."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random

from babel import Locale
from unicode_rbnf import RbnfEngine

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.languages import english_name, language, plain
from bigbatch.tasks.pairs import Pairs, generated

MOST_DIGITS = 6
"""Numbers go up to a million: each number of digits up to this one is drawn equally often."""

RULES = ("spellout-numbering-verbose", "spellout-numbering", "spellout-cardinal-sinokorean")
"""The rules that write a number by itself, in words as people say them: the first of these that a language has."""

UNFIT = ("zu",)
"""Languages in which unicode-rbnf 2.4 gives many numbers the same words: in Zulu it writes 19,000 for 345,000."""

ALSO_NORWEGIAN = {"nb": "no"}
"""CLDR keeps the rules for Bokmål under the name of Norwegian."""


def number_words(source: str, target: str, cache: Path) -> Pairs:
    """Generates numbers from 0 to a million in words of two languages, after the rules of the Unicode CLDR.

    Args:
        source: code of the language to translate from, such as "en".
        target: code of the language to translate to.
        cache: the folder that keeps the pairs, since they take seconds to make. It need not exist.

    Raises:
        ConfigurationError: a language is unknown or has no rules, or the two are the same.
    """
    locales = language(source), language(target)
    names = [english_name(locale) for locale in locales]
    if locales[0] == locales[1]:
        raise ConfigurationError(f"The numbers are in {names[0]} on both sides: name two different languages.")
    words = [_speller(locale) for locale in locales]
    key = hashlib.sha256(f"{_origin()} {Path(__file__).read_text()}".encode()).hexdigest()[:16]
    return generated(
        f"numbers from {names[0]} to {names[1]} ({_origin()})",
        cache / f"numbers-{locales[0]}-{locales[1]}-{key}.kept",
        partial(_drawn, *words),
    )


def _drawn(given: Callable[[int], str], wanted: Callable[[int], str]) -> Iterator[tuple[str, str]]:
    """Draws different numbers; one is left out where it has the words of a smaller one, by mistake.

    So it is with 100,000 in Lithuanian, which the rules write like 100.
    """
    draw = Random(0)
    owners = {words: number for number in range(1000) for words in (given(number), wanted(number))}
    drawn: set[int] = set()
    while len(drawn) < 10**MOST_DIGITS // 2:
        number = draw.randint(0, 10 ** draw.randint(1, MOST_DIGITS))
        if number not in drawn:  # to write it in words takes longer than to draw it
            drawn.add(number)
            sides = given(number), wanted(number)
            if all(owners.get(side, number) == number for side in sides):
                yield sides


def _speller(locale: Locale) -> Callable[[int], str]:
    """What writes numbers in words of a language."""
    supported = sorted(set(RbnfEngine.get_supported_languages()).difference(UNFIT))
    likely = (f"{locale}", f"{locale.language}_{locale.script}", ALSO_NORWEGIAN.get(locale.language, locale.language))
    code = next((name for name in likely if name in supported), None)
    if code is None:
        raise ConfigurationError(
            f"There are no rules for numbers in words of {english_name(locale)} ({locale}). There are some for: "
            f"{', '.join(supported)}."
        )
    engine = RbnfEngine.for_language(code)
    rules = next(name for name in RULES if name in engine.rulesets)
    return lambda number: plain(engine.format_number(number, ruleset_names=[rules]).text)


def _origin() -> str:
    return f"Unicode CLDR, unicode-rbnf {version('unicode_rbnf')}"
