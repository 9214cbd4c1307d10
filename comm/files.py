"""Files: written whole or not at all, and read only if they are regular files of a sensible size.

What cannot be read or written is told in one sentence that names the file.
"""

import errno
import fcntl
import io
import json
import math
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bigbatch.comm.errors import ConfigurationError

MB = 2**20

LARGEST = 64 * MB
"""Largest file that is read in one piece unless its reader says otherwise, in bytes."""

LONGEST_LINE = MB
"""Longest line of a file that is read line by line, in characters."""

BEGINNING = 4096
"""Bytes at the beginning of a file by which it is told whether it is a text."""

FULL = (errno.ENOSPC, errno.EDQUOT)

NO_NUMBER = math.nan
"""Stands for what is written as a number and is none that can be computed with: NaN, infinity, or 5,000 digits."""


def unwritable(path: Path, error: OSError, option: str = "--out", what: str = "file") -> ConfigurationError:
    """Makes the error for a file or a folder that cannot be written.

    Args:
        path: the file or the folder.
        error: the operating system's error.
        option: the option with which the user can name another.
        what: "file" or "folder".
    """
    advice = "Make room there, or name" if error.errno in FULL else "Name"
    advice += f" another {'' if what == 'folder' else 'folder '}with {option}"
    return ConfigurationError(f"The {what} {path} cannot be written: {error.strerror or error}. {advice}.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provides the path of a new file, which takes the place of `path` if the context ends without an error.

    The new file has the same ending. It is on the disk, not only in the system's memory, before it takes that place. So
    whoever reads `path` finds the old file or the new one, and never a part of one.

    Raises:
        OSError: the file cannot be written; the old one is as it was.
    """
    part = path.with_name(f".{path.stem}.{random.SystemRandom().getrandbits(32):08x}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see `replacing`.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8", errors="replace")


@contextmanager
def claimed(folder: Path, option: str = "--out") -> Iterator[None]:
    """Keeps a folder for one writer: while the context lasts, nobody else on this machine can claim it.

    The claim ends with its process, however that ends, and leaves no file behind. Where the file system knows no locks,
    there is no claim.

    Args:
        folder: the folder, which exists.
        option: the option with which the user can name another folder, for the error message.

    Raises:
        ConfigurationError: somebody else has claimed it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"The folder {folder} is being written to by another run that has not ended. Wait for its end, or name "
                f"another folder with {option}."
            ) from error
        except OSError:  # no locks here
            pass
        yield
    finally:
        with suppress(OSError):  # a copy that the program has made of itself may have the folder open, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def opened(path: Path, what: str, largest: int = LARGEST) -> Iterator[BinaryIO]:
    """Opens a regular file of a sensible size for reading.

    A pipe or a device is refused: it may never end. What is looked at is what was opened, so that nobody can put
    another thing under that name meanwhile.

    Args:
        path: the file.
        what: what it is, at the start of a sentence, such as "The summary of runs/ring".
        largest: the largest size that is read, in bytes.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its other end
        try:
            _check_file(os.fstat(descriptor), path, what, largest)
            with open(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ConfigurationError(f"{what} cannot be read: {path} is a link to what does not exist.") from error
        raise unreadable(what, error) from error
    except (OSError, ValueError) as error:
        raise unreadable(what, error) from error


def _check_file(status: os.stat_result, path: Path, what: str, largest: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ConfigurationError(f"{what} cannot be read: {path} is {kind}, not a file.")
    if status.st_size > largest:
        raise ConfigurationError(
            f"{what} cannot be read: {path} has {status.st_size:,} bytes, and at most {largest:,} are read."
        )


def read_bytes(path: Path, what: str, largest: int = LARGEST) -> bytes:
    """Reads a regular file; see `opened` for the arguments and the errors."""
    with opened(path, what, largest) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def utf8(content: bytes, what: str) -> str:
    """Reads what a user wrote as text in UTF-8, without the byte-order mark that some editors put first.

    Args:
        content: the content of a file.
        what: what it is, at the start of a sentence, such as "The text notes.txt".

    Raises:
        ConfigurationError: it is in another encoding, such as the UTF-16 that PowerShell 5 writes.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{what} is not in UTF-8: byte {error.start} fits no character. Convert it to UTF-8 first."
        ) from error


def read_text(path: Path, what: str, largest: int = LARGEST) -> str:
    """Reads a regular file of text in UTF-8; see `opened` for the arguments and the errors."""
    with opened(path, what, largest) as file:
        content = file.read(BEGINNING)
        if b"\0" in content:  # before gigabytes of it are read
            raise damaged(what, "it is no text, but has bytes that are 0")
        content += file.read(os.fstat(file.fileno()).st_size - len(content))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(what, f"byte {error.start} is not UTF-8") from error


def read_json(path: Path, what: str, largest: int = LARGEST) -> Any:
    """Reads a regular file of JSON; see `opened` for the arguments.

    Raises:
        ConfigurationError: the file cannot be read, or is not JSON.
    """
    return parsed(read_text(path, what, largest), what)


def read_lines(path: Path, what: str, largest: int) -> tuple[list[Any], bool]:
    """Reads a regular file with a JSON value on each line, and whether its last line was cut off.

    A line that does not end, because whoever wrote it could not go on, is left out.

    Args:
        path: the file.
        what: what it is, at the start of a sentence.
        largest: the largest size that is read, in bytes.

    Raises:
        ConfigurationError: the file cannot be read, or a whole line is not JSON.
    """
    found: list[Any] = []
    with opened(path, what, largest) as file:
        lines = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")  # lines end as any editor may have ended them
        while line := lines.readline(LONGEST_LINE):
            where = f"line {len(found) + 1}"
            if not line.endswith("\n"):
                if len(line) == LONGEST_LINE:
                    raise damaged(what, f"{where} is longer than {LONGEST_LINE:,} characters")
                return found, True
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise damaged(what, f"{where} is not UTF-8") from error
            found.append(parsed(line.rstrip("\n"), what, f"{where} "))
    return found, False


def parsed(text: str, what: str, where: str = "") -> Any:
    """Reads a JSON value from text; a number that cannot be computed with is read as `NO_NUMBER`.

    Args:
        text: the text.
        what: what it is, at the start of a sentence.
        where: the place in it, such as "line 3 ", if it is not the whole.

    Raises:
        ConfigurationError: the text is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(
            text,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=lambda _: NO_NUMBER,
            object_pairs_hook=_each_name_once,
        )
    except RecursionError as error:
        raise damaged(what, f"{where or 'it '}is nested too deeply") from error
    except ValueError as error:
        raise damaged(what, f"{where or 'it '}is not JSON ({error})") from error


def damaged(what: str, problem: str) -> ConfigurationError:
    """Makes the error for a file whose content is not what was written; the problem ends the sentence."""
    return ConfigurationError(f"{what} is damaged: {problem}.")


def unreadable(what: str, error: OSError | ValueError) -> ConfigurationError:
    """Makes the error for a file that the operating system does not let us read."""
    return ConfigurationError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a name that stands there twice, nobody can tell which value was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)[:40]!r} is there twice")
    return found


def _whole(text: str) -> int | float:
    return int(text) if len(text) < len(str(2**63)) else NO_NUMBER


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else NO_NUMBER
