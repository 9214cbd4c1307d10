"""Trainings on a made-up network whose servers and workers are killed and paused, in made-up time.

The parameters count: parameter s of every part falls by 1 whenever the gradient of share s is applied there. So the
final parameters themselves say how often each share went in, whatever the servers' own books say.
"""

import copy
import itertools
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from greenlet import greenlet
from made_up_network import Faults, KilledError, MadeUpWire, Network
from torch import nn

from bigbatch.comm.errors import CommunicationError, DeadlineError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Asynchronous, BackupWorkers, BoundedStaleness, Synchronous
from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.messages import Kind, Message, Stage
from bigbatch.comm.server.network.parts import agree, ask, release
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import StaleGradients
from bigbatch.comm.strategies.remote import RemoteServers, facts_about
from bigbatch.comm.transports.alone import Alone

PATIENCE, DEADLINE = 3.0, 300.0
RULES = {
    "sync": Synchronous,
    "async": Asynchronous,
    "ssp": lambda: BoundedStaleness(2),
    "backup": lambda: BackupWorkers(1),
}


class Counting(torch.optim.Optimizer):
    """Subtracts 1 from every parameter that has a gradient at all."""

    def __init__(self, named) -> None:
        super().__init__([parameter for _, parameter in named], {})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # noqa: ARG002 - torch's signature
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_((parameter.grad > 0).double())


@dataclass
class Place:
    """Where a server is started again and again, and what is on its disk.

    Attributes:
        server: the server that runs there now; None while there is none.
        disk: the arm and the state of the newest snapshot.
        arm: the number of the arm that it serves.
        finished: the servers of the arms that are trained.
        ended: when its work was finished, in seconds.
        closed: whether it has ended for good.
        killed: how often it was killed.
    """

    part: int
    server: NetworkServer | None = None
    disk: tuple[int, dict] | None = None
    arm: int = 0
    finished: dict[int, NetworkServer] = field(default_factory=dict)
    ended: float | None = None
    closed: bool = False
    killed: int = 0
    told: list[str] = field(default_factory=list)


@dataclass
class Participant:
    """A worker: its thread of work, what it has joined now, until when it is paused, and why it has ended.

    Attributes:
        early: whether it ended for an error before any server had ended.
    """

    thread: greenlet | None = None
    shards: list[RemoteShard] = field(default_factory=list)
    paused: float = 0.0
    error: CommunicationError | None = None
    early: bool = False


class PausedWire(MadeUpWire):
    """A wire whose worker does nothing while it is paused, and hears later what came meanwhile."""

    participant: Participant

    def wake(self, wait: int) -> None:
        if self.network.time < self.participant.paused:
            self.network.at(self.participant.paused, partial(self.wake, wait))
        else:
            super().wake(wait)

    def compute(self, seconds: float) -> None:
        until = self.network.time + seconds
        while self.network.time < max(until, self.participant.paused):
            self.network.at(max(until, self.participant.paused), self.greenlet.switch)
            self.network.sleep()


class Trial(Network):
    """A training with several servers and workers under random kills, pauses and losses.

    Args:
        seed: of everything that is random.
        rule: the name of a consistency rule.
        parts: number of servers.
        shares: number of shares of the data.
        interval: seconds between two snapshots.
        arms: how often all of the data is trained, from the start each time.
        kills: whether servers and workers are killed and paused, and messages lost.
    """

    def __init__(
        self,
        seed: int,
        rule: str,
        parts: int,
        shares: int = 40,
        interval: float = 3.0,
        *,
        arms: int = 1,
        kills: bool = True,
    ) -> None:
        self.rule, self.shares, self.interval, self.arms = rule, shares, interval, arms
        self.places = [Place(part) for part in range(parts)]
        self.participants: list[Participant] = []
        super().__init__(None, Faults(seed))  # type: ignore[arg-type]
        random = self.random
        self.workers = int(random.integers(2, 5))
        for place in self.places:
            self.start(place)
            self.at(float(random.random() * interval), partial(self.keep_now_and_then, place))
        for _ in range(self.workers):
            self.at(float(2 * random.random()), self.join)
        if not kills:
            return
        self.faults.delay = random.choice([0.01, 0.3, 2.0])
        self.faults.drop, self.faults.twice = random.choice([0.0, 0.05, 0.1]), random.choice([0.0, 0.1])
        length = 1.2 * shares / self.workers * (1 if rule == "async" else 1.5)
        for place in self.places:
            for _ in range(int(random.integers(0, 5))):
                self.at(float(length * 1.5 * random.random()), partial(self.kill, place))
        for _ in range(int(random.integers(0, 6))):
            self.at(float(length * 1.5 * random.random()), self.kill_worker)
        for _ in range(int(random.integers(0, 4))):
            self.at(float(length * 1.5 * random.random()), self.pause_worker)

    # Servers.

    def start(self, place: Place) -> None:
        place.arm = 0 if place.disk is None else place.disk[0]
        self.serve(place)

    def serve(self, place: Place) -> None:
        module = nn.Linear(self.shares * len(self.places), 1, bias=False).double()
        nn.init.zeros_(module.weight)
        parameters = FlatParameters(module)
        first = self.shares * place.part
        shard = Shard(
            parameters.values[first : first + self.shares].clone(),
            parameters.pieces(first, first + self.shares),
            Counting,
            RULES[self.rule](),
            StaleGradients(),
        )
        place.server = NetworkServer(
            shard,
            self.shares,
            f'"arm {place.arm}"',
            facts_about(parameters),
            PATIENCE,
            self.workers,
            tell=place.told.append,
            last=place.arm == self.arms - 1,
            part=place.part,
            parts=len(self.places),
        )
        if place.disk is not None and place.disk[0] == place.arm:
            place.server.load_state_dict(copy.deepcopy(place.disk[1]))

    def keep_now_and_then(self, place: Place) -> None:
        if place.server is not None and place.ended is None:
            self.keep(place)
        if not place.closed:
            self.at(self.time + self.interval * (0.5 + self.random.random()), partial(self.keep_now_and_then, place))

    def keep(self, place: Place) -> None:
        place.disk = place.arm, copy.deepcopy(place.server.state_dict())
        place.server.ending.kept = place.server.ending.complete

    def kill(self, place: Place) -> None:
        if place.server is None:
            return
        place.killed += 1
        if place.ended is not None:  # its summary is written
            place.closed = True
        else:
            self.at(self.time + 1 + 20 * self.random.random(), partial(self.start_again, place))
            place.server = None

    def start_again(self, place: Place) -> None:
        if place.server is None:
            self.start(place)

    def _tick(self) -> None:
        for place in self.places:
            server = place.server
            if server is None or place.closed:
                continue
            self.deliver(server.tick(self.time))
            if server.ending.complete and not server.ending.kept:
                self.keep(place)
            if place.ended is None and server.stage is Stage.FINISHED:
                place.finished[place.arm] = server
                if place.arm == self.arms - 1:
                    place.ended = self.time
                else:
                    assert not server.ending.given_up, "nobody came back"
                    place.arm += 1
                    self.serve(place)
                    self.keep(place)
            place.closed = place.ended is not None and not server.ending.lingers(place.ended, self.time)
        for participant in self.participants:
            if self.time >= participant.paused and not participant.thread.dead:
                self.beat(participant)
        self.at(self.time + 0.5, self._tick)

    def to_server(self, place: int, sender: bytes, frames) -> None:
        whole, at = [bytes(frame) for frame in frames], self.places[place]

        def arrive() -> None:
            if at.server is not None and not at.closed:
                self.deliver(at.server.receive(sender, whole, self.time))

        self.carry(arrive)

    def deliver(self, outgoing) -> None:
        super().deliver([(target, frames) for target, frames in outgoing if target in self._wires])

    def beat(self, participant: Participant) -> None:
        for place, shard in enumerate(participant.shards):
            address = f"beat {shard.session}".encode()
            self._wires.setdefault(address, Beat(shard))
            self.to_server(place, address, Message(Kind.HEARTBEAT, shard.session, shard.life).frames())

    # Workers.

    def join(self) -> None:
        participant = Participant()
        wires = []
        participant.thread = greenlet(partial(self.work, participant, wires))
        for place in self.places:
            wire = PausedWire(self, f"{len(self._wires)}".encode(), place.part, participant.thread)
            wire.participant = participant
            self._wires[wire.address] = wire
            wires.append(wire)
        self.participants.append(participant)
        participant.thread.switch()

    def work(self, participant: Participant, wires: list[PausedWire]) -> None:
        try:
            self.train_all(participant, wires)
        except KilledError:
            pass
        except CommunicationError as error:
            participant.error = error
            participant.early = not any(place.closed for place in self.places)
            if not all(place.closed for place in self.places):  # its user starts another
                self.at(self.time + 5, self.join)

    def train_all(self, participant: Participant, wires: list[PausedWire]) -> None:
        worker = int(self.random.integers(2**62))
        while True:
            session = int(self.random.integers(1, 2**62))
            shards = [RemoteShard(wire, session + wire.place, DEADLINE, worker=worker) for wire in wires]
            answers = ask(shards)
            stages = [stage for _, _, stage in answers]
            if Stage.FINISHED in stages:
                release(answers)
                return
            stage = agree(shards, [work for _, work, _ in answers], stages)
            if stage is Stage.OPEN:
                participant.shards = shards
                self.train(shards, wires)
                participant.shards = []
            wires[0].compute(0.5)

    def train(self, shards: list[RemoteShard], wires: list[PausedWire]) -> None:
        parameters = FlatParameters(nn.Linear(self.shares * len(shards), 1, bias=False).double())
        strategy = RemoteServers(Alone(), shards, ())
        strategy.start(parameters, Counting)
        while strategy.next_update < self.shares:
            share = strategy.next_update
            wires[0].compute(0.3 + float(self.random.random()))
            parameters.gradients.zero_()
            parameters.gradients[share :: self.shares] = 1.0
            strategy.step(1.0, 0.0)
        for shard in shards:
            shard.leave()

    def kill_worker(self) -> None:
        alive = [each for each in self.participants if not each.thread.dead]
        if alive:
            victim = alive[int(self.random.integers(len(alive)))]
            victim.thread.throw(KilledError)
            self.at(self.time + 1 + 10 * self.random.random(), self.join)

    def pause_worker(self) -> None:
        alive = [each for each in self.participants if not each.thread.dead]
        if alive:
            paused = alive[int(self.random.integers(len(alive)))]
            paused.paused = self.time + 1 + 15 * float(self.random.random())

    # The trial.

    def run(self, until: float = 5000.0) -> None:
        """Go on until every server and every worker has ended."""
        for _ in itertools.count():
            if all(place.closed for place in self.places) and all(each.thread.dead for each in self.participants):
                return
            self.step()
            assert self.time < until, f"it does not end: {self.standing()}"

    def standing(self) -> str:
        servers = [
            "down" if place.server is None else (place.server.stage.name, place.server.shares.done, place.told[-2:])
            for place in self.places
        ]
        return f"{servers}, {sum(not each.thread.dead for each in self.participants)} workers"

    def check(self) -> None:
        """Every share went exactly once into every part, or was dropped by the rule, or is named as missing."""
        for place in self.places:
            for server in place.finished.values():
                self.check_server(server)
            assert len(place.finished) == self.arms
        for participant in self.participants:
            assert participant.error is None or isinstance(participant.error, DeadlineError), participant.error
            assert not participant.early, f"a worker waited in vain: {participant.error}"

    def check_server(self, server: NetworkServer) -> None:
        times = -server.shard.values.numpy()
        assert set(np.unique(times)) <= {0.0, 1.0}, f"a share counts {times.max()} times"
        assert not server.shares.missing(), server.ending.missing_in_words
        assert int((times == 0).sum()) == server.shard.dropped
        assert server.shard.taken == server.shard.tokens == times.sum()
        assert self.rule == "backup" or not server.shard.dropped


class Beat:
    """Where the answers to a worker's heartbeats arrive."""

    def __init__(self, shard: RemoteShard) -> None:
        self.shard = shard

    def arrive(self, frames) -> None:
        message = Message.of(frames)
        if message.kind is Kind.GONE and message.life == self.shard.life:
            self.shard.hurry = True
