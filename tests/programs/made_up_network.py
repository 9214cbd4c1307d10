"""A made-up network, with workers as greenlets, on which messages are late, lost and doubled."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from greenlet import greenlet
from torch import nn

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.network.wire import Wire
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
    """Workers as greenlets and servers, in made-up time; messages between them are late, lost and doubled."""

    def __init__(
        self, server: NetworkServer, faults: Faults | None = None, others: Sequence[NetworkServer] = ()
    ) -> None:
        self.servers = [server, *others]
        self.faults = faults or Faults()
        self.time = 0.0
        self.random = np.random.default_rng(self.faults.seed)
        self._events: list = []
        self._order = itertools.count()
        self._hub = greenlet.getcurrent()
        self._wires: dict[bytes, MadeUpWire] = {}
        self._workers: list[greenlet] = []
        self.at(0.0, self._tick)

    def at(self, when: float, what) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    @property
    def server(self) -> NetworkServer:
        return self.servers[0]

    def add(self, work) -> None:
        """Have `work(*shards)` done by one more worker, with a shard on each server."""
        shards = []
        worker = greenlet(lambda: work(*shards))
        for place in range(len(self.servers)):
            wire = MadeUpWire(self, f"{len(self._wires)}".encode(), place, worker)
            self._wires[wire.address] = wire
            session, number = 100 + len(self._wires), len(self._workers) + 1
            shards.append(RemoteShard(wire, session, deadline=FOREVER, worker=number))
        self._workers.append(worker)
        self.at(self.time, worker.switch)

    def run(self, until: float = 100_000.0) -> None:
        """Go on until every worker is through."""
        while any(not worker.dead for worker in self._workers):
            self.step()
            assert self.time < until, "the workers are stuck"

    def step(self) -> None:
        self.time, _, what = heapq.heappop(self._events)
        what()

    def idle(self, seconds: float) -> None:
        """Let the server alone for a while."""
        until = self.time + seconds
        while self.time < until:
            self.step()

    def carry(self, what) -> None:
        """Have a message arrive: some time, perhaps never, perhaps twice."""
        for _ in range(1 + (self.random.random() < self.faults.twice)):
            if self.random.random() >= self.faults.drop:
                self.at(self.time + self.random.random() * self.faults.delay, what)

    def to_server(self, place: int, sender: bytes, frames) -> None:
        whole = [bytes(frame) for frame in frames]
        self.carry(lambda: self.deliver(self.servers[place].receive(sender, whole, self.time)))

    def deliver(self, outgoing) -> None:
        for target, frames in outgoing:
            whole = [bytes(frame) for frame in frames]
            self.carry(partial(self._wires[target].arrive, whole))

    def sleep(self) -> None:
        self._hub.switch()

    def _tick(self) -> None:
        for server in self.servers:
            self.deliver(server.tick(self.time))
        self.at(self.time + 0.5, self._tick)


class MadeUpWire(Wire):
    def __init__(self, network: Network, address: bytes, place: int, worker: greenlet) -> None:
        self.name = "made-up"
        self.network = network
        self.address = address
        self.place = place
        self.greenlet = worker
        self.inbox: deque = deque()
        self.waits = 0

    def send(self, frames) -> None:
        self.network.to_server(self.place, self.address, frames)

    def receive(self, seconds: float):
        if not self.inbox and seconds > 0:
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


PHASES = ("joined", "asked", "computing", "pushed", "leaving")
"""Where a worker can be when something happens to it."""


@dataclass
class Worker:
    """Pushes integers and adds up what was acknowledged.

    Attributes:
        phase: in which, at its third gradient, it falls silent for `silence` seconds; for ever if that is infinite.
    """

    network: Network
    pushes: int = 10**6
    size: int = 1
    phase: str = ""
    silence: float = math.inf
    acknowledged: float = 0.0
    computed: int = 0
    told: list[str] = field(default_factory=list)
    shard: RemoteShard | None = None

    def __call__(self, shard: RemoteShard) -> None:
        with suppress(KilledError):
            self.work(shard)

    def work(self, shard: RemoteShard) -> None:
        self.shard, shard.tell = shard, self.told.append
        values = np.full(ELEMENTS, np.nan)
        shard.join(FACTS)
        self.at("joined", shard)
        shard.begin_read()
        self.at("asked", shard)
        report = shard.finish(values)
        while self.computed < self.pushes and report.next_update < self.network.server.shares.total:
            shard._wire.compute(0.2 + self.network.random.random())
            self.at("computing", shard)
            gradient = np.arange(1.0, ELEMENTS + 1) * self.size + self.computed
            self.computed += 1
            before = shard.acknowledged
            shard.begin(gradient, 1.0, 0.0, finite=True)
            self.at("pushed", shard)
            report = shard.finish(values)
            if shard.acknowledged > before:
                self.acknowledged += gradient
        self.at("leaving", shard)
        shard.leave()

    def at(self, phase: str, shard: RemoteShard) -> None:
        if phase != self.phase or (phase in ("computing", "pushed") and self.computed < 2):
            return
        self.phase = ""
        if self.silence == math.inf:
            raise KilledError
        shard._wire.compute(self.silence)


class KilledError(Exception):
    pass
