"""Registries: names for the things a user can choose, open to other packages and to files."""

import ast
import hashlib
import importlib
import importlib.util
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import entry_points
from inspect import isclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bigbatch.comm import foreign
from bigbatch.comm.errors import ConfigurationError, quoted, suggestion


class Registry:
    """Finds an object by name: built in, from another package's entry points, or in a file.

    Args:
        kind: what is registered, for messages, such as "strategy".
        group: the entry-point group other packages add to, such as "bigbatch.strategies".
        built_in: maps each name to "module:attribute"; nothing is imported before it is asked for.
        base: "module:Class" that what is registered derives from, if it has to.
        function: what is registered, if it is called: "a function of the number of ranks that yields rounds".
    """

    def __init__(
        self, kind: str, group: str, built_in: Mapping[str, str], *, base: str = "", function: str = ""
    ) -> None:
        self.kind = kind
        self._group = group
        self._built_in = dict(built_in)
        self._base = base
        self._function = function

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
            _expect_foreign(point.module)
            with foreign.guarded(f"The {self.kind} {name!r}", "be imported", "was imported"):
                found = point.load()
            return self._fitting(name, found)
        if ":" in name:
            return self._fitting(name, _attribute(name, self.kind))
        raise unknown_name(self.kind, name, self.names(), "; or name your own as FILE.py:Name")

    def _fitting(self, name: str, found: Any) -> Any:
        """What was found under the name, if it is what is registered here."""
        base: Any = import_object(self._base) if self._base else object
        if self._base and not (isclass(found) and issubclass(found, base)):
            wanted = f"a class derived from {base.__module__}.{base.__qualname__}"
        elif self._function and not callable(found):
            wanted = self._function
        else:
            return found
        what = f"the class {found.__name__}" if isclass(found) else f"of the type {type(found).__name__}"
        raise ConfigurationError(f"The {self.kind} {name!r} is {what}, but must be {wanted}.")

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
    return ConfigurationError(
        f"Unknown {kind} {quoted(name)}{suggestion(name, names)}. Known: {', '.join(names)}{otherwise}."
    )


def _attribute(path: str, kind: str) -> Any:
    place, _, attribute = path.rpartition(":")
    module = _module_in_file(Path(place), kind) if place.endswith(".py") else _module(place, path, kind)
    with foreign.guarded(f"The {kind} {path!r}", "be looked up", "was looked up"):  # a module may have its own way
        found = getattr(module, attribute, _MISSING)
    if found is _MISSING:
        raise ConfigurationError(
            f"There is no {attribute!r} in {place}, which should hold the {kind} {path!r}. It defines: "
            f"{', '.join(name for name in vars(module) if not name.startswith('_')) or 'nothing'}."
        )
    return found


_MISSING = object()


def _module(name: str, path: str, kind: str) -> ModuleType:
    _expect_foreign(name)
    with foreign.guarded(f"The module {name!r}, which should hold the {kind} {path!r},", "be imported", "was imported"):
        return importlib.import_module(name)


def _expect_foreign(module: str) -> None:
    """Lets errors name places in the package of a module, unless that is one of ours or part of torch."""
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top) if top not in ("bigbatch", "torch") else None
    except ValueError:  # whoever imports it says what is wrong
        return
    if spec is not None and spec.origin is not None and spec.has_location:
        foreign.expect_code_in(Path(spec.origin).parent)


def _module_in_file(file: Path, kind: str) -> ModuleType:
    """The module in a file, which is run once; its folder comes first on the path meanwhile, and last afterwards."""
    what = f"The file {file}, which should hold the {kind},"
    try:
        path, status = file.resolve(), file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(f"{what} does not exist.") from None
    except (OSError, RuntimeError) as error:  # a folder that nobody may look into, or links in a circle
        raise ConfigurationError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(status.st_mode):
        state = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
        raise ConfigurationError(f"{what} is {state}.")
    name = f"{_FILE}{file.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    read = _read.get(name)
    if read is not None and read[0] == (status.st_mtime_ns, status.st_size):
        return read[1]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py always has a loader"
    assert spec.loader is not None, "a path that ends in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    foreign.expect_code_in(path.parent)
    with (
        _neighbours_of(path),
        foreign.guarded(str(file), "be run", "was read"),
    ):
        spec.loader.exec_module(module)
    _read[name] = (status.st_mtime_ns, status.st_size), module
    return module


_FILE = "bigbatch_file_"
"""What the names of modules in files begin with."""

_read: dict[str, tuple[tuple[int, int], ModuleType]] = {}
"""Name of the module in a file -> when the file was last changed and its size, and the module as it was read then."""


@contextmanager
def _neighbours_of(file: Path) -> Iterator[None]:
    """Lets a file import its neighbours while it is read, and later; neighbours of files elsewhere do not count.

    Within the context the file's folder is the first to be searched, as when Python runs a script, and afterwards the
    last, so that it hides nothing from anybody else.
    """
    folder = str(file.parent)
    for name, other in list(sys.modules.items()):
        theirs = Path(getattr(other, "__file__", None) or file)
        theirs = theirs.parent if theirs.name == "__init__.py" else theirs
        if str(theirs.parent) in _searched - {folder} and (file.parent / theirs.name).exists():
            for one in [name, *(inner for inner in sys.modules if inner.startswith(f"{name}."))]:
                if not one.startswith(_FILE):
                    sys.modules.pop(one, None)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
        _searched.add(folder)


_searched: set[str] = set()
"""The folders that were put on the path for the files in them."""
