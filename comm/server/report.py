"""Reports: what a worker hears of its server when it may read."""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.server.shard import Shard, Update
from bigbatch.comm.update import Outcome


@dataclass(frozen=True)
class Waiting:
    """A worker that waits to read, with what it pushed last.

    Attributes:
        arrived: when its gradient arrived, in seconds on the server's clock.
        weight: tokens behind the gradient.
        loss: the loss summed over those tokens, in nats.
        outcome: what becomes of the gradient by itself.
    """

    arrived: float
    weight: float = 0.0
    loss: float = 0.0
    outcome: Outcome = Outcome.NO_DATA


@dataclass(frozen=True)
class Report:
    """What a server tells a worker when it may read.

    Attributes:
        fresh: whether new values follow.
        version: the version of the parameters.
        outcome: what became of the gradients that this is about.
        weight: tokens behind the gradients that this is about.
        loss: the loss summed over those tokens, in nats.
        workers: the number of workers whose gradients those are.
        total_weight: tokens behind all updates that were applied so far.
        next_update: the number of the batch of which the worker computes its share next.
        waited: seconds from the gradient's arrival until the worker might read.
    """

    fresh: float
    version: float
    outcome: Outcome
    weight: float
    loss: float
    workers: float
    total_weight: float
    next_update: float
    waited: float

    @classmethod
    def on(cls, shard: Shard, worker: int, since: Waiting, now: float, *, fresh: bool) -> Self:
        """Makes the report to a worker that reads now.

        If all workers share their updates it is about the last one; else it is about the worker's own gradient.

        Args:
            shard: the shard that the worker reads.
            worker: the number of the worker.
            since: the worker's last gradient and its arrival.
            now: in seconds on the server's clock.
            fresh: whether new values follow.
        """
        about = Update(since.outcome, since.weight, since.loss, contributors=1)
        if shard.alike and shard.last is not None:
            about = shard.last
        return cls(
            fresh=fresh,
            version=shard.version,
            outcome=about.outcome,
            weight=about.weight,
            loss=about.loss,
            workers=about.contributors,
            total_weight=shard.tokens,
            next_update=shard.position(worker),
            waited=now - since.arrived,
        )

    @property
    def applied(self) -> bool:
        """Whether the parameters have changed by the gradients that this is about."""
        return self.outcome is Outcome.APPLIED

    def row(self) -> Buffer:
        """The report as one message, (9,) float64, with the code of the outcome."""
        values = [getattr(self, field.name) for field in fields(self)]
        return np.array([value.code if isinstance(value, Outcome) else value for value in values], dtype=np.float64)

    @classmethod
    def of(cls, row: Buffer) -> Self:
        """Reads a report from one message, (9,) float64.

        Raises:
            MalformedError: the outcome's code stands for nothing.
        """
        report = dict(zip((field.name for field in fields(cls)), row.tolist(), strict=True))
        return cls(**{**report, "outcome": Outcome.of(report["outcome"])})
