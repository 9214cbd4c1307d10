"""The transport of a job with one rank, which can exchange messages only with work beside its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.errors import CommunicationError, DeadlineError, MismatchError
from bigbatch.comm.transports.waits import OnThreads, wait_until
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.request import Request, Windows
from bigbatch.comm.wires.transport import Transport


class OwnWindow(Windows):
    """The shared memory of a job with a single rank: one window, which nobody else uses."""

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        self.buffers = [buffer]

    def barrier(self) -> None:
        """Returns at once, because there is no other rank to wait for."""


@dataclass(eq=False)
class LocalMessage(Request):
    """One end of a message that the rank sends to itself."""

    transport: "Alone"
    operation: str
    buffer: Buffer
    tag: int
    moved: bool = field(default=False, init=False)

    def wait(self) -> int:
        """Waits until the other end of the message was posted and the values were copied."""
        wait_until(lambda: self.moved, self.transport.deadline, self._give_up, self.transport.check_on_threads)
        return 0

    def _give_up(self) -> NoReturn:
        raise DeadlineError(
            f"Rank 0 waited {self.transport.deadline:g} s to {self.operation} itself ({self.buffer.nbytes} bytes, tag "
            f"{self.tag}). Either its other work is stuck, or it is slow: then allow more with --deadline."
        )


class Mailbox:
    """Where the two ends of a message meet: whichever comes second moves the values."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sends: list[LocalMessage] = []
        self._receives: list[LocalMessage] = []

    def send(self, message: LocalMessage) -> None:
        """Copies the message into the first waiting receive with its tag, or queues it."""
        with self._lock:
            receive = _take(self._receives, message.tag)
            if receive is None:
                self._sends.append(message)
            else:
                _move(message, receive)

    def receive(self, message: LocalMessage) -> None:
        """Fills the receive from the first waiting send with its tag, or queues it."""
        with self._lock:
            send = _take(self._sends, message.tag)
            if send is None:
                self._receives.append(message)
            else:
                _move(send, message)


def _take(messages: list[LocalMessage], tag: int) -> LocalMessage | None:
    found = next((message for message in messages if message.tag == tag), None)
    if found is not None:
        messages.remove(found)
    return found


def _move(send: LocalMessage, receive: LocalMessage) -> None:
    if send.buffer.nbytes != receive.buffer.nbytes:
        raise MismatchError(
            f"Rank 0 sent itself {send.buffer.nbytes} bytes and expected {receive.buffer.nbytes} (tag {send.tag}). "
            "Both ends must describe the same buffer."
        )
    receive.buffer[:] = send.buffer
    send.moved = receive.moved = True


class Alone(OnThreads):
    """The transport of a single rank. It can send to itself once work beside its own runs to take the message.

    Args:
        deadline: seconds after which a wait gives up.
    """

    def __init__(self, deadline: float = DEFAULT_DEADLINE) -> None:
        super().__init__(0, 1, deadline)
        self._mailbox: Mailbox | None = None

    def windows(self, nbytes: int) -> Windows:
        """Returns ordinary memory, (nbytes,) zeros, because there is nobody to share it with."""
        return OwnWindow(np.zeros(nbytes, dtype=np.uint8))

    def _start_thread(self, work: Callable[[Transport], None]) -> Request:
        self._mailbox = self._mailbox or Mailbox()
        return super()._start_thread(work)

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:  # noqa: ARG002 - there is only one
        message = LocalMessage(self, "send to", buffer, tag)
        self._own_mailbox().send(message)
        return message

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:  # noqa: ARG002 - there is only one
        message = LocalMessage(self, "receive from", buffer, tag)
        self._own_mailbox().receive(message)
        return message

    def _own_mailbox(self) -> Mailbox:
        if self._mailbox is None:
            raise CommunicationError(
                "Rank 0 is the only rank, so there is nobody to exchange a message with: start more ranks, or use an "
                "algorithm that does nothing for one."
            )
        return self._mailbox
