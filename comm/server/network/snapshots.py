"""Snapshots: what a server keeps on disk, to go on from when it is started again."""

import os
from pathlib import Path
from typing import Any

import torch

from bigbatch.comm.errors import ConfigurationError

CURRENT, NEXT = "snapshot.pt", "snapshot.pt.next"


class Snapshots:
    """Keeps the newest snapshot of a server in a folder, complete whenever the server ends.

    Args:
        folder: the folder, which is made if it does not exist.

    Raises:
        ConfigurationError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NEXT).unlink(missing_ok=True)
            (folder / NEXT).touch()
        except OSError as error:
            raise ConfigurationError(f"The folder {folder} cannot be written: {error.strerror}.") from error

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state, of tensors, numbers, words, lists and dictionaries, in place of the one before.

        Raises:
            ConfigurationError: it cannot be written; the one before is kept.
        """
        try:
            with (self._folder / NEXT).open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            (self._folder / NEXT).replace(self._folder / CURRENT)
        except OSError as error:
            raise ConfigurationError(
                f"The snapshot in {self._folder} cannot be written: {error.strerror}. Make room, or name another "
                "folder with --snapshot."
            ) from error

    def newest(self) -> dict[str, Any] | None:
        """Reads the state that was saved last; None if there is none.

        Raises:
            ConfigurationError: the file is no snapshot.
        """
        path = self._folder / CURRENT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:  # torch has no one error for what it cannot read
            raise ConfigurationError(
                f"{path} is no snapshot of a server ({type(error).__name__}). Remove it to begin anew."
            ) from error
        return state

    def remove(self) -> None:
        """Removes the snapshot when the work is done."""
        for name in (CURRENT, NEXT):
            (self._folder / name).unlink(missing_ok=True)
