"""All-gather as an operation on tensors, by our own rounds."""

from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from bigbatch.comm.collectives.all_gather import all_gather
from bigbatch.comm.parameters import OnHost
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.wires.agreement import agree
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.recording import ALL_REDUCE
from bigbatch.comm.wires.transport import Transport

GATHER_TAG = 28_000
"""The tag of these messages, kept apart from the tags of all-reduces."""


class AllGather:
    """Gives every rank the tensors of all ranks.

    Every rank must ask for the same gatherings in the same order.

    Args:
        transport: the transport of all ranks that take part.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._introduced: set[tuple[int, torch.dtype, bool, WireFormat]] = set()

    def gather(self, tensor: Tensor, wire: WireFormat = WHOLE, *, alike: bool = True) -> list[Tensor]:
        """Gathers the tensors of all ranks; returns them by rank, as views of one new buffer.

        Args:
            tensor: (elements,) this rank's tensor.
            wire: the format in which the tensors travel; in half precision, every rank gets its own rounded, too.
            alike: whether it has the same length on all ranks; if not, a first gathering tells the lengths.

        Raises:
            MismatchError: on every rank, the first time that a tensor of this length and dtype is gathered, if the
                tensors differ in dtype or wire format, or although they are `alike` in length; names the rank and its
                tensor.
            DeadlineError: a rank did not come.
        """
        size = self.transport.size
        self._introduce(tensor, wire, alike=alike)
        lengths = [len(tensor)] * size if alike else self._lengths(tensor)
        bounds = (0, *accumulate(lengths))
        everyones = tensor.new_empty(bounds[-1])
        parts = [everyones[first:stop] for first, stop in pairwise(bounds)]
        parts[self.transport.rank].copy_(tensor)
        host = OnHost(everyones)
        with self.transport.span(ALL_REDUCE, "all-gather", len(everyones) * wire.itemsize(tensor.dtype)):
            execute(all_gather, self.transport, host.fetch(), GATHER_TAG, bounds, wire)
        host.deliver()
        return parts

    def _lengths(self, tensor: Tensor) -> list[int]:
        lengths = np.zeros(self.transport.size, dtype=np.int64)
        lengths[self.transport.rank] = len(tensor)
        execute(all_gather, self.transport, lengths, GATHER_TAG)
        return lengths.tolist()

    def _introduce(self, tensor: Tensor, wire: WireFormat, *, alike: bool) -> None:
        """Make sure that all ranks mean the same, the first time."""
        wire.check(tensor.dtype)
        signature = (len(tensor) if alike else -1, tensor.dtype, alike, wire)
        if signature in self._introduced or self.transport.size == 1:
            return
        length = f"{len(tensor)} ×" if alike else "any number of"
        sent = "" if wire.whole else f", sent as {wire}"
        what = f"{length} {str(tensor.dtype).removeprefix('torch.')}{sent}"
        agree(self.transport, "tensor of all-gather", [(f"number {len(self._introduced) + 1}", what)])
        self._introduced.add(signature)
