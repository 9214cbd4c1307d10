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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from bigbatch.comm.errors import ConfigurationError

LARGEST_WHOLE = 2**63 - 1
"""The largest whole number that every library behind an option can hold."""


class Kind(ABC):
    """A kind of value: how it is read from text or from Python, and written for JSON and for a command line.

    Attributes:
        metavar: what stands for the value in help texts: "BYTES".
    """

    metavar: ClassVar[str] = "TEXT"

    @abstractmethod
    def read(self, value: Any) -> Any:
        """The value that a text, or a value of the right type already, stands for.

        Raises:
            ValueError: it stands for none; says what would, as the end of a sentence that begins with the value.
        """

    def write(self, value: Any) -> Any:
        """The value in a type that JSON can write; `read` takes it back."""
        return value

    def show(self, value: Any) -> str:
        """The value as a help text shows it."""
        return str(self.write(value))


class Text(Kind):
    """Any word.

    Args:
        metavar: what stands for it in help texts.
    """

    def __init__(self, metavar: str = "TEXT") -> None:
        self.metavar = metavar  # type: ignore[misc]  # of this one alone

    def read(self, value: Any) -> str:
        """The word itself; a path stands for its text."""
        if not isinstance(value, str | Path):
            raise ValueError("is no text")
        return str(value)


class Name(Text):
    """A name out of several.

    Args:
        known: gives the names, when somebody asks; so that no registry is read before.
        others: what else can be given, for help texts: "FILE.py:Name". If empty, nothing else can.
        metavar: what stands for it in help texts.
    """

    def __init__(self, known: Callable[[], Iterable[str]], others: str = "", metavar: str = "NAME") -> None:
        super().__init__(metavar)
        self._known = known
        self.others = others

    def names(self) -> list[str]:
        """The names that are known now."""
        return list(self._known())

    def read(self, value: Any) -> str:
        """The name; whether an open set has it is found out where it is looked up."""
        name = super().read(value)
        if not self.others and name not in self.names():
            close = difflib.get_close_matches(name, self.names(), n=1)
            perhaps = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"is not known{perhaps}; known: {', '.join(self.names())}")
        return name


class Whole(Kind):
    """A whole number.

    Args:
        least: the smallest.
        most: the largest.
    """

    metavar = "INTEGER"

    def __init__(self, least: int = 1, most: int = LARGEST_WHOLE) -> None:
        self.least, self.most = least, most

    def read(self, value: Any) -> int:
        """3, "3" -> 3."""
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
    """A finite number.

    Args:
        above: what it must exceed.
        least: the smallest.
        most: the largest.
    """

    metavar = "NUMBER"

    def __init__(self, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> None:
        self.above, self.least, self.most = above, least, most

    def show(self, value: Any) -> str:
        """0.001 -> "0.001"."""
        return f"{value:g}"

    def read(self, value: Any) -> float:
        """3, "3e0" -> 3.0."""
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
    """Yes or no."""

    metavar = ""

    def read(self, value: Any) -> bool:
        """True or False."""
        if not isinstance(value, bool):
            raise ValueError("is neither true nor false")
        return value


class File(Kind):
    """The path of a file or a folder."""

    metavar = "PATH"

    def read(self, value: Any) -> Path:
        """A path."""
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("is no path")
        return Path(value)

    def write(self, value: Any) -> str:
        """As text."""
        return str(value)


class Count(Kind):
    """A number of things that may be written with a unit.

    Args:
        things: what is counted: "tokens".
        units: unit -> how many it stands for.
        example: three ways to write the same.
        metavar: what stands for it in help texts.
    """

    def __init__(self, things: str, units: Mapping[str, int], example: str, metavar: str) -> None:
        self.things = things
        self.metavar = metavar  # type: ignore[misc]  # of this one alone
        self._units = {unit.lower(): factor for unit, factor in units.items()}
        self._spelled = units
        self._example = example

    def read(self, value: Any) -> int:
        """300000, "300k", "0.3M" -> 300000."""
        text = str(value).replace("_", "").replace(",", "").strip()
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
        """With the largest unit that divides it: 500000 -> "500k"."""
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
    """Several values of a kind, separated by commas; in Python a sequence of them. Each is taken once.

    Args:
        one: the kind of each.
        ascending: whether they are put in order.
    """

    def __init__(self, one: Kind, *, ascending: bool = False) -> None:
        self.one = one
        self.metavar = f"{one.metavar},..."  # type: ignore[misc]  # of this one alone
        self._ascending = ascending

    def read(self, value: Any) -> tuple[Any, ...]:
        """The values, as in "large,small" -> ("large", "small")."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, Sequence):
            raise ValueError("is no list")
        read = [self._part(part.strip() if isinstance(part, str) else part) for part in parts if part != ""]
        if not read:
            raise ValueError("names nothing")
        return tuple(sorted(set(read)) if self._ascending else dict.fromkeys(read))

    def _part(self, part: Any) -> Any:
        try:
            return self.one.read(part)
        except ValueError as error:
            raise ValueError(f"holds {part!r}, which {error}") from None

    def write(self, value: Any) -> str:
        """As in ("large", "small") -> "large,small"."""
        return ",".join(str(self.one.write(part)) for part in value)

    def show(self, value: Any) -> str:
        """Each as its kind shows it."""
        return ",".join(self.one.show(part) for part in value)


@dataclass(frozen=True)
class Option:
    """Something that a user can choose, read off a field of `Options`.

    Attributes:
        name: the field's, words with underscores between.
        kind: what values it takes.
        default: its value if nobody chooses; may be None, which no choice is.
        help: a sentence for the user.
        missing: what happens if the value is None, for help texts: "any length".
        short: a second flag of one letter, or "".
        group: the heading it stands under in help texts.
        spelled: the flag, if it is not the name's: where that would be one of Python's own words.
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
        """As a command line has it: "--bucket-size"."""
        return self.spelled or f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """The value that something stands for; None is the default's None.

        Raises:
            ConfigurationError: it stands for none; names the option and the value.
        """
        if value is None and self.default is None:
            return None
        try:
            return self.kind.read(value)
        except ValueError as error:
            raise ConfigurationError(f"The option {self.flag} cannot be {value!r}: that {error}.") from None

    def words(self, value: Any) -> list[str]:
        """The value as words of a command line; none if nothing was chosen."""
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
    """A field of `Options`; see `Option`."""
    described = Option("", kind, default, help, missing, short, spelled=flag)
    return field(default=default, metadata={"option": described})


@dataclass(frozen=True)
class Options:
    """What a user can choose about one thing, each choice a field made by `option`; or several such things, nested.

    Values may be given as text; they are read when an object is made.

    Raises:
        ConfigurationError: a value that an option does not take.
    """

    title: ClassVar[str] = ""
    """The heading in help texts."""

    def __post_init__(self) -> None:
        for own in own_options(type(self)):
            object.__setattr__(self, own.name, own.read(getattr(self, own.name)))

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self:
        """From names, of nested options too, and values; what is not named has its default.

        Raises:
            ConfigurationError: there is no option of that name, or one does not take its value.
        """
        return cls().changed(entries)

    def changed(self, entries: Mapping[str, Any]) -> Self:
        """The same with other values, by name, of nested options too.

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
        """Every option's value by name, of nested options too."""
        values = {one.name: getattr(self, one.name) for one in own_options(type(self))}
        for name in _nested(type(self)):
            values |= getattr(self, name).flat()
        return values

    def offered(self, group: str = "") -> list["Option"]:
        """The options with this object's values as defaults.

        Args:
            group: the heading of those that have none.
        """
        values = self.flat()
        return [replace(one, default=values[one.name], group=one.group or group) for one in options_of(type(self))]

    def written(self) -> dict[str, Any]:
        """`flat` in types that JSON can write; `of` takes it back."""
        values = self.flat()
        return {
            one.name: None if values[one.name] is None else one.kind.write(values[one.name])
            for one in options_of(type(self))
        }

    def words(self) -> list[str]:
        """The words of a command line that choose what is not as by default."""
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
    """The options that are fields of a class itself, in order."""
    return [
        replace(own.metadata["option"], name=own.name, group=kind.title, default=own.default)
        for own in fields(kind)
        if "option" in own.metadata
    ]


def options_of(kind: type[Options]) -> list[Option]:
    """The options of a class and of those nested in it, in order."""
    return [*own_options(kind), *(one for inner in _nested(kind).values() for one in options_of(inner))]


def unknown_option(name: str, known: Sequence[str], what: str) -> ConfigurationError:
    """The error for a name that no option has.

    Args:
        name: what was asked for.
        known: the names of the options.
        what: whose options these are, for the message.
    """
    close = difflib.get_close_matches(name, known, n=1)
    perhaps = f" (did you mean {close[0]!r}?)" if close else ""
    return ConfigurationError(f"{what} has no option {name!r}{perhaps}. Known: {', '.join(known) or 'none'}.")
