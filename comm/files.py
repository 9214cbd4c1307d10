"""Files that a user wrote: read whole, as text or as TOML, or refused in one sentence that names the file."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from bigbatch.comm.errors import ConfigurationError

LARGEST_SETTINGS = 2**20
"""Size of the largest file of settings that is read, in bytes; a larger one is something else."""


def read_text(path: Path, what: str, largest: int) -> str:
    """Reads a text file in UTF-8, without the byte-order mark that some editors put first.

    Only regular files are read, since a named pipe or a device might never end.

    Args:
        path: the file.
        what: what the file is, for messages, such as "configuration".
        largest: size of the largest file that is read, in bytes.

    Raises:
        ConfigurationError: the file is missing, unreadable, too large, no regular file, or not UTF-8.
    """
    try:
        # Opening a named pipe would wait for somebody to write; this way it does not.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                raise ConfigurationError(f"The {what} {path} cannot be read: it is a folder. Name a file in it.")
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"The {what} {path} cannot be read: it is no regular file. Name one.")
            if status.st_size > largest:
                raise ConfigurationError(
                    f"The {what} {path} cannot be read: it has {status.st_size:,} bytes, and {largest:,} is the most."
                )
            content = file.read()
    except OSError as error:
        raise ConfigurationError(
            f"The {what} {path} cannot be read: {error.strerror}. Name a readable file."
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"The {what} {path} is not text: byte {error.start} is not UTF-8. Convert it to UTF-8 first."
        ) from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Reads a file of settings in TOML.

    Args:
        path: the file.
        what: what the file is, for messages, such as "configuration".

    Raises:
        ConfigurationError: as `read_text`, or the file is not TOML; the message names the line.
    """
    text = read_text(path, what, LARGEST_SETTINGS)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError(f"The {what} {path} is not TOML that can be read: it is nested too deeply.") from None
    except ValueError as error:  # TOMLDecodeError, or Python's own about a number of thousands of digits
        raise ConfigurationError(f"The {what} {path} is not TOML: {str(error).rstrip('.')}.") from error
