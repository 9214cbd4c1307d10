"""How fast the simulator itself is."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from bigbatch.comm.collectives.halving_doubling import halving_doubling
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.transport import Transport

NETWORK = Network("12.5 GB/s", wire(5e-6, 12.5e9))
NBYTES = 100_000_000

RANKS, MESSAGES = 64, 400
"""Size of the plain ring of messages: the number of ranks, and of messages that each rank sends."""

REPETITIONS = 3
"""Number of repetitions, of which the fastest counts, since other programs can only slow them."""


def _passing_on(transport: Transport) -> None:
    """Every rank sends to the right and receives from the left, again and again, and waits for both."""
    sent, received = np.zeros(1), np.zeros(1)
    for _ in range(MESSAGES):
        arriving = transport.irecv(received, (transport.rank - 1) % transport.size)
        transport.isend(sent, (transport.rank + 1) % transport.size).wait()
        arriving.wait()


def _summing(transport: Transport) -> None:
    values = np.arange(4096.0) + transport.rank
    execute(halving_doubling, transport, values)
    assert values[0] == transport.size * (transport.size - 1) / 2


WORK: Mapping[str, Callable[[], object]] = {
    "replay of a ring, 1,024 ranks": lambda: replay(ring, NETWORK, 1024, NBYTES, itemsize=1),
    "replay of a ring, 4,096 ranks": lambda: replay(ring, NETWORK, 4096, NBYTES, itemsize=1),
    "replay of halving-doubling, 65,536 ranks": lambda: replay(halving_doubling, NETWORK, 65_536, NBYTES, itemsize=1),
    "a cluster of 1,024 ranks, halving-doubling": lambda: Cluster(1024, network=NETWORK).run(_summing),
    "a message on a cluster": lambda: Cluster(RANKS, network=NETWORK).run(_passing_on),
}
"""The pieces of work that are timed, by name."""

ALLOWED: Mapping[str, float] = {
    "replay of a ring, 1,024 ranks": 0.3,
    "replay of a ring, 4,096 ranks": 3.0,
    "replay of halving-doubling, 65,536 ranks": 1.0,
    "a cluster of 1,024 ranks, halving-doubling": 5.0,
    "a message on a cluster": RANKS * MESSAGES / 150_000,
}
"""Seconds that each piece of work may take; messages are meant to be simulated at 150,000 per second."""


def simulator_seconds() -> dict[str, float]:
    """Measures the seconds that each piece of `WORK` takes on this machine."""
    seconds = {}
    for name, work in WORK.items():
        times = []
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        seconds[name] = min(times)
    return seconds
