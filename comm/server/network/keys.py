"""Keys: who may talk to a server on a network. Curve25519 key pairs, as ZeroMQ's CURVE uses them."""

import json
import os
import stat
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NotRequired, Self, TypedDict

import zmq
from zmq.utils import z85

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import read_json
from bigbatch.comm.schema import check

KEY_BYTES = 32
"""Bytes of a key, which is written in ZeroMQ's Z85 encoding."""


class KeysFile(TypedDict):
    """What a file of keys holds: the attributes of `Keys`."""

    server_public: str
    worker_public: str
    worker_secret: str
    server_secret: NotRequired[str]


@dataclass(frozen=True)
class Keys:
    """The keys that one side needs: a worker its own pair and the server's public key, a server all of them.

    Attributes:
        server_public: the server's public key.
        worker_public: the public key that all workers share.
        worker_secret: the secret key that all workers share.
        server_secret: the server's secret key; empty in a worker's file.
    """

    server_public: str
    worker_public: str
    worker_secret: str
    server_secret: str = ""

    @classmethod
    def new(cls) -> Self:
        """Makes a fresh key pair for the server and one for all workers."""
        server, worker = zmq.curve_keypair(), zmq.curve_keypair()
        return cls(*(key.decode() for key in (server[0], worker[0], worker[1], server[1])))

    def for_workers(self) -> "Keys":
        """The same keys without the server's secret, as workers may have them."""
        return Keys(self.server_public, self.worker_public, self.worker_secret)

    def are_pairs(self) -> bool:
        """Whether each public key belongs to the secret one; that of the server has to be believed by its workers."""
        pairs = [(self.worker_public, self.worker_secret), (self.server_public, self.server_secret)]
        try:
            if len(z85.decode(self.server_public)) != KEY_BYTES:
                return False
            return all(zmq.curve_public(secret.encode()) == public.encode() for public, secret in pairs if secret)
        except (zmq.ZMQError, ValueError, KeyError, struct.error):  # no key at all
            return False

    def write(self, path: Path) -> None:
        """Writes the keys to a new file that only its owner can read.

        Raises:
            ConfigurationError: there is such a file already, or it cannot be written.
        """
        content = {name: key for name, key in asdict(self).items() if key}
        try:
            # It never exists with other rights than these.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=2) + "\n")
        except FileExistsError as error:
            raise ConfigurationError(
                f"There is a file {path} already; keys are never overwritten. Remove it or name another."
            ) from error
        except OSError as error:
            raise ConfigurationError(f"The keys {path} cannot be written: {error.strerror}.") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads keys from a file that `write` wrote.

        Raises:
            ConfigurationError: the file cannot be read, others can read it, or it holds no keys.
        """
        try:
            others = stat.S_IMODE(path.stat().st_mode) & 0o077
        except OSError as error:
            raise ConfigurationError(
                f"The keys {path} cannot be read: {error.strerror}. Make some with: bigbatch-exp ps keys {path}"
            ) from error
        if others:
            raise ConfigurationError(
                f"The keys {path} can be read by others. Take that right away with: chmod 600 {path}"
            )
        try:
            what = f"The file of keys {path}"
            keys = cls(**check(read_json(path, what), KeysFile, what))
            whole = keys.are_pairs()
        except (ConfigurationError, TypeError):
            whole = False
        if not whole:
            raise ConfigurationError(f"{path} holds no keys. Make some with: bigbatch-exp ps keys FILE")
        return keys
