"""What every worker computes in an update, and when its gradients are ready to be sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import FORWARD_SHARE, Computing
from bigbatch.comm.simulation.network import FloatArray
from bigbatch.comm.strategies.description import Workload as Gradients
from bigbatch.models.sizes import ModelSize

ELEMENT_BYTES = 4
"""Gradients travel as float32."""


@dataclass(frozen=True)
class Workload:
    """What every worker does in an update.

    Attributes:
        size: of the model.
        tokens: that a worker computes in an update, in all its micro-batches.
        computing: how long that takes.
        bucket_bytes: gradients are sent in buckets of about this size.
        overlap: whether buckets are sent while backward of the last micro-batch still runs.
        accumulation: micro-batches, of as many tokens each, whose gradients a worker adds up for an update.

    Raises:
        ConfigurationError: fewer than one micro-batch, or more of them than tokens.
    """

    size: ModelSize
    tokens: int
    computing: Computing
    bucket_bytes: int
    overlap: bool
    accumulation: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.accumulation <= self.tokens:
            raise ConfigurationError(
                f"A worker's {self.tokens:,} tokens of an update cannot be computed in {self.accumulation:,} "
                "micro-batches; it takes at least one, and a token for each."
            )

    @property
    def compute(self) -> float:
        """Seconds that an update's computing takes a worker that nothing slows."""
        return self.computing.forward(self.tokens) + self.computing.backward(self.tokens)

    def buckets(self) -> list[int]:
        """Elements of each bucket, in the order in which backward finishes them."""
        buckets, held = [], 0
        for elements in self.size.parts:
            held += elements
            if held * ELEMENT_BYTES >= self.bucket_bytes:
                buckets.append(held)
                held = 0
        return [*buckets, held] if held else buckets

    def ready(self, buckets: Sequence[int] | None = None) -> FloatArray:
        """(buckets,) the share of an update's computing after which each bucket is ready.

        Args:
            buckets: elements of each, if they are not those of `buckets`.
        """
        shares = np.cumsum(self.buckets() if buckets is None else buckets) / self.size.parameters
        ahead = (1 - FORWARD_SHARE) * (1 - shares) / self.accumulation
        return 1 - ahead if self.overlap else np.ones(len(shares))

    @property
    def gradients(self) -> Gradients:
        """The same as far as the wires must know it."""
        return Gradients(tuple(self.buckets()), tuple(self.ready().tolist()), ELEMENT_BYTES)
