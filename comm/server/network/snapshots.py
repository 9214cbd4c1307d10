"""Snapshots: what a server keeps on disk, to go on from when it is started again."""

import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bigbatch.comm.errors import ConfigurationError

CURRENT, NEXT = "snapshot.pt", "snapshot.pt.next"

TITLE = b"bigbatch snapshot sha256 "
"""How a snapshot begins. A SHA-256 in hexadecimal digits and the end of the line follow, then what torch has saved."""

DIGITS = 64


class Snapshots:
    """Keeps the newest snapshot of a server in a folder, complete whenever the server ends.

    Args:
        folder: the folder, which is made if it does not exist.

    Raises:
        ConfigurationError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = folder.absolute()  # an optimizer of the user's may go to another working directory
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NEXT).unlink(missing_ok=True)
            (folder / NEXT).touch()
        except OSError as error:
            raise ConfigurationError(f"The folder {folder} cannot be written: {error.strerror}.") from error

    @property
    def path(self) -> Path:
        """The file of the newest snapshot."""
        return self._folder / CURRENT

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state, of tensors, numbers, words, lists and dictionaries, in place of the one before.

        Raises:
            ConfigurationError: it cannot be written; the one before is kept.
        """
        content = io.BytesIO()  # on a full disk torch itself would raise errors that do not say so
        torch.save(state, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest().encode()
        try:
            with (self._place / NEXT).open("wb") as file:
                file.write(TITLE + digest + b"\n")
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            (self._place / NEXT).replace(self._place / CURRENT)
            self._sync_folder()
        except OSError as error:
            with suppress(OSError):
                (self._place / NEXT).unlink(missing_ok=True)  # what there is of it takes up what room is left
            raise ConfigurationError(
                f"The snapshot {self._folder / NEXT} cannot be written: {error.strerror}. Make room, or name another "
                "folder with --snapshot."
            ) from error

    def newest(self) -> dict[str, Any] | None:
        """Reads the state that was saved last; None if there is none.

        Raises:
            ConfigurationError: the file cannot be read, or it is not what `save` wrote.
        """
        if not os.path.lexists(self._place / CURRENT):
            return None
        if not (self._place / CURRENT).is_file():
            raise ConfigurationError(self.damaged("it is no regular file"))
        try:
            content = (self._place / CURRENT).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"The snapshot {self.path} cannot be read: {error.strerror}.") from error
        head = len(TITLE) + DIGITS + 1
        if content[: len(TITLE)] != TITLE or len(content) < head:
            raise ConfigurationError(self.damaged("it does not begin as one"))
        if hashlib.sha256(memoryview(content)[head:]).hexdigest().encode() + b"\n" != content[len(TITLE) : head]:
            raise ConfigurationError(self.damaged("its content does not have the digest that is written there"))
        try:
            state = torch.load(io.BytesIO(content[head:]), weights_only=True)
        except Exception as error:  # torch has no one error for what it cannot read
            raise ConfigurationError(self.damaged(f"torch cannot load it ({type(error).__name__})")) from error
        if not isinstance(state, Mapping):
            raise ConfigurationError(self.damaged(f"it holds a {type(state).__name__}"))
        return dict(state)

    def damaged(self, why: str) -> str:
        """The sentences that say why the file cannot be gone on from, and what to do; `why` has no full stop."""
        return f"{self.path} is no snapshot of a server: {why}. Remove it to begin anew."

    def remove(self) -> None:
        """Removes the snapshot when the work is done."""
        for name in (CURRENT, NEXT):
            (self._place / name).unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        """Make the file's new name last, too."""
        descriptor = os.open(self._place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
