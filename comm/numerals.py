"""Numerals: how a number that a user writes is read. There is no other way.

A numeral has ASCII digits, at most one decimal point, and perhaps an exponent: 300000, 0.3, 3e5. Commas or underscores
may stand between groups of three digits: 1,000,000. Everything else is refused, because a guess would train for hours
with another number: a decimal comma (0,3), other scripts' digits, hexadecimal, "inf" and "nan".

Numbers that a program gives are read here, too, whoever's they are: Python's, NumPy's, torch's.
"""

import re
from decimal import Context, Decimal
from numbers import Real
from operator import index
from typing import Any

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


def exact(value: Any) -> Decimal | None:
    """Reads a number exactly, a text or somebody's object; None for what is none. It may be infinite, or NaN.

    Truth values, bytes, complex numbers, spans of time and arrays are no numbers here, though float() or index() takes
    some of them for one.
    """
    value = plain(value)
    if isinstance(value, str):
        return numeral(value)
    try:
        if isinstance(value, bool) or getattr(value, "ndim", 0) != 0:
            return None
        if hasattr(type(value), "__index__"):
            return Decimal(index(value))
        if isinstance(value, Decimal):
            return value
        return Decimal(float(value)) if isinstance(value, Real) else None
    except Exception:  # the code is that of whoever made the object, and raises whatever it likes
        return None


def plain(value: Any) -> Any:
    """A single value of NumPy or torch as the one of Python that it says it is; anything else as it is."""
    try:
        return value.item() if value.ndim == 0 else value
    except Exception:  # it is of another kind, or holds nothing, as a tensor of torch's device "meta"
        return value


def times(number: Decimal, factor: int) -> Decimal:
    """The product, however large: Decimal's own sign for it raises an error from 10¹⁰⁰⁰⁰⁰⁰ on."""
    return _UNBOUNDED.multiply(number, Decimal(factor))


_UNBOUNDED = Context(prec=50, Emin=-(10**12), Emax=10**12, traps=[])
