"""All-reduces of other libraries: MPI's and torch.distributed's own.

A library's all-reduce of half-precision numbers adds in half precision, too, and rounds at every rank. So in half
precision only the library's exchanges are used: everyone sends each other rank its chunk (all-to-all), every rank adds
up its own chunk in the tensor's precision, in the order of the ranks, and sends the sum, rounded once, to all
(all-gather).
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from bigbatch.comm.buffers import array_of, tensor_of
from bigbatch.comm.collectives.direct import direct
from bigbatch.comm.parameters import OnHost
from bigbatch.comm.reducers.collective import Collective, Reduction
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.transports.mpi import MPITransport
from bigbatch.comm.transports.torch_distributed import TorchTransport
from bigbatch.comm.wires.format import HALVES, WHOLE, WireFormat
from bigbatch.comm.wires.recording import ALL_REDUCE, LIBRARY, REDUCE, WAIT, Span
from bigbatch.comm.wires.request import Request
from bigbatch.comm.wires.transport import Transport

PIECE_BYTES = 4 * 2**20
"""What is exchanged at once in half precision, so that one piece moves while the next one is rounded or added up."""


class LibraryAllReduce(Collective):
    """An all-reduce of a library, which in half precision is made of two exchanges and a sum of ours."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._kept: tuple[Tensor, Tensor] | None = None

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:
        size, rank = self.transport.size, self.transport.rank
        pieces = torch.split(tensor, PIECE_BYTES // wire.itemsize(tensor.dtype))
        chunks = [-(-len(piece) // size) for piece in pieces]  # all alike, as libraries want it; the last may be short
        sent, landing = (
            torch.split(room, [size * n for n in chunks]) for room in self._rooms(sum(chunks), wire, tensor)
        )
        exchanges = []
        for piece, own, arriving in zip(pieces, sent, landing, strict=True):
            wire.encode(piece, own[: len(piece)])
            own[len(piece) :].zero_()
            exchanges.append(self._exchange(own, arriving))
        gathers = []
        for exchange, own, arrived in zip(exchanges, sent, landing, strict=True):
            exchange.wait()
            with self.transport.span(REDUCE, nbytes=arrived.nbytes):
                wire.add_up(arrived.view(size, -1), own.view(size, -1)[rank], tensor.dtype)
            gathers.append(self._gather(own))
        for gather, piece, own in zip(gathers, pieces, sent, strict=True):
            gather.wait()
            wire.decode(own[: len(piece)], piece)

    def _rooms(self, chunks: int, wire: WireFormat, like: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for what is sent and what arrives, (ranks × chunks,) each, kept for the next sum."""
        elements, dtype = self.transport.size * chunks, HALVES[wire.precision]
        kept = self._kept
        if kept is None or (kept[0].dtype, kept[0].device) != (dtype, like.device) or len(kept[0]) < elements:
            kept = self._kept = like.new_empty(elements, dtype=dtype), like.new_empty(elements, dtype=dtype)
        return kept[0][:elements], kept[1][:elements]

    def close(self) -> None:
        """Gives back the thread, and the memory for what is sent."""
        super().close()
        self._kept = None

    @abstractmethod
    def _exchange(self, own: Tensor, arriving: Tensor) -> Request:
        """Begins to send every rank its chunk of `own`; the chunks for this one land in `arriving`, by rank."""

    @abstractmethod
    def _gather(self, everyones: Tensor) -> Request:
        """Begins to give every rank all chunks, in place; this rank has made its own."""


class MPIAllReduce(LibraryAllReduce):
    """MPI_Allreduce in place, the library's own. It blocks inside the library, where no deadline reaches it."""

    def __init__(self, transport: MPITransport) -> None:
        super().__init__(transport)
        self._mpi = transport

    def _sum(self, tensor: Tensor) -> None:
        host = OnHost(tensor)
        self._mpi.all_reduce(host.fetch())
        host.deliver()

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:
        host = OnHost(tensor)
        super()._sum_in(tensor_of(host.fetch()), wire)
        host.deliver()

    def _exchange(self, own: Tensor, arriving: Tensor) -> Request:
        return self._mpi.all_to_all(array_of(own), array_of(arriving))

    def _gather(self, everyones: Tensor) -> Request:
        return self._mpi.gather_in_place(array_of(everyones))


class TorchAllReduce(LibraryAllReduce):
    """torch.distributed's own all-reduce, which moves data by itself while the caller goes on."""

    def __init__(self, transport: TorchTransport) -> None:
        super().__init__(transport)
        self._torch = transport
        self._queued = False

    def start(self, tensor: Tensor, wire: WireFormat = WHOLE) -> Reduction:
        """Begins torch's all-reduce of `tensor`, (elements,), which moves data while the caller goes on.

        In half precision, what lies between torch's exchanges is done in the communication queue.
        """
        if not wire.whole:
            self._queued = True
            return super().start(tensor, wire)
        self.introduce(tensor)
        reduction = Reduction(asked=self.transport.now())
        request = self._torch.all_reduce(tensor)

        def ended() -> None:
            reduction.ended = self.transport.now()

        if tensor.device.type == "cpu":  # NCCL calls back when it has begun
            request.when_done(ended)

        def wait() -> None:
            with self.transport.span(WAIT):
                request.wait()
            if math.isnan(reduction.ended):  # the library calls back a moment after it lets go
                ended()
            if (trace := self.transport.trace) is not None:
                trace.record(Span(ALL_REDUCE, *reduction.moving, track=LIBRARY, nbytes=tensor.nbytes))

        reduction.wait = wait
        return reduction

    def in_turn(self, work: Callable[[], None]) -> None:
        """Does the work at once, because the library puts operations in order by itself, unless some are queued."""
        if self._queued:
            super().in_turn(work)
        else:
            work()

    def _sum(self, tensor: Tensor) -> None:
        self._torch.all_reduce(tensor).wait()

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:
        if tensor.is_cuda and self._torch.nccl:
            super()._sum_in(tensor, wire)
            return
        # gloo's exchanges take twice as long as messages that do the same.
        host = OnHost(tensor)
        execute(direct, self._torch, host.fetch(), wire=wire)
        host.deliver()

    def _exchange(self, own: Tensor, arriving: Tensor) -> Request:
        return self._torch.all_to_all(own, arriving)

    def _gather(self, everyones: Tensor) -> Request:
        return self._torch.gather_in_place(everyones)
