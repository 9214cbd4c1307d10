"""A run's identity: the files and sources that decide what it comes to."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import bigbatch
from bigbatch import comm, experiments
from bigbatch.comm.cache import cache_folder
from bigbatch.comm.simulation.presets import THIS_MACHINE


def files_named(values: Iterable[Any]) -> list[Path]:
    """The files among the values of options that are there: paths, FILE.py:Name, FILE.toml, this machine's network."""
    paths = []
    for value in values:
        if isinstance(value, Path):
            paths.append(value)
        elif isinstance(value, str):
            place = value.rpartition(":")[0]
            if place.endswith(".py"):
                paths.append(Path(place))
            elif value.endswith(".toml"):
                paths.append(Path(value))
            elif value == THIS_MACHINE:
                paths.append(cache_folder() / f"{THIS_MACHINE}.toml")
    return [path for path in paths if path.is_file()]


def digest(files: Iterable[Path]) -> str:
    """One for the content of all these files, in their order."""
    each = (hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(b"".join(each)).hexdigest()


def source_files() -> list[Path]:
    """The files of bigbatch that decide what a run comes to: the wires, the trainer, and what puts them together.

    These are whole folders, so that code which moves into a new module is looked at as it was before.
    """
    root, bench = Path(bigbatch.__file__).parent, Path(experiments.__file__).parent
    trainer = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in ("comm", "experiments")]
    folders = [Path(comm.__file__).parent, *sorted(trainer), bench / "runs", bench / "training"]
    return [file for folder in folders for file in sorted(folder.rglob("*.py"))]


@cache
def source() -> str:
    """The digest of `source_files`, as they were when this process first asked."""
    return digest(source_files())
