"""Servers on a network, as one of their workers sees them: workers join and leave as they like."""

from collections.abc import Sequence
from hashlib import sha256
from typing import ClassVar

import torch
from torch import Tensor

from bigbatch.comm.parameters import (
    Bucket,
    FlatParameters,
    OnHost,
    OptimizerFactory,
    described,
)
from bigbatch.comm.schedules.schedule import chunk_bounds
from bigbatch.comm.server.network.parts import tell_missing
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.report import Report
from bigbatch.comm.strategies.alike import GivenValues
from bigbatch.comm.strategies.strategy import ANY_WIRE, StepReport, Strategy, joint_outcome
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.transport import Transport

Facts = Sequence[tuple[str, str, str]]
"""(what, name, value) of what must be the same at a worker and its servers."""


def facts_about(parameters: FlatParameters, wire: WireFormat = WHOLE) -> list[tuple[str, str, str]]:
    """What must be the same at a server and its workers: the wire's format, and the parameters' names, shapes, dtypes.

    Of what no optimiser touches (frozen parameters and buffers) the contents must be the same, too: no server has them.
    """
    fixed = [
        ("fixed tensor", name, f"{described(tensor)} {fingerprint(tensor)}") for name, tensor in parameters.module.fixed
    ]
    return [
        ("format", "wire", str(wire)),
        *(("parameter", name, value) for name, value in parameters.signature),
        *fixed,
    ]


def fingerprint(tensor: Tensor) -> str:
    """The first digits of the SHA-256 of a tensor's bytes."""
    contents = tensor.detach().cpu().reshape(-1)
    return sha256(contents.view(torch.uint8).numpy().tobytes() if contents.numel() else b"").hexdigest()[:16]


class RemoteServers(Strategy):
    """Trains with servers on a network: every worker is a job of its own, and the servers hand out shares of the data.

    Requests to different servers are in flight together.

    In half precision (`--wire`) gradients and parameters take half the bytes, as for `ParameterServer`. A worker's
    newest parameters are those that it has, rounded.

    Args:
        transport: this worker's own transport, of one rank.
        shards: the servers' shards, in the order in which they hold the parameters.
        facts: what must be the same at the servers, besides the parameters.
    """

    wires: ClassVar[tuple[str, ...]] = ANY_WIRE

    def __init__(self, transport: Transport, shards: Sequence[RemoteShard], facts: Facts) -> None:
        super().__init__(transport)
        self._shards = shards
        self._facts = facts
        for shard in shards:
            shard.beside = [other for other in shards if other is not shard]

    @classmethod
    def in_step(cls) -> bool:
        """False: workers join and leave as they like, so that their updates differ."""
        return False

    def prepare(self, optimizer: OptimizerFactory) -> None:  # noqa: ARG002 - the servers make the updates
        """Joins every server, and reads its part of the parameters."""
        parameters = self.parameters
        self._values = OnHost(parameters.values)
        self._gradients = OnHost(parameters.gradients)
        self._leaving, self._landing = (wire.room(self._values.array) for wire in (self.wire, self.wire.of_values))
        self._bounds = chunk_bounds(len(self._values.array), len(self._shards)).tolist()
        for shard in reversed(self._shards):  # last the first, which says when to begin: then all parts have everybody
            shard.join([*self._facts, *facts_about(parameters, self.wire)])
        for shard in self._shards:
            shard.begin_read()
        self._finish()
        self._given = GivenValues(self, None)

    def push(self, bucket: Bucket) -> None:
        """Does nothing: a gradient is sent whole in `step`, so that it counts once or not at all."""

    def step(self, weight: float, loss: float) -> StepReport:
        """Push to every server, and wait until all let this worker read."""
        self._given.check()
        self.parameters.refuse()
        finite = self.wire.all_finite(self.parameters.gradients)
        started = self.transport.now()
        gradients = self._gradients.fetch()
        if not self.wire.whole:
            self.wire.encode(gradients, self._leaving)
            gradients = self._leaving
        for shard, first, stop in self._parts():
            shard.begin(gradients[first:stop], weight, loss, finite=finite, share=self.next_update)
        self.transport.count(messages=2 * len(self._shards), bytes_=gradients.nbytes)
        reports = self._finish()
        self._given.note()
        waited = max(report.waited for report in reports)
        self.waiting_seconds += waited
        self._communicated(self.transport.now() - started - waited)
        first_report = reports[0]
        return StepReport(
            version=self.version,
            outcome=joint_outcome(report.outcome for report in reports),
            weight=first_report.weight,
            loss=first_report.loss,
            workers=int(first_report.workers),
            total_weight=first_report.total_weight,
            next_update=self.next_update,
        )

    def _finish(self) -> list[Report]:
        places = [(shard, self._landing[first:stop]) for shard, first, stop in self._parts()]
        attempts = [shard.attempt(values) for shard, values in places]
        reports = [
            shard.finish(values) if report is None else report
            for (shard, values), report in zip(places, attempts, strict=True)
        ]
        if not self.wire.whole:
            self.wire.of_values.decode(self._landing, self._values.array)
        self._values.deliver()
        back = [shard for shard in self._shards if shard.rejoined]
        tell_missing(self._shards[0], [shard for shard in back if shard is not self._shards[0]])
        for shard in back:
            shard.rejoined = False
        self.version = int(min(report.version for report in reports))
        # The first server alone hands out shares.
        self.next_update = int(reports[0].next_update)
        return reports

    def _parts(self) -> list[tuple[RemoteShard, int, int]]:
        return list(zip(self._shards, self._bounds, self._bounds[1:], strict=False))

    def _communicated(self, seconds: float) -> None:
        self.communication_seconds += seconds
        self.total_communication_seconds += seconds
