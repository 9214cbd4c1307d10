"""The workload of every worker in an update: what it computes, and when its gradients are ready to be sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import BYTES, FP32
from bigbatch.comm.simulation.computing import Computing
from bigbatch.comm.simulation.network import FloatArray
from bigbatch.comm.strategies.description import Workload as Gradients
from bigbatch.models.sizes import ModelSize

ELEMENT_BYTES = BYTES[FP32]
"""Bytes of a gradient as it is computed, added up and, unless a half-precision wire is asked for, sent: float32."""


def bytes_sent(wire: str, nbytes: int) -> int:
    """The bytes of what takes `nbytes` bytes in float32, on wires of that precision."""
    return -(-nbytes * BYTES[wire] // ELEMENT_BYTES)


@dataclass(frozen=True)
class Workload:
    """The computing of one worker in an update, and how its gradients are divided into buckets.

    Attributes:
        size: the size of the model, with the share of forward that backward computes once more.
        tokens: number of tokens that a worker computes in an update, in all its micro-batches.
        computing: how long a worker computes for a token.
        bucket_bytes: target size of a gradient bucket, in bytes of float32.
        overlap: whether buckets are sent while backward of the last micro-batch still runs.
        accumulation: number of equal micro-batches whose gradients a worker adds up for an update.
        wire: the precision in which gradients are sent, and parameters by servers; see `bigbatch.comm.precisions`.

    Raises:
        ConfigurationError: there are fewer than one micro-batch, or more micro-batches than tokens.
    """

    size: ModelSize
    tokens: int
    computing: Computing
    bucket_bytes: int
    overlap: bool
    accumulation: int = 1
    wire: str = FP32

    def __post_init__(self) -> None:
        if not 1 <= self.accumulation <= self.tokens:
            raise ConfigurationError(
                f"A worker's {self.tokens:,} tokens of an update cannot be computed in {self.accumulation:,} "
                "micro-batches; it takes at least one, and a token for each."
            )

    @property
    def sent_bytes(self) -> int:
        """Bytes that a gradient, or a parameter of a server, takes on the wires."""
        return BYTES[self.wire]

    @property
    def compute(self) -> float:
        """Seconds that a worker computes in an update if nothing slows it."""
        return self.computing.forward(self.tokens) + self.computing.backward(self.tokens, self.size.recomputed)

    def buckets(self) -> list[int]:
        """Lists the number of elements in each bucket, in the order in which backward finishes the buckets."""
        buckets, held = [], 0
        for elements in self.size.parts:
            held += elements
            if held * ELEMENT_BYTES >= self.bucket_bytes:
                buckets.append(held)
                held = 0
        return [*buckets, held] if held else buckets

    def ready(self, buckets: Sequence[int] | None = None) -> FloatArray:
        """Computes after which share of an update's computing each bucket is ready, (buckets,), from 0 to 1.

        Args:
            buckets: number of elements in each bucket; None for those of the method `buckets`.
        """
        shares = np.cumsum(self.buckets() if buckets is None else buckets) / self.size.parameters
        once = Computing(1.0)
        backward = once.backward(1, self.size.recomputed)
        ahead = backward / (once.forward(1) + backward) * (1 - shares) / self.accumulation
        return 1 - ahead if self.overlap else np.ones(len(shares))

    @property
    def gradients(self) -> Gradients:
        """The part of the workload that communication depends on: sizes of the buckets, and when each is ready."""
        buckets, ready = tuple(self.buckets()), tuple(self.ready().tolist())
        return Gradients(buckets, ready, self.sent_bytes, rounded=self.wire != FP32)
