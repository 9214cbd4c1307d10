"""Parameter servers: the workers send gradients, the servers make the updates and send parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.collectives.direct import direct
from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.parameters import Bucket, OnHost, OptimizerFactory, refuse_parts
from bigbatch.comm.schedules.schedule import chunk_bounds
from bigbatch.comm.server.report import Report
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.comm.strategies.alike import GivenValues
from bigbatch.comm.strategies.description import Description, Sum, Workload
from bigbatch.comm.strategies.server_options import ServerOptions
from bigbatch.comm.strategies.service import GRADIENT_TAG, LOOK, PUSH, REPORT_TAG, REQUEST_TAG, REST, VALUE_TAG, Service
from bigbatch.comm.strategies.strategy import ANY_WIRE, StepReport, Strategy, joint_outcome
from bigbatch.comm.wires.request import ANY, Request
from bigbatch.comm.wires.transport import Transport

Result = TypeVar("Result")

TRAINING, SHARD = "training", "shard"
"""On the transport's board: the number of trainings that a rank has started, and a server's shard in one of them."""


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

    In half precision (`--wire`) gradients and new parameters take half the bytes. A server adds up gradients and keeps
    its parameters and its optimiser in their own precision; what workers compute on are its parameters, rounded once.
    Whoever looks at the newest parameters gets them as the server has them.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014).

    Attributes:
        bounds: (servers + 1) where each server's part of the flat parameters begins, in elements; set by `start`.
    """

    options: ClassVar[ServerOptions] = ServerOptions()
    wires: ClassVar[tuple[str, ...]] = ANY_WIRE

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        if self.options.colocated:
            transport.check_threads()
        self._servers = range(0 if self.options.colocated else self.workers, transport.size)
        self._sending: list[Request] = []
        self._arriving: list[tuple[Request, int]] = []
        self._shard: Shard | None = None
        self._serving: Request | None = None
        self._training = 0

    @classmethod
    def variant(cls, words: str) -> type[Self]:
        """This strategy with the consistency named: sync, async, ssp, ssp:S, backup or backup:B."""
        consistency, _, number = words.partition(":")
        numbered = {"ssp": "staleness", "backup": "spares"}
        if not number:
            return cls.configured({"consistency": consistency})
        if consistency not in numbered:
            raise ConfigurationError(
                f"There is no parameter server {words!r}. Write sync, async, ssp:S or backup:B, with a number each."
            )
        try:
            return cls.configured({"consistency": consistency, numbered[consistency]: number})
        except ConfigurationError as error:
            raise ConfigurationError(
                f"There is no parameter server {quoted(words)}: {str(error).rstrip('.')}. Write sync, async, ssp:S or "
                "backup:B."
            ) from None

    @classmethod
    def ranks_for(cls, workers: int) -> int:
        """The number of ranks for `workers` workers: servers come on top, unless they run beside the workers."""
        return workers if cls.options.colocated else workers + cls.options.servers

    @classmethod
    def workers_among(cls, ranks: int) -> int:
        """The number of workers among `ranks` ranks: all but the servers.

        The consistency rule may ask for more than one worker.
        """
        workers = super().workers_among(ranks)
        cls.options.rule().check(workers)
        return workers

    @classmethod
    def steps_per_update(cls, workers: int) -> int:
        """As many as the consistency rule makes of one gradient of every worker."""
        return cls.options.rule().updates_of(workers)

    @classmethod
    def gradients_per_step(cls, workers: int) -> int:
        """As many as the consistency rule puts into an update."""
        return cls.options.rule().gradients_of(workers)

    @classmethod
    def in_step(cls) -> bool:
        """Whether the consistency rule takes everybody's gradients, all of the same version."""
        rule = cls.options.rule()
        return rule.alike and rule.everyone

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:  # noqa: ARG003 - for others
        """Describes the period and the bare sum. An update itself must be run: who is served first depends on timing.

        The bare sum is a synchronous update's. With a server beside every worker that is a reduce-scatter and an
        all-gather, from everyone to everyone.
        """
        servers = cls.options.servers
        rounds = Sum(partial(synchronous_server, servers=servers), workers + servers)
        return Description(period=1, total=Sum(direct, workers) if cls.options.colocated else rounds)

    def prepare(self, optimizer: OptimizerFactory) -> None:
        """Give each server its part of the parameters, and the optimiser for that.

        Raises:
            ConfigurationError: the optimiser must see the whole, and there are several servers.
        """
        refuse_parts(optimizer, len(self._servers))
        self._values = OnHost(self.parameters.values)
        self._landing = self.wire.of_values.room(self._values.array)
        self._leaving = self.wire.room(self._values.array)
        self.bounds = chunk_bounds(len(self._values.array), len(self._servers)).tolist()
        self._versions = [0] * len(self._servers)
        self._note_given()
        if self.transport.rank in self._servers:
            first, stop = self.bounds[self.server : self.server + 2]
            self._shard = Shard(
                self._values.part(first, stop),
                self.parameters.pieces(first, stop),
                optimizer,
                self.options.rule(),
                self.options.treatment(),
            )
        if self.transport.board is not None:
            self._show(self.transport.board)

    def _note_given(self) -> None:
        if self.worker is not None:
            together = self.in_step() or self.workers == 1
            self._given = GivenValues(self, self._group if together else None)

    def _show(self, board: dict[Any, Any]) -> None:
        """Let workers in the same process look at the shard; every rank counts trainings, so that it is this one."""
        rank = self.transport.rank
        self._training = board[TRAINING, rank] = board.get((TRAINING, rank), 0) + 1
        if self._shard is not None:
            board[SHARD, self._training, rank] = self._shard

    @property
    def server(self) -> int:
        """This server's number among the servers, from 0."""
        return self._servers.index(self.transport.rank)

    def enter(self) -> None:
        """Serve, on a rank that does nothing else; with a server beside every worker, begin to serve in a thread."""
        if self._shard is None:
            return
        if self.worker is None:
            self.service(self.transport).run()
        else:
            self._serving = self.transport.start_thread(lambda end: self.service(end).run())

    def leave(self) -> None:
        """Tell the servers that this worker makes no further update, and wait for the server beside it, if any."""
        if self.worker is None:
            return
        self._ask(REST)
        self._wait_for_sends()
        if self._serving is not None:
            self._serving.wait()

    def service(self, transport: Transport) -> Service:
        """What a server does on `transport`. Every worker has read the values, or stands where the shard knows."""
        assert self._shard is not None, "only a server serves, and only once it has started"
        origin = self.bounds[self.server]
        parts = [
            slice(first - origin, stop - origin)
            for bucket in self.buckets
            for place, first, stop in self.parts(bucket)
            if place == self.server
        ]
        return Service(self._shard, transport, self.workers, self.server, parts, self.wire)

    def parts(self, bucket: Bucket) -> Iterator[tuple[int, int, int]]:
        """Yields (server's number, first, stop) for every server that holds some of a bucket's elements."""
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
            if not self.wire.whole:
                self.wire.encode(part, self._leaving[first:stop])
                self.transport.convert(part)
                part = self._leaving[first:stop]
            self._sending.append(self.transport.isend(part, self._servers[place], GRADIENT_TAG))

    def step(self, weight: float, loss: float) -> StepReport:
        """Send the weight, and wait until every server lets this worker read."""
        self._given.check()
        self.parameters.refuse()
        # Every server must skip what one of them would: only the worker sees all of its gradient.
        finite = self.wire.all_finite(self.parameters.gradients)
        ready = self.transport.now()
        self._ask(PUSH, weight, loss, finite)
        reports = self._hear()
        self._wait_for_sends()
        waited = max(report.waited for report in reports)
        self.waiting_seconds += waited
        self._communicated(self.transport.now() - ready - waited)
        self.next_update = int(min(report.next_update for report in reports))
        first = reports[0]
        return StepReport(
            version=int(min(report.version for report in reports)),
            outcome=joint_outcome(report.outcome for report in reports),
            weight=first.weight,
            loss=first.loss,
            workers=int(first.workers),
            total_weight=first.total_weight,
            next_update=self.next_update,
        )

    def pull(self) -> int:
        """Receive the parameters that the servers have announced, unless they are here already."""
        started = self.transport.now()
        for request, place in self._arriving:
            request.wait()
            if not self.wire.whole:
                part = self._part(place)
                self.wire.of_values.decode(self._landing[part], self._values.array[part])
                self.transport.convert(self._values.array[part])
        if self._arriving:
            self._values.deliver()
        self._arriving.clear()
        self._given.note()
        self.version = min(self._versions)
        self._communicated(self.transport.now() - started)
        return self.version

    @contextmanager
    def newest(self, *, together: bool) -> Iterator[None]:
        """Lets this worker look at the servers' newest values, as these have them, which does not count as reading."""
        if self.options.rule().alike and self.wire.whole:
            yield  # everyone has the newest
            return
        if together:
            self._group.barrier()
        own = self._values.fetch().copy()
        try:
            self._look()
            yield
        finally:
            self._values.array[:] = own
            self._values.deliver()

    def _look(self) -> None:
        parts = {server: self._values.array[self._part(place)] for place, server in enumerate(self._servers)}
        board = self.transport.board
        if board is None:
            self._ask(LOOK)
            for request in [self.transport.irecv(part, server, VALUE_TAG) for server, part in parts.items()]:
                request.wait()
            self._wait_for_sends()
        else:  # on a simulated clock messages would take time, and ports that others want
            for server, part in parts.items():
                shard = board.get((SHARD, self._training, server))
                if shard is not None:  # else it has yet to start, and has nothing newer
                    part[:] = OnHost(shard.values).fetch()
        self._values.deliver()

    def _ask(self, want: float, weight: float = 0.0, loss: float = 0.0, finite: bool = True) -> None:
        for server in self._servers:
            request = np.array([want, weight, loss, finite])
            self._sending.append(self.transport.isend(request, server, REQUEST_TAG))

    def _hear(self) -> list[Report]:
        """Hear each server's report, and begin to receive what it announces."""
        reports: dict[int, Report] = {}
        for _ in self._servers:
            row = np.empty(len(fields(Report)))
            # Whichever is first: a server cannot go on before its values are taken, and others may wait for it to.
            place = self._servers.index(self.transport.irecv(row, ANY, REPORT_TAG).wait())
            report = reports[place] = Report.of(row)
            self._versions[place] = int(report.version)
            if report.fresh:
                part = self._landing[self._part(place)]
                self._arriving.append((self.transport.irecv(part, self._servers[place], VALUE_TAG), place))
        return [reports[place] for place in sorted(reports)]

    def _part(self, place: int) -> slice:
        """The elements that the server of that number among the servers holds."""
        return slice(self.bounds[place], self.bounds[place + 1])

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
        """A worker's parameters and the versions that it has read; a server's shard, with where its workers stand."""
        shard = None if self._shard is None else self._shard.state_dict()
        return {**super().state_dict(), "versions": list(self._versions), "shard": shard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave on this rank."""
        super().load_state_dict(state)
        self._note_given()
        self._versions = list(state["versions"])
        if self._shard is not None:
            self._shard.load_state_dict(state["shard"])

    def close(self) -> None:
        """Gives back the gradients, and takes this rank's shard off the board."""
        super().close()
        if self.transport.board is not None:
            self.transport.board.pop((SHARD, self._training, self.transport.rank), None)

    def statistics(self) -> dict[str, Any]:
        """What the server on this rank has counted, in types that JSON can write; empty if there is none."""
        if self._shard is None:
            return {}
        return {"consistency": self.options.consistency, **self._shard.statistics()}
