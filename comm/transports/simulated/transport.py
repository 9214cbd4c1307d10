"""The transport of a cluster: one rank's end of the wires, in simulated time."""

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.network import Route
from bigbatch.comm.transports.simulated.clock import Awaited
from bigbatch.comm.transports.simulated.fabric import Fabric
from bigbatch.comm.transports.simulated.messages import Send
from bigbatch.comm.transports.simulated.threads import GreenletQueue, GreenletThread
from bigbatch.comm.wires.queue import CommunicationQueue
from bigbatch.comm.wires.recording import COMPUTE, REDUCE
from bigbatch.comm.wires.request import Request, Windows
from bigbatch.comm.wires.transport import Group, Transport

Result = TypeVar("Result")


class ClusterWindows(Windows):
    """The windows of ranks in one process, with a barrier of messages.

    Args:
        buffers: every window, (nbytes,) bytes each, in the order of the group's ranks.
        group: the ranks that share them.
    """

    def __init__(self, buffers: list[NDArray[np.uint8]], group: Group) -> None:
        self.buffers = buffers
        self._group = group

    def barrier(self) -> None:
        """Waits until every rank of the group has called it."""
        self._group.barrier()


class ClusterTransport(Transport):
    """One rank's end of the wires of a cluster.

    Args:
        fabric: what the ranks of the cluster share.
        rank: this rank's number.
        size: the number of ranks.

    Attributes:
        clock: the simulated time that the ranks live by.
        last: what this end waited for last.
        asked_once: how often this rank has called `once`.
    """

    threaded = False

    def __init__(self, fabric: Fabric, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.clock = fabric.clock
        self.last: Awaited | None = None
        self.gamma = fabric.network.gamma
        self.board = fabric.board
        self.asked_once = 0
        self._fabric = fabric
        self._mailbox = fabric.mailboxes[rank]
        self._name = f"rank {rank}"
        self._routes: dict[int, Route] = {}

    def __str__(self) -> str:
        return self._name

    @property
    def wires(self) -> str:
        """Identifies the network by its name and a fingerprint of its numbers."""
        return f"simulated-{self._fabric.network.name}-{zlib.crc32(repr(self._fabric.network).encode()):08x}"

    def before(self) -> str:
        """What this end waited for last, in parentheses, for an error."""
        if self.last is None:
            return ""
        return f" (the last thing that it had waited for was to {self.last.what()})"

    def now(self) -> float:
        """Simulated seconds since the cluster was made."""
        return self.clock.now

    def spend(self, seconds: float, name: str = "") -> None:
        """Lets `seconds` of simulated time pass on this rank, as if it computed."""
        if seconds > 0:
            with self.span(COMPUTE, name):
                self.clock.pause(self.rank, seconds)

    def once(self, work: Callable[[], Result]) -> Result | None:
        """Does the work if no other rank has done it yet; every rank gets the same result, in no simulated time."""
        done = self._fabric.done_once
        if self.asked_once == len(done):
            done.append(work())
        self.asked_once += 1
        result: Result = done[self.asked_once - 1]
        return result

    def _add(self, values: Buffer, arrived: Buffer, adding: Callable[[Buffer, Buffer], None]) -> None:
        super()._add(values, arrived, adding)
        self._pass(values)

    def convert(self, values: Buffer) -> None:
        """Charges γ for each byte of `values`, within a span of its own."""
        with self.span(REDUCE, "convert", values.nbytes):
            self._pass(values)

    def _pass(self, values: Buffer) -> None:
        if self.gamma and self._fabric.charging:
            self.clock.pause(self.rank, values.nbytes * self.gamma)

    def windows(self, nbytes: int) -> Windows:
        """Ordinary arrays, one for each rank of the node: in one process all memory is shared.

        Raises:
            ConfigurationError: the network is not free, and windows would be a way round it.
        """
        fabric = self._fabric
        if not self.shares_memory:
            raise ConfigurationError(
                f"Memory that ranks share has no messages, so that the network {fabric.network.name} cannot say "
                "how long it takes. Simulate an algorithm that sends some."
            )
        own = np.zeros(nbytes, dtype=np.uint8)
        fabric.shelf[self.rank] = own
        group = Group(self, self.node)
        group.barrier()
        buffers = [fabric.shelf[rank] for rank in self.node]
        group.barrier()
        return ClusterWindows(buffers, group)

    def queue(self, idle: Callable[[], AbstractContextManager[None]] = nullcontext) -> CommunicationQueue:
        """A queue of greenlets; a single rank, which sends nothing, needs none and gets an ordinary one."""
        return GreenletQueue(self, self.start_thread, idle) if self.size > 1 else super().queue(idle)

    @property
    def shares_memory(self) -> bool:
        """True on a free network; on any other, shared memory would be a way round the network."""
        return self._fabric.network.free

    def exchange(self, text: str) -> list[str | None]:
        """Every rank's text, by rank, on every rank: in one process all ranks can look at the same list."""
        texts = self._fabric.texts
        texts[self.rank] = text
        self.barrier()
        all_texts = list(texts)
        self.barrier()
        return all_texts

    def check_threads(self) -> None:
        """Refuse nothing: there is always room for one more greenlet."""

    def _start_thread(self, work: Callable[[Transport], None]) -> Request:
        end = self._second_end()
        end._name = f"rank {self.rank}, beside its own work,"
        end.last = None
        thread = GreenletThread(self, self.rank)

        def finishing() -> None:
            work(end)
            thread.finish(self.rank, self.clock.now)

        self.clock.begin(self.rank, finishing)
        return thread

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        fabric = self._fabric
        if fabric.meter is not None:
            fabric.meter(self, target, buffer.nbytes)
        if fabric.strict:
            send = Send(self, target, buffer, tag)
            fabric.mailboxes[target].arrive(send)
            return send
        send = Send(self, target, buffer.copy(), tag)  # it may change once it has left, and arrive later
        if target == self.rank:
            send.finish(target, self.clock.now)
            self._mailbox.arrive(send)
            return send
        if target not in self._routes:
            self._routes[target] = fabric.route(self.rank, target)
        fabric.carry(send, self._routes[target])
        return send

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        receive = self._fabric.receive(self, source, buffer, tag)
        self._mailbox.post(receive)
        return receive
