"""Kinds of values that an option can have: how each is read from text or from Python, and written again."""

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

LARGEST_WHOLE = 2**63 - 1
"""The largest whole number that every library behind an option can hold."""


THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(?![\d,])")
"""A number whose digits are in groups of three: 300,000."""


class Kind(ABC):
    """A kind of value: how it is read from text or from Python, and written for JSON and for a command line.

    Attributes:
        metavar: the placeholder for the value in help texts, such as "BYTES".
    """

    metavar: ClassVar[str] = "TEXT"

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Reads the value from text, or checks a value that has the right type already.

        Raises:
            ValueError: it is no such value; the message says why, as the end of a sentence that begins with the value.
        """

    def write(self, value: Any) -> Any:
        """Returns the value in a type that JSON can write; `read` takes it back."""
        return value

    def show(self, value: Any) -> str:
        """Returns the value in the form in which help texts show it."""
        return str(self.write(value))


class Text(Kind):
    """An option value that may be any text.

    Args:
        metavar: the placeholder for the value in help texts.
    """

    def __init__(self, metavar: str = "TEXT") -> None:
        self.metavar = metavar  # type: ignore[misc]  # of this one alone

    def read(self, value: Any) -> str:
        """Returns the text itself; a path is turned into text."""
        if not isinstance(value, str | Path):
            raise ValueError("is no text")
        return str(value)


class Name(Text):
    """An option value that is one of several known names, such as the name of a strategy.

    Args:
        known: returns the known names; it is called only when somebody asks, so that no registry is read before.
        others: what may be given instead of a known name, for help texts: "FILE.py:Name". If empty, only known names
            may be.
        metavar: the placeholder for the value in help texts.
    """

    def __init__(self, known: Callable[[], Iterable[str]], others: str = "", metavar: str = "NAME") -> None:
        super().__init__(metavar)
        self._known = known
        self.others = others

    def names(self) -> list[str]:
        """Returns the names that are known at the time of the call."""
        return list(self._known())

    def read(self, value: Any) -> str:
        """Returns the name; if `others` may be given, an unknown name is found out only where it is looked up."""
        name = super().read(value)
        if not self.others and name not in self.names():
            close = difflib.get_close_matches(name, self.names(), n=1)
            perhaps = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"is not known{perhaps}; known: {', '.join(self.names())}")
        return name


class Whole(Kind):
    """An option value that is a whole number within limits.

    Args:
        least: the smallest number allowed.
        most: the largest number allowed.
    """

    metavar = "INTEGER"

    def __init__(self, least: int = 1, most: int = LARGEST_WHOLE) -> None:
        self.least, self.most = least, most

    def read(self, value: Any) -> int:
        """Reads a whole number: 3 and "3" both give 3."""
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError("is no whole number")
        if not self.least <= number <= self.most:
            limit = f"at least {self.least}" if number < self.least else f"at most {self.most:,}"
            raise ValueError(f"is out of range; it must be {limit}")
        return number


class Number(Kind):
    """An option value that is a finite number within limits.

    Args:
        above: a number that the value must exceed.
        least: the smallest number allowed.
        most: the largest number allowed.
    """

    metavar = "NUMBER"

    def __init__(self, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> None:
        self.above, self.least, self.most = above, least, most

    def show(self, value: Any) -> str:
        """Writes the number in a short form: 0.001 gives "0.001"."""
        return f"{value:g}"

    def read(self, value: Any) -> float:
        """Reads a finite number: 3 and "3e0" both give 3.0."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("is no finite number")
        if not (number > self.above and number >= self.least):
            limit = f"above {self.above:g}" if number <= self.above else f"at least {self.least:g}"
            raise ValueError(f"is out of range; it must be {limit}")
        if number > self.most:
            raise ValueError(f"is out of range; it must be at most {self.most:g}")
        return number


class Flag(Kind):
    """An option value that is true or false, set on a command line by --NAME or --no-NAME."""

    metavar = ""

    def read(self, value: Any) -> bool:
        """Returns the value if it is True or False, and refuses everything else."""
        if not isinstance(value, bool):
            raise ValueError("is neither true nor false")
        return value


class File(Kind):
    """An option value that is the path of a file or a folder."""

    metavar = "PATH"

    def read(self, value: Any) -> Path:
        """Turns text into a path, and refuses empty text."""
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("is no path")
        return Path(value)

    def write(self, value: Any) -> str:
        """Returns the path as text, which JSON can write."""
        return str(value)


class Count(Kind):
    """A positive number of things, such as bytes or tokens, that may be written with a unit.

    Args:
        things: the name of what is counted, such as "tokens".
        units: maps each unit to the number of things it stands for.
        example: three ways to write the same number, for error messages.
        metavar: the placeholder for the value in help texts.
    """

    def __init__(self, things: str, units: Mapping[str, int], example: str, metavar: str) -> None:
        self.things = things
        self.metavar = metavar  # type: ignore[misc]  # of this one alone
        self._units = {unit.lower(): factor for unit, factor in units.items()}
        self._spelled = units
        self._example = example

    def read(self, value: Any) -> int:
        """Reads a number with or without a unit: 300000, "300k" and "0.3M" all give 300000."""
        text = str(value).replace("_", "").strip()
        text = text.replace(",", "") if THOUSANDS.match(text) else text
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        factor = self._units.get(text[len(digits) :].strip().lower())
        try:
            number = round(float(digits) * factor) if factor and not isinstance(value, bool) else 0
        except (ValueError, OverflowError):
            number = 0
        if not 1 <= number <= LARGEST_WHOLE:
            raise ValueError(f"is not a number of {self.things}; write {self._example}")
        return number

    def show(self, value: Any) -> str:
        """Writes the number with the largest unit that divides it: 500000 gives "500k"."""
        factor = max(factor for factor in self._spelled.values() if value % factor == 0)
        return f"{value // factor}{next(unit for unit, size in self._spelled.items() if size == factor)}"


TOKENS = Count("tokens", {"": 1, "k": 1_000, "M": 1_000_000}, "300000, 300k or 0.3M", "TOKENS")
BYTES = Count(
    "bytes",
    {"": 1, "B": 1, "KB": 2**10, "KiB": 2**10, "MB": 2**20, "MiB": 2**20, "GB": 2**30, "GiB": 2**30},
    "262144, 256KB or 0.25MB (a KB has 1024 bytes)",
    "BYTES",
)


class Several(Kind):
    """Several values of one kind, as text separated by commas or as a sequence; each value counts once.

    Args:
        one: the kind of each value.
        ascending: whether the values are sorted.
    """

    def __init__(self, one: Kind, *, ascending: bool = False) -> None:
        self.one = one
        self.metavar = f"{one.metavar},..."  # type: ignore[misc]  # of this one alone
        self._ascending = ascending

    def read(self, value: Any) -> tuple[Any, ...]:
        """Reads the values in their order: "large,small" gives ("large", "small")."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, Sequence):
            raise ValueError("is no list")
        parts = [part.strip() if isinstance(part, str) else part for part in parts]
        if all(part == "" for part in parts):
            raise ValueError("names nothing")
        if "" in parts:
            raise ValueError("has nothing between two commas, or beside one")
        read = [self._part(part) for part in parts]
        return tuple(sorted(set(read)) if self._ascending else dict.fromkeys(read))

    def _part(self, part: Any) -> Any:
        try:
            return self.one.read(part)
        except ValueError as error:
            raise ValueError(f"holds {part!r}, which {error}") from None

    def write(self, value: Any) -> str:
        """Joins the values with commas: ("large", "small") gives "large,small"."""
        return ",".join(str(self.one.write(part)) for part in value)

    def show(self, value: Any) -> str:
        """Joins the values with commas, each in the form in which its kind shows it."""
        return ",".join(self.one.show(part) for part in value)
