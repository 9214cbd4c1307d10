"""Servers on a network: first on a network that is made up and does its worst, then real processes and sockets."""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from greenlet import greenlet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Asynchronous, BackupWorkers, BoundedStaleness, Synchronous
from bigbatch.comm.server.network_server import NetworkServer
from bigbatch.comm.server.remote_shard import RemoteShard, Wire
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import StaleGradients

ELEMENTS = 3
FACTS = [("parameter", "weight", "[1, 3] float64")]
FOREVER = 1e9


def new_server(rule, shares=10**6, **options) -> NetworkServer:
    module = nn.Linear(ELEMENTS, 1, bias=False).double()
    pieces = FlatParameters(module).pieces(0, ELEMENTS)
    values = torch.zeros(ELEMENTS, dtype=torch.float64)
    shard = Shard(values, pieces, partial(torch.optim.SGD, lr=1.0), rule, StaleGradients())
    return NetworkServer(shard, shares, '"announcement"', FACTS, **{"patience": FOREVER, **options})


@dataclass
class Faults:
    """What the network does to each message, with probabilities and seconds."""

    seed: int = 0
    delay: float = 0.001
    drop: float = 0.0
    twice: float = 0.0


class Network:
    """Workers as greenlets and a server, in made-up time; messages between them are late, lost and doubled."""

    def __init__(self, server: NetworkServer, faults: Faults) -> None:
        self.server = server
        self.faults = faults
        self.time = 0.0
        self.random = np.random.default_rng(faults.seed)
        self._events: list = []
        self._order = itertools.count()
        self._hub = greenlet.getcurrent()
        self._wires: dict[bytes, MadeUpWire] = {}
        self._workers: list[greenlet] = []
        self.at(0.0, self._tick)

    def at(self, when: float, what) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def add(self, work) -> "MadeUpWire":
        """Have `work(shard)` done by one more worker."""
        wire = MadeUpWire(self, f"{len(self._wires)}".encode())
        self._wires[wire.address] = wire
        shard = RemoteShard(wire, session=100 + len(self._wires), deadline=FOREVER)
        wire.greenlet = greenlet(lambda: work(shard))
        self._workers.append(wire.greenlet)
        self.at(self.time, wire.greenlet.switch)
        return wire

    def run(self, until: float = 100_000.0) -> None:
        """Go on until every worker is through."""
        while any(not worker.dead for worker in self._workers):
            self.time, _, what = heapq.heappop(self._events)
            assert self.time < until, "the workers are stuck"
            what()

    def carry(self, what) -> None:
        """Have a message arrive: some time, perhaps never, perhaps twice."""
        for _ in range(1 + (self.random.random() < self.faults.twice)):
            if self.random.random() >= self.faults.drop:
                self.at(self.time + self.random.random() * self.faults.delay, what)

    def to_server(self, sender: bytes, frames) -> None:
        whole = [bytes(frame) for frame in frames]
        self.carry(lambda: self.deliver(self.server.receive(sender, whole, self.time)))

    def deliver(self, outgoing) -> None:
        for target, frames in outgoing:
            whole = [bytes(frame) for frame in frames]
            self.carry(partial(self._wires[target].arrive, whole))

    def sleep(self) -> None:
        self._hub.switch()

    def _tick(self) -> None:
        self.deliver(self.server.tick(self.time))
        self.at(self.time + 0.5, self._tick)


class MadeUpWire(Wire):
    def __init__(self, network: Network, address: bytes) -> None:
        self.name = "made-up"
        self.network = network
        self.address = address
        self.greenlet: greenlet | None = None
        self.inbox: deque = deque()
        self.waits = 0

    def send(self, frames) -> None:
        self.network.to_server(self.address, frames)

    def receive(self, seconds: float):
        if not self.inbox:
            self.waits += 1
            self.network.at(self.network.time + seconds, partial(self.wake, self.waits))
            self.network.sleep()
            self.waits += 1
        return self.inbox.popleft() if self.inbox else None

    def arrive(self, frames) -> None:
        self.inbox.append(frames)
        self.wake(self.waits)

    def wake(self, wait: int) -> None:
        if wait == self.waits and wait % 2:
            self.greenlet.switch()

    def compute(self, seconds: float) -> None:
        self.network.at(self.network.time + seconds, self.greenlet.switch)
        self.network.sleep()

    def now(self) -> float:
        return self.network.time


@dataclass
class Worker:
    """Pushes integers and adds up what was acknowledged."""

    network: Network
    pushes: int
    size: int = 1
    acknowledged: float = 0.0
    shard: RemoteShard | None = None

    def __call__(self, shard: RemoteShard) -> None:
        self.shard = shard
        values = np.full(ELEMENTS, np.nan)
        shard.join(FACTS)
        shard.begin_read()
        report = shard.finish(values)
        for number in range(self.pushes):
            if report.next_update >= self.network.server._shares:
                break
            shard._wire.compute(self.network.random.random())
            gradient = np.arange(1.0, ELEMENTS + 1) * self.size + number
            before = shard.acknowledged
            shard.begin(gradient, 1.0, 0.0, finite=True)
            report = shard.finish(values)
            if shard.acknowledged > before:
                self.acknowledged += gradient
        shard.leave()


FAULTS = st.builds(
    Faults,
    seed=st.integers(0, 2**32),
    delay=st.sampled_from([0.01, 1.0, 30.0]),
    drop=st.sampled_from([0.0, 0.1, 0.4]),
    twice=st.sampled_from([0.0, 0.3]),
)


@settings(max_examples=60, deadline=None)
@given(FAULTS, st.integers(1, 4), st.integers(0, 3))
def test_no_gradient_is_lost_or_counted_twice_whatever_the_network_does(faults, count, kind):
    rule = [Asynchronous(), Synchronous(), BoundedStaleness(2), BackupWorkers(min(1, count - 1))][kind]
    network = Network(new_server(rule), faults)
    workers = [Worker(network, pushes=6, size=10**n) for n in range(count)]
    for worker in workers:
        network.add(worker)
    network.run()
    shard = network.server.shard
    acknowledged = sum(worker.shard.acknowledged for worker in workers)
    assert acknowledged == shard.taken + shard.dropped == 6 * count
    if kind == 0:  # SGD with a rate of 1 has added up exactly what was acknowledged
        assert shard.values.tolist() == (-sum(worker.acknowledged for worker in workers)).tolist()
    assert network.server.lost == 0
    assert not network.server.present
