"""Numerals: how a number that a user writes is read. There is no other way.

A numeral has ASCII digits, at most one decimal point, and perhaps an exponent: 300000, 0.3, 3e5. Commas or underscores
may stand between groups of three digits: 1,000,000. Everything else is refused, because a guess would train for hours
with another number: a decimal comma (0,3), other scripts' digits, hexadecimal, "inf" and "nan".
"""

import re
from decimal import Decimal

GROUPS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?:_[0-9]{3})+)(?![0-9,_])")
"""The start of a number whose digits are in groups of three."""

NUMERAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
"""A number without separators. Nobody means an exponent of more than nine digits, which Decimal could not hold."""


def numeral(text: str) -> Decimal | None:
    """Reads a number exactly: "1,500" gives 1500, "0.3" three tenths; None if the text is no numeral."""
    text = text.strip(" ")
    grouped = GROUPS.match(text)
    if grouped:
        text = re.sub("[,_]", "", grouped[0]) + text[grouped.end() :]
    return Decimal(text) if NUMERAL.fullmatch(text) else None
