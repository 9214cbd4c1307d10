"""A cluster in one process: every rank is a greenlet, the network is free, and only `spend` takes time.

The same `work(transport)` that mpirun would start runs here once per rank, in milliseconds, and always in the
same order. Messages meet like those of the strictest MPI: a send is done only when its receive has been
posted, so that a program which relies on buffering is found out, as a deadlock.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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

    def run(self, work: Callable[[Transport], Result]) -> list[Result]:
        """Call `work(transport)` once per rank and return what each returned, by rank.

        Raises:
            DeadlockError: no rank can go on; says who waits for whom.
            Exception: the first that any rank raises; the other ranks are ended.
        """
        self._hub = greenlet.getcurrent()
        results: dict[int, Result] = {}

        def body(transport: ClusterTransport) -> None:
            results[transport.rank] = work(transport)

        ranks = [greenlet(body) for _ in self.transports]
        for rank, transport in zip(ranks, self.transports, strict=True):
            self._ready.append(rank)
            transport.greenlet = rank
        started: set[greenlet] = set()
        try:
            while self._ready:
                rank = self._ready.popleft()
                arguments = () if rank in started else (self.transports[ranks.index(rank)],)
                started.add(rank)
                rank.switch(*arguments)
            waiting = [t.waiting for t in self.transports if t.waiting is not None]
            if waiting:
                raise DeadlockError(
                    "Every rank that is left waits for another: "
                    + "; ".join(str(request) for request in waiting)
                    + ". Some send has no receive, or the other way round."
                )
        finally:
            self._ready.clear()
            for rank in ranks:
                if rank:
                    rank.throw()
        return [results[rank] for rank in range(len(ranks))]

    def wake(self, rank: greenlet) -> None:
        """Let a rank that waited go on, after those that can go on already."""
        self._ready.append(rank)

    def sleep(self) -> None:
        """Give way to the others until woken."""
        assert self._hub is not None, "ranks exist only while `run` does"
        self._hub.switch()


@dataclass(eq=False)
class Message(Request):
    """One end of a message, posted by `transport` and not yet met by the other end."""

    transport: "ClusterTransport"
    operation: str
    buffer: Buffer
    peer: int
    tag: int
    posted: float
    finished: float | None = field(default=None)
    waiter: greenlet | None = field(default=None)

    def wait(self) -> int:
        """Wait until both ends have met; the clock moves on to that moment."""
        if self.finished is None:
            self.waiter = greenlet.getcurrent()
            self.transport.waiting = self
            self.transport.cluster.sleep()
            self.transport.waiting = None
        assert self.finished is not None, "woken only when finished"
        self.transport.clock = max(self.transport.clock, self.finished)
        return self.peer

    def finish(self, peer: int, when: float) -> None:
        """Both ends have met; whoever waits for it may go on."""
        self.peer, self.finished = peer, when
        if self.waiter is not None:
            self.transport.cluster.wake(self.waiter)

    def __str__(self) -> str:
        peer = "any rank" if self.peer == ANY else f"rank {self.peer}"
        return (
            f"rank {self.transport.rank} waits to {self.operation} {peer} (tag {self.tag}, {self.buffer.nbytes} bytes)"
        )


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
        waiting: the message this rank waits for, if any.
    """

    threaded = False

    def __init__(self, cluster: Cluster, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.cluster = cluster
        self.clock = 0.0
        self.waiting: Message | None = None
        self.greenlet: greenlet | None = None
        self._sends: list[Message] = []  # addressed to this rank, not yet received
        self._receives: list[Message] = []  # posted by this rank, not yet met

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

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        send = Message(self, "send to", buffer, target, tag, self.clock)
        receiver = self.cluster.transports[target]
        for receive in receiver._receives:
            if receive.tag == tag and receive.peer in (ANY, self.rank):
                receiver._receives.remove(receive)
                _deliver(send, receive)
                return send
        receiver._sends.append(send)
        return send

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        receive = Message(self, "receive from", buffer, source, tag, self.clock)
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
