"""Wires: what a worker needs of whatever carries its messages to a server."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from bigbatch.comm.server.network.messages import Frame


class Wire(ABC):
    """Carries messages to one server and back. They may come late, twice, out of order or not at all.

    Attributes:
        name: the server's address, for errors.
    """

    name: str

    @abstractmethod
    def send(self, frames: Sequence[Frame]) -> None:
        """Send one message; its buffers must stay as they are until it is answered."""

    @abstractmethod
    def receive(self, seconds: float) -> list[Frame] | None:
        """Waits up to `seconds` for the next message; returns its frames, or None if none came.

        Raises:
            CommunicationError: nothing can ever come: the server refuses to talk.
        """

    @abstractmethod
    def now(self) -> float:
        """The time in seconds, of which only differences mean anything."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Closes the connection, if the wire has one."""
