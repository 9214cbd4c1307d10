"""Messages between a worker and a server on a network: a small header of fixed size, and raw buffers behind it.

Nothing that arrives is ever unpickled. A message is a list of frames, the first of which is the header:

    bytes 0-3   "bbps"
    byte  4     the protocol's number
    byte  5     the kind of message
    byte  6     a truth value whose meaning depends on the kind
    bytes 8-63  life, attempt (4 bytes each), session, number, version, share (8 bytes each), weight, loss (a float64
                each)

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

MAGIC, PROTOCOL = b"bbps", 3
HEADER = struct.Struct("<4sBBBxIIQQQQdd")
MOST_FRAMES = 3
"""A header, a report and the parameters."""

NOTHING = 2**64 - 1
"""In place of a version: the worker has no parameters of the server's. In place of a share: the one handed out last."""

Frame = bytes | memoryview


class ProtocolError(MalformedError):
    """Raised when a message arrives from another version of bigbatch, which speaks another protocol."""


class Kind(IntEnum):
    """The kinds of messages; each request is followed by its answer.

    A worker has a session, in which every `JOIN` begins a new life. Messages of a former life do not count.
    """

    HELLO = 1
    """Asks what is trained here. Needs no session. Version: a number of the worker's own, whatever its sessions."""
    WELCOME = 2
    """Answers `HELLO`, with JSON that is the programs' own affair, and with JSON of the ranges of shares that are not
    in. Number: a `Stage`."""
    JOIN = 3
    """Asks to take part: JSON of the worker's facts, to be compared. Version: its pushes that were acknowledged
    before."""
    JOINED = 4
    """Answers `JOIN`: the worker takes part. Number: of its last push; version: how many of its pushes the server has;
    attempt: how many of its notes the server has; weight: seconds of silence after which the server goes on without
    it. With JSON of the ranges of shares that are not in."""
    PUSH = 5
    """Hands in a gradient that was computed on `version`, of the data in `share`; flag: all of it is finite. Number: 1,
    2, ... Gradients and parameters are in the format that is one of the facts."""
    TAKEN = 6
    """Answers `PUSH`: the push of that number was taken, now or before."""
    READ = 7
    """Asks to read after the push of that number. Attempt: only the last one counts. Version: what the worker has."""
    VALUES = 8
    """Answers `READ`, with a report, and with the parameters if the worker does not have them."""
    NOTE = 9
    """Hands in a row of float64 for the server to keep. Number: 0, 1, ..."""
    NOTED = 10
    """Answers `NOTE`: the server keeps the row."""
    HEARTBEAT = 11
    """Says that the worker is alive."""
    ALIVE = 12
    """Answers `HEARTBEAT`: the server is alive, too."""
    LEAVE = 13
    """Says that the worker takes part no more. Needs no session. Version: as in `HELLO`, if the worker ends and will
    not ask again; else 0."""
    LEFT = 14
    """Answers `LEAVE`: the worker takes part no more."""
    STATUS = 15
    """Asks for the server's status. Needs no session."""
    STATE = 16
    """Answers `STATUS`, with JSON of `NetworkServer.status`."""
    GONE = 17
    """Answers any request of a session that takes part no more, and says why in words. The worker may `JOIN` again."""
    REFUSED = 18
    """Answers any request that does not fit, and says why in words."""
    MISSING = 19
    """Says which shares are not in another part: JSON of their ranges. Needs no session."""
    NOTICED = 20
    """Answers `MISSING`: those shares are handed out again."""
    RELEASE = 21
    """Says that every part has every share of the work that is announced by the payload. Needs no session."""
    RELEASED = 22
    """Answers `RELEASE`: the server goes on to what follows that work, or ends."""
    ENDED = 23
    """Answers any request to a server that cannot go on, and says why in words."""


class Stage(IntEnum):
    """How far a server's work has come, as it answers a worker's `HELLO`."""

    OPEN = 0
    """A worker that joins has something to do."""
    CLOSING = 1
    """All work is handed out; there may be more to come."""
    FINISHED = 2
    """All work is done."""
    COMPLETE = 3
    """All shares are in here; whether they are in the other parts, only workers can say."""


@dataclass(frozen=True)
class Message:
    """One message. What the numbers stand for depends on the kind.

    Attributes:
        kind: the kind of message.
        session: the worker's session, a number that it has chosen at random.
        life: the life of the session: 1, 2, ...
        number: a push, a note or what else the kind says: 0, 1, ...
        attempt: how often the request was made before: 0, 1, ...
        version: a version of the parameters.
        share: the number of a share of the data.
        weight: a number of tokens.
        loss: the loss summed over those tokens, in nats.
        flag: a truth value.
        payload: the frames behind the header.
        share: the number of a share of the data.
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
    share: int = NOTHING

    def frames(self) -> list[Frame]:
        """The frames of the message as it is sent: the header, then the payload."""
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
            self.share,
            self.weight,
            self.loss,
        )
        return [header, *self.payload]

    def answer(self, kind: Kind, text: str = "") -> list[Frame]:
        """The frames of an answer that says which request it answers, and no more than a text."""
        payload = (text.encode(),) if text else ()
        return Message(kind, self.session, self.life, self.number, self.attempt, payload=payload).frames()

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> Self:
        """Reads a message from the frames that have arrived.

        Raises:
            MalformedError: they are no message of this protocol.
        """
        head = bytes(frames[0][:5]) if 1 <= len(frames) <= MOST_FRAMES else b""
        if head[:4] == MAGIC and head[4:] and head[4] != PROTOCOL:
            raise ProtocolError(
                f"A message of protocol {head[4]} arrived, but this program speaks {PROTOCOL}: use the same version of "
                "bigbatch on both sides."
            )
        if head[:4] != MAGIC or memoryview(frames[0]).nbytes != HEADER.size:
            raise MalformedError("What arrived has no header of this protocol.")
        _, _, kind, flag, life, attempt, session, number, version, share, weight, loss = HEADER.unpack(frames[0])
        if kind not in set(Kind):
            raise MalformedError("What arrived has no header of this protocol.")
        payload = tuple(frames[1:])
        return cls(
            Kind(kind), session, life, number, attempt, version, weight, loss, bool(flag), payload=payload, share=share
        )

    def text(self, place: int = 0) -> str:
        """Reads a frame of the payload as text.

        Raises:
            MalformedError: there is no such frame, or it is not UTF-8.
        """
        try:
            return bytes(self.payload[place]).decode()
        except (IndexError, UnicodeDecodeError) as error:
            raise MalformedError(f"A message {self.kind.name} came without its text.") from error

    def entries(self, place: int = 0) -> Any:
        """Reads a frame of the payload as JSON, and returns the value that it stands for.

        Raises:
            MalformedError: there is no such frame, or it is not JSON.
        """
        try:
            return json.loads(self.text(place))
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"A message {self.kind.name} came without its JSON.") from error

    def array(self, place: int, dtype: Any, elements: int | None = None) -> NDArray[Any]:
        """Views a frame of the payload as an array, (elements,), without a copy.

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
