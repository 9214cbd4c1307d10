"""The fabric of a cluster: what all its ranks share, above all the ports through which their messages pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.simulation.network import Network, Route
from bigbatch.comm.transports.simulated.clock import Clock
from bigbatch.comm.transports.simulated.messages import Mailbox, Receive, Send
from bigbatch.comm.wires.transport import Transport


class Fabric:
    """A network in use by `size` ranks, with the clock, the mailboxes and the memory that these share.

    Args:
        network: what messages cost.
        size: the number of ranks.

    Attributes:
        network: what messages cost.
        strict: whether a send is done only when its receive has been posted, as on a network that costs nothing.
        clock: the simulated time that all ranks live by.
        mailboxes: every rank's mailbox, by rank.
        charging: whether messages take their time; while they do not, ranks can get ready without moving the clock.
        receive: makes a receive for an end of the wires, a source, a buffer and a tag.
        meter: called for every message with the sending end of the wires, the target rank and the message's bytes; None
            if nobody counts.
        shelf: rank -> its window, (nbytes,) bytes, which the other ranks of its node take from here.
        texts: what each rank last gave to all others, by rank.
        board: a dictionary in which ranks show each other further things.
        done_once: the results of what one rank has done for all, in order.
    """

    def __init__(self, network: Network, size: int) -> None:
        self.network = network
        self.strict = network.free
        self.clock = Clock(by_rank=not network.free)
        self.mailboxes = [Mailbox() for _ in range(size)]
        self.charging = True
        self.receive: Callable[..., Receive] = Receive
        self.meter: Callable[[Transport, int, int], None] | None = None
        self.shelf: dict[int, NDArray[np.uint8]] = {}
        self.texts: list[str | None] = [None] * size
        self.board: dict[Any, Any] = {}
        self.done_once: list[Any] = []
        self._ports = network.for_ranks(size)
        self._free = [0.0] * self._ports.count

    def forget(self) -> None:
        """Forget what the ranks have shown each other and done for all, before other work begins."""
        self.board.clear()
        self.done_once.clear()

    def route(self, source: int, target: int) -> Route:
        """The wires and the ports that messages from rank `source` to rank `target` pass."""
        return self._ports.route(source, target)

    def carry(self, message: Send, route: Route) -> None:
        """Put a message on its way: it occupies the sender's port now, and each later port when it comes there."""
        latency, occupancy = route.wires.cost(message.nbytes) if self.charging else (0.0, 0.0)
        port, share = route.ports[0]
        clock = self.clock
        free, now = self._free[port], clock.now
        begin = free if free > now else now  # `max` would take a good part of the time that a message takes
        self._free[port] = end = begin + occupancy * share
        message.finish(message.peer, end)
        message.tail = end + latency
        clock.at(begin + latency, message.end.rank, partial(self._pass, message, route, occupancy, 1))

    def _pass(self, message: Send, route: Route, occupancy: float, number: int) -> None:
        """Let a message, which has come to the given port of its route, through it, and deliver it after the last."""
        port, share = route.ports[number]
        free, now = self._free[port], self.clock.now
        begin = free if free > now else now
        self._free[port] = end = begin + occupancy * share
        message.tail = max(message.tail, end)
        if number + 1 < len(route.ports):
            self.clock.at(begin, message.end.rank, partial(self._pass, message, route, occupancy, number + 1))
        else:
            self.mailboxes[message.peer].arrive(message)
