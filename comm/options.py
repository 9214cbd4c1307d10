"""Options: what a user can choose, as fields of frozen dataclasses.

One field says all there is to say about an option: its name, its kind of value with unit and limits, its default, and
a sentence. Command lines, configuration files, keyword arguments, what is written down about a run, the agreement
between ranks and the reference page are made from it:

    @dataclass(frozen=True)
    class Wires(Options):
        overlap: bool = option(True, Flag(), "Send gradients while backward still runs.")
"""

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from bigbatch.comm.errors import ConfigurationError

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


@dataclass(frozen=True)
class Option:
    """Describes something that a user can choose, as declared by a field of `Options`.

    Attributes:
        name: the name of the field, with underscores between its words.
        kind: the kind of value that it takes.
        default: the value if the user chooses none; None means that nothing is chosen.
        help: a sentence for the user.
        missing: what happens if the value is None, for help texts, such as "any length".
        short: a second flag of one letter, or "".
        group: the heading under which help texts list it.
        spelled: the flag, if it cannot be made from the name because that would be a word that Python reserves.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    missing: str = ""
    short: str = ""
    group: str = ""
    spelled: str = ""

    @property
    def flag(self) -> str:
        """The flag that sets the option on a command line, such as "--bucket-size"."""
        return self.spelled or f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """Reads a value of the option; None stays None if that is the default.

        Raises:
            ConfigurationError: the option does not take the value; the message names both.
        """
        if value is None and self.default is None:
            return None
        try:
            return self.kind.read(value)
        except ValueError as error:
            raise ConfigurationError(f"The option {self.flag} cannot be {value!r}: that {error}.") from None

    def words(self, value: Any) -> list[str]:
        """The words of a command line that set the option to the value; none if the value is None."""
        if value is None:
            return []
        if isinstance(self.kind, Flag):
            return [self.flag if value else f"--no-{self.flag[2:]}"]
        return [self.flag, str(self.kind.write(value))]


def option(
    default: Any,
    kind: Kind,
    help: str,  # noqa: A002 - click's word
    *,
    missing: str = "",
    short: str = "",
    flag: str = "",
) -> Any:
    """Declares a field of `Options`; see `Option` for the arguments, of which `flag` becomes `spelled`."""
    described = Option("", kind, default, help, missing, short, spelled=flag)
    return field(default=default, metadata={"option": described})


@dataclass(frozen=True)
class Options:
    """A group of options, each a field made by `option`; a field can also hold a nested group.

    Values may be given as text; they are read when an object is made.

    Raises:
        ConfigurationError: a value that an option does not take.
    """

    title: ClassVar[str] = ""
    """The heading of the group in help texts."""

    def __post_init__(self) -> None:
        for own in own_options(type(self)):
            object.__setattr__(self, own.name, own.read(getattr(self, own.name)))

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self:
        """Makes options from a mapping of names to values, nested options included; the rest keep their defaults.

        Raises:
            ConfigurationError: there is no option of that name, or one does not take its value.
        """
        return cls().changed(entries)

    def changed(self, entries: Mapping[str, Any]) -> Self:
        """Returns a copy in which some options, nested ones included, have other values.

        Raises:
            ConfigurationError: there is no option of that name, or one does not take its value.
        """
        known = [one.name for one in options_of(type(self))]
        for name in entries:
            if name not in known:
                raise unknown_option(name, known, type(self).__name__)
        return self._replaced(entries)

    def _replaced(self, entries: Mapping[str, Any]) -> Self:
        own = {one.name: entries[one.name] for one in own_options(type(self)) if one.name in entries}
        nested = {name: getattr(self, name)._replaced(entries) for name in _nested(type(self))}
        return replace(self, **own, **nested)

    def flat(self) -> dict[str, Any]:
        """Returns every option's value by its name, nested options included."""
        values = {one.name: getattr(self, one.name) for one in own_options(type(self))}
        for name in _nested(type(self)):
            values |= getattr(self, name).flat()
        return values

    def offered(self, group: str = "") -> list["Option"]:
        """Describes all options, with this object's values as their defaults.

        Args:
            group: the heading for options that have none.
        """
        values = self.flat()
        return [replace(one, default=values[one.name], group=one.group or group) for one in options_of(type(self))]

    def written(self) -> dict[str, Any]:
        """Returns `flat` in types that JSON can write; `of` takes it back."""
        values = self.flat()
        return {
            one.name: None if values[one.name] is None else one.kind.write(values[one.name])
            for one in options_of(type(self))
        }

    def words(self) -> list[str]:
        """The words of a command line that set every option whose value is not the default."""
        values = self.flat()
        return [
            word
            for one in options_of(type(self))
            if values[one.name] != one.default
            for word in one.words(values[one.name])
        ]


def _nested(kind: type[Options]) -> dict[str, type[Options]]:
    made: dict[str, Any] = {own.name: own.default_factory for own in fields(kind)}
    return {name: inner for name, inner in made.items() if isinstance(inner, type) and issubclass(inner, Options)}


def own_options(kind: type[Options]) -> list[Option]:
    """Describes the options that are fields of the class itself, in order, without nested ones."""
    return [
        replace(own.metadata["option"], name=own.name, group=kind.title, default=own.default)
        for own in fields(kind)
        if "option" in own.metadata
    ]


def options_of(kind: type[Options]) -> list[Option]:
    """Describes the options of a class and of the groups nested in it, in order."""
    return [*own_options(kind), *(one for inner in _nested(kind).values() for one in options_of(inner))]


def unknown_option(name: str, known: Sequence[str], what: str) -> ConfigurationError:
    """Makes the error for a name that no option has; it names the closest known option.

    Args:
        name: the name that was asked for.
        known: the names of the options.
        what: the name of the thing whose options these are, for the message.
    """
    close = difflib.get_close_matches(name, known, n=1)
    perhaps = f" (did you mean {close[0]!r}?)" if close else ""
    return ConfigurationError(f"{what} has no option {name!r}{perhaps}. Known: {', '.join(known) or 'none'}.")
