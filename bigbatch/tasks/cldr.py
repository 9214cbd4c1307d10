"""Phrases in any language that Babel knows: dates, measurements, money and names, from the Unicode CLDR.

The CLDR (Common Locale Data Repository) says how each language writes them; its licence is the Unicode License, and
Babel, which formats them here, has the BSD licence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from random import Random
from typing import Any

from babel import Locale
from babel.dates import (
    format_date,
    format_interval,
    format_skeleton,
    format_time,
    format_timedelta,
    get_datetime_format,
    get_day_names,
    get_month_names,
)
from babel.lists import format_list
from babel.numbers import (
    format_compact_decimal,
    format_currency,
    format_decimal,
    format_percent,
    get_territory_currencies,
)
from babel.units import format_unit

Phrase = Callable[[Locale, bool], str]
"""Writes one and the same thing in a language: in full, or, where the second argument is True, as short as it can."""

Kind = Callable[[Random], Phrase]
"""Draws something that can be said."""

FIRST_DAY, DAYS = date(1950, 1, 1), 36_525
"""The days that are written about are those of a hundred years."""

MONEY_OF = date(2025, 1, 1)
"""The currencies are those that were legal tender somewhere on this day."""

SKELETONS = {
    "MMMMd": "Md",
    "MMMMEd": "MEd",
    "yMMMM": "yM",
    "yMMMMEd": "yMEd",
    "yQQQQ": "yQQQ",
    "GyMMMMd": "GyMd",
    "Bhm": "Hm",
    "EHm": "Hm",
}
"""What of a day or a time is written, as the CLDR names it, and the same in short.

None counts weeks: where the first one begins differs between countries, so that one day is in different weeks."""

TOGETHER = (
    ("duration-hour", "duration-minute", 60),
    ("duration-day", "duration-hour", 24),
    ("duration-week", "duration-day", 7),
    ("duration-year", "duration-month", 12),
    ("duration-minute", "duration-second", 60),
    ("length-foot", "length-inch", 12),
    ("mass-kilogram", "mass-gram", 1000),
    ("mass-pound", "mass-ounce", 16),
    ("length-meter", "length-centimeter", 100),
)
"""Units in which people measure together, such as 5 feet and 7 inches, and how many of the second make the first."""


STYLES = {
    "standard": (),
    "or": ("standard",),
    "unit": ("unit-short", "standard"),
    "unit-narrow": ("unit-short", "unit", "standard"),
}
"""The styles of lists, and those that stand for one that a language does not have; every language has the first."""


def kinds(locales: Sequence[Locale]) -> dict[str, Kind]:
    """What can be said in all of some languages, by names: kinds of phrases that have a shorter form, too."""
    units, currencies = _units(locales), _shared(locales, _currencies)
    together = [(larger, smaller, ratio) for larger, smaller, ratio in TOGETHER if {larger, smaller} <= set(units)]
    skeletons = [one for one in SKELETONS if all(one in locale.datetime_skeletons for locale in locales)]
    return {
        "day": _day,
        **({"part of a day": _part_of_day(skeletons)} if skeletons else {}),
        "moment": _moment,
        "days": _days,
        "weekdays": _weekdays,
        "months": _months,
        "duration": _duration,
        "relative time": _relative_time,
        **({"two units": _two_units(together)} if together else {}),
        **({"measurement": _measurement(units)} if units else {}),
        **({"money": _money(currencies)} if currencies else {}),
        "compact number": _compact,
    }


def kinds_of_names(locales: Sequence[Locale]) -> dict[str, Kind]:
    """What has no shorter form, as `kinds` has it: names, alone and in lists, and numbers."""
    known: dict[str, Callable[[Locale], Mapping[str, str]]] = {
        "countries": lambda locale: locale.territories,
        "languages": lambda locale: locale.languages,
        "scripts": lambda locale: locale.scripts,
        "currencies": _currencies,
    }
    shared = {name: (which, _shared(locales, which)) for name, which in known.items()}
    return {"number": _number} | {name: _names(which, codes) for name, (which, codes) in shared.items() if codes}


def _shared(locales: Sequence[Locale], known: Callable[[Locale], Iterable[str]]) -> list[str]:
    """What all of some languages have, in an order that is always the same."""
    return sorted(set.intersection(*(set(known(locale)) for locale in locales)))


def _units(locales: Sequence[Locale]) -> list[str]:
    """The units that all of some languages have, but for those whose names need an explanation in brackets."""
    unnamed = Locale("root").unit_display_names  # such as "km", which stands in where a language has no name

    def named(locale: Locale) -> list[str]:
        names = {unit: dict(known).get("long") for unit, known in locale.unit_display_names.items()}
        return [
            unit for unit, name in names.items() if name != unnamed.get(unit, {}).get("long") and "[" not in str(name)
        ]

    return _shared(locales, named)


@lru_cache(maxsize=4)
def _currencies(locale: Locale) -> Mapping[str, str]:
    """The names of the currencies that are in use, by their codes."""
    countries = [code for code in map(str, Locale("en").territories) if code.isalpha()]
    tender = {code for country in countries for code in get_territory_currencies(country, MONEY_OF, MONEY_OF)}
    return {code: name for code, name in locale.currencies.items() if code in tender and name != code}


def _draw_day(draw: Random) -> date:
    return FIRST_DAY + timedelta(days=draw.randrange(DAYS))


def _draw_time(draw: Random) -> time:
    return time(draw.randrange(24), draw.choice((0, draw.randrange(60))))


def _draw_amount(draw: Random) -> Decimal:
    """Draws small whole numbers often, for they have plural forms of their own, and others below ten thousand."""
    digits = draw.choice((0, 0, 1, 2))
    amount = Decimal(draw.randrange(1, draw.choice((13, 100, 1000, 10_000)))).scaleb(-digits)
    return amount if amount % 1 else Decimal(int(amount))  # 1.0 is written 1, but has the plural of 1.0


def _listed(items: Sequence[str], style: str, locale: Locale) -> str:
    """Writes a list in a style, or in the next one for which the language has every pattern.

    Babel takes the first style with any pattern; where that has none for two items, as in Arabic, it writes the second
    one twice, and where it has only the last pattern, as in Afrikaans, it fails.
    """
    needed = {"2"} if len(items) == 2 else {"start", "middle", "end"}
    for likely in (style, *STYLES[style]):
        if needed <= set(locale.list_patterns.get(likely, ())):
            break
    chosen: Any = likely
    return format_list(items, chosen, locale)


def _day(draw: Random) -> Phrase:
    day = _draw_day(draw)
    width: Any = draw.choice(("full", "full", "long", "long", "medium", "short"))
    return lambda locale, short: format_date(day, "short" if short else width, locale)


def _part_of_day(skeletons: Sequence[str]) -> Kind:
    """A day without its year, a month, or the time of a day, in as many forms as the languages share."""

    def phrase(draw: Random) -> Phrase:
        moment = datetime.combine(_draw_day(draw), _draw_time(draw))
        skeleton = draw.choice(skeletons)
        return lambda locale, short: format_skeleton(SKELETONS[skeleton] if short else skeleton, moment, locale=locale)

    return phrase


def _moment(draw: Random) -> Phrase:
    day, hour = _draw_day(draw), _draw_time(draw)
    width: Any = draw.choice(("full", "long", "medium"))

    def phrase(locale: Locale, short: bool) -> str:
        chosen: Any = "short" if short else width
        together = str(get_datetime_format(chosen, locale=locale)).replace("'", "")
        on, at = format_date(day, chosen, locale), format_time(hour, "short", locale=locale)
        return together.replace("{1}", on).replace("{0}", at)

    return phrase


def _days(draw: Random) -> Phrase:
    first = _draw_day(draw)
    last = first + timedelta(days=draw.randrange(1, 60))
    return lambda locale, short: format_interval(first, last, "yMd" if short else "yMMMd", locale=locale)


def _weekdays(draw: Random) -> Phrase:
    days = sorted(draw.sample(range(7), draw.randrange(1, 5)))
    style = draw.choice(("standard", "or"))
    return lambda locale, short: _listed(
        [get_day_names("abbreviated" if short else "wide", locale=locale)[day] for day in days], style, locale
    )


def _months(draw: Random) -> Phrase:
    months = sorted(draw.sample(range(1, 13), draw.randrange(1, 5)))
    style = draw.choice(("standard", "or"))
    return lambda locale, short: _listed(
        [get_month_names("abbreviated" if short else "wide", "stand-alone", locale)[month] for month in months],
        style,
        locale,
    )


def _draw_duration(draw: Random) -> timedelta:
    unit, most = draw.choice(
        ((1, 60), (60, 60), (3600, 24), (86_400, 7), (604_800, 5), (2_629_800, 12), (31_557_600, 1000))
    )
    return timedelta(seconds=unit * draw.randrange(1, most))


def _duration(draw: Random) -> Phrase:
    duration = _draw_duration(draw)
    return lambda locale, short: format_timedelta(
        duration, threshold=1, format="narrow" if short else "long", locale=locale
    )


def _relative_time(draw: Random) -> Phrase:
    duration = _draw_duration(draw) * draw.choice((-1, 1))
    return lambda locale, short: format_timedelta(
        duration, threshold=1, add_direction=True, format="narrow" if short else "long", locale=locale
    )


def _two_units(together: Sequence[tuple[str, str, int]]) -> Kind:
    """A measurement in two units, such as 5 feet and 7 inches."""

    def phrase(draw: Random) -> Phrase:
        larger, smaller, ratio = draw.choice(together)
        amounts = (draw.randrange(1, draw.choice((10, 100))), larger), (draw.randrange(1, ratio), smaller)
        return lambda locale, short: _listed(
            [format_unit(amount, unit, "narrow" if short else "long", locale=locale) for amount, unit in amounts],
            "unit-narrow" if short else "unit",
            locale,
        )

    return phrase


def _measurement(units: Sequence[str]) -> Kind:
    def phrase(draw: Random) -> Phrase:
        amount, unit = _draw_amount(draw), draw.choice(units)
        return lambda locale, short: format_unit(amount, unit, "narrow" if short else "long", locale=locale)

    return phrase


def _money(currencies: Sequence[str]) -> Kind:
    def phrase(draw: Random) -> Phrase:
        amount, currency = _draw_amount(draw), draw.choice(currencies)
        return lambda locale, short: format_currency(
            amount, currency, locale=locale, format_type="standard" if short else "name"
        )

    return phrase


def _compact(draw: Random) -> Phrase:
    """A large number in words, such as 2.5 billion."""
    amount = Decimal(draw.randrange(1, 1000)).scaleb(draw.randrange(2, 13))
    digits = draw.randrange(3)
    return lambda locale, short: format_compact_decimal(
        amount, format_type="short" if short else "long", locale=locale, fraction_digits=digits
    )


def _number(draw: Random) -> Phrase:
    amount = _draw_amount(draw)
    if draw.randrange(2):
        return lambda locale, _: format_percent(amount / 100, locale=locale, decimal_quantization=False)
    return lambda locale, _: format_decimal(amount, locale=locale)


def _names(known: Callable[[Locale], Mapping[str, str]], codes: Sequence[str]) -> Kind:
    """One name, or a list of up to four."""

    def phrase(draw: Random) -> Phrase:
        chosen = draw.sample(codes, min(len(codes), draw.randrange(1, 5)))
        style = draw.choice(("standard", "standard", "or"))
        return lambda locale, _: _listed([known(locale)[code] for code in chosen], style, locale)

    return phrase
