"""Text to train on: the documentation in Python's standard library, or the user's own file."""

import ast
import hashlib
import json
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigbatch.comm.cache import keep, kept_json
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import read_bytes, utf8

HELD_OUT = 10
"""One document (or character) in this many is held out for validation."""

LARGEST_TEXT = 2**30
"""Size of the largest text that is read, in bytes: it is held in memory several times while it is prepared."""


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and documents held out for validation.

    Attributes:
        name: where the text comes from, in words for a reader.
        training: texts that the vocabulary and the model learn from.
        validation: texts that they never see while they learn.
    """

    name: str
    training: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The SHA-256 digest (hexadecimal) of all texts, which identifies them and how they are divided."""
        content = json.dumps([self.training, self.validation], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def standard_library(cache: Path) -> Corpus:
    """Reads the documentation strings in the running Python's standard library, each distinct one once.

    They are about 8,000 texts and a quarter of a million words, so nothing needs to be downloaded. They are shuffled
    with a fixed seed, and every tenth is held out. Reading 600 modules takes seconds, so the texts are kept in `cache`.

    Args:
        cache: the folder that keeps the texts. It need not exist; if it cannot be written, nothing is kept.

    Raises:
        ConfigurationError: this Python comes without its sources.
    """
    documents = list(dict.fromkeys(text for _, text in documentation(cache)))
    random.Random(0).shuffle(documents)
    training = tuple(text for number, text in enumerate(documents) if number % HELD_OUT)
    return Corpus(f"Python {sys.version.split()[0]} standard library", training, tuple(documents[::HELD_OUT]))


def documentation(cache: Path) -> list[list[str]]:
    """Reads what is documented in the running Python's standard library, in the order of its files.

    Args:
        cache: the folder that keeps it, since there are 600 modules. It need not exist.

    Returns:
        The name of each function, or "" for a class or a module, and its documentation string.

    Raises:
        ConfigurationError: this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    key = hashlib.sha256(f"{sys.version} {root}".encode()).hexdigest()[:16]
    kept = cache / f"documentation-{key}.kept"
    found: list[list[str]] | None = kept_json(kept, list[list[str]])
    if found is None:
        found = [[name, text] for name, text in _docstrings(root)]
        keep(kept, json.dumps(found))
    if not found:
        raise ConfigurationError(
            f"There is no documentation in {root}: this Python comes without its sources. Name a text with --text FILE."
        )
    return found


def _docstrings(root: Path) -> Iterator[tuple[str, str]]:
    tests_and_strangers = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    for file in sorted(root.rglob("*.py")):
        if tests_and_strangers.intersection(file.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # old escapes in somebody else's strings
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # templates and unreadable files document nothing
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else "", text


def text_file(path: Path) -> Corpus:
    """Reads a text file in UTF-8 as a corpus of one document, without a byte-order mark; its last tenth is held out.

    Raises:
        ConfigurationError: the file is missing, unreadable, too large, empty or not text.
    """
    what = f"The text {path}"
    text = utf8(read_bytes(path, what, LARGEST_TEXT), what)
    if "\0" in text:
        raise ConfigurationError(f"The file {path} is not text: character {text.index(chr(0))} is NUL.")
    if not text.strip():
        raise ConfigurationError(f"{what} is empty. Name a file with something to learn from.")
    border = len(text) - len(text) // HELD_OUT
    return Corpus(path.name, (text[:border],), (text[border:],))
