"""Kinds of values that an option can have: how each is read from text or from Python, and written again."""

import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from bigbatch.comm.errors import QUOTED, ConfigurationError, quoted, suggestion
from bigbatch.comm.numerals import exact, numeral, plain, times

LARGEST_WHOLE = 2**63 - 1
"""The largest whole number that every library behind an option can hold."""

LONGEST_NAME = 255
"""Length of the longest name of a file on Linux and macOS, in bytes."""

LARGEST_NUMBER = 1e30
"""The largest number by default: a float32 holds it, and a float64 the product of ten such."""


class Kind(ABC):
    """A kind of value: how it is read from text or from Python, and written for JSON and for a command line.

    Attributes:
        metavar: the placeholder for the value in help texts, such as "BYTES".
        repeated: the kind of each text, if a command line can set the option several times; its value is then a tuple.
    """

    metavar: ClassVar[str] = "TEXT"
    repeated: "ClassVar[Kind | None]" = None

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
        empty: whether the text may be empty.
    """

    def __init__(self, metavar: str = "TEXT", *, empty: bool = False) -> None:
        self.metavar = metavar  # type: ignore[misc]  # of this one alone
        self._empty = empty

    def read(self, value: Any) -> str:
        """Returns the text itself, without spaces around it; a path is turned into text."""
        if not isinstance(value, str | Path):
            raise ValueError("is no text")
        text = str(value).strip()
        if not text and not self._empty:
            raise ValueError("is empty; write something")
        check_characters(text)
        return text


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
        check_path(name)
        if not self.others and name not in self.names():
            raise ValueError(f"is not known{suggestion(name, self.names())}; known: {', '.join(self.names())}")
        return name


def check_characters(text: str) -> None:
    """Refuses what nobody can write: a file, a message, another program's command line.

    Raises:
        ValueError: the text has NUL in it, or half of a character of UTF-16.
    """
    try:
        written = os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("has half a character in it, which no file and no message can have") from None
    if 0 in written:
        raise ValueError("has the character NUL in it, which no text of ours may have")


def check_path(text: str) -> None:
    """Refuses what no system takes as the path of a file: asking whether there is one would be an error of its own.

    Raises:
        ValueError: a name in it is longer than 255 bytes.
    """
    if any(len(name.encode(errors="replace")) > LONGEST_NAME for name in text.split("/")):
        raise ValueError(f"is too long; a name has at most {LONGEST_NAME} bytes")


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
        """Reads a whole number: 3, "3" and "3e0" all give 3."""
        number = _whole(value)
        if number is None:
            raise ValueError(f"is no whole number; write one from {self.least:,} to {self.most:,}")
        check_limits(number, least=self.least, most=self.most)
        return int(number)


def _whole(value: Any) -> Decimal | None:
    """A whole number; None for everything else. It can have so many digits that it must not be an int yet."""
    return _without_parts(value, numeral(value)) if isinstance(value, str) else _integral(exact(value))


def _without_parts(text: str, number: Decimal | None) -> Decimal | None:
    """A number of what has no parts. 1.000 is refused, too: half of the world means a thousand, the other half one."""
    return None if "." in text and "e" not in text.lower() else _integral(number)


def _integral(number: Decimal | None) -> Decimal | None:
    if number is None or not number.is_finite():
        return None
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "it is finite"
    # Without the first condition, 1e-999999999 would be written out to see whether it is whole.
    return number if exponent >= 0 or (exponent > -QUOTED and number == number.to_integral_value()) else None


def check_limits(number: Any, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> None:
    """Checks that a number is within limits.

    Raises:
        ValueError: it is not; the message says which limit it breaks, as the end of a sentence.
    """
    if number <= above:
        raise ValueError(f"is out of range; it must be above {_written(above)}")
    if number < least:
        raise ValueError(f"is out of range; it must be at least {_written(least)}")
    if number > most:
        raise ValueError(f"is out of range; it must be at most {_written(most)}")


def _written(limit: float) -> str:
    """A limit as people read it: 1,024 or 1e-06."""
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


class Number(Kind):
    """An option value that is a finite number within limits.

    Args:
        above: a number that the value must exceed.
        least: the smallest number allowed.
        most: the largest number allowed.
        infinite: whether infinity is allowed, too: for what can be without end, such as a bandwidth.
    """

    metavar = "NUMBER"

    def __init__(
        self,
        *,
        above: float = -math.inf,
        least: float = -LARGEST_NUMBER,
        most: float = LARGEST_NUMBER,
        infinite: bool = False,
    ) -> None:
        self.above, self.least, self.most = above, least, most
        self._infinite = infinite

    def show(self, value: Any) -> str:
        """Writes the number in a short form: 0.001 gives "0.001"."""
        return f"{value:g}"

    def read(self, value: Any) -> float:
        """Reads a finite number: 3 and "3e0" both give 3.0."""
        number = exact(value)
        if self._infinite and (number == math.inf or (isinstance(value, str) and value == "inf")):
            return math.inf
        if number is None or not number.is_finite():
            raise ValueError("is no finite number")
        check_limits(number, above=self.above, least=self.least, most=self.most)
        return float(number)


SECONDS = Number(least=0.001, most=1e6)
"""The kind of value for how long to wait. A million seconds, eleven days, is what every library's clock can count."""

SEED = Whole(least=0)
"""The kind of value for a seed; torch takes no whole number above 2⁶³ - 1 on every platform."""

RANKS = Whole(most=2**20)
"""The kind of value for a number of ranks: a million of them can still be simulated."""

UPDATES = Whole(most=10**9)
"""The kind of value for a number of updates, or of micro-batches in one."""

EXAMPLES = Whole(most=10**9)
"""The kind of value for a number of examples in a batch."""


class Flag(Kind):
    """An option value that is true or false, set on a command line by --NAME or --no-NAME."""

    metavar = ""

    def read(self, value: Any) -> bool:
        """Returns the value if it is True or False, and refuses everything else."""
        value = plain(value)
        if not isinstance(value, bool):
            raise ValueError("is neither true nor false")
        return value


class File(Kind):
    """An option value that is the path of a file or a folder."""

    metavar = "PATH"

    def read(self, value: Any) -> Path:
        """Turns text into a path, and refuses empty text."""
        if not isinstance(value, str | Path) or not str(value).strip():
            raise ValueError("is no path")
        check_characters(str(value))
        check_path(str(value))
        return Path(value)

    def write(self, value: Any) -> str:
        """Returns the path as text, which JSON can write."""
        return str(value)


class Count(Kind):
    """A positive number of things, such as bytes or tokens, that may be written with a unit.

    Args:
        things: the name of what is counted, such as "tokens".
        units: maps each unit to the number of things it stands for. A unit may be written as here, or in small or in
            capital letters throughout; other mixtures mean something else: Mb are megabits, kB are 1,000 bytes.
        example: three ways to write the same number, for error messages.
        metavar: the placeholder for the value in help texts.
        most: the largest number allowed.
    """

    def __init__(
        self, things: str, units: Mapping[str, int], example: str, metavar: str, most: int = LARGEST_WHOLE
    ) -> None:
        self.things = things
        self.most = most
        self.metavar = metavar  # type: ignore[misc]  # of this one alone
        self._units = {one: units[unit] for unit in units for one in (unit, unit.lower(), unit.upper())}
        self._spelled = units
        self._example = example

    def read(self, value: Any) -> int:
        """Reads a number with or without a unit: 300000, "300k" and "0.3M" all give 300000."""
        number = self._counted(value) if isinstance(value, str) else _whole(value)
        if number is None:
            raise ValueError(f"is not a number of {self.things}; write {self._example}")
        check_limits(number, least=1, most=self.most)
        return round(number)

    def _counted(self, text: str) -> Decimal | None:
        """The number in a text times its unit; None if there is no such unit, or a part of what has no parts."""
        text = text.strip(" ")
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        number, factor = numeral(digits), self._units.get(text[len(digits) :])
        if factor == 1:
            return _without_parts(digits, number)
        return None if number is None or factor is None else times(number, factor)

    def show(self, value: Any) -> str:
        """Writes the number with the largest unit that divides it: 500000 gives "500k"."""
        factor = max(factor for factor in self._spelled.values() if value % factor == 0)
        return f"{value // factor}{next(unit for unit, size in self._spelled.items() if size == factor)}"


TOKENS = Count("tokens", {"": 1, "k": 1_000, "M": 1_000_000}, "300000, 300k or 0.3M", "TOKENS", most=10**15)
BYTES = Count(
    "bytes",
    {"": 1, "B": 1, "KB": 2**10, "KiB": 2**10, "MB": 2**20, "MiB": 2**20, "GB": 2**30, "GiB": 2**30},
    "262144, 256KB or 0.25MB (a KB has 1024 bytes)",
    "BYTES",
    most=2**50,
)


class Memory(Count):
    """A number of bytes that are held in memory: at most as many as this machine has."""

    def __init__(self) -> None:
        super().__init__("bytes", BYTES._spelled, BYTES._example, BYTES.metavar, BYTES.most)

    def read(self, value: Any) -> int:
        """Reads a number of bytes, as `BYTES` does."""
        nbytes = super().read(value)
        if nbytes > physical_memory():
            raise ValueError(f"is more than this machine's memory of {physical_memory():,} bytes")
        return nbytes


def physical_memory() -> int:
    """The bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


MEMORY = Memory()


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
        if not isinstance(parts, Sequence) or isinstance(parts, bytes | bytearray | memoryview):
            raise ValueError("is no list")
        parts = [part.strip() if isinstance(part, str) else part for part in parts]
        if all(part == "" for part in parts):
            raise ValueError("names nothing")
        if any(part == "" for part in parts):
            raise ValueError("has nothing between two commas, or beside one")
        if isinstance(value, str) and any(re.match("0[0-9]", part) for part in parts[1:]):
            raise ValueError("has a comma inside a number; commas separate values here: write 4096, not 4,096")
        read = [self._part(part) for part in parts]
        return tuple(sorted(set(read)) if self._ascending else dict.fromkeys(read))

    def _part(self, part: Any) -> Any:
        try:
            return self.one.read(part)
        except ValueError as error:
            raise ValueError(f"holds {quoted(part)}, which {error}") from None

    def write(self, value: Any) -> str:
        """Joins the values with commas: ("large", "small") gives "large,small"."""
        return ",".join(str(self.one.write(part)) for part in value)

    def show(self, value: Any) -> str:
        """Joins the values with commas, each in the form in which its kind shows it."""
        return ",".join(self.one.show(part) for part in value)


class Assignment(Text):
    """A value for a name that somebody else knows, as NAME=VALUE."""

    def __init__(self) -> None:
        super().__init__("NAME=VALUE")

    def read(self, value: Any) -> str:
        """Reads a text of a name, an equals sign, and anything."""
        text = super().read(value)
        name, equals, _ = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError("is not NAME=VALUE")
        return text


class Assignments(Kind):
    """Several assignments, each given by itself; in Python a dictionary of them, too."""

    metavar = "NAME=VALUE"
    repeated = Assignment()

    def read(self, value: Any) -> tuple[str, ...]:
        """Reads one text, or several: "depth=2" and {"depth": 2} both give ("depth=2",)."""
        if isinstance(value, str):
            return (self.repeated.read(value),)
        if isinstance(value, Mapping):
            value = [f"{name}={one if isinstance(one, str) else json.dumps(one)}" for name, one in value.items()]
        if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
            raise ValueError("is no list of texts NAME=VALUE")
        texts = []
        for text in value:
            try:
                texts.append(self.repeated.read(text))
            except ValueError:
                raise ValueError(f"has {quoted(text)} in it; write NAME=VALUE") from None
        names = [text.partition("=")[0] for text in texts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sets {name} twice; leave one of them out")
        return tuple(texts)

    def write(self, value: Any) -> list[str]:
        """Returns a list of the texts, which JSON can write."""
        return list(value)

    def show(self, value: Any) -> str:
        """Puts the texts one after the other."""
        return " ".join(value)


def checked(what: str, kind: Kind, value: Any) -> Any:
    """Reads a value, whoever gave it: an option, a key of a file, a caller in Python.

    Args:
        what: the name of what has the value, for the message, such as "The option --clip".
        kind: the kind of value that it takes.
        value: the value, or its text.

    Raises:
        ConfigurationError: it takes no such value; the message names it, quotes the value and says why.
    """
    try:
        return kind.read(value)
    except ValueError as error:
        raise ConfigurationError(f"{what} cannot be {quoted(value)}: that {error}.") from None


def check_fields(owner: Any, kinds: Mapping[str, Kind]) -> None:
    """Reads fields of a frozen dataclass, and puts the values that were read in their place.

    Raises:
        ConfigurationError: a field takes no such value; the message names it.
    """
    for name, kind in kinds.items():
        object.__setattr__(owner, name, checked(name, kind, getattr(owner, name)))
