"""Parameter servers: the workers send gradients, the servers make the updates and send parameters."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.collectives.direct import direct
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import Bucket, FlatParameters, OnHost, OptimizerFactory, all_finite, refuse_parts
from bigbatch.comm.schedules.schedule import chunk_bounds
from bigbatch.comm.server.consistency import CONSISTENCIES, Consistency
from bigbatch.comm.server.report import Report, Waiting
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import STALE, StaleGradients
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.comm.strategies.description import Description, Sum, Workload
from bigbatch.comm.strategies.strategy import Option, StepReport, Strategy
from bigbatch.comm.wires.recording import REDUCE
from bigbatch.comm.wires.request import ANY, Request
from bigbatch.comm.wires.transport import Transport

Result = TypeVar("Result")


@dataclass(frozen=True)
class Setup:
    """What kind of parameter server.

    Attributes:
        consistency: "sync", "async", "ssp" or "backup".
        staleness: how many gradients a worker may be ahead of the slowest, with "ssp".
        spares: how many gradients of a version are not waited for, with "backup".
        stale: "plain", "scaled" or "compensated".
        compensation: λ, with "compensated".
        servers: over how many servers the parameters are split.
        colocated: a server beside every worker's own work instead, so that there are as many.

    Raises:
        ConfigurationError: an unknown word, or a number of servers where the workers' counts.
    """

    consistency: str = "sync"
    staleness: int = 1
    spares: int = 1
    stale: str = "plain"
    compensation: float = 0.04
    servers: int = 1
    colocated: bool = False

    def __post_init__(self) -> None:
        for what, name, known in (("consistency", self.consistency, CONSISTENCIES), ("stale", self.stale, STALE)):
            if name not in known:
                raise ConfigurationError(f"Unknown {what} {name!r}. Known: {', '.join(known)}.")
        if self.colocated and self.servers != Setup.servers:
            raise ConfigurationError(
                f"--colocated puts a server beside every worker, so that --servers {self.servers} cannot be chosen. "
                "Leave one of the two out."
            )

    def rule(self) -> Consistency:
        """The rule of consistency."""
        numbers = {"ssp": (self.staleness,), "backup": (self.spares,)}
        return CONSISTENCIES[self.consistency](*numbers.get(self.consistency, ()))

    def treatment(self) -> StaleGradients:
        """What becomes of stale gradients."""
        numbers = {"compensated": (self.compensation,)}
        return STALE[self.stale](*numbers.get(self.stale, ()))


REQUEST_TAG, GRADIENT_TAG, REPORT_TAG, VALUE_TAG = 1, 2, 3, 4
PUSH, READ, LEAVE = 0.0, 1.0, 2.0
"""What a worker wants: to hand in a gradient and read when it may; to read now; to take part no more."""


class ParameterServer(Strategy):
    """Parameter servers, synchronous to asynchronous: the last ranks, or one beside every worker.

    The parameters are split evenly over the servers. A worker sends its gradients (n bytes) and receives the new
    parameters (n bytes); S servers together receive and send W·n bytes each, through one port each, which is what
    limits them. Cost of a synchronous update, contention-free, S divides W, γ ≤ β:
    2α + 2nβ·max(1, W/S) + (n/S)γ seconds.

    With a server beside every worker (`--colocated`), a rank keeps 1/p of its gradients to itself, and all ports are
    equally busy: a reduce-scatter and an all-gather from everyone to everyone, 2α + 2((p-1)/p)nβ + (n/p)γ seconds.

    Each server makes its own updates of its part of the parameters by the same rule (`--consistency`): all gradients
    of a version (sync), everybody's but at most s behind (ssp), every gradient as it comes (async), or the first ones
    of a version (backup). Requests to different servers are in flight together.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014).

    Attributes:
        setup: what kind it is.
        bounds: (servers + 1) where each server's part of the flat parameters begins, in elements; set by `start`.
    """

    setup: ClassVar[Setup] = Setup()

    options: ClassVar[tuple[Option, ...]] = (
        Option("consistency", setup.consistency, "Which gradients make an update.", known=tuple(CONSISTENCIES)),
        Option("staleness", setup.staleness, "With ssp: gradients that a worker may be ahead of the slowest.", least=0),
        Option("spares", setup.spares, "With backup: gradients of a version that are not waited for.", least=0),
        Option("stale", setup.stale, "What becomes of a gradient of an old version.", known=tuple(STALE)),
        Option("compensation", setup.compensation, "With compensated: the factor λ.", least=0),
        Option("servers", setup.servers, "Over how many servers the parameters are split.", least=1),
        Option("colocated", setup.colocated, "A server beside every worker, instead of ranks that only serve."),
    )

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        if self.setup.colocated:
            transport.check_threads()
        self._rule = self.setup.rule()
        self._servers = range(0 if self.setup.colocated else self.workers, transport.size)
        self._sending: list[Request] = []
        self._arriving: list[Request] = []
        self._shard: Shard | None = None

    @classmethod
    def configured(cls, choices: Mapping[str, Any]) -> type[Self]:
        """With some of the options chosen."""
        unknown = set(choices) - {field.name for field in fields(Setup)}
        if unknown:
            raise ConfigurationError(f"{cls.__name__} has no option {' or '.join(sorted(unknown))}.")
        setup = replace(cls.setup, **choices)
        defaults = {field.name: getattr(setup, field.name) for field in fields(Setup)}
        options = tuple(replace(option, default=defaults[option.name]) for option in cls.options)
        return type(cls.__name__, (cls,), {"setup": setup, "options": options, "__doc__": cls.__doc__})

    @classmethod
    def variant(cls, words: str) -> type[Self]:
        """sync, async, ssp, ssp:S, backup or backup:B."""
        consistency, _, number = words.partition(":")
        numbered = {"ssp": "staleness", "backup": "spares"}
        if not number:
            return cls.configured({"consistency": consistency})
        if consistency not in numbered or not number.isdigit():
            raise ConfigurationError(
                f"There is no parameter server {words!r}. Write sync, async, ssp:S or backup:B, with a number each."
            )
        return cls.configured({"consistency": consistency, numbered[consistency]: int(number)})

    @classmethod
    def ranks_for(cls, workers: int) -> int:
        """The servers are ranks of their own, unless they are beside the workers."""
        return workers if cls.setup.colocated else workers + cls.setup.servers

    @classmethod
    def workers_among(cls, ranks: int) -> int:
        """All but the servers; the rule may ask for more than one."""
        workers = super().workers_among(ranks)
        cls.setup.rule().check(workers)
        return workers

    @classmethod
    def steps_per_update(cls, workers: int) -> int:
        """As the rule of consistency has it."""
        return cls.setup.rule().updates_of(workers)

    @classmethod
    def gradients_per_step(cls, workers: int) -> int:
        """As the rule of consistency has it."""
        return cls.setup.rule().gradients_of(workers)

    @classmethod
    def in_step(cls) -> bool:
        """As the rule of consistency has it."""
        rule = cls.setup.rule()
        return rule.alike and rule.everyone

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:  # noqa: ARG003 - for others
        """Every update sends the same, but who is served first depends on who comes first: that is run, not replayed.

        The bare sum is a synchronous update's. With a server beside every worker that is a reduce-scatter and an
        all-gather, from everyone to everyone.
        """
        servers = cls.setup.servers
        rounds = Sum(partial(synchronous_server, servers=servers), workers + servers)
        return Description(period=1, total=Sum(direct, workers) if cls.setup.colocated else rounds)

    def start(self, parameters: FlatParameters, optimizer: OptimizerFactory) -> None:
        """Agree on the parameters; each server takes its part of them, and makes the optimiser for that.

        Raises:
            ConfigurationError: the optimiser must see the whole, and there are several servers.
        """
        refuse_parts(optimizer, len(self._servers))
        super().start(parameters, optimizer)
        self._values = OnHost(parameters.values)
        self.bounds = chunk_bounds(len(self._values.array), len(self._servers)).tolist()
        self._versions = [0] * len(self._servers)
        if self.transport.rank in self._servers:
            first, stop = self.bounds[self.server : self.server + 2]
            self._shard = Shard(
                self._values.part(first, stop),
                parameters.pieces(first, stop),
                optimizer,
                self.setup.rule(),
                self.setup.treatment(),
            )

    @property
    def server(self) -> int:
        """This server's number among the servers."""
        return self._servers.index(self.transport.rank)

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Work, or serve those who do, or both at the same time."""
        if self._shard is None:
            return self._take_part(work)
        if self.worker is None:
            self.service(self.transport).run()
            return None
        serving = self.transport.start_thread(lambda end: self.service(end).run())
        result = self._take_part(work)
        serving.wait()
        return result

    def _take_part(self, work: Callable[[], Result]) -> Result:
        """Work, and tell the servers when that is done."""
        result = work()
        self._ask(LEAVE)
        self._wait_for_sends()
        return result

    def service(self, transport: Transport) -> "Service":
        """What a server does on `transport`, about to begin: every worker has read, and nobody has pushed."""
        assert self._shard is not None, "only a server serves, and only once it has started"
        return Service(self, self._shard, transport)

    def parts(self, bucket: Bucket) -> Iterator[tuple[int, int, int]]:
        """(server's number, first, stop) of a bucket's elements, by the servers that hold them."""
        begin = sum(len(other.gradients) for other in self.buckets[: bucket.index])
        end = begin + len(bucket.gradients)
        for place in range(len(self._servers)):
            first, stop = max(begin, self.bounds[place]), min(end, self.bounds[place + 1])
            if first < stop:
                yield place, first, stop

    # A worker's side.

    def push(self, bucket: Bucket) -> None:
        """Begin to send the bucket to the servers that hold its parameters."""
        gradients = OnHost(bucket.gradients).fetch()
        parts = list(self.parts(bucket))
        begin, turn = parts[0][1], self.transport.rank % len(parts)
        for place, first, stop in parts[turn:] + parts[:turn]:  # not everyone to the same server first
            part = gradients[first - begin : stop - begin]
            self._sending.append(self.transport.isend(part, self._servers[place], GRADIENT_TAG))

    def step(self, weight: float, loss: float) -> StepReport:
        """Send the weight, and wait until every server lets this worker read."""
        # Every server must skip what one of them would: only the worker sees all of its gradient.
        finite = all_finite(self.parameters.gradients)
        ready = self.transport.now()
        reports = self._ask_and_hear(PUSH, weight, loss, finite)
        self._wait_for_sends()
        waited = max(report.waited for report in reports)
        self.waiting_seconds += waited
        self._communicated(self.transport.now() - ready - waited)
        first = reports[0]
        return StepReport(
            version=int(min(report.version for report in reports)),
            applied=all(report.applied for report in reports),
            weight=first.weight,
            loss=first.loss,
            workers=int(first.workers),
            total_weight=first.total_weight,
            next_update=int(min(report.next_update for report in reports)),
        )

    def pull(self) -> int:
        """Receive the parameters that the servers have announced, unless they are here already."""
        started = self.transport.now()
        for request in self._arriving:
            request.wait()
        if self._arriving:
            self._values.deliver()
        self._arriving.clear()
        self.version = min(self._versions)
        self._communicated(self.transport.now() - started)
        return self.version

    def align(self) -> None:
        """Read the newest parameters while nobody pushes."""
        if self._rule.alike:
            return
        assert self._workers_group is not None, "only workers look at parameters"
        self._workers_group.barrier()
        self._ask_and_hear(READ)
        self.pull()
        self._workers_group.barrier()

    def _ask(self, want: float, weight: float = 0.0, loss: float = 0.0, finite: bool = True) -> None:
        for server in self._servers:
            request = np.array([want, weight, loss, finite])
            self._sending.append(self.transport.isend(request, server, REQUEST_TAG))

    def _ask_and_hear(self, want: float, weight: float = 0.0, loss: float = 0.0, finite: bool = True) -> list[Report]:
        """Ask every server, hear each one's report, and begin to receive what it announces."""
        self._ask(want, weight, loss, finite)
        reports: dict[int, Report] = {}
        for _ in self._servers:
            row = np.empty(len(fields(Report)))
            # Whichever is first: a server cannot go on before its values are taken, and others may wait for it to.
            place = self._servers.index(self.transport.irecv(row, ANY, REPORT_TAG).wait())
            report = reports[place] = Report.of(row)
            self._versions[place] = int(report.version)
            if report.fresh:
                part = self._values.array[self.bounds[place] : self.bounds[place + 1]]
                self._arriving.append(self.transport.irecv(part, self._servers[place], VALUE_TAG))
        return [reports[place] for place in sorted(reports)]

    def _wait_for_sends(self) -> None:
        for request in self._sending:
            request.wait()
        self._sending.clear()

    def _communicated(self, seconds: float) -> None:
        """Messages move when somebody waits for them, so that all communication is exposed."""
        self.communication_seconds += seconds
        self.total_communication_seconds += seconds

    # Both sides.

    def state_dict(self) -> dict[str, Any]:
        """A server's part of the parameters with its optimiser's state; who only works has nothing that lasts."""
        return self._shard.state_dict() if self._shard is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave on this rank; the workers read before they go on."""
        if self._shard is not None:
            self._shard.load_state_dict(state)

    def statistics(self) -> dict[str, Any]:
        """A server's counts."""
        if self._shard is None:
            return {}
        return {"consistency": self.setup.consistency, **self._shard.statistics()}


class Service:
    """One server at work: hears the workers' requests, and answers each as soon as the shard lets it.

    Args:
        strategy: this rank's.
        shard: this rank's.
        transport: this rank's, or an end of its own for a service beside the rank's work.
    """

    def __init__(self, strategy: ParameterServer, shard: Shard, transport: Transport) -> None:
        self._transport = transport
        self._shard = shard
        self._number = strategy.server
        origin = strategy.bounds[self._number]
        self._parts = [
            slice(first - origin, stop - origin)
            for bucket in strategy.buckets
            for place, first, stop in strategy.parts(bucket)
            if place == self._number
        ]
        self._waiting: dict[int, Waiting] = {}
        for worker in range(strategy.workers):
            shard.join(worker)
            shard.read(worker)

    def run(self) -> None:
        """Serve until every worker has left."""
        while self._shard.clocks.pushed:
            self.serve()

    def serve(self) -> None:
        """Hear one request, and answer everybody whom the shard lets read by it."""
        request = np.empty(4)
        worker = self._transport.irecv(request, ANY, REQUEST_TAG).wait()
        want, weight, loss, finite = request.tolist()
        if want == PUSH:
            self._take(worker, weight, loss, bool(finite))
        elif want == LEAVE:
            self._shard.leave(worker)
        else:
            self._answer([(worker, Waiting(self._transport.now()))])
        readers = [(w, self._waiting.pop(w)) for w in list(self._waiting) if self._shard.readable(w)]
        turn = self._number % max(1, len(readers))
        self._answer(readers[turn:] + readers[:turn])  # not every server to the same worker first

    def _take(self, worker: int, weight: float, loss: float, finite: bool) -> None:
        values = self._shard.landing()
        landing = OnHost(values).array
        for request in [self._transport.irecv(landing[part], worker, GRADIENT_TAG) for part in self._parts]:
            request.wait()
        with self._transport.span(REDUCE, "take in", landing.nbytes):
            self._transport.spend(landing.nbytes * self._transport.gamma)
            self._waiting[worker] = Waiting(self._transport.now(), weight, loss, finite)
            self._shard.push(worker, values, weight, loss, finite=finite)

    def _answer(self, readers: list[tuple[int, Waiting]]) -> None:
        """Let them read; all of them before anything changes the values."""
        sending, values = [], OnHost(self._shard.values).fetch()
        for worker, since in readers:
            fresh = self._shard.read(worker)
            report = Report.on(self._shard, worker, since, self._transport.now(), fresh=fresh)
            sending.append(self._transport.isend(report.row(), worker, REPORT_TAG))
            if fresh:
                sending.append(self._transport.isend(values, worker, VALUE_TAG))
        for request in sending:
            request.wait()
