"""The command `reference`: every option of every command, as the page docs/reference/options.md."""

from collections.abc import Iterable, Iterator

import click

from bigbatch.comm.kinds import Flag, Kind, Name, Several
from bigbatch.comm.options import Option, options_of
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands import COMMANDS, subcommands
from bigbatch.experiments.commands.options import Command, Flagged, OutputSettings
from bigbatch.experiments.training.settings import Settings

HEAD = """# Options

<!-- Made by `bigbatch-exp reference` from the fields of the settings: change those, and make this page again. -->

Every option of the command line. In Python, and in a file given to `--config`, an option has the same name with
underscores and no dashes before it: `--batch-size 64` is `batch_size=64`. A number of bytes or tokens may have a unit
(`256KB`, `0.3M`); several values are separated by commas. `--help` and `--debug`, which shows an error's traceback, go
with every command.

A number has a decimal point (`0.3`) and may have an exponent (`3e5`). Commas or underscores may stand between groups of
three digits (`1,000,000`), and nowhere else. A number out of range, infinity and NaN are refused, and the message names
the limit.
"""


@click.command(cls=Command)
def reference() -> None:
    """Print every option of every command as a page of Markdown."""
    click.echo(page(), nl=False)


def page() -> str:
    """Everything about all options, as Markdown."""
    return "\n".join([HEAD, *_experiment(), *_strategies(), *_commands()])


def _experiment() -> Iterator[str]:
    yield "## Every experiment\n"
    yield "A strategy's name is the command that trains over it. These options are the same for all strategies.\n"
    sections: dict[str, list[Option]] = {}
    for one in [*options_of(Settings), *options_of(OutputSettings)]:
        sections.setdefault(one.group, []).append(one)
    for heading, options in sections.items():
        yield f"### {heading}\n"
        yield _table(options)


def _strategies() -> Iterator[str]:
    yield "## One strategy's own\n"
    for name in STRATEGIES.names():
        own = STRATEGIES.options(name).offered()
        if own:
            yield f"### bigbatch-exp {name}\n"
            yield _table(own)


def _commands() -> Iterator[str]:
    yield "## Other commands\n"
    found = {name: COMMANDS.load(name) for name in COMMANDS.names()}
    for strategy in STRATEGIES.names():
        found |= {f"{strategy} {name}": command for name, command in subcommands(strategy).items()}
    experiment = {one.name for one in options_of(Settings)}
    for name, command in found.items():
        words = " ".join(command.collect_usage_pieces(click.Context(command)))
        yield f"### bigbatch-exp {name}\n"
        yield f"`{words}`: {(command.help or '').splitlines()[0]}\n"
        own = [one.made_from for one in command.params if isinstance(one, Flagged)]
        if experiment <= {one.name for one in own}:
            yield "All options of an experiment, and these:\n"
            own = [one for one in own if one.name not in experiment]
        if own:
            yield _table(own)


def _table(options: Iterable[Option]) -> str:
    rows = ["| option | value | default | what it is |", "|---|---|---|---|"]
    for one in options:
        flag = f"`{one.short}`, `{one.flag}`" if one.short else f"`{one.flag}`"
        rows.append(f"| {flag} | {_values(one.kind)} | {_default(one)} | {one.help.replace('|', '&#124;')} |")
    return "\n".join(rows) + "\n"


def _values(kind: Kind) -> str:
    one = kind.one if isinstance(kind, Several) else kind
    if isinstance(one, Name):
        names = ", ".join(f"`{name}`" for name in one.names())
        return names + (f", or `{one.others}`" if one.others else "")
    return f"`{kind.metavar}`" if kind.metavar else ""


def _default(one: Option) -> str:
    if isinstance(one.kind, Flag):
        return "on" if one.default else "off"
    return one.missing if one.default in (None, ()) else f"`{one.kind.show(one.default)}`"
