"""Messages in simulated time: what is sent, what is received, and the mailbox in which the two meet."""

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count

from bigbatch.comm.buffers import Buffer, Phantom
from bigbatch.comm.errors import CommunicationError
from bigbatch.comm.transports.simulated.clock import Awaited, End
from bigbatch.comm.wires.request import ANY


class SimulatedMessage(Awaited):
    """One end of a message in simulated time, the sender's or the receiver's.

    Args:
        end: the end of the wires that posted it.
        peer: the rank at the other end.
        buffer: what is sent, or where it is received.
        tag: the message's tag.

    Attributes:
        nbytes: the buffer's size in bytes.
        tail: the simulated second at which the last byte has arrived.
        number: its place among everything that lies in the same mailbox.
    """

    operation = ""
    tail = 0.0
    number = 0

    def __init__(self, end: End, peer: int, buffer: Buffer, tag: int) -> None:
        self.end = end  # and not by the base class: one more call for each message can be measured
        self.peer = peer
        self.buffer = buffer
        self.tag = tag
        self.nbytes = buffer.nbytes

    def what(self) -> str:
        """The operation, the peer, the tag and the size of the message in bytes, for an error."""
        peer = "any rank" if self.peer == ANY else f"rank {self.peer}"
        return f"{self.operation} {peer} (tag {self.tag}, {self.nbytes} bytes)"


class Send(SimulatedMessage):
    """The sender's end of a message in simulated time."""

    operation = "send to"


class Receive(SimulatedMessage):
    """The receiver's end of a message in simulated time."""

    operation = "receive from"

    def take(self, send: Send) -> None:
        """Copies the values of the message, and sets the simulated second at which each end is done.

        Raises:
            CommunicationError: the two buffers differ in size or type.
        """
        source, target = send.end.rank, self.end.rank
        if send.nbytes != self.nbytes or send.buffer.dtype != self.buffer.dtype:
            raise CommunicationError(
                f"Rank {source} sent {send.buffer.size} × {send.buffer.dtype} to rank {target}, which expected "
                f"{self.buffer.size} × {self.buffer.dtype} (tag {send.tag}). Both must describe the same buffer."
            )
        if not isinstance(send.buffer, Phantom):
            self.buffer[:] = send.buffer
        now = self.end.clock.now
        if send.finished is None:
            send.finish(target, now)
        self.finish(source, send.tail if send.tail > now else now)


class LateReceive(Receive):
    """A receive whose message is read a random while after the two ends have met.

    Until then the sender must leave its buffer alone, as the contract of `isend` says; on a cluster where messages are
    read at once, nobody would see a sender that adds to what it still sends.

    Args:
        lateness: draws the simulated seconds from the meeting to the reading.
    """

    def __init__(self, lateness: Callable[[], float], end: End, peer: int, buffer: Buffer, tag: int) -> None:
        super().__init__(end, peer, buffer, tag)
        self._lateness = lateness

    def take(self, send: Send) -> None:
        """Schedules the copying of the values."""
        clock = self.end.clock
        clock.at(clock.now + self._lateness(), self.end.rank, partial(super().take, send))


class Mailbox:
    """Where the messages to one rank meet the receives that it has posted, both first come, first served."""

    def __init__(self) -> None:
        self._number = count()
        self._arrived: dict[int, dict[int, deque[Send]]] = {}
        self._posted: dict[tuple[int, int], deque[Receive]] = {}

    def arrive(self, send: Send) -> None:
        """Deliver a message to the oldest matching receive, or queue it."""
        source = send.end.rank
        named, any_ = self._posted.get((source, send.tag)), self._posted.get((ANY, send.tag))
        if named and (not any_ or named[0].number < any_[0].number):
            named.popleft().take(send)
        elif any_:
            any_.popleft().take(send)
        else:
            send.number = next(self._number)
            self._arrived.setdefault(send.tag, {}).setdefault(source, deque()).append(send)

    def post(self, receive: Receive) -> None:
        """Fill a receive with the oldest matching message, or queue it."""
        arrived = self._arrived.get(receive.tag)
        if arrived:
            source = receive.peer
            if source == ANY:
                source = min(arrived, key=lambda rank: arrived[rank][0].number)
            if source in arrived:
                receive.take(arrived[source].popleft())
                if not arrived[source]:
                    del arrived[source]
                return
        receive.number = next(self._number)
        self._posted.setdefault((receive.peer, receive.tag), deque()).append(receive)
