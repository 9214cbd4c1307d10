"""A cluster in one process: every rank is a greenlet, the network is free, and only `spend` takes time.

The same `work(transport)` that mpirun would start runs here once per rank, in milliseconds, and always in the
same order. Messages meet like those of the strictest MPI: a send is done only when its receive has been
posted, so that a program which relies on buffering is found out, as a deadlock.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from greenlet import greenlet
from numpy.typing import NDArray

from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlockError
from bigbatch.comm.transport import ANY, Buffer, Group, Request, Transport, Windows

Result = TypeVar("Result")


class Cluster:
    """`size` ranks in simulated time.

    Args:
        size: the number of ranks.
        nodes: the ranks of each node; none given, all share one.

    Attributes:
        transports: every rank's end of the wires.
        shelf: where ranks put the windows that others of their node take.
    """

    def __init__(self, size: int, nodes: Sequence[Sequence[int]] = ()) -> None:
        if size < 1:
            raise ConfigurationError(f"A cluster of {size} ranks was asked for; it needs at least one.")
        self.transports = [ClusterTransport(self, rank, size) for rank in range(size)]
        for transport in self.transports:
            transport.nodes = tuple(tuple(node) for node in nodes) or transport.nodes
        self.shelf: dict[int, NDArray[np.uint8]] = {}
        self._ready: deque[greenlet] = deque()
        self._hub: greenlet | None = None
        self._ends: list[ClusterTransport] = []
        self._greenlets: list[greenlet] = []

    def run(self, work: Callable[[Transport], Result]) -> list[Result]:
        """Call `work(transport)` once per rank and return what each returned, by rank.

        Raises:
            DeadlockError: no rank can go on; says who waits for whom.
            Exception: the first that any rank raises; the other ranks are ended.
        """
        self._hub = greenlet.getcurrent()
        self._ends, self._greenlets = [], []
        results: dict[int, Result] = {}

        def body(transport: Transport) -> None:
            results[transport.rank] = work(transport)

        for transport in self.transports:
            self.begin(body, transport)
        try:
            while self._ready:
                self._ready.popleft().switch()
            waiting = [end.waiting for end in self._ends if end.waiting is not None]
            if waiting:
                raise DeadlockError(
                    "Every rank that is left waits for another: "
                    + "; ".join(str(awaited) for awaited in waiting)
                    + ". Some send has no receive, or the other way round."
                )
        finally:
            self._ready.clear()
            for begun in self._greenlets:
                if begun:
                    begun.throw()
        return [results[rank] for rank in range(len(self.transports))]

    def begin(self, work: Callable[[Transport], None], end: "ClusterTransport") -> None:
        """Have `work` done on an end of the wires, after what can go on already."""
        begun = greenlet(partial(work, end), self._hub)
        self._ends.append(end)
        self._greenlets.append(begun)
        self._ready.append(begun)

    def wake(self, waiter: greenlet) -> None:
        """Let what waited go on, after what can go on already."""
        self._ready.append(waiter)

    def sleep(self) -> None:
        """Give way to the others until woken."""
        assert self._hub is not None, "ranks exist only while `run` does"
        self._hub.switch()


@dataclass(eq=False)
class Awaited(Request):
    """Something that the work at one end of the wires can wait for."""

    transport: "ClusterTransport"
    peer: int
    finished: float | None = field(default=None, init=False)
    waiter: greenlet | None = field(default=None, init=False)

    def wait(self) -> int:
        """Wait until it has come about; the clock moves on to that moment."""
        if self.finished is None:
            self.waiter = greenlet.getcurrent()
            self.transport.waiting = self
            self.transport.cluster.sleep()
            self.transport.waiting = None
        assert self.finished is not None, "woken only when finished"
        self.transport.clock = max(self.transport.clock, self.finished)
        return self.peer

    def finish(self, peer: int, when: float) -> None:
        """It has come about; whoever waits for it may go on."""
        self.peer, self.finished = peer, when
        if self.waiter is not None:
            self.transport.cluster.wake(self.waiter)


@dataclass(eq=False)
class Message(Awaited):
    """One end of a message, posted by `transport` and not yet met by the other end."""

    operation: str
    buffer: Buffer
    tag: int
    posted: float

    def __str__(self) -> str:
        peer = "any rank" if self.peer == ANY else f"rank {self.peer}"
        return f"{self.transport} waits to {self.operation} {peer} (tag {self.tag}, {self.buffer.nbytes} bytes)"


@dataclass(eq=False)
class Beside(Awaited):
    """The end of the work beside that of `transport`."""

    def __str__(self) -> str:
        return f"{self.transport} waits for the work beside its own"


class ClusterWindows(Windows):
    """The windows of ranks in one process, with a barrier of messages."""

    def __init__(self, buffers: list[NDArray[np.uint8]], group: Group) -> None:
        self.buffers = buffers
        self._group = group

    def barrier(self) -> None:
        """The group's."""
        self._group.barrier()


class ClusterTransport(Transport):
    """One rank's end of the wires of a `Cluster`.

    Attributes:
        clock: this rank's time, in simulated seconds.
        waiting: what this rank waits for, if anything.
    """

    threaded = False

    def __init__(self, cluster: Cluster, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.cluster = cluster
        self.clock = 0.0
        self.waiting: Awaited | None = None
        self._name = f"rank {rank}"
        self._sends: list[Message] = []  # addressed to this rank, not yet received
        self._receives: list[Message] = []  # posted by this rank, not yet met

    def __str__(self) -> str:
        return self._name

    def now(self) -> float:
        """Simulated seconds since the start."""
        return self.clock

    def spend(self, seconds: float) -> None:
        """Compute for `seconds` of simulated time."""
        self.clock += seconds

    def windows(self, nbytes: int) -> Windows:
        """Ordinary arrays: in one process all memory is shared."""
        own = np.zeros(nbytes, dtype=np.uint8)
        self.cluster.shelf[self.rank] = own
        group = Group(self, self.node)
        group.barrier()
        buffers = [self.cluster.shelf[rank] for rank in self.node]
        group.barrier()
        return ClusterWindows(buffers, group)

    def check_beside(self) -> None:
        """There is always room for a greenlet more."""

    def _beside(self, work: Callable[[Transport], None]) -> Request:
        """On a greenlet, with a clock of its own that begins at this one's time; the mailbox is the rank's."""
        end = self._second_end()
        end._name = f"rank {self.rank}, beside its own work,"
        ended = Beside(self, self.rank)

        def finishing(transport: Transport) -> None:
            work(transport)
            ended.finish(self.rank, end.clock)

        self.cluster.begin(finishing, end)
        return ended

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        send = Message(self, target, "send to", buffer, tag, self.clock)
        receiver = self.cluster.transports[target]
        for receive in receiver._receives:
            if receive.tag == tag and receive.peer in (ANY, self.rank):
                receiver._receives.remove(receive)
                _deliver(send, receive)
                return send
        receiver._sends.append(send)
        return send

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        receive = Message(self, source, "receive from", buffer, tag, self.clock)
        for send in self._sends:
            if send.tag == tag and source in (ANY, send.transport.rank):
                self._sends.remove(send)
                _deliver(send, receive)
                return receive
        self._receives.append(receive)
        return receive


def _deliver(send: Message, receive: Message) -> None:
    source, target = send.transport.rank, receive.transport.rank
    if send.buffer.nbytes != receive.buffer.nbytes or send.buffer.dtype != receive.buffer.dtype:
        raise CommunicationError(
            f"Rank {source} sent {send.buffer.size} × {send.buffer.dtype} to rank {target}, which expected "
            f"{receive.buffer.size} × {receive.buffer.dtype} (tag {send.tag}). Both must describe the same buffer."
        )
    receive.buffer[:] = send.buffer
    when = max(send.posted, receive.posted)
    send.finish(target, when)
    receive.finish(source, when)
