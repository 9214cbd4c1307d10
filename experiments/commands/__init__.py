"""The command line: one file per command. Only these modules print results or exit.

A command is a click command in the module of its name, and every module here is found by itself. Another package adds
its commands in the entry-point group "bigbatch.commands". A folder with a strategy's name holds that strategy's
subcommands.
"""

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from bigbatch.comm.registry import Registry, import_object

if TYPE_CHECKING:
    import click

SHARED = ("experiment", "main", "options", "output", "ranks", "streams")
"""Modules in this folder that are not commands."""


def _found(folder: Path, package: str) -> dict[str, str]:
    modules = [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg]
    return {name: f"{package}.{name}:{name}" for name in sorted(modules) if name not in SHARED}


COMMANDS = Registry("command", "bigbatch.commands", _found(Path(__file__).parent, __name__))
"""All commands except those that are names of strategies."""


def subcommands(strategy: str) -> dict[str, "click.Command"]:
    """Imports the subcommands of a strategy's command, by name; empty if it has none."""
    folder = Path(__file__).parent / strategy
    if not folder.is_dir():
        return {}
    return {name: import_object(path) for name, path in _found(folder, f"{__name__}.{strategy}").items()}
