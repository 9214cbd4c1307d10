"""A cluster in one process: every rank is a greenlet, and all of them live in simulated time.

The same `work(transport)` that mpirun would start runs here once per rank, unchanged, with real values. There is one
clock, and what happens next is whatever happens first: a heap of moments. Computing takes the time that is spent on it
(`spend`), messages take what the network says, and everything repeats itself exactly.

On a free network messages meet like those of the strictest MPI: a send is done only when its receive has been posted,
so that a program which relies on buffering is found out, as a deadlock. On any other a send is done when the message
has left the sender's port.
"""

import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

import numpy as np
from greenlet import GreenletExit, getcurrent, greenlet
from numpy.typing import NDArray

from bigbatch.comm.buffers import Buffer, Phantom
from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlineError, DeadlockError
from bigbatch.comm.simulation.network import FREE, Network, Route
from bigbatch.comm.wires.queue import CommunicationQueue, on_queue
from bigbatch.comm.wires.recording import COMPUTE
from bigbatch.comm.wires.request import ANY, Request, Windows
from bigbatch.comm.wires.transport import DEFAULT_DEADLINE, Group, Transport, consecutive_nodes

Result = TypeVar("Result")


class Cluster:
    """`size` ranks in simulated time.

    Args:
        size: the number of ranks.
        nodes: the ranks of each node; none given, the network's, or on a free network one for all.
        network: what messages cost.
        failures: rank -> the simulated second at which it stops for ever.
        deadline: simulated seconds after which a wait for a rank that has failed gives up.

    Attributes:
        now: simulated seconds since the start.
        network: what messages cost.
        strict: whether a send is done only when its receive has been posted.
        transports: every rank's end of the wires.
        waiting: what is waited for -> since when.
        give_way: lets happen what happens next, and returns when somebody switches back.
        charging: whether messages take their time; while they do not, ranks can get ready without moving the clock.
        meter: told of every message: the end that sends it, the rank it is for, its bytes; None if nobody counts.
        shelf: where ranks put the windows that others of their node take.
        texts: where they put what all others read.

    Raises:
        ConfigurationError: fewer than one rank, or a failure of a rank that does not exist.
    """

    def __init__(
        self,
        size: int,
        nodes: Sequence[Sequence[int]] = (),
        network: Network = FREE,
        failures: Mapping[int, float] | None = None,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        if size < 1:
            raise ConfigurationError(f"A cluster of {size} ranks was asked for; it needs at least one.")
        self.now = 0.0
        self.network = network
        self.strict = network.free
        self.charging = True
        self.meter: Callable[[ClusterTransport, int, int], None] | None = None
        self.waiting: dict[Awaited, float] = {}
        self.shelf: dict[int, NDArray[np.uint8]] = {}
        self.texts: list[str | None] = [None] * size
        self._failures = dict(failures or {})
        for rank in self._failures:
            if not 0 <= rank < size:
                raise ConfigurationError(f"Rank {rank} is to fail, but the ranks are 0 to {size - 1}.")
        self._failed: dict[int, float] = {}
        self._ports = network.for_ranks(size)
        self._free = [0.0] * self._ports.count
        self._moments: list[tuple[float, int, int, Callable[[], object]]] = []
        self._order = count()
        self._hub = getcurrent()
        self.give_way = self._hub.switch
        self._greenlets: list[tuple[int, greenlet]] = []
        self.transports = [ClusterTransport(self, rank, size) for rank in range(size)]
        if not nodes and not network.free:
            nodes = consecutive_nodes(size, network.node_size)
        layout = tuple(tuple(node) for node in nodes)
        for transport in self.transports:
            transport.nodes = layout or transport.nodes
            transport.deadline = deadline

    def run(self, work: Callable[[Transport], Result]) -> list[Result]:
        """Call `work(transport)` once per rank and return what each returned, by rank.

        Raises:
            DeadlockError: no rank can go on; says who waits for whom, and what each did last.
            DeadlineError: a rank has waited in vain for one that had failed.
            CommunicationError: a rank has failed, and the others did without it.
            Exception: the first that any rank raises; the other ranks are ended.
        """
        self._hub = getcurrent()
        self.give_way = self._hub.switch
        self._greenlets = []
        results: dict[int, Result] = {}

        def body(transport: Transport) -> None:
            results[transport.rank] = work(transport)

        for transport in self.transports:
            self.begin(body, transport)
        for rank, second in self._failures.items():
            self.at(second, rank, partial(self._fail, rank))
        try:
            self._go_on()
        finally:
            self._moments.clear()
            self.waiting.clear()
            for _, begun in self._greenlets:
                if begun:
                    begun.throw()
        for rank, second in self._failed.items():
            if rank not in results:
                raise CommunicationError(f"Rank {rank} failed after {second:g} s of simulated time, at work.")
        return [results[rank] for rank in range(len(self.transports))]

    def _go_on(self) -> None:
        """Let happen what happens next, until nothing can any more."""
        moments = self._moments
        while True:
            while moments:
                self.now, _, _, happen = heappop(moments)
                happen()
            if not self.waiting:
                return
            if not self._failed:
                raise DeadlockError(
                    "Every rank that is left waits for another: "
                    + "; ".join(f"{awaited}{awaited.transport.before()}" for awaited in self.waiting)
                    + ". Some send has no receive, or the other way round."
                )
            awaited = min(self.waiting, key=lambda waiting: self.waiting[waiting] + waiting.transport.deadline)
            self.now = max(self.now, self.waiting.pop(awaited) + awaited.transport.deadline)
            awaited.give_up(self._failed)

    def at(self, when: float, rank: int, happen: Callable[[], object]) -> None:
        """Have something happen at a simulated second, to a rank or to a message from it.

        What is to happen at the same one does so in the order of ranks; if nothing takes any time, in this order, or
        the lowest ranks would go on for ever.
        """
        heappush(self._moments, (when, 0 if self.strict else rank, next(self._order), happen))

    def pause(self, rank: int, seconds: float) -> None:
        """Have what calls this, on behalf of a rank, go on so many seconds later."""
        self.at(self.now + seconds, rank, getcurrent().switch)
        self.give_way()

    def begin(self, work: Callable[[Transport], None], end: "ClusterTransport") -> None:
        """Have `work` done on an end of the wires, after what is to happen now already."""
        begun = greenlet(partial(work, end), self._hub)
        self._greenlets.append((end.rank, begun))
        self.at(self.now, end.rank, begun.switch)

    def _fail(self, rank: int) -> None:
        """End everything that a rank does; what it has sent is under way still."""
        mine = [begun for owner, begun in self._greenlets if owner == rank and begun]
        if mine:
            self._failed[rank] = self.now
        for begun in mine:
            for awaited in [waiting for waiting in self.waiting if waiting.waiter is begun]:
                del self.waiting[awaited]
            self._moments[:] = [moment for moment in self._moments if moment[-1] != begun.switch]
            self._moments.sort()
            begun.throw(GreenletExit)

    def route(self, source: int, target: int) -> Route:
        """The way from a rank to another."""
        return self._ports.route(source, target)

    def carry(self, message: "Send", route: Route) -> None:
        """Put a message on its way: through the sender's port now, and through the others when it comes to them."""
        latency, occupancy = route.wires.cost(message.nbytes) if self.charging else (0.0, 0.0)
        port, share = route.ports[0]
        free, now = self._free[port], self.now
        begin = free if free > now else now  # `max` would take a good part of the time that a message takes
        self._free[port] = end = begin + occupancy * share
        message.finish(message.peer, end)
        message.tail = end + latency
        self.at(begin + latency, message.transport.rank, partial(self._pass, message, route, occupancy, 1))

    def _pass(self, message: "Send", route: Route, occupancy: float, number: int) -> None:
        """A message comes to the port of that number on its way; from the last one, it is the target's."""
        port, share = route.ports[number]
        free, now = self._free[port], self.now
        begin = free if free > now else now
        self._free[port] = end = begin + occupancy * share
        message.tail = max(message.tail, end)
        if number + 1 < len(route.ports):
            self.at(begin, message.transport.rank, partial(self._pass, message, route, occupancy, number + 1))
        else:
            self.transports[message.peer].mailbox.arrive(message)


@dataclass(eq=False)
class Awaited(Request):
    """Something that the work at one end of the wires can wait for.

    Attributes:
        transport: that end.
        peer: the rank at the other.
        finished: the simulated second at which it comes about, once that is known.
        waiter: who waits for it.
    """

    transport: "ClusterTransport"
    peer: int
    finished: float | None = field(default=None, init=False)
    waiter: greenlet | None = field(default=None, init=False)

    def wait(self) -> int:
        """Wait until it has come about."""
        cluster = self.transport.cluster
        if self.finished is None or self.finished > cluster.now:
            self.waiter = getcurrent()
            cluster.waiting[self] = cluster.now
            if self.finished is not None:
                cluster.at(self.finished, self.transport.rank, self.waiter.switch)
            cluster.give_way()
            cluster.waiting.pop(self, None)
            self.waiter = None
        self.transport.last = self
        return self.peer

    def finish(self, peer: int, when: float) -> None:
        """It comes about then; whoever waits for it may go on."""
        self.peer, self.finished = peer, when
        if self.waiter is not None:
            self.transport.cluster.at(when, self.transport.rank, self.waiter.switch)

    def give_up(self, failed: Mapping[int, float]) -> None:
        """End the wait with an error, because of the ranks that have failed."""
        assert self.waiter is not None, "somebody waits"
        transport = self.transport
        who = " and ".join(f"rank {rank} failed after {second:g} s" for rank, second in failed.items())
        waiter, self.waiter = self.waiter, None
        waiter.throw(
            DeadlineError(
                f"{str(transport)[0].upper()}{str(transport)[1:]} waited {transport.deadline:g} s to {self.what()}; "
                f"{who} of simulated time."
            )
        )

    def what(self) -> str:
        """What is waited for, after "to"."""
        raise NotImplementedError


class SimulatedMessage(Awaited):
    """One end of a message, posted by `transport`.

    Args:
        transport: the end that posted it.
        peer: the rank at the other.
        buffer: what is sent, or where it is received.
        tag: the message's.

    Attributes:
        nbytes: its size.
        tail: the simulated second at which the last byte is there.
        number: its place among those that lie in the same mailbox.
    """

    operation = ""
    tail = 0.0
    number = 0

    def __init__(self, transport: "ClusterTransport", peer: int, buffer: Buffer, tag: int) -> None:
        self.transport = transport
        self.peer = peer
        self.buffer = buffer
        self.tag = tag
        self.nbytes = buffer.nbytes

    def __str__(self) -> str:
        return f"{self.transport} waits to {self.what()}"

    def what(self) -> str:
        """The operation, the peer and the size."""
        peer = "any rank" if self.peer == ANY else f"rank {self.peer}"
        return f"{self.operation} {peer} (tag {self.tag}, {self.nbytes} bytes)"


class Send(SimulatedMessage):
    """The sender's end."""

    operation = "send to"


class Receive(SimulatedMessage):
    """The receiver's end."""

    operation = "receive from"

    def take(self, send: Send) -> None:
        """The message is this receive's: the values move, and both ends know when they will be there."""
        source, target = send.transport.rank, self.transport.rank
        if send.nbytes != self.nbytes or send.buffer.dtype != self.buffer.dtype:
            raise CommunicationError(
                f"Rank {source} sent {send.buffer.size} × {send.buffer.dtype} to rank {target}, which expected "
                f"{self.buffer.size} × {self.buffer.dtype} (tag {send.tag}). Both must describe the same buffer."
            )
        if not isinstance(send.buffer, Phantom):
            self.buffer[:] = send.buffer
        if send.finished is None:
            send.finish(target, self.transport.cluster.now)
        now = self.transport.cluster.now
        self.finish(source, send.tail if send.tail > now else now)


@dataclass(eq=False)
class GreenletThread(Awaited):
    """The end of the work beside that of `transport`."""

    def __str__(self) -> str:
        return f"{self.transport} waits for the work beside its own"

    def what(self) -> str:
        """The work."""
        return "see the end of the work beside its own"


class Mailbox:
    """Where a rank's messages and its receives meet: those that came first, first."""

    def __init__(self) -> None:
        self._number = count()
        self._arrived: dict[int, dict[int, deque[Send]]] = {}
        self._posted: dict[tuple[int, int], deque[Receive]] = {}

    def arrive(self, send: Send) -> None:
        """A message is here: the receive for it that was posted first takes it, or it is kept."""
        source = send.transport.rank
        named, any_ = self._posted.get((source, send.tag)), self._posted.get((ANY, send.tag))
        if named and (not any_ or named[0].number < any_[0].number):
            named.popleft().take(send)
        elif any_:
            any_.popleft().take(send)
        else:
            send.number = next(self._number)
            self._arrived.setdefault(send.tag, {}).setdefault(source, deque()).append(send)

    def post(self, receive: Receive) -> None:
        """A receive is here: it takes the message for it that came first, or is kept."""
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


class Turn(Awaited):
    """The end of some work in a queue, for what comes after it."""

    def __str__(self) -> str:
        return f"{self.transport} waits to {self.what()}"

    def what(self) -> str:
        """The turn."""
        return "communicate in its turn"


class GreenletQueue(CommunicationQueue):
    """Carries out work on greenlets beside a rank's own, each after the one before it.

    Args:
        transport: of the rank.
        idle: entered by whoever waits for them.
    """

    def __init__(self, transport: "ClusterTransport", idle: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(threaded=False, idle=idle)
        self._transport = transport
        self._last: Turn | None = None

    def submit(self, work: Callable[[], None]) -> Callable[[], None]:
        """Begin `work` when what was submitted before it is done."""
        before, turn = self._last, Turn(self._transport, self._transport.rank)
        failures: list[Exception] = []

        def in_turn(_: Transport) -> None:
            on_queue.set(True)
            if before is not None:
                before.wait()
            try:
                self.carry_out(work)
            except Exception as failure:  # for whoever waits
                failures.append(failure)
            turn.finish(turn.peer, self._transport.cluster.now)

        done, self._last = self._transport.start_thread(in_turn), turn

        def wait() -> None:
            with self.idle():
                done.wait()
            if failures:
                raise failures[0]

        return wait


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
        cluster: which.
        mailbox: of this rank.
        last: what this end has waited for last.
    """

    threaded = False

    def __init__(self, cluster: Cluster, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.cluster = cluster
        self.mailbox = Mailbox()
        self.last: Awaited | None = None
        self.gamma = cluster.network.gamma
        self._name = f"rank {rank}"
        self._routes: dict[int, Route] = {}

    def __str__(self) -> str:
        return self._name

    @property
    def wires(self) -> str:
        """The network, by its name and a fingerprint of its numbers."""
        return f"simulated-{self.cluster.network.name}-{zlib.crc32(repr(self.cluster.network).encode()):08x}"

    def before(self) -> str:
        """What this end did last, for an error."""
        if self.last is None:
            return ""
        return f" (the last thing that it had waited for was to {self.last.what()})"

    def now(self) -> float:
        """Simulated seconds since the start."""
        return self.cluster.now

    def spend(self, seconds: float, name: str = "") -> None:
        """Compute for `seconds` of simulated time."""
        if seconds > 0:
            with self.span(COMPUTE, name):
                self.cluster.pause(self.rank, seconds)

    def _add(self, values: Buffer, arrived: Buffer) -> None:
        """In γ seconds a byte."""
        np.add(values, arrived, out=values)
        if self.gamma and self.cluster.charging:
            self.cluster.pause(self.rank, values.nbytes * self.gamma)

    def windows(self, nbytes: int) -> Windows:
        """Ordinary arrays: in one process all memory is shared."""
        if not self.cluster.network.free:
            raise ConfigurationError(
                f"Memory that ranks share has no messages, so that the network {self.cluster.network.name} cannot say "
                "how long it takes. Simulate an algorithm that sends some."
            )
        own = np.zeros(nbytes, dtype=np.uint8)
        self.cluster.shelf[self.rank] = own
        group = Group(self, self.node)
        group.barrier()
        buffers = [self.cluster.shelf[rank] for rank in self.node]
        group.barrier()
        return ClusterWindows(buffers, group)

    def queue(self, idle: Callable[[], AbstractContextManager[None]] = nullcontext) -> CommunicationQueue:
        """A line of greenlets."""
        return GreenletQueue(self, idle) if self.size > 1 else super().queue(idle)

    @property
    def shares_memory(self) -> bool:
        """On a free network: on any other it would be a way round it."""
        return self.cluster.network.free

    def exchange(self, text: str) -> list[str | None]:
        """Every rank's text, on every rank: in one process all can look at the same list, when everyone has come."""
        self.cluster.texts[self.rank] = text
        self.barrier()
        texts = list(self.cluster.texts)
        self.barrier()
        return texts

    def check_threads(self) -> None:
        """There is always room for a greenlet more."""

    def _start_thread(self, work: Callable[[Transport], None]) -> Request:
        """On a greenlet; the mailbox is the rank's."""
        end = self._second_end()
        end._name = f"rank {self.rank}, beside its own work,"
        end.last = None
        ended = GreenletThread(self, self.rank)

        def finishing(transport: Transport) -> None:
            work(transport)
            ended.finish(self.rank, self.cluster.now)

        self.cluster.begin(finishing, end)
        return ended

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        cluster = self.cluster
        if cluster.meter is not None:
            cluster.meter(self, target, buffer.nbytes)
        if cluster.strict:
            send = Send(self, target, buffer, tag)
            cluster.transports[target].mailbox.arrive(send)
            return send
        send = Send(self, target, buffer.copy(), tag)  # it may change once it has left, and arrive later
        if target == self.rank:
            send.finish(target, cluster.now)
            self.mailbox.arrive(send)
            return send
        if target not in self._routes:
            self._routes[target] = cluster.route(self.rank, target)
        cluster.carry(send, self._routes[target])
        return send

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        receive = Receive(self, source, buffer, tag)
        self.mailbox.post(receive)
        return receive
