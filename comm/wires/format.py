"""Wire formats: how numbers are written while they travel between ranks, and what comes of them at the other end.

Numbers are computed with, added and kept as they are. In half precision they take half the bytes on the way, or a
quarter if they are float64. Both ends of a message then hold the same numbers: the sender can round its own to what it
has sent.

In fp16 there is nothing beyond 65504 and nothing below 6e-8. A gradient is summed over tokens, so it is multiplied by
about 1 / tokens before it is sent, which makes a mean of the sum, and divided by the same afterwards. The factor is a
power of two, so that both are exact. bf16 has the range of float32 and needs none.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bigbatch.comm.buffers import Buffer, Phantom, array_dtype, phantom, tensor_of
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import all_finite
from bigbatch.comm.precisions import BF16, FP16, FP32

BLOCK_ELEMENTS = 1 << 18
"""Elements that are converted at once: more would not stay in cache, and fewer would take more calls than work."""

TOKENS_A_WORKER = 1024
"""Tokens that a worker is taken to have behind an update if nobody knows how many. Gradients whose mean over tokens has
no element above 60 and is made of 64 to a million tokens then keep within fp16's range, most of them well within."""

HALVES = {BF16: torch.bfloat16, FP16: torch.float16}
"""The dtype of numbers in each half precision."""

MADE_HALVES_OF = (torch.float32, torch.float64)
"""The dtypes that can be sent in half precision; others have as few bytes already."""

LEAST_POWER, GREATEST_POWER = -40, 0
"""The powers of two among which fp16's factor is: beyond them an exact division in float32 would not be sure."""


class _Scratch(threading.local):
    """A block of each dtype, of which every thread has its own: what is converted stays in cache there."""

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, Tensor] = {}

    def block(self, like: Tensor) -> Tensor:
        """A block as long as `like`, and of its dtype; its contents are unknown."""
        if like.device.type != "cpu":
            return torch.empty_like(like)
        if like.dtype not in self._blocks:
            self._blocks[like.dtype] = torch.empty(BLOCK_ELEMENTS, dtype=like.dtype)
        return self._blocks[like.dtype][: len(like)]


_scratch = _Scratch()


@dataclass(frozen=True)
class WireFormat:
    """The format in which numbers of one kind travel. Sender and receiver must have the same.

    Buffers are flat NumPy arrays of float32 or float64, and what is sent of them are arrays of as many elements, made
    by `room`. Phantoms stay phantoms.

    Attributes:
        precision: "fp32" to send numbers as they are, whatever their dtype; "bf16" or "fp16" to send them in that.
        factor: the power of two by which numbers are multiplied before they are sent.
    """

    precision: str = FP32
    factor: float = 1.0

    @classmethod
    def for_gradients(cls, precision: str, expected_tokens: float) -> Self:
        """Makes the format for gradients that are summed over tokens.

        Args:
            precision: "fp32", "bf16" or "fp16".
            expected_tokens: about how many tokens of all workers are behind an update.
        """
        if precision != FP16:
            return cls(precision)
        power = round(-math.log2(max(1.0, expected_tokens)))
        return cls(precision, 2.0 ** min(GREATEST_POWER, max(LEAST_POWER, power)))

    def __str__(self) -> str:
        return self.precision if self.factor == 1 else f"{self.precision} times 2^{round(math.log2(self.factor))}"

    @property
    def whole(self) -> bool:
        """Whether numbers are sent as they are."""
        return self.precision == FP32

    @property
    def of_values(self) -> "WireFormat":
        """The format of the same precision for numbers that are no sums over tokens, such as parameters."""
        return WireFormat(self.precision)

    def check(self, dtype: torch.dtype) -> None:
        """Refuses to send numbers of a dtype in half precision that have as few bytes already, or are no numbers.

        Raises:
            ConfigurationError: marked `everywhere`, for all ranks have the same dtype.
        """
        if not self.whole and dtype not in MADE_HALVES_OF:
            raise ConfigurationError(
                f"--wire {self.precision} sends float32 in half the bytes, but what is sent here is "
                f"{str(dtype).removeprefix('torch.')}: leave --wire out.",
                everywhere=True,
            )

    def dtype(self, own: "np.dtype[Any]") -> "np.dtype[Any]":
        """NumPy's dtype of what is sent of a buffer of dtype `own`."""
        return own if self.whole else array_dtype(HALVES[self.precision])

    def itemsize(self, own: torch.dtype) -> int:
        """Bytes that a number of dtype `own` takes on the wires."""
        return (own if self.whole else HALVES[self.precision]).itemsize

    def nbytes(self, buffer: Buffer) -> int:
        """Bytes that a buffer takes on the wires."""
        return len(buffer) * self.dtype(buffer.dtype).itemsize

    def room(self, buffer: Buffer) -> Buffer:
        """Makes memory for what is sent of a buffer, (elements,), its contents unknown; the buffer itself if whole."""
        if self.whole:
            return buffer
        if isinstance(buffer, Phantom):
            return phantom(len(buffer), self.dtype(buffer.dtype))
        return np.empty(len(buffer), self.dtype(buffer.dtype))

    def encode(self, values: Buffer | Tensor, sent: Buffer | Tensor, *, keep: bool = False) -> None:
        """Makes what is sent of some numbers, block by block.

        In fp16 a negative number too small for it becomes +0.0, because -0.0 says that there is no gradient; see
        `bigbatch.comm.gradients`.

        Args:
            values: (elements,) the numbers to send; an array, or a tensor on any device.
            sent: (elements,) where they go: an array from `room`, or a tensor beside the values.
            keep: whether `values` must hold what is sent, rounded, afterwards.
        """
        for own, half in self._blocks(values, sent):
            self._round_to(half, own)
            if keep:
                self._take(half, own)

    def decode(self, arrived: Buffer | Tensor, values: Buffer | Tensor) -> None:
        """Replaces `values`, (elements,), by what arrived, (elements,), which may be memory that cannot be written."""
        if self.whole and isinstance(values, np.ndarray):
            values[:] = arrived
            return
        if isinstance(arrived, np.ndarray) and not arrived.flags.writeable:
            arrived = arrived.copy()  # torch takes no other
        for own, half in self._blocks(values, arrived):
            self._take(half, own)

    def add(self, values: Buffer, arrived: Buffer) -> None:
        """Adds what arrived to `values`, (elements,) each, in the dtype of `values`."""
        for own, half in self._blocks(values, arrived):
            own.add_(_scratch.block(own).copy_(half), alpha=1 / self.factor)

    def round(self, values: Buffer) -> None:
        """Rounds `values`, (elements,), to what would arrive elsewhere if they were sent."""
        if len(values):
            self.encode(values, self.room(values), keep=True)

    def add_up(self, rows: Tensor, total: Tensor, dtype: torch.dtype) -> None:
        """Adds up what arrived from all ranks, in their order and in `dtype`, and rounds the sum once.

        Args:
            rows: (ranks, elements) what arrived, in this format.
            total: (elements,) where the sum goes, in this format.
            dtype: the dtype in which is added.
        """
        length = BLOCK_ELEMENTS if rows.device.type == "cpu" else max(1, len(total))
        sums = torch.empty(min(length, len(total)), dtype=dtype, device=rows.device)
        for first in range(0, len(total), length):
            block = slice(first, first + length)
            own = sums[: len(total[block])]
            own.copy_(rows[0, block])
            for row in rows[1:, block]:
                own.add_(_scratch.block(own).copy_(row))
            total[block].copy_(own)  # the factor of what arrived is that of its sum, too

    def all_finite(self, tensor: Tensor) -> bool:
        """Whether all that arrives of a tensor, (elements,) and not empty, is finite; True for one without contents.

        Rounding keeps numbers in order, so that it is enough to look at the least and the greatest.
        """
        if self.whole or tensor.is_meta:
            return all_finite(tensor)
        ends = torch.stack(list(torch.aminmax(tensor)))
        arrived = (ends * self.factor).to(HALVES[self.precision]).to(ends.dtype) / self.factor
        return bool(torch.isfinite(arrived).all())

    def _blocks(self, values: Buffer | Tensor, sent: Buffer | Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (values, what is sent of them) by blocks; nothing for phantoms, which have no contents."""
        if isinstance(values, Phantom) or isinstance(sent, Phantom):
            return
        own = values if isinstance(values, Tensor) else tensor_of(values)
        halves = sent if isinstance(sent, Tensor) else tensor_of(sent)
        length = BLOCK_ELEMENTS if own.device.type == "cpu" else max(1, len(own))
        yield from zip(torch.split(own, length), torch.split(halves, length), strict=True)

    def _round_to(self, half: Tensor, own: Tensor) -> None:
        half.copy_(own if self.factor == 1 else torch.mul(own, self.factor, out=_scratch.block(own)))
        if self.precision != FP16:  # what float32 has, bf16 has, down to 1e-40
            return
        bits = half.view(torch.int16)
        if len(bits) and int(bits.amin()) == MINUS_ZERO:
            lost = torch.from_numpy(bits.numpy() == MINUS_ZERO) if bits.device.type == "cpu" else bits == MINUS_ZERO
            lost &= own != 0
            bits.bitwise_xor_(lost.to(torch.int16) * MINUS_ZERO)

    def _take(self, half: Tensor, own: Tensor) -> None:
        own.copy_(half)
        if self.factor != 1:
            own.mul_(1 / self.factor)


MINUS_ZERO = -(2**15)
"""The bits of -0.0 in half precision, as a whole number: the smallest that there is."""

WHOLE = WireFormat()
"""The format in which numbers are sent as they are."""
