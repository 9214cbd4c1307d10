"""Networks in simulated time: what a message costs, and which ports it passes.

The model is alpha-beta-gamma with ports. A message of m bytes holds every port on its way for mβ seconds; its head
arrives α seconds after it has begun to leave the sender's NIC; adding it to what the receiver has takes mγ. To round m
bytes of float32 before they are sent in half precision takes mγ, too, and so does widening or adding them where they
arrive: each passes through the numbers once, which on a CPU takes about as long as adding. A NIC has
a port for sending and one for receiving, and works on both at once. Ports serve who comes first; what waits for a port
waits where there is room for it, so that a send is done as soon as it has left.

Sources: Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2" (1994), for α and β; Thakur,
Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH" (2005), section 4, for γ;
`bigbatch.comm.simulation.presets` for the numbers.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import BYTES, Number, Text, Whole, check_fields
from bigbatch.comm.schedules.schedule import IntArray

FloatArray = NDArray[np.float64]

ALPHA = Number(least=0, most=1e6)
"""The kind of value for a latency, in seconds."""

BANDWIDTH = Number(least=1e-6, infinite=True)
"""The kind of value for a bandwidth, in bytes a second; it may be infinite."""

_COUNT = Whole(most=2**31 - 1)
_KINDS = {
    "name": Text(),
    "gamma": ALPHA,
    "node_size": _COUNT,
    "nics": _COUNT,
    "leaf_size": Whole(least=0, most=_COUNT.most),
    "oversubscription": Number(least=1, most=1e6),
    "source": Text(empty=True),
}
"""The kinds of value that the numbers and names of a network take."""


@dataclass(frozen=True)
class Piece:
    """The cost of messages from a certain size on.

    Attributes:
        least: the smallest size that this applies to, in bytes.
        alpha: seconds from its first byte's leaving to its arrival.
        bandwidth: bytes a second through one port; infinite if moving takes no time.
    """

    least: int
    alpha: float
    bandwidth: float

    def __post_init__(self) -> None:
        check_fields(self, {"least": Whole(least=0, most=BYTES.most), "alpha": ALPHA, "bandwidth": BANDWIDTH})


class Wire:
    """A kind of wire: latency and time in a port, by the size of the message.

    Args:
        pieces: in ascending order of their sizes; the first is for messages of any size.

    Attributes:
        pieces: the pieces, as given.
    """

    def __init__(self, *pieces: Piece) -> None:
        sizes = [piece.least for piece in pieces]
        if not pieces or sizes[0] != 0 or sizes != sorted(set(sizes)):
            raise ConfigurationError(
                f"A wire's pieces begin at {sizes} bytes; the first must begin at 0, and each other one further on."
            )
        self.pieces = pieces
        self._least = np.array(sizes[1:])
        self._alpha = np.array([piece.alpha for piece in pieces])
        self._beta = np.array([1 / piece.bandwidth for piece in pieces])
        self._sizes = sizes[1:]
        self._each = list(zip(self._alpha.tolist(), self._beta.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wire) and self.pieces == other.pieces

    def __hash__(self) -> int:
        return hash(self.pieces)

    def __repr__(self) -> str:
        return f"Wire{self.pieces}"

    @property
    def free(self) -> bool:
        """Whether messages on this wire take no time."""
        return not self._alpha.any() and not self._beta.any()

    def latency(self, nbytes: ArrayLike) -> FloatArray:
        """α of messages of `nbytes` bytes each, in seconds."""
        return self._alpha[self._piece(nbytes)]

    def occupancy(self, nbytes: IntArray) -> FloatArray:
        """Seconds for which messages of `nbytes` bytes each hold a port."""
        beta: FloatArray = self._beta[self._piece(nbytes)]
        return np.asarray(nbytes * beta)

    def cost(self, nbytes: int) -> tuple[float, float]:
        """The latency and the occupancy of one message of `nbytes` bytes, in seconds."""
        alpha, beta = self._each[bisect_right(self._sizes, nbytes)]
        return alpha, nbytes * beta

    def _piece(self, nbytes: ArrayLike) -> IntArray:
        return np.searchsorted(self._least, nbytes, side="right") if len(self._least) else np.zeros((), np.int64)


def wire(alpha: float, bandwidth: float) -> Wire:
    """Makes a wire on which α, in seconds, and bandwidth, in bytes a second, are the same for all sizes."""
    return Wire(Piece(0, alpha, bandwidth))


@dataclass(frozen=True)
class Network:
    """What messages between ranks cost, and which of them share ports.

    Every `node_size` consecutive ranks are a node, with `nics` NICs that they share evenly, and with wires of their own
    inside. Every `leaf_size` consecutive nodes hang on a leaf switch; what leaves it passes an uplink to the spine and
    the downlink of another leaf, each of the bandwidth of all NICs below it, divided by `oversubscription`.

    Attributes:
        name: the network's name, for tables and figures.
        wires: the wires between nodes; their bandwidth is that of one NIC.
        gamma: seconds to add one byte, or to round or widen one byte of float32.
        node_size: the number of ranks in a node.
        nics: the number of NICs in a node.
        inside: the wires between two ranks of a node, each of which has its own two ports there; if None, their
            messages pass the NICs like all others.
        leaf_size: the number of nodes at a leaf switch; 0 if all nodes share one switch.
        oversubscription: bandwidth below a leaf switch over bandwidth above it.
        source: where the numbers come from.

    Raises:
        ConfigurationError: a number that no network can have.
    """

    name: str
    wires: Wire
    gamma: float = 0.0
    node_size: int = 1
    nics: int = 1
    inside: Wire | None = None
    leaf_size: int = 0
    oversubscription: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        check_fields(self, _KINDS)
        if self.nics > self.node_size:
            raise ConfigurationError(
                f"The network {self.name} has nodes of {self.node_size} rank(s) with {self.nics} NICs; a rank uses one "
                "NIC, so that there cannot be more of them. Give nics at most node_size."
            )

        if self.oversubscription > 1 and not self.leaf_size:
            raise ConfigurationError(
                f"The network {self.name} has an oversubscription of {self.oversubscription:g}, but all its nodes "
                "share one switch, above which there is nothing. Give leaf_size, the number of nodes at a leaf switch."
            )

    @property
    def free(self) -> bool:
        """Whether neither messages nor adding takes any time."""
        return self.wires.free and not self.gamma and (self.inside is None or self.inside.free)

    def with_nodes(self, node_size: int) -> "Network":
        """The same network with `node_size` ranks a node; a node with a NIC for each rank keeps one for each."""
        nics = node_size if self.nics == self.node_size and self.nics > 1 else min(self.nics, node_size)
        return replace(self, node_size=node_size, nics=nics)

    def for_ranks(self, size: int) -> "Ports":
        """The ports of the network when `size` ranks use it."""
        return Ports(self, size)


class Hop(NamedTuple):
    """A stop on the way of some messages: the port that each of them passes there.

    Attributes:
        rows: which messages pass it, or None if all do.
        port: (rows,) the number of the port.
        share: (rows,) the part of its occupancy for which each message holds the port.
    """

    rows: IntArray | None
    port: IntArray
    share: FloatArray


class Route(NamedTuple):
    """The way of messages from one rank to another.

    Attributes:
        wires: the wires that set the messages' cost.
        ports: the ports they pass, as (number, part of their occupancy for which they hold it).
    """

    wires: Wire
    ports: tuple[tuple[int, float], ...]


class Ports:
    """The ports of a network that a number of ranks use, and the way between any two of them.

    Ports are numbered: every NIC's for sending, every NIC's for receiving, every rank's for sending inside of its node,
    and for receiving there, every leaf's uplink, every leaf's downlink.

    Args:
        network: the network that has the ports.
        size: the number of ranks.

    Attributes:
        network: the network that has the ports.
        size: the number of ranks.
        count: the number of ports.
    """

    def __init__(self, network: Network, size: int) -> None:
        if size < 1:
            raise ConfigurationError(f"{size} ranks were asked for; a network needs at least one.")
        self.network = network
        self.size = size
        rank = np.arange(size)
        self._node = rank // network.node_size
        nodes = int(self._node[-1]) + 1
        self._nic = self._node * network.nics + rank % network.node_size * network.nics // network.node_size
        self._leaf = self._node // network.leaf_size if network.leaf_size else np.zeros(size, np.int64)
        leaves = int(self._leaf[-1]) + 1
        starts = np.cumsum([0, *[nodes * network.nics] * 2, size, size, leaves, leaves]).tolist()
        self._tx, self._rx, self._inside_tx, self._inside_rx, self._up, self._down, self.count = starts
        self._thin = network.oversubscription / (max(1, network.leaf_size) * network.nics)

    @cached_property
    def tx_is_own(self) -> bool:
        """Whether no two ranks send through the same port."""
        return self.network.node_size == self.network.nics

    def inside(self, source: IntArray, target: IntArray) -> NDArray[np.bool_]:
        """(messages,) whether each message uses the wires inside of a node."""
        if self.network.inside is None:
            return np.zeros(len(source), np.bool_)
        return np.equal(self._node[source], self._node[target])

    def way(self, source: IntArray, target: IntArray) -> list[Hop]:
        """The ports that messages from each source to each target pass, in the order in which they pass them."""
        inside = self.inside(source, target)
        ones = np.ones(len(source))
        tx = np.where(inside, self._inside_tx + source, self._tx + self._nic[source])
        rx = np.where(inside, self._inside_rx + target, self._rx + self._nic[target])
        hops = [Hop(None, tx, ones)]
        over = np.flatnonzero(self._leaf[source] != self._leaf[target])
        if len(over):
            thin = np.full(len(over), self._thin)
            hops.append(Hop(over, self._up + self._leaf[source[over]], thin))
            hops.append(Hop(over, self._down + self._leaf[target[over]], thin))
        hops.append(Hop(None, rx, ones))
        return hops

    def route(self, source: int, target: int) -> Route:
        """The wires and ports that messages from rank `source` to rank `target` use."""
        ends = np.array([source]), np.array([target])
        wires = self.network.inside if self.inside(*ends)[0] else self.network.wires
        assert wires is not None, "nothing is inside where there are no wires"
        return Route(wires, tuple((int(hop.port[0]), float(hop.share[0])) for hop in self.way(*ends)))

    def costs(self, source: IntArray, target: IntArray, nbytes: IntArray) -> tuple[FloatArray, FloatArray]:
        """The latency and the occupancy of messages, (messages,) each, in seconds."""
        network = self.network
        latency, occupancy = network.wires.latency(nbytes), network.wires.occupancy(nbytes)
        if network.inside is None:
            return latency, occupancy
        inside = self.inside(source, target)
        return (
            np.where(inside, network.inside.latency(nbytes), latency),
            np.where(inside, network.inside.occupancy(nbytes), occupancy),
        )


FREE = Network("free", wire(0.0, math.inf), source="None: nothing takes any time.")
"""A network on which nothing takes any time."""
