"""Phrases to translate or to shorten, which are generated from the CLDR: there without a network, in many languages."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

import babel
from babel import Locale
from babel.core import get_cldr_version

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks import cldr, languages
from bigbatch.tasks.cldr import Kind, Phrase, kinds, kinds_of_names
from bigbatch.tasks.languages import english_name, language, plain
from bigbatch.tasks.pairs import Pairs, generated

TRANSLATED = {
    "day": 4,
    "part of a day": 4,
    "moment": 2,
    "days": 1,
    "weekdays": 1,
    "months": 1,
    "duration": 2,
    "relative time": 2,
    "two units": 2,
    "measurement": 8,
    "money": 5,
    "compact number": 2,
    "number": 1,
    "countries": 4,
    "languages": 4,
    "scripts": 1,
    "currencies": 1,
}
"""How often each kind of phrase is drawn for translation."""

SHORTENED = {
    "day": 12,
    "part of a day": 2,
    "moment": 1,
    "days": 1,
    "weekdays": 1,
    "months": 1,
    "duration": 1,
    "relative time": 1,
    "two units": 6,
    "measurement": 4,
    "money": 5,
    "compact number": 3,
}
"""How often each kind of phrase is drawn for shortening: what becomes much shorter, more often."""


def phrases(source: str, target: str, cache: Path) -> Pairs:
    """Generates phrases in two languages: dates, durations, measurements, money, and names of countries and languages.

    Args:
        source: code of the language to translate from, such as "en"; see `bigbatch.tasks.languages.language`.
        target: code of the language to translate to.
        cache: the folder that keeps the pairs, since they take seconds to make. It need not exist.

    Raises:
        ConfigurationError: a language is unknown, or the two are the same.
    """
    locales = language(source), language(target)
    if locales[0] == locales[1]:
        raise ConfigurationError(
            f"The phrases are in {english_name(locales[0])} on both sides: name two different languages."
        )

    def candidates() -> Iterator[tuple[str, str]]:
        for phrase in _drawn(kinds(locales) | kinds_of_names(locales), TRANSLATED):
            first, second = (plain(phrase(locale, False)) for locale in locales)
            if first and second:
                yield first, second

    name = f"phrases from {english_name(locales[0])} to {english_name(locales[1])}"
    return generated(f"{name} ({_origin()})", _file(cache, "phrases", locales), candidates)


def shortening(code: str, cache: Path) -> Pairs:
    """Generates phrases and how the same language writes them as short as it can: "12 kilometers per hour", "12km/h".

    Args:
        code: code of the language, such as "en"; see `bigbatch.tasks.languages.language`.
        cache: the folder that keeps the pairs, since they take seconds to make. It need not exist.

    Raises:
        ConfigurationError: the language is unknown.
    """
    locale = language(code)

    def candidates() -> Iterator[tuple[str, str]]:
        for phrase in _drawn(kinds([locale]), SHORTENED):
            full, short = plain(phrase(locale, False)), plain(phrase(locale, True))
            if len(short) < len(full):
                yield full, short

    return generated(
        f"long and short phrases in {english_name(locale)} ({_origin()})",
        _file(cache, "shortening", [locale]),
        candidates,
    )


def _drawn(known: Mapping[str, Kind], often: Mapping[str, int]) -> Iterator[Phrase]:
    """Draws phrases without end, each kind as often as is said, compared with the others."""
    draw = Random(0)
    drawn, bounds = list(known.values()), list(accumulate(often[name] for name in known))
    while True:
        yield draw.choices(drawn, cum_weights=bounds)[0](draw)


def _origin() -> str:
    return f"Unicode CLDR {get_cldr_version()}, Babel {babel.__version__}"


def _file(cache: Path, name: str, locales: Sequence[Locale]) -> Path:
    """The file of generated phrases, under the name of all that they depend on, this program included."""
    written = "".join(Path(str(file)).read_text() for file in (__file__, cldr.__file__, languages.__file__))
    key = hashlib.sha256(f"{_origin()} {written}".encode()).hexdigest()[:16]
    return cache / f"{name}-{'-'.join(map(str, locales))}-{key}.kept"
