"""Registries: names for the things a user can choose, open to other packages and to files."""

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from bigbatch.comm.errors import ConfigurationError


class Registry:
    """Finds an object by name: built in, from another package's entry points, or in a file.

    Args:
        kind: what is registered, for messages, such as "strategy".
        group: the entry-point group other packages add to, such as "bigbatch.strategies".
        built_in: maps each name to "module:attribute"; nothing is imported before it is asked for.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind = kind
        self._group = group
        self._built_in = dict(built_in)

    def names(self) -> list[str]:
        """Every name that is known without a file, the built-in ones first."""
        installed = sorted(point.name for point in _installed(tuple(sys.path)).select(group=self._group))
        return [*self._built_in, *(name for name in installed if name not in self._built_in)]

    def load(self, name: str) -> Any:
        """Loads the object that has the name, or that "FILE.py:Attribute" or "module:Attribute" points to.

        Raises:
            ConfigurationError: there is no such object; for an unknown name the message lists the known ones.
        """
        if name in self._built_in:
            return _attribute(self._built_in[name], self.kind)
        for point in _installed(tuple(sys.path)).select(group=self._group, name=name):
            return point.load()
        if ":" in name:
            return _attribute(name, self.kind)
        raise unknown_name(self.kind, name, self.names(), "; or name your own as FILE.py:Name")

    def summary(self, name: str) -> str:
        """The first paragraph of a registered object's docstring, read from its source without running it.

        Args:
            name: one of `names`, "FILE.py:Attribute" or "package.module:Attribute".
        """
        entries = (point.value for point in _installed(tuple(sys.path)).select(group=self._group, name=name))
        place, _, attribute = (self._built_in.get(name) or next(entries, name)).rpartition(":")
        return _first_paragraph(place, attribute)


@lru_cache(maxsize=4)
def _installed(_: tuple[str, ...]) -> Any:
    """The entry points of all packages on a path; they are read once, for there may be hundreds of packages."""
    return entry_points()


def _first_paragraph(place: str, attribute: str) -> str:
    """The first paragraph of the documentation of something in a module; empty if that cannot be read."""
    try:
        spec = None if place.endswith(".py") else importlib.util.find_spec(place)
        source = Path(place if spec is None else str(spec.origin)).read_bytes()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, ModuleNotFoundError):  # whoever loads it says what is wrong
        return ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            text = (ast.get_docstring(node) or "").partition("\n\n")[0]
            return " ".join(text.split())
    return ""


def import_object(path: str) -> Any:
    """Imports the object at "module:attribute", which must be one of bigbatch's own."""
    place, _, attribute = path.partition(":")
    return getattr(importlib.import_module(place), attribute)


def unknown_name(kind: str, name: str, known: Iterable[str], otherwise: str = "") -> ConfigurationError:
    """Makes the error for an unknown name; it lists the known names and suggests the closest one.

    Args:
        kind: what the name should stand for, for the message, such as "strategy".
        name: the name that was asked for.
        known: the names that are known.
        otherwise: what else can be given, from its punctuation on, such as "; or a file".
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return ConfigurationError(
        f"Unknown {kind} {name!r}{f' (did you mean {close[0]!r}?)' if close else ''}. Known: "
        f"{', '.join(names)}{otherwise}."
    )


def _attribute(path: str, kind: str) -> Any:
    place, _, attribute = path.rpartition(":")
    module = _module_in_file(Path(place), kind) if place.endswith(".py") else _module(place, path, kind)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigurationError(
            f"There is no {attribute!r} in {place}, which should hold the {kind} {path!r}. It defines: "
            f"{', '.join(name for name in vars(module) if not name.startswith('_')) or 'nothing'}."
        ) from None


def _module(name: str, path: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The {kind} {path!r} should be in the module {name!r}, which cannot be imported: {error}."
        ) from error


def _module_in_file(file: Path, kind: str) -> ModuleType:
    if not file.is_file():
        raise ConfigurationError(f"The file {file}, which should hold a {kind}, does not exist.")
    name = f"bigbatch_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a path that ends in .py always has a loader"
    assert spec.loader is not None, "a path that ends in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigurationError(
            f"The file {file}, which should hold a {kind}, cannot be run: {type(error).__name__}: {error}."
        ) from error
    return module
