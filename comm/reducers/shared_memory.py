"""All-reduce through shared memory: the ranks of a node add up where the gradients already lie."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.buffers import Buffer, add_in_place, array_dtype, tensor_of
from bigbatch.comm.collectives import bind
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.schedule import chunk_bounds
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.recording import REDUCE, WAIT
from bigbatch.comm.wires.request import Windows
from bigbatch.comm.wires.transport import Group, Transport

BLOCK_BYTES = 256 * 1024
"""What is added and handed out at once: few enough bytes that they are still in the cache when handed out."""


class SharedMemory(Collective):
    """Every rank adds up its own part of all windows of its node, and leaves the sum in all of them.

    The tensors live in the windows (`allocate`), so nothing is copied in or out: a part is read once from every
    window and written once to every window. Between nodes, the ranks that own the same part reduce it by a ring.

    Cost on one node of p ranks for n bytes: two barriers, and n bytes read and n bytes written by each rank, at the
    speed of memory.

    Args:
        transport: the transport of all ranks; every node must have the same number of them.

    Raises:
        ConfigurationError: nodes of different sizes, or a transport that cannot share memory.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        sizes = sorted({len(node) for node in transport.nodes})
        if len(sizes) > 1:
            raise ConfigurationError(
                f"Reducing through shared memory needs the same number of ranks on every node, but there are nodes of "
                f"{' and '.join(map(str, sizes))}. Start as many on each."
            )
        if not transport.shares_memory:
            transport.windows(0)  # says why it cannot
        self._place = transport.node.index(transport.rank)
        owners = [node[self._place] for node in transport.nodes]
        self._between = Group(transport, owners)
        self._windows: Windows | None = None
        self._arrays: list[NDArray[np.generic]] = []
        self._memory: Tensor = torch.empty(0)
        self._part = lru_cache(maxsize=64)(self._find_part)

    def allocate(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns this rank's window, (elements,). There is one at a time: it replaces the one before.

        Raises:
            ConfigurationError: the device is not a CPU.
        """
        if device.type != "cpu":
            raise ConfigurationError(f"Shared memory holds tensors on the CPU, not on {device}. Use --device cpu.")
        self._part.cache_clear()
        if self._windows is not None:
            self._windows.close()
        own = array_dtype(dtype)
        self._windows = self.transport.windows(elements * own.itemsize)
        self._arrays = [buffer.view(own) for buffer in self._windows.buffers]
        self._memory = tensor_of(self._arrays[self._place])
        return self._memory

    def close(self) -> None:
        """Gives the shared memory back, which lasts until all ranks have done so."""
        super().close()
        self._part.cache_clear()
        if self._windows is not None:
            self._windows.close()
        self._windows, self._arrays, self._memory = None, [], torch.empty(0)

    def admit(self, wire: WireFormat) -> None:
        """Refuses half precision on a single node, where nothing is sent; between nodes it applies to what is.

        Raises:
            ConfigurationError: all ranks are on one node; marked `everywhere`.
        """
        if not wire.whole and self._between.size == 1:
            raise ConfigurationError(
                f"--wire {wire.precision} has nothing to make smaller here: the ranks of one machine share memory, "
                "and send no gradients. Leave it out, or take an all-reduce that sends messages, such as ring.",
                everywhere=True,
            )

    def _sum(self, tensor: Tensor) -> None:
        self._sum_in(tensor, WHOLE)

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:
        self.admit(wire)
        own, others, blocks = self._part(tensor.data_ptr() - self._memory.data_ptr(), len(tensor), tensor.dtype)
        assert self._windows is not None, "`_part` has seen to it"
        span = self.transport.span
        with span(WAIT):
            self._windows.barrier()
        if self._between.size == 1:
            with span(REDUCE, "add up and hand out", own.nbytes):
                for block in blocks:
                    _add_up(own[block], others, block)
                    _hand_out(own[block], others, block)
        else:
            with span(REDUCE, "add up", own.nbytes):
                for block in blocks:
                    _add_up(own[block], others, block)
            execute(bind(ring, wire.nbytes(own)), self._between, own, wire=wire)
            with span(REDUCE, "hand out", own.nbytes):
                for block in blocks:
                    _hand_out(own[block], others, block)
        with span(WAIT):
            self._windows.barrier()

    def _find_part(self, offset: int, elements: int, dtype: torch.dtype) -> tuple[Buffer, list[Buffer], list[slice]]:
        """This rank's part of a tensor: in its own window, in the others', and cut into blocks.

        Args:
            offset: of the tensor from the begin of the window, in bytes.
            elements: the tensor's length.
            dtype: the tensor's.
        """
        itemsize = self._memory.element_size()
        first = offset // itemsize
        inside = dtype == self._memory.dtype and 0 <= first <= first + elements <= len(self._memory)
        if self._windows is None or (elements and not inside):
            raise ConfigurationError(
                f"Rank {self.transport.rank} wants to sum a tensor of {elements} elements that does not lie in its "
                "window of shared memory. Take its memory from `allocate`."
            )
        bounds = (first + chunk_bounds(elements, len(self._arrays))).tolist()
        part = slice(bounds[self._place], bounds[self._place + 1])
        # Beginning with the next rank, so that not all read from the same one at the same time.
        others = [array[part] for array in (*self._arrays[self._place + 1 :], *self._arrays[: self._place])]
        length = BLOCK_BYTES // itemsize
        blocks = [slice(start, start + length) for start in range(0, part.stop - part.start, length)]
        return self._arrays[self._place][part], others, blocks


def _add_up(total: Buffer, others: list[Buffer], block: slice) -> None:
    for other in others:
        add_in_place(total, other[block])


def _hand_out(total: Buffer, others: list[Buffer], block: slice) -> None:
    for other in others:
        other[block] = total
