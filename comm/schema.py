"""Schemas of JSON: what a file holds is declared once, by a class from which both its writer and its readers work.

A schema is a `TypedDict`. The function that makes the content makes one, so that the type checker compares the two;
whoever reads the file calls `check` with it, which compares what is there with what was declared:

    class Arm(TypedDict):
        name: str
        updates: Annotated[int, AtLeast(0)]
        noise_scale: NotRequired[float | None]

Names that a schema does not declare are let through if they hold plain JSON, since a later version may write more.
"""

import math
import types
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from bigbatch.comm.files import damaged

DEEPEST = 32
"""How deeply lists and objects may lie inside one another; what bigbatch writes needs 8."""

LARGEST_NUMBER = 1e100
"""Largest number that is let through, of either sign: figures compute with products and powers of several."""


LONGEST_NAME = 1000

MOST_DIGITS = 18
"""The largest number of digits of a whole number that is the name of an entry."""


class ProblemError(ValueError):
    """What is wrong with a value, as the end of a sentence that begins with the value's place.

    Attributes:
        place: the place, which whoever holds the value puts together from the inside to the outside.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.place = ""

    def within(self, outside: str) -> "ProblemError":
        """Adds the next step to the place, such as ".arms" or "[0]"."""
        self.place = outside + self.place
        return self


@dataclass(frozen=True)
class AtLeast:
    """A condition on a number, for `Annotated`: it must not be less than `least`, nor greater than `most`."""

    least: float
    most: float = math.inf

    def __call__(self, value: Any) -> str:
        """Says what is wrong with a value; "" if nothing is."""
        if isinstance(value, int | float) and not self.least <= value <= self.most:
            return f"is {value:g}, which is {f'less than {self.least:g}' if value < self.least else 'too large'}"
        return ""


@dataclass(frozen=True)
class Above:
    """A condition on a number, for `Annotated`: it must be greater than `least`."""

    least: float

    def __call__(self, value: Any) -> str:
        """Says what is wrong with a value; "" if nothing is."""
        return (
            f"is {value:g}, not above {self.least:g}" if isinstance(value, int | float) and value <= self.least else ""
        )


BREAKS = ("Cc", "Zl", "Zp")
"""Unicode's categories of control characters, and of characters that end a line or a paragraph."""

TURNS = ("LRE", "RLE", "LRO", "RLO", "LRI", "RLI", "FSI")
"""Unicode's bidirectional classes of characters that turn what follows them, such as the numbers of a table."""


def plain_name(value: Any) -> str:
    """A condition on a text, for `Annotated`: a name that can be shown on one line and be part of a path."""
    breaks = (unicodedata.category(letter) in BREAKS or unicodedata.bidirectional(letter) in TURNS for letter in value)
    if not value or len(value) > LONGEST_NAME or any(breaks):
        return f"is no name of up to {LONGEST_NAME:,} characters without control characters"
    return ""


@dataclass(frozen=True)
class Entries:
    """A condition on a list or a mapping, for `Annotated`: it must hold `least` to `most` entries."""

    least: int = 1
    most: int = 1_000_000

    def __call__(self, value: Any) -> str:
        """Says what is wrong with a value; "" if nothing is."""
        if len(value) > self.most:
            return f"has {len(value):,} entries, of which at most {self.most:,} are read"
        if len(value) < self.least:
            return f"has {len(value):,} of at least {self.least:,} entries" if value else "is empty"
        return ""


@dataclass(frozen=True)
class NumberedFrom:
    """A condition on a mapping, for `Annotated`: its names are whole numbers of at least `least`, in digits."""

    least: int

    def __call__(self, value: Any) -> str:
        """Says what is wrong with a value; "" if nothing is."""
        for name in value:
            if not (name.isascii() and name.isdigit() and len(name) <= MOST_DIGITS and int(name) >= self.least):
                return f"has the name {_shown(name)}, and should have whole numbers of at least {self.least}"
        return ""


Count = Annotated[int, AtLeast(0)]
"""The type of a whole number of at least 0, as a count of something is."""

Amount = Annotated[float, AtLeast(0)]
"""A number of 0 or more, such as seconds."""

Positive = Annotated[float, Above(0)]
"""The type of a finite number above 0."""

NameText = Annotated[str, plain_name]
"""The type of a text that names something, and so is not empty."""


def plain(content: Mapping[str, object]) -> dict[str, Any]:
    """Makes an ordinary dictionary of content that was made by a schema, and so compared with it."""
    return dict(content)


def check(content: Any, schema: Any, what: str, place: str = "") -> Any:
    """Returns content that was read from JSON if it is as the schema declares.

    Args:
        content: the content, as `bigbatch.comm.files.parsed` returns it.
        schema: a `TypedDict`, or any type of values that JSON has.
        what: what was read, at the start of a sentence, such as "The summary of runs/ring".
        place: where in it the content stands, if it is not the whole.

    Raises:
        ConfigurationError: it is something else; the message names the first place that is wrong.
    """
    try:
        _rule(schema)(content, 0)
    except ProblemError as error:
        raise damaged(what, f"{(place + error.place).lstrip('.') or 'it'} {error}") from None
    return content


Rule = Callable[[Any, int], None]
"""A function of a value and of how deeply it lies, which raises a problem."""


@cache
def _rule(schema: Any) -> Rule:
    """The rule for a type: of a `TypedDict`, list, dict, optional, literal, annotated or plain type."""
    if is_typeddict(schema):
        return _object(schema)
    make = RULES.get(get_origin(schema))
    if make is not None:
        return make(get_args(schema))
    return _anything if schema is Any else partial(_of_type, schema)


def _object(schema: Any) -> Rule:
    hints = get_type_hints(schema, include_extras=True)
    rules = {name: _rule(hint) for name, hint in hints.items()}
    required = [name for name in hints if name in schema.__required_keys__]

    def rule(value: Any, depth: int) -> None:
        _of_type(dict, value, depth)
        for name in required:
            if name not in value:
                raise ProblemError("is missing").within(f".{name}")
        for name, entry in value.items():
            try:
                rules.get(name, _anything)(entry, depth + 1)
            except ProblemError as error:
                raise error.within(f".{_shown(name)}") from None

    return rule


def _mapping(arguments: tuple[Any, ...]) -> Rule:
    inner = _rule(arguments[1])

    def rule(value: Any, depth: int) -> None:
        _of_type(dict, value, depth)
        for name, entry in value.items():
            try:
                inner(entry, depth + 1)
            except ProblemError as error:
                raise error.within(f".{_shown(name)}") from None

    return rule


def _list(arguments: tuple[Any, ...]) -> Rule:
    inner = _rule(arguments[0])

    def rule(value: Any, depth: int) -> None:
        _of_type(list, value, depth)
        for number, entry in enumerate(value):
            try:
                inner(entry, depth + 1)
            except ProblemError as error:
                raise error.within(f"[{number}]") from None

    return rule


def _annotated(arguments: tuple[Any, ...]) -> Rule:
    inner, conditions = _rule(arguments[0]), arguments[1:]

    def rule(value: Any, depth: int) -> None:
        inner(value, depth)
        for condition in conditions:
            if problem := condition(value):
                raise ProblemError(problem)

    return rule


def _optional(arguments: tuple[Any, ...]) -> Rule:
    (inner,) = (_rule(argument) for argument in arguments if argument is not type(None))

    def rule(value: Any, depth: int) -> None:
        if value is not None:
            inner(value, depth)

    return rule


def _literal(words: tuple[Any, ...]) -> Rule:
    def rule(value: Any, _: int) -> None:
        if not isinstance(value, str) or value not in words:
            raise ProblemError(f"is {_named(value)}, none of {', '.join(words)}")

    return rule


RULES: dict[Any, Callable[[tuple[Any, ...]], Rule]] = {
    Annotated: _annotated,
    Literal: _literal,
    NotRequired: lambda arguments: _rule(arguments[0]),
    Union: _optional,
    dict: _mapping,
    list: _list,
    types.UnionType: _optional,
}
"""Makes the rule for a type that has arguments, by its origin."""


def _anything(value: Any, depth: int) -> None:
    """Any value that JSON has, if its numbers can be computed with."""
    if isinstance(value, dict):
        _rule(dict[str, Any])(value, depth)
    elif isinstance(value, list):
        _rule(list[Any])(value, depth)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _of_type(float, value, depth)


NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _of_type(kind: type, value: Any, depth: int) -> None:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ProblemError(f"is {_named(value)}, and should be {NAMES[kind]}")
    if isinstance(value, int | float) and not abs(value) < LARGEST_NUMBER:  # not a number, too
        raise ProblemError("is no number that can be computed with")
    if depth > DEEPEST:
        raise ProblemError("is nested too deeply")


def _named(value: Any) -> str:
    """A value in words, for a sentence."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value[:20] + '...' if len(value) > 20 else value!r}"
    if isinstance(value, int | float):
        return f"{value}"
    return NAMES[type(value)]


def _shown(name: str) -> str:
    return name if len(name) <= 60 and name.isprintable() else f"{name[:20]!r}"
