"""The cache: files that take long to make and come out the same every time."""

import os
import random
import warnings
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The folder that keeps prepared texts, vocabularies and measurements; BIGBATCH_CACHE names another one."""
    return Path(os.environ.get("BIGBATCH_CACHE") or platformdirs.user_cache_path("bigbatch"))


def write_whole(path: Path, content: str) -> None:
    """Writes a file whole or not at all, whoever else writes the same one at the same time.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.{random.SystemRandom().getrandbits(64):x}")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def keep(path: Path, content: str) -> None:
    """Writes a cache file whole or not at all; a failure only warns, because it costs nothing but time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        warnings.warn(
            f"Nothing was kept in {path.parent} ({error.strerror}); the next run prepares it anew.",
            stacklevel=2,
        )
