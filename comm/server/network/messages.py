"""Messages between a worker and a server on a network: a small header of fixed size, and raw buffers behind it.

Nothing that arrives is ever unpickled. A message is a list of frames, the first of which is the header:

    bytes 0-3   "bbps"
    byte  4     the protocol's number
    byte  5     the kind of message
    byte  6     a truth value whose meaning depends on the kind
    bytes 8-55  life, attempt (4 bytes each), session, number, version (8 bytes each), weight, loss (a float64 each)

all in little-endian order.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.errors import MalformedError

MAGIC, PROTOCOL = b"bbps", 1
HEADER = struct.Struct("<4sBBBxIIQQQdd")
MOST_FRAMES = 3
"""A header, a report and the parameters."""

NOTHING = 2**64 - 1
"""In place of a version: the worker has no parameters of the server's."""

Frame = bytes | memoryview


class Kind(IntEnum):
    """What a message is; each request is followed by its answer.

    A worker lives in a session, which has a life from every `JOIN` on. What is said in a former life does not count.
    """

    HELLO = 1
    """Who are you? Needs no session."""
    WELCOME = 2
    """What is trained here: JSON that is the programs' own affair. Number: a `Stage`."""
    JOIN = 3
    """Take me in: JSON of what the worker has, to be compared. Version: the pushes that it had acknowledged before."""
    JOINED = 4
    """You are in. Number: of your last push, version: how many of those the server has; attempt: notes it has;
    weight: seconds of silence after which the server goes on without you."""
    PUSH = 5
    """A gradient, computed on `version`; flag: all of it is finite. Number: 1, 2, ..."""
    TAKEN = 6
    """The push of that number is taken, or has been before."""
    READ = 7
    """Let me read after the push of that number. Attempt: only the last one counts. Version: what the worker has."""
    VALUES = 8
    """A report, and the parameters if they are not those that the worker has."""
    NOTE = 9
    """A row of float64 to keep. Number: 0, 1, ..."""
    NOTED = 10
    """It is kept."""
    HEARTBEAT = 11
    """The worker is alive."""
    ALIVE = 12
    """So is the server."""
    LEAVE = 13
    """The worker takes part no more."""
    LEFT = 14
    """So be it."""
    STATUS = 15
    """How are things? Needs no session."""
    STATE = 16
    """JSON: how things are."""
    GONE = 17
    """In answer to any request of a session: you take part no more, and why, in words. `JOIN` again."""
    REFUSED = 18
    """In answer to any request: it does not fit, and why, in words."""


class Stage(IntEnum):
    """How far a server is."""

    OPEN = 0
    """Whoever joins has something to do."""
    CLOSING = 1
    """All work is handed out; there may be more to come."""
    FINISHED = 2
    """All work is done."""


@dataclass(frozen=True)
class Message:
    """One message. What the numbers stand for depends on the kind.

    Attributes:
        kind: what it is.
        session: whose, chosen at random by the worker.
        life: the session's, 1, 2, ...
        number: 0, 1, ...
        attempt: 0, 1, ...
        version: of the parameters.
        weight: tokens.
        loss: summed over them, in nats.
        flag: a truth value.
        payload: the frames behind the header.
    """

    kind: Kind
    session: int = 0
    life: int = 0
    number: int = 0
    attempt: int = 0
    version: int = 0
    weight: float = 0.0
    loss: float = 0.0
    flag: bool = False
    payload: tuple[Frame, ...] = ()

    def frames(self) -> list[Frame]:
        """As it is sent."""
        header = HEADER.pack(
            MAGIC,
            PROTOCOL,
            self.kind,
            self.flag,
            self.life,
            self.attempt,
            self.session,
            self.number,
            self.version,
            self.weight,
            self.loss,
        )
        return [header, *self.payload]

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> Self:
        """As it arrived.

        Raises:
            MalformedError: it is no message of this protocol.
        """
        if not 1 <= len(frames) <= MOST_FRAMES or memoryview(frames[0]).nbytes != HEADER.size:
            raise MalformedError("What arrived has no header of this protocol.")
        magic, protocol, kind, flag, life, attempt, session, number, version, weight, loss = HEADER.unpack(frames[0])
        if magic != MAGIC or kind not in set(Kind):
            raise MalformedError("What arrived has no header of this protocol.")
        if protocol != PROTOCOL:
            raise MalformedError(
                f"A message of protocol {protocol} arrived, but this program speaks {PROTOCOL}: use the same version "
                "of bigbatch on both sides."
            )
        payload = tuple(frames[1:])
        return cls(Kind(kind), session, life, number, attempt, version, weight, loss, bool(flag), payload)

    def text(self) -> str:
        """The payload as words.

        Raises:
            MalformedError: it is not one frame of UTF-8.
        """
        try:
            (frame,) = self.payload
            return bytes(frame).decode()
        except (ValueError, UnicodeDecodeError) as error:
            raise MalformedError(f"A message {self.kind.name} came without its text.") from error

    def entries(self) -> Any:
        """The payload as JSON.

        Raises:
            MalformedError: it is not.
        """
        try:
            return json.loads(self.text())
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"A message {self.kind.name} came without its JSON.") from error

    def array(self, place: int, dtype: Any, elements: int | None = None) -> NDArray[Any]:
        """A frame of the payload as an array, (elements,); the memory is the frame's.

        Raises:
            MalformedError: there is no such frame, or it has not that many elements.
        """
        if place >= len(self.payload):
            raise MalformedError(f"A message {self.kind.name} came without its buffer.")
        size, nbytes = np.dtype(dtype).itemsize, memoryview(self.payload[place]).nbytes
        if nbytes % size or (elements is not None and nbytes != elements * size):
            expected = "whole elements" if elements is None else f"{elements} ({elements * size} bytes)"
            raise MalformedError(
                f"A message {self.kind.name} came with {nbytes} bytes where {expected} of {np.dtype(dtype)} belong."
            )
        return np.frombuffer(self.payload[place], dtype=dtype)
