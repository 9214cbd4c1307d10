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

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np

from bigbatch.comm.agreement import share
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.execute import UNDER_WAY
from bigbatch.comm.schedule import PACKET_BYTES, IntArray, Schedule, chunk_bounds, chunk_count, rounds_of
from bigbatch.comm.server.report import Report
from bigbatch.comm.simulation.network import FloatArray, Network, Piece, Wire, as_entries
from bigbatch.comm.simulation.phantom import phantom
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies.parameter_server import GRADIENT_TAG, REPORT_TAG, REQUEST_TAG, VALUE_TAG
from bigbatch.comm.transport import ANY, Buffer, Transport
from bigbatch.comm.transports.cluster import Cluster

SIZES = (*(4 * 4**power for power in range(7)), *(2**power for power in range(16, 27)))
"""Bytes of the messages to measure: 4 to 64 MB, denser where caches end."""

ADDED = (PACKET_BYTES // 4, PACKET_BYTES // 2, PACKET_BYTES)
"""Bytes to add at once; large buffers are added in packets of about that size."""

WALK_BYTES = 128 * 1024 * 1024
"""Memory that each rank walks through, if nothing else is said: more than caches hold."""

MOST_STEPS, STEP_BYTES = 32, 4 * 1024 * 1024
"""Messages one after the other under one look at the clock: at most so many, and about so many bytes."""

FEWEST_TURNS, MOST_TURNS = 2, 41
"""How often every size is measured."""

AT_ONCE, LARGEST_AT_ONCE = 4, 4 * 1024 * 1024
"""Messages to one rank at once, and the bytes of the largest of those."""

FEWEST_SIZES, PIECE_SIZES, MOST_PIECES = 4, 3, 4
"""A fit needs that many sizes, each of its pieces that many, and it has at most that many pieces."""

NEGLIGIBLE = 0.01
"""A mean relative error well below this is no reason for another piece."""

SIDE = 512
"""Of the square matrices that are multiplied."""

Seconds = dict[int, float]
"""Bytes -> seconds."""


@dataclass(frozen=True)
class Points:
    """What was measured between two ranks: medians, in seconds.

    Attributes:
        duplex: bytes -> of one message each way at the same time.
        ping_pong: bytes -> of one message, while nothing else moves.
        incast: bytes -> of each of `AT_ONCE` messages to one rank at once, their receipt included.
        adding: bytes -> to add so many that have just arrived, while the other rank does the same.
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
    """Measure between two ranks, who call it together and get the same.

    Args:
        transport: of two ranks.
        budget: about how many seconds to spend.
        memory: bytes that each rank's messages walk through.
        sizes: of the messages, in bytes; those of which two do not fit into the memory are left out.
        say: is told how far it is.

    Raises:
        ConfigurationError: on every rank, if the memory is too little to measure adding in.
        LaunchError: on every rank, if there are not two.
    """
    if transport.size != 2:
        error = LaunchError(
            f"Messages are measured between two ranks, and there {'is' if transport.size == 1 else 'are'} "
            f"{transport.size}: start it with mpirun -n 2, or without mpirun."
        )
        error.everywhere = True
        raise error
    if memory < 2 * PACKET_BYTES:
        little = ConfigurationError(
            f"{memory} bytes of memory are too little to measure in: give at least {2 * PACKET_BYTES}, two packets."
        )
        little.everywhere = True
        raise little
    sizes = [size for size in sizes if 2 * size <= memory]
    meter = Meter(transport, sizes, memory)
    started = transport.now()
    meter.turn()  # to warm up: memory that was never touched costs more
    longest = max(share(transport, transport.now() - started, "say how long a turn takes"))
    # A simulated clock may stand still, and repeats itself exactly.
    turns = int(np.clip(budget / longest, FEWEST_TURNS, MOST_TURNS)) if longest else FEWEST_TURNS
    say(f"{turns} turns over {len(sizes)} sizes, in {memory / 2**20:g} MB of each rank's memory ...")
    own = [meter.turn() for _ in range(turns)]
    # Which turns a program beside this one slowed is the same for both ranks: the slower one of them counts.
    slowest = np.max(share(transport, own, "tell its times"), axis=0)
    medians: dict[str, Seconds] = {"duplex": {}, "ping_pong": {}, "incast": {}, "adding": {}}
    for (kind, size), seconds in zip(meter.kinds, np.median(slowest, axis=0).tolist(), strict=True):
        medians[kind][size] = seconds
    return Points(**medians, flops=min(share(transport, _flops(transport), "tell how fast it computes")))


class Walk:
    """Memory for one message after the other, each elsewhere, so that none is in a cache because the last one was.

    Args:
        memory: to walk through, at least as much as two messages.
        message: bytes of a message.
    """

    def __init__(self, memory: Buffer, message: int) -> None:
        self._memory = memory
        self._elements = message // 4
        self._places = len(memory) // self._elements
        self._number = 0

    def next(self) -> tuple[Buffer, Buffer]:
        """Where a message is sent from and where one is received meanwhile, half a walk apart."""
        places = self._number % self._places, (self._number + self._places // 2) % self._places
        self._number += 1
        first, other = (self._memory[place * self._elements : (place + 1) * self._elements] for place in places)
        return first, other


class Meter:
    """Measures messages between ranks 0 and 1, and adding, of all sizes in turns, so that what slows one slows all.

    Args:
        transport: of two ranks.
        sizes: of the messages, in bytes.
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
        """Seconds of one message of every kind, on this rank."""
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


# Fitting.


def fit_network(points: Points, name: str = "this-machine", source: str = "") -> Network:
    """The network that has such points: its ports' bandwidth and α from `duplex`, γ from `adding`.

    Raises:
        ConfigurationError: the points allow no fit; says why.
    """
    for size, seconds in points.adding.items():
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigurationError(f"To add {size} bytes took {seconds:g} s, which allows no fit: measure again.")
    gamma = float(np.median([seconds / size for size, seconds in points.adding.items()])) if points.adding else 0.0
    return Network(name, fit_wire(points.duplex), gamma=gamma, source=source)


def fit_wire(seconds: Mapping[int, float]) -> Wire:
    """α and bandwidth, piece by piece, of messages that took so long.

    Every piece is the line α + m/B for which the mean of |relative error| over its sizes is least; such a line goes
    through two of its points, or one if α is 0, so that all of those are tried, and a point far off does not pull. The
    number of pieces is the one with the least of 2N log(mean error) + 3K log(N), for N sizes and K pieces. No larger
    message is cheaper than a smaller one.

    Args:
        seconds: bytes -> seconds.

    Raises:
        ConfigurationError: there are too few sizes, or times that cannot be.

    Source: Schwarz, "Estimating the dimension of a model" (1978), for what a further piece must be worth.
    """
    if len(seconds) < FEWEST_SIZES:
        raise ConfigurationError(
            f"A wire cannot be fitted to {len(seconds)} size{'s' if len(seconds) != 1 else ''} of messages: measure at "
            f"least {FEWEST_SIZES}."
        )
    for size, taken in seconds.items():
        if size < 1 or not (math.isfinite(taken) and taken > 0):
            raise ConfigurationError(
                f"A message of {size} bytes took {taken:g} s, which allows no fit: a time is a number above 0. Measure "
                "on wires that take time."
            )
    sizes = np.array(sorted(seconds), np.float64)
    times = np.array([seconds[int(size)] for size in sizes])
    count = len(sizes)
    lines = {
        (first, stop): _line(sizes[first:stop], times[first:stop])
        for first in range(count)
        for stop in range(first + min(PIECE_SIZES, count), count + 1)
    }
    best: tuple[float, Wire] | None = None
    for pieces in range(1, MOST_PIECES + 1):
        for cuts in combinations(range(1, count), pieces - 1):
            ends = (0, *cuts, count)
            spans = list(pairwise(ends))
            if not all(span in lines for span in spans):
                continue
            chosen = [lines[span] for span in spans]
            if any(_falls(*pair, sizes[cut]) for pair, cut in zip(pairwise(chosen), cuts, strict=True)):
                continue
            error = sum(line.error for line in chosen) / count
            score = 2 * count * math.log(error + NEGLIGIBLE) + 3 * pieces * math.log(count)
            if best is None or score < best[0]:
                least = [0, *(int(sizes[cut]) for cut in cuts)]
                made = [
                    Piece(size, line.alpha, 1 / line.beta if line.beta else math.inf)
                    for size, line in zip(least, chosen, strict=True)
                ]
                best = score, Wire(*made)
    assert best is not None, "one piece always fits"
    return best[1]


class Line(NamedTuple):
    """Messages of m bytes take alpha + m·beta seconds; `error` is the sum of |relative error| over its sizes."""

    alpha: float
    beta: float
    error: float


def _line(sizes: FloatArray, times: FloatArray) -> Line:
    one, other = np.triu_indices(len(sizes), 1)
    slopes = (times[other] - times[one]) / (sizes[other] - sizes[one])
    beta = np.concatenate([slopes, times / sizes])
    alpha = np.concatenate([times[one] - slopes * sizes[one], np.zeros(len(sizes))])
    rounding = 1e-12 * times.max()
    alpha[np.abs(alpha) < rounding] = 0.0
    allowed = (alpha >= 0) & (beta >= 0)
    alpha, beta = alpha[allowed], beta[allowed]
    errors = np.abs((alpha[:, None] + beta[:, None] * sizes) / times - 1).sum(axis=1)
    best = int(np.argmin(errors))
    return Line(float(alpha[best]), float(beta[best]), float(errors[best]))


def _falls(line: Line, following: Line, size: float) -> bool:
    """Whether a message of the size at which the following line begins would be cheaper than one a byte smaller."""
    return following.alpha + following.beta * size < (line.alpha + line.beta * size) * (1 - 1e-9)


# More ranks than cores.


def on_cores(network: Network, ranks: int, cores: int) -> Network:
    """The network of this machine when `ranks` of them run on its cores.

    On one machine a port is a core: it copies what its ranks send and what they receive. So ranks that share a core
    share its ports, as ranks of a node share a NIC: a node is a core, with ⌈ranks/cores⌉ ranks. A core adds for one
    rank at a time, so that γ, of ranks that all add at the same time, is as many times as large.

    Everything follows from what two ranks on two cores measured and from the number of cores. Limits: ranks stay on
    their core, while an operating system moves them about, so that three ranks on two cores are taken for as slow as
    four; that ranks have to wait until their core is given to them, and what that does to its caches, is left out;
    neighbours in rank share a core, which matters where a rank talks to some of them only. With at most as many ranks
    as cores nothing changes.

    Args:
        network: calibrated with a core for each rank.
        ranks: how many there are.
        cores: how many they share.

    Raises:
        ConfigurationError: there are no ranks or no cores.
    """
    if ranks < 1 or cores < 1:
        raise ConfigurationError(f"{ranks} ranks cannot run on {cores} cores; both must be at least 1.")
    sharing = -(-ranks // cores)
    return replace(network, node_size=sharing, nics=1, inside=None, gamma=network.gamma * sharing)


def added_bytes(schedule: Schedule, size: int, nbytes: int) -> IntArray:
    """(ranks,) how many bytes each rank adds in a schedule over buffers of `nbytes`."""
    rounds = rounds_of(schedule, size)
    bounds = chunk_bounds(nbytes, chunk_count(rounds))
    total = np.zeros(size, np.int64)
    for round_ in rounds:
        np.add.at(total, round_.target, np.where(round_.reduce, bounds[round_.stop] - bounds[round_.first], 0))
    return total


def predict_reduction(schedule: Schedule, network: Network, ranks: int, cores: int, nbytes: int) -> float:
    """Seconds that an all-reduce of float32 over ranks of this machine takes.

    A replay of its schedule with ports that are cores, and then what the core that adds most has to add: the core that
    would add a packet while the next one arrives is the one which has to copy that, so that the two take turns. In the
    replay itself they would go on side by side, as NICs allow.
    """
    moving = replace(on_cores(network, ranks, cores), gamma=0.0)
    sharing = moving.node_size
    added = np.add.reduceat(added_bytes(schedule, ranks, nbytes), np.arange(0, ranks, sharing))
    return float(replay(schedule, moving, ranks, max(1, nbytes // 4)).max() + network.gamma * added.max())


STREAMS = 3
"""An addition reads two arrays and writes one; other work on arrays takes γ for as many as that."""


def predict_server(network: Network, workers: int, cores: int, nbytes: int) -> float:
    """Seconds of a synchronous update of float32 parameters by workers of this machine through one server.

    What a `bigbatch.comm.served.Served` sends, on a cluster in simulated time. That itself would not do there: its
    server computes with torch, which takes no simulated time. So its work on arrays is charged here: it adds what the
    second and further workers bring, and divides the sum and assigns it, which reads and writes an array each; every
    worker reads its gradient through once, to see whether it is finite. With γ ≤ β and a core for each rank,
    2α + 2Wnβ + (W - 1 + 4/3)nγ for W workers: all gradients are sent before the first request is heard, so that adding
    hides behind none of them, as it does behind none where the server has to take a large message from MPI itself.
    """
    # While the server adds, nobody else does.
    here = replace(on_cores(network, workers + 1, cores), gamma=network.gamma)
    stream = here.gamma * nbytes / STREAMS

    def update(wires: Transport) -> float:
        request, report = np.zeros(4), np.zeros(len(fields(Report)))
        values, landing = phantom(max(1, nbytes // 4)), phantom(max(1, nbytes // 4))
        if wires.rank < workers:
            sending = [wires.isend(values, workers, GRADIENT_TAG)]
            wires.spend(stream)
            sending.append(wires.isend(request, workers, REQUEST_TAG))
            wires.irecv(report, workers, REPORT_TAG).wait()
            wires.irecv(values, workers, VALUE_TAG).wait()
        else:
            for number in range(workers):
                worker = wires.irecv(request, ANY, REQUEST_TAG).wait()
                wires.irecv(landing, worker, GRADIENT_TAG).wait()
                if number:
                    wires.add(values, landing)
            wires.spend(4 * stream)
            sending = [wires.isend(report, worker, REPORT_TAG) for worker in range(workers)]
            sending += [wires.isend(values, worker, VALUE_TAG) for worker in range(workers)]
        for leaving in sending:
            leaving.wait()
        return wires.now()

    return max(Cluster(workers + 1, network=here).run(update)[:workers])


# Keeping.


def as_toml(network: Network) -> str:
    """What `read_network` makes the same network of."""
    entries = as_entries(network)
    inside = entries.pop("inside", None)
    lines = _table(entries, "")
    return "\n".join([*lines, *([] if inside is None else ["", "[inside]", *_table(inside, "inside.")]), ""])


def _table(entries: Mapping[str, Any], prefix: str) -> list[str]:
    lines = [f"{key} = {_value(value)}" for key, value in entries.items() if key != "larger"]
    for piece in entries.get("larger", ()):
        lines += ["", f"[[{prefix}larger]]", *_table(piece, prefix)]
    return lines


def _value(value: Any) -> str:
    """A string as JSON writes it, which TOML reads alike; a number as Python does, inf included."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
