"""Puts options of `bigbatch.comm.options` on a command line: flags, help in groups, TOML files, completion."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from bigbatch.comm.errors import ConfigurationError, quoted, suggestion
from bigbatch.comm.kinds import File, Flag, Kind, Name, Several, checked
from bigbatch.comm.options import Option, Options, option, options_of
from bigbatch.comm.toml import read_toml

WIDTH = 80
"""Width of a help text, in columns."""


@dataclass(frozen=True)
class OutputSettings(Options):
    """The options for an experiment's results: where they are written, and what is printed.

    Attributes:
        out: the run's folder, or None for a new one.
        quiet: whether to show neither progress nor a table.
        json: whether to print the summary as JSON instead of a table.
    """

    title: ClassVar[str] = "Output"

    out: Path | None = option(None, File(), "Folder of the run.", missing="a new one below ./runs")
    quiet: bool = option(False, Flag(), "Show neither progress nor a table.")
    json: bool = option(False, Flag(), "Print the summary as JSON instead of a table.")


@dataclass(frozen=True)
class FolderSettings(Options):
    """The options for a measurement's results: where they are written, and how they are printed.

    Attributes:
        out: the folder of the results, or None for a new one.
        json: whether to print the rows as JSON instead of a table.
    """

    title: ClassVar[str] = "Output"

    out: Path | None = option(None, File(), "Folder of the results.", missing="a new one below ./runs")
    json: bool = option(False, Flag(), "Print the rows as JSON instead of a table.")


class Value(click.ParamType[Any]):
    """Makes a kind of value from `bigbatch.comm.options` a click parameter type.

    Args:
        kind: the kind, which reads the text.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = kind.metavar or "flag"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts the text to a value; a text that the kind refuses is an error of the command line."""
        try:
            return self.kind.read(value)
        except ValueError as error:
            self.fail(f"{quoted(value)} {error}.", param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        """Returns the placeholder for the value in help texts, such as FILE."""
        return self.kind.metavar

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's signature
        """Lists the names that start with `incomplete`, or asks the shell to complete files."""
        if isinstance(self.kind, Name):
            return [CompletionItem(name) for name in self.kind.names() if name.startswith(incomplete)]
        if isinstance(self.kind, Several) and isinstance(self.kind.one, Name):
            before, comma, last = incomplete.rpartition(",")
            return [CompletionItem(f"{before}{comma}{name}") for name in self.kind.one.names() if name.startswith(last)]
        return [CompletionItem(incomplete, type="file")] if isinstance(self.kind, File) else []


class Flagged(click.Option):
    """A click option that is made from a field of an `Options` class, and knows its heading in the help.

    Args:
        made_from: the field.
    """

    def __init__(self, made_from: Option) -> None:
        self.made_from = made_from
        flags = [made_from.name, *filter(None, [made_from.short]), made_from.flag]
        if isinstance(made_from.kind, Flag):
            flags[-1] = f"{made_from.flag}/--no-{made_from.flag[2:]}" if made_from.default else made_from.flag
            super().__init__(flags, is_flag=True, default=made_from.default, help=made_from.help)
            return
        if (each := made_from.kind.repeated) is not None:
            super().__init__(flags, type=Value(each), multiple=True, default=made_from.default, help=made_from.help)
            return
        super().__init__(flags, type=Value(made_from.kind), default=made_from.default, help=made_from.help)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns the flags, and the help sentence with the choices and the default."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        return record[0].replace("  ", " "), f"{self.made_from.help}{self._choices()}{self._default(ctx)}"

    def _choices(self) -> str:
        kind = self.made_from.kind
        kind = kind.one if isinstance(kind, Several) else kind
        if not isinstance(kind, Name):
            return ""
        others = f", or {kind.others}" if kind.others else ""
        return f" One of: {', '.join(kind.names())}{others}."

    def _default(self, ctx: click.Context) -> str:
        kind, default = self.made_from.kind, self.get_default(ctx)
        if isinstance(kind, Flag):
            return "  [default: on]" if default else ""
        if default is None or default == ():
            return f"  [default: {self.made_from.missing}]" if self.made_from.missing else ""
        return f"  [default: {kind.show(default)}]"


class Command(click.Command):
    """A command whose help groups options under headings, and which shows tracebacks with --debug."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section of the help for each heading; options without a heading come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.made_from.group if isinstance(parameter, Flagged) else ""
                sections.setdefault(heading or "Other", []).append(record)
        others = sections.pop("Other", [])
        for heading, records in {**sections, "Other" if sections else "Options": others}.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=26)


def flags(kinds: Sequence[type[Options]]) -> list[Flagged]:
    """Makes click options from all fields of these classes."""
    return [Flagged(one) for kind in kinds for one in options_of(kind)]


def takes(*kinds: type[Options]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a command to take the options of these classes; it gets an object of each as its first arguments."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*arguments: Any, **parameters: Any) -> Any:
            made = []
            for kind in kinds:
                names = [one.name for one in options_of(kind)]
                made.append(kind.of({name: parameters.pop(name) for name in names}))
            return function(*made, *arguments, **parameters)

        own = list(getattr(called, "__click_params__", []))
        # click takes a function's parameters from last to first.
        called.__click_params__ = [*own, *reversed(flags(kinds))]  # type: ignore[attr-defined]
        return called

    return decorate


def configuration() -> click.Option:
    """Makes the option `--config`, which names a TOML file of options."""
    return click.Option(["--config"], **_CONFIGURATION)


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command to take the option `--config`, which names a TOML file of options."""
    return click.option("--config", **_CONFIGURATION)(function)


def read_configuration(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Use the options in a TOML file as defaults, which options on the command line override.

    Raises:
        ConfigurationError: the file cannot be read, is not TOML, names an unknown option, or gives one a wrong value.
    """
    if path is not None:
        read = read_entries(context.command, path, read_toml(path, f"The configuration {path}"))
        context.default_map = {**(context.default_map or {}), **read}


def read_entries(command: click.Command, path: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the entries of a configuration file as options of a command, by the names of their fields.

    Raises:
        ConfigurationError: an entry names no option of the command, one that was named before, or has a wrong value.
    """
    known = {one.made_from.flag[2:]: one.made_from for one in command.params if isinstance(one, Flagged)}
    read: dict[str, Any] = {}
    for key, value in entries.items():
        flag = key.replace("_", "-")
        if flag not in known:
            raise ConfigurationError(
                f"The configuration {path} has an unknown option {quoted(key)}{suggestion(flag, known)}. "
                f"Known: {', '.join(sorted(known))}."
            )
        name = known[flag].name
        if name in read:
            raise ConfigurationError(f"The configuration {path} names the option {flag} twice: leave one of them out.")
        read[name] = checked(f"The configuration {path}: {key}", known[flag].kind, value)
    return read


def given(context: click.Context, name: str) -> bool:
    """Whether the user has set an option, on the command line or in a configuration file."""
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)


_CONFIGURATION: dict[str, Any] = {
    "type": Value(File()),
    "is_eager": True,
    "expose_value": False,
    "callback": read_configuration,
    "help": "TOML file of options, which those on the command line override.",
}
