"""Calibration: what messages and adding cost between two ranks here, as a network for simulated time.

Measured through our own transport, so that whatever it is made of has its part in the numbers: the MPI library's
copies, Python's calls, the processor's caches. The fit is of pure functions, which know nothing of how the points came
about; measured on a simulated cluster, they give back the network that it has.

Why the bandwidth of a port comes from both directions at once ("duplex"): the model's ports send and receive
independently, and a rank of a ring does both all the time. Where a NIC moves the data, both directions are as fast as
one. Where memory is the wire, cores copy, and if the same one copies what its rank sends and what it receives, or other
programs use the cores, a message takes up to twice as long while another comes the other way. Ping-pong, in which only
one message moves at a time, would then promise twice of what a ring gets. The price: what goes one way only is
predicted too slow, by as much as `Points.ping_pong` is faster than `Points.duplex`. On two cores that do nothing else
the two have been found alike for large messages.

Memory is part of the wire as well: messages from memory that is in a cache are several times faster than others. So
every message lies elsewhere, in a walk through as much memory as is given, as chunks of a large buffer do.

Sources: Hockney, "The communication challenge for MPP" (1994), for ping-pong; Hoefler, Schneider and Lumsdaine,
"LogGOPSim: simulating large-scale applications in the LogGOPS model" (2010), for pieces by the size of the message.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.reducers.execute import UNDER_WAY
from bigbatch.comm.schedules.schedule import PACKET_BYTES
from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.transport import Transport

SIZES = (*(4 * 4**power for power in range(7)), *(2**power for power in range(16, 27)))
"""Bytes of the messages to measure: 4 to 64 MB, denser where caches end."""

ADDED = (PACKET_BYTES // 4, PACKET_BYTES // 2, PACKET_BYTES)
"""Bytes to add at once; large buffers are added in packets of about that size."""

WALK_BYTES = 128 * 1024 * 1024
"""Memory that each rank walks through, if nothing else is said: more than caches hold."""

MOST_STEPS, STEP_BYTES = 32, 4 * 1024 * 1024
"""Messages one after the other under one look at the clock: at most so many, and about so many bytes."""

FEWEST_TURNS, MOST_TURNS = 2, 41
"""The fewest and the most times that every size is measured."""

AT_ONCE, LARGEST_AT_ONCE = 4, 4 * 1024 * 1024
"""Messages to one rank at once, and the bytes of the largest of those."""

SIDE = 512
"""Rows and columns of the square matrices that are multiplied to measure floating-point speed."""

Seconds = dict[int, float]
"""Maps a number of bytes to seconds."""


@dataclass(frozen=True)
class Points:
    """What was measured between two ranks: medians, in seconds.

    Attributes:
        duplex: bytes -> seconds of one message each way at the same time.
        ping_pong: bytes -> seconds of one message, while nothing else moves.
        incast: bytes -> seconds of each of `AT_ONCE` messages to one rank at once, their receipt included.
        adding: bytes -> seconds to add so many that have just arrived, while the other rank does the same.
        flops: multiplications and additions a second of a matrix product on one core, while the other one has a
            product too; 0 if the clock stands still.
    """

    duplex: Seconds
    ping_pong: Seconds = field(default_factory=dict)
    incast: Seconds = field(default_factory=dict)
    adding: Seconds = field(default_factory=dict)
    flops: float = 0.0


# Measuring.


def measure_points(
    transport: Transport,
    budget: float,
    memory: int = WALK_BYTES,
    sizes: Sequence[int] = SIZES,
    say: Callable[[str], None] = lambda _: None,
) -> Points:
    """Measures messages and adding between two ranks, which call it together and get the same.

    Args:
        transport: the transport, of two ranks.
        budget: about how many seconds to spend.
        memory: bytes that each rank's messages walk through.
        sizes: bytes of the messages; sizes of which two do not fit into the memory are left out.
        say: called with a line about what is measured.

    Raises:
        ConfigurationError: on every rank, if the memory is too little to measure adding in.
        LaunchError: on every rank, if there are not two.
    """
    if transport.size != 2:
        raise LaunchError(
            f"Messages are measured between two ranks, and there {'is' if transport.size == 1 else 'are'} "
            f"{transport.size}: start it with mpirun -n 2, or without mpirun.",
            everywhere=True,
        )
    if memory < 2 * PACKET_BYTES:
        raise ConfigurationError(
            f"{memory} bytes of memory are too little to measure in: give at least {2 * PACKET_BYTES}, two packets.",
            everywhere=True,
        )
    sizes = [size for size in sizes if 2 * size <= memory]
    meter = Meter(transport, sizes, memory)
    started = transport.now()
    meter.turn()  # to warm up: memory that was never touched costs more
    longest = max(all_gather(transport, transport.now() - started, "say how long a turn takes"))
    # A simulated clock may stand still, and repeats itself exactly.
    turns = int(np.clip(budget / longest, FEWEST_TURNS, MOST_TURNS)) if longest else FEWEST_TURNS
    say(f"{turns} turns over {len(sizes)} sizes, in {memory / 2**20:g} MB of each rank's memory ...")
    own = [meter.turn() for _ in range(turns)]
    # Which turns a program beside this one slowed is the same for both ranks: the slower one of them counts.
    slowest = np.max(all_gather(transport, own, "tell its times"), axis=0)
    medians: dict[str, Seconds] = {"duplex": {}, "ping_pong": {}, "incast": {}, "adding": {}}
    for (kind, size), seconds in zip(meter.kinds, np.median(slowest, axis=0).tolist(), strict=True):
        medians[kind][size] = seconds
    return Points(**medians, flops=min(all_gather(transport, _flops(transport), "tell how fast it computes")))


class Walk:
    """Memory for one message after the other, each elsewhere, so that none is in a cache because the last one was.

    Args:
        memory: (elements,) float32 memory to walk through, with room for at least two messages.
        message: bytes of a message.
    """

    def __init__(self, memory: Buffer, message: int) -> None:
        self._memory = memory
        self._elements = message // 4
        self._places = len(memory) // self._elements
        self._number = 0

    def next(self) -> tuple[Buffer, Buffer]:
        """Returns where to send the next message from, and where to receive one meanwhile, half a walk apart."""
        places = self._number % self._places, (self._number + self._places // 2) % self._places
        self._number += 1
        first, other = (self._memory[place * self._elements : (place + 1) * self._elements] for place in places)
        return first, other


class Meter:
    """Measures messages between ranks 0 and 1, and adding, of all sizes in turns, so that what slows one slows all.

    Args:
        transport: the transport, of two ranks.
        sizes: bytes of the messages.
        memory: bytes that each rank walks through, at least two messages.

    Attributes:
        kinds: what is measured, as (kind, bytes), in that order.
    """

    def __init__(self, transport: Transport, sizes: Sequence[int], memory: int) -> None:
        self._transport = transport
        self._other = 1 - transport.rank
        self._token = np.zeros(1, np.float32)
        self._landing = np.zeros(AT_ONCE * max(LARGEST_AT_ONCE, PACKET_BYTES) // 4, np.float32)
        room = np.ones(memory // 4, np.float32)
        self._walks = {size: Walk(room, size) for size in (*sizes, *ADDED)}
        at_once = [size for size in sizes if size <= LARGEST_AT_ONCE]
        self._measures = {
            **{("duplex", size): self._duplex for size in sizes},
            **{("ping_pong", size): self._ping_pong for size in sizes},
            **{("incast", size): self._incast for size in at_once},
            **{("adding", size): self._adding for size in ADDED},
        }
        self.kinds = list(self._measures)

    def turn(self) -> list[float]:
        """Measures a message of every kind; returns this rank's seconds for each, in the order of `kinds`."""
        seconds = []
        for (_, size), measure in self._measures.items():
            steps = int(np.clip(STEP_BYTES // size, 2, MOST_STEPS)) // 2 * 2
            self._meet()
            seconds.append(measure(self._walks[size], steps))
        return seconds

    def _meet(self) -> None:
        """Begin at most one message apart."""
        self._swap(self._token, self._token.copy())

    def _swap(self, leaves: Buffer, lands: Buffer) -> None:
        arriving = self._transport.irecv(lands, self._other)
        leaving = self._transport.isend(leaves, self._other)
        arriving.wait()
        leaving.wait()

    def _duplex(self, walk: Walk, steps: int) -> float:
        """An even number of swaps: if one rank begins late, it is the other one's turn to wait in every second."""
        started = self._transport.now()
        for _ in range(steps):
            self._swap(*walk.next())
        return (self._transport.now() - started) / steps

    def _ping_pong(self, walk: Walk, steps: int) -> float:
        wires = self._transport
        started = wires.now()
        for step in range(steps + 1):
            if step == 1:  # both know now that the other one is there
                started = wires.now()
            leaves, lands = walk.next()
            if step % 2 == wires.rank:
                wires.isend(leaves, self._other).wait()
            else:
                wires.irecv(lands, self._other).wait()
        taken = (wires.now() - started) / steps
        # Rank 1 has received before and after; rank 0's clock may stop as soon as its message has left.
        return taken if wires.rank == 1 else 0.0

    def _incast(self, walk: Walk, steps: int) -> float:
        wires = self._transport
        rounds = max(2, steps // AT_ONCE)
        started = wires.now()
        for _ in range(rounds):
            places = [walk.next()[0] for _ in range(AT_ONCE)]
            if wires.rank == 1:
                leaving = [wires.isend(place, 0) for place in places]
                wires.irecv(self._token, 0).wait()
                for request in leaving:
                    request.wait()
            else:
                landing = self._landing[: AT_ONCE * len(places[0])].reshape(AT_ONCE, -1)
                arriving = [wires.irecv(place, 1) for place in landing]
                for request in arriving:
                    request.wait()
                wires.isend(self._token, 1).wait()
        return (wires.now() - started) / (rounds * AT_ONCE)

    def _adding(self, walk: Walk, steps: int) -> float:
        """Of packets that have landed where others were added before, as `execute` has them."""
        wires = self._transport
        taken = 0.0
        for step in range(steps):
            leaves, values = walk.next()
            first = step % UNDER_WAY * len(values)
            landing = self._landing[first : first + len(values)]
            self._swap(leaves, landing)
            started = wires.now()
            wires.add(values, landing)
            taken += wires.now() - started
        return taken / steps


def _flops(transport: Transport) -> float:
    matrix = np.full((SIDE, SIDE), 0.5, np.float32)
    result = np.empty_like(matrix)
    seconds = []
    for _ in range(9):
        started = transport.now()
        np.matmul(matrix, matrix, out=result)
        seconds.append(transport.now() - started)
    taken = float(np.median(seconds))
    return 2 * SIDE**3 / taken if taken else 0.0
