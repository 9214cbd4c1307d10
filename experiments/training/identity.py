"""A run's identity: a digest of everything that decides its results."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import bigbatch
from bigbatch import comm, experiments
from bigbatch.comm.cache import cache_folder
from bigbatch.comm.simulation.presets import THIS_MACHINE
from bigbatch.experiments.runs.run import OF_MODELS, environment
from bigbatch.experiments.training.settings import Request
from bigbatch.tasks.tokenizer_files import MODEL


def identity_of(request: Request) -> str:
    """Computes a name for a run from everything that decides its results.

    That is every option, the content of every file that an option names (the user's text, FILE.py:Name, a network), the
    source code that trains, and the versions of the libraries it uses. What such a FILE.py imports is not included.
    """
    options = request.written()
    contents = {str(path): digest([path]) for path in files_named(request)}
    versions = {name: version for name, version in environment().items() if name not in ("platform", OF_MODELS)}
    model = str(request.settings.model.model)
    if model.startswith("hf:") or (Path(model) / MODEL).is_file():
        versions |= {point.metadata["Name"]: point.version for point in distributions(name=OF_MODELS)}
    everything = {**options, "contents": contents, "source": source(), **versions}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:12]


def files_named(request: Request) -> list[Path]:
    """Lists the existing files that options name: paths, models' folders, FILE.py:Name, networks."""
    paths = []
    for value in (request.strategy, *request.settings.flat().values(), *request.options.values()):
        if isinstance(value, Path):
            paths += _in_folder(value) if value.is_dir() else [value]
        elif isinstance(value, str):
            place = value.rpartition(":")[0]
            if place.endswith(".py"):
                paths.append(Path(place))
            elif (Path(value) / MODEL).is_file():
                paths += _in_folder(Path(value))
            elif value.endswith(".toml"):
                paths.append(Path(value))
            elif value == THIS_MACHINE:
                paths.append(cache_folder() / f"{THIS_MACHINE}.toml")
    return [path for path in paths if path.is_file()]


def _in_folder(folder: Path) -> list[Path]:
    """The files of a model and its tokenizer."""
    return sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])


def digest(files: Iterable[Path]) -> str:
    """Computes one SHA-256 digest (hexadecimal) of the contents of all files, in their order."""
    each = (hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(b"".join(each)).hexdigest()


def source_files() -> list[Path]:
    """Lists the files of bigbatch that decide a run's results: communication, the trainer, runs and experiments.

    These are whole folders, so that code which moves into a new module still counts.
    """
    root, bench = Path(bigbatch.__file__).parent, Path(experiments.__file__).parent
    trainer = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in ("comm", "experiments")]
    folders = [Path(comm.__file__).parent, *sorted(trainer), bench / "runs", bench / "training"]
    return [file for folder in folders for file in sorted(folder.rglob("*.py"))]


@cache
def source() -> str:
    """Computes the digest of `source_files`, once per process."""
    return digest(source_files())
