"""The cache: files that take long to make and come out the same every time."""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import damaged, parsed, read_text, write_whole
from bigbatch.comm.kinds import File, checked
from bigbatch.comm.schema import check


def cache_folder() -> Path:
    """The folder that keeps prepared texts, vocabularies and measurements; BIGBATCH_CACHE names another one.

    Raises:
        ConfigurationError: BIGBATCH_CACHE is no path.
    """
    named = os.environ.get("BIGBATCH_CACHE") or platformdirs.user_cache_path("bigbatch")
    folder: Path = checked("The environment variable BIGBATCH_CACHE", File(), named)
    return folder


def keep(path: Path, content: str) -> bool:
    """Writes a cache file whole or not at all, and says whether it is kept.

    A failure only warns, because it costs nothing but time.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{_digest(content)}\n{content}")
    except OSError as error:
        warnings.warn(
            f"Nothing was kept in {path.parent} ({error.strerror}); the next run prepares it anew.",
            stacklevel=2,
        )
        return False
    return True


def kept(path: Path, read: Callable[[str, str], Any]) -> Any:
    """Reads a cache file that `keep` wrote; None if there is none, or a damaged one, which costs nothing but time.

    Args:
        path: the file.
        read: makes of the content, and of what it is at the start of a sentence, what is wanted.
    """
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path's, it says no of a folder that cannot be looked into
        return None
    try:
        what = f"The file {path} in the cache"
        digest, _, content = read_text(path, what).partition("\n")
        if digest != _digest(content):
            raise damaged(what, "its content does not have the digest that is written there")
        return read(content, what)
    except ConfigurationError as error:
        warnings.warn(f"{error} It is made anew.", stacklevel=2)
        return None


def kept_json(path: Path, schema: Any) -> Any:
    """Reads a cache file of JSON, as `kept` does.

    Args:
        path: the file.
        schema: what it must hold; see `bigbatch.comm.schema.check`.
    """
    return kept(path, lambda content, what: check(parsed(content, what), schema, what))


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode(errors="replace")).hexdigest()
