"""Options: what a user can choose, as fields of frozen dataclasses.

One field says all there is to say about an option: its name, its kind of value with unit and limits, its default, and
a sentence. Command lines, configuration files, keyword arguments, what is written down about a run, the agreement
between ranks and the reference page are made from it:

    @dataclass(frozen=True)
    class Wires(Options):
        overlap: bool = option(True, Flag(), "Send gradients while backward still runs.")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from bigbatch.comm.errors import ConfigurationError, quoted, suggestion
from bigbatch.comm.kinds import Flag, Kind, checked


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
        return checked(f"The option {self.flag}", self.kind, value)

    def words(self, value: Any) -> list[str]:
        """The words of a command line that set the option to the value; none if the value is None."""
        if value is None:
            return []
        if isinstance(self.kind, Flag):
            return [self.flag if value else f"--no-{self.flag[2:]}"]
        if self.kind.repeated:
            return [word for one in self.kind.write(value) for word in (self.flag, one)]
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
        for name, kind in _nested(type(self)).items():
            if not isinstance(group := getattr(self, name), kind):
                raise ConfigurationError(
                    f"{type(self).__name__}.{name} cannot be {quoted(group)}: that is no {kind.__name__}."
                )

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
        if not isinstance(entries, Mapping):
            raise ConfigurationError(f"Options cannot be {quoted(entries)}: give a dictionary of names and values.")
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
    return ConfigurationError(
        f"{what} has no option {quoted(name)}{suggestion(name, known)}. Known: {', '.join(known) or 'none'}."
    )
