"""All-reduces of other libraries: MPI's and torch.distributed's own."""

import math
from collections.abc import Callable

from torch import Tensor

from bigbatch.comm.parameters import OnHost
from bigbatch.comm.reducers.collective import Collective, Reduction
from bigbatch.comm.transports.mpi import MPITransport
from bigbatch.comm.transports.torch_distributed import TorchTransport
from bigbatch.comm.wires.recording import ALL_REDUCE, LIBRARY, WAIT, Span


class MPIAllReduce(Collective):
    """MPI_Allreduce in place, the library's own. It blocks inside the library, where no deadline reaches it."""

    def __init__(self, transport: MPITransport) -> None:
        super().__init__(transport)
        self._mpi = transport

    def _sum(self, tensor: Tensor) -> None:
        host = OnHost(tensor)
        self._mpi.all_reduce(host.fetch())
        host.deliver()


class TorchAllReduce(Collective):
    """torch.distributed's own all-reduce, which moves data by itself while the caller goes on."""

    def __init__(self, transport: TorchTransport) -> None:
        super().__init__(transport)
        self._torch = transport

    def start(self, tensor: Tensor) -> Reduction:
        """Begins torch's all-reduce of `tensor`, (elements,), which moves data while the caller goes on."""
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
        """Does the work at once, because the library puts operations in order by itself."""
        work()

    def _sum(self, tensor: Tensor) -> None:
        self._torch.all_reduce(tensor).wait()
