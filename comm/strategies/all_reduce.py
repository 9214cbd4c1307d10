"""All-reduce: every worker ends with the same sum of gradients and makes the same update."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.collectives import MOST_SEGMENTS, SEGMENT_BYTES, Nodes, bind
from bigbatch.comm.collectives.hierarchical import hierarchical
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import Bucket, OptimizerFactory, digest, looks_at, square, total
from bigbatch.comm.precisions import FP32
from bigbatch.comm.reducers.collective import Collective, Reduction, Scheduled, covered
from bigbatch.comm.reducers.library import MPIAllReduce, TorchAllReduce
from bigbatch.comm.reducers.shared_memory import SharedMemory
from bigbatch.comm.schedules.prove import refuse_unproven
from bigbatch.comm.schedules.schedule import Schedule, name_of
from bigbatch.comm.strategies.alike import apart, refuse_unlike
from bigbatch.comm.strategies.description import Description, Workload, all_reduced
from bigbatch.comm.strategies.replicated import Replicated
from bigbatch.comm.strategies.strategy import ANY_WIRE, Squares, StepReport
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.transports.mpi import MPITransport
from bigbatch.comm.transports.torch_distributed import TorchTransport
from bigbatch.comm.wires.agreement import together
from bigbatch.comm.wires.format import WireFormat
from bigbatch.comm.wires.recording import COMPUTE
from bigbatch.comm.wires.transport import Transport, consecutive_nodes


class AllReduce(Replicated):
    """Sums every bucket over all workers, who then all make the same update.

    Buckets are summed while backward still runs, all but the last: when that one is ready there is nothing left to
    hide behind.

    Each of these can be replaced alone: `collective`, the all-reduce and the memory that it works in; `reduce`, how one
    bucket becomes everybody's sum; `update`, how the sum of all gradients becomes an update.

    Attributes:
        rounds: the algorithm, if the collective is made of rounds.
    """

    rounds: ClassVar[Callable[..., Any] | None] = None
    wires: ClassVar[tuple[str, ...]] = ANY_WIRE
    tells_squares: ClassVar[bool] = True

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._collective = self.collective(transport)
        self._early: list[Reduction] = []
        self._last: Bucket | None = None
        self._squares: list[Tensor] = []

    @classmethod
    def replicas(cls, workers: int) -> int:  # noqa: ARG003 - it is the same for any number
        """One: all workers make the same updates, and so train one model."""
        return 1

    @classmethod
    def in_step(cls) -> bool:
        """True: every update is made of the gradients of all workers."""
        return True

    @classmethod
    def gradients_per_step(cls, workers: int) -> int:
        """Every update is made of the gradients of all workers."""
        return workers

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """The all-reduce to use; the ring, unless a subclass takes another.

        Raises:
            ConfigurationError: it cannot run on these wires.
        """
        return Scheduled(ring, transport)

    def place(self, gradients: Tensor) -> Tensor:
        """Allocates memory for the gradients, (elements,), in which the collective can sum them.

        Raises:
            ConfigurationError: on every rank, if the wire would change nothing, since the collective sends nothing.
        """
        self._collective.admit(self.wire)
        return self._collective.allocate(gradients.numel(), gradients.dtype, gradients.device)

    def prepare(self, optimizer: OptimizerFactory) -> None:
        """Makes the optimiser, and checks that all ranks have the same buckets."""
        super().prepare(optimizer)
        for bucket in self.buckets:
            self._collective.introduce(bucket.gradients, self.wire)

    def push(self, bucket: Bucket) -> None:
        """Begin to sum the bucket, unless it is the last: that is left to `step`."""
        if self.with_squares:
            self._squares.append(square(bucket.gradients))  # soon it holds everybody's
        if bucket.index < len(self.buckets) - 1:
            self._early.append(self.begin(bucket))
        else:
            self._last = bucket

    def begin(self, bucket: Bucket) -> Reduction:
        """Puts `reduce` of a bucket into the communication queue, which goes on while backward runs."""
        return self._collective.begin(partial(self.reduce, bucket))

    def reduce(self, bucket: Bucket) -> None:
        """Make a bucket of this worker's gradients the sum of all workers' gradients, in place.

        It is called in the communication queue, for one bucket after the other in the same order on every worker; for
        the last bucket, in `step`. So it may send what it likes. It must not touch other buckets.
        """
        self._collective.reduce(bucket.gradients, self.wire)

    def step(self, weight: float, loss: float) -> StepReport:
        """Sums the last bucket, divides the gradients by the summed weight, and makes the update.

        Raises:
            ConfigurationError: on every rank, if a gradient on one of them cannot be what would be trained, or the
                workers' parameters have come apart.
        """
        own = [total(self._squares) / max(weight, 1) ** 2] if self.with_squares else []
        weight, loss, faults, *summed = self._everyones(np.array([weight, loss, self._faults(), *own])).tolist()
        if faults:
            together(self.transport, self.parameters.refuse)
            self._refuse_unlike()
        with self.transport.span(COMPUTE, "apply"):
            squares = self._squares_of(summed[0], weight) if summed else None
            outcome = self.update(weight)
        return self.report(outcome, weight, loss, self.workers, squares)

    def _faults(self) -> float:
        """A number whose sum over all workers is 0 if none has a fault, and all have the same parameters.

        It is exact: what is apart are whole numbers, see `apart`, and faults are halves.
        """
        faults = 0.5 * bool(self.parameters.views.fault)
        if self.workers > 1 and looks_at(self.steps):
            frozen = [digest(tensor) for _, tensor in self.parameters.module.frozen]
            faults += apart(self, [*self.parameters.digests(), *frozen])
        return faults

    def _refuse_unlike(self) -> None:
        """Raises an error on every rank if the workers' parameters have come apart by more than rounding."""
        parameters = self.parameters
        trained = [
            (piece.name, parameters.values[piece.first : piece.stop])
            for piece in parameters.pieces(0, len(parameters.values))
        ]
        refuse_unlike(self, self.transport, [*trained, *parameters.module.frozen])

    def _everyones(self, tally: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum a few numbers, then the last bucket; every bucket is summed when it returns.

        Nobody's sum of numbers is complete before everybody has come: the time until then is time waited for the
        slowest worker, less what earlier buckets took of it to move. The time after is that of moving the rest.
        """
        clock = self.transport.now
        ready = clock()
        if self._early:
            self._collective.in_turn(lambda: np.copyto(tally, self.total(tally)))
        else:
            tally = self.total(tally)
        everyone_ready = clock()
        for reduction in self._early:
            reduction.wait()
        if self._last is not None:
            self.reduce(self._last)
        self._count_seconds(ready, everyone_ready, clock())
        self._early, self._last, self._squares = [], None, []
        return tally

    def _count_seconds(self, ready: float, everyone_ready: float, done: float) -> None:
        exposed_early = covered([r.moving for r in self._early if r.began is not None], ready, everyone_ready)
        self.waiting_seconds += everyone_ready - ready - exposed_early
        self.communication_seconds += exposed_early + done - everyone_ready
        self.total_communication_seconds += covered([*(r.moving for r in self._early), (everyone_ready, done)])

    def _squares_of(self, sum_of_each: float, weight: float) -> Squares:
        """The squares of the workers' mean gradients, whose sum is given, and of the mean of all."""
        of_mean = float(square(self.parameters.gradients)) / max(weight, 1) ** 2
        return Squares(sum_of_each / self.workers, of_mean)

    def close(self) -> None:
        """Gives back the memory and the thread of the collective."""
        super().close()
        self._collective.close()


class TorchDistributed(AllReduce):
    """torch.distributed's all-reduce: gloo between processors, NCCL where every rank has a GPU."""

    wires: ClassVar[tuple[str, ...]] = ANY_WIRE
    launchers: ClassVar[tuple[str, ...]] = ("mpirun", "torchrun")

    @classmethod
    def connect(cls, launch: Launch, device: str, deadline: float) -> Transport:
        """Connects the processes by a torch.distributed process group, whichever launcher started them."""
        # NCCL refuses two ranks on one GPU; gloo reduces tensors on GPUs too, only slower.
        own_gpu = device.startswith("cuda") and torch.cuda.device_count() >= launch.local_size
        return launch.connect_torch(deadline, "cpu:gloo,cuda:nccl" if own_gpu else "gloo")

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums `values` by torch's all-reduce too: over gloo, one call is quicker than several messages of ours.

        While sums of buckets are under way it uses messages of ours: torch's all-reduce would queue behind those sums,
        and the time that they take to move would be counted as waiting.
        """
        if self._early:
            return super().total(values)
        result = torch.from_numpy(values.astype(np.float64))
        self._collective.reduce(result)
        return result.numpy()

    def begin(self, bucket: Bucket) -> Reduction:
        """Begin torch's all-reduce, which moves data by itself: it needs no queue of ours."""
        return self._collective.start(bucket.gradients, self.wire)

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """torch.distributed's own all-reduce, which needs the wires of torch.distributed."""
        if not isinstance(transport, TorchTransport):
            raise ConfigurationError(
                f"torch.distributed's all-reduce runs on its own wires alone, not on {type(transport).__name__}. Start "
                "processes for it; or, to simulate, take ring, which is what gloo does."
            )
        return TorchAllReduce(transport)


class MPI(AllReduce):
    """MPI_Allreduce in place, the MPI library's own all-reduce: something to compare with."""

    wires: ClassVar[tuple[str, ...]] = ANY_WIRE

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """The MPI library's all-reduce; for a single rank, our own, which then does nothing."""
        if transport.size == 1:
            return Scheduled(hierarchical, transport)
        if not isinstance(transport, MPITransport):
            raise ConfigurationError(
                f"MPI_Allreduce needs processes that mpirun has started, not {type(transport).__name__}: leave "
                "torchrun out; or, to simulate, take one of the other algorithms."
            )
        return MPIAllReduce(transport)


class Shared(AllReduce):
    """Ranks on one machine reduce straight through shared memory, in which the gradients already live."""

    sends_nothing: ClassVar[str] = "shared sends no gradients, for the ranks add them up where they lie"
    wires: ClassVar[tuple[str, ...]] = (FP32,)

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """The reduction through shared memory, which takes a single node."""
        if len(transport.nodes) > 1:
            raise ConfigurationError(
                f"shared needs every rank on one machine, but there are {len(transport.nodes)}. Use hierarchical, "
                "which shares memory within each and sends messages between them."
            )
        return SharedMemory(transport)


class Hierarchical(AllReduce):
    """Shared memory within the nodes, a ring between them; messages everywhere if memory cannot be shared."""

    wires: ClassVar[tuple[str, ...]] = ANY_WIRE

    def place(self, gradients: Tensor) -> Tensor:
        """Allocates shared memory for gradients on a CPU; for those on a GPU it changes to messages."""
        if gradients.device.type != "cpu":
            self._collective.close()
            self._collective = Scheduled(hierarchical, self.transport)
        return super().place(gradients)

    @classmethod
    def check_wire_here(cls, precision: str, transport: Transport, device: torch.device) -> None:
        """Refuses half precision for gradients on a CPU where all ranks share one machine, and so memory.

        Raises:
            ConfigurationError: on every rank.
        """
        super().check_wire_here(precision, transport, device)
        if device.type == "cpu" and transport.size > 1:
            collective = cls.collective(transport)
            collective.admit(WireFormat(precision))
            collective.close()

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """Shared memory if the ranks can share it and all nodes are of one size, else the schedule `hierarchical`."""
        alike = len({len(node) for node in transport.nodes}) == 1
        return SharedMemory(transport) if alike and transport.shares_memory else Scheduled(hierarchical, transport)

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:
        """The rounds that it sends where memory cannot be shared: on any network that takes time."""
        return all_reduced(hierarchical, workload, workers, nodes)


RANKS_PROVEN, RANKS_IN_PIECES = 256, 8
"""The largest numbers of ranks for which rounds are proven before they are simulated: over a buffer in one piece, and
in as many pieces and on nodes of as many ranks as there can be. More would take longer than a user waits."""


@lru_cache(maxsize=256)
def refuse_once(schedule: Schedule, size: int) -> None:
    """As `refuse_unproven`; rounds that were looked at are not looked at again by the other ranks of this process."""
    refuse_unproven(schedule, size, everywhere=True)


def all_reduce_by(algorithm: Callable[..., Any]) -> type[AllReduce]:
    """Makes the strategy that sums gradients by an algorithm of rounds.

    Args:
        algorithm: a function of the number of ranks that yields rounds; see `bigbatch.comm.collectives`.
    """

    class ByAlgorithm(AllReduce):
        __doc__ = algorithm.__doc__
        wires = ANY_WIRE
        rounds = staticmethod(algorithm)

        @classmethod
        def collective(cls, transport: Transport) -> Collective:
            """Runs the algorithm's rounds on any transport."""
            return Scheduled(algorithm, transport)

        @classmethod
        def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:
            """The algorithm's rounds, bucket by bucket."""
            return all_reduced(algorithm, workload, workers, nodes)

        @classmethod
        def check_rounds(cls, workers: int) -> None:
            """Proves the rounds where that is quick, which may be for fewer ranks than asked."""
            few, many = min(workers, RANKS_IN_PIECES), min(workers, RANKS_PROVEN)
            refuse_once(bind(algorithm, 0), many)
            for node_size in (2, 3, few):
                refuse_once(bind(algorithm, MOST_SEGMENTS * SEGMENT_BYTES, consecutive_nodes(few, node_size)), few)

        def prepare(self, optimizer: OptimizerFactory) -> None:
            """Refuse rounds that do not end with everybody's sum: a training would not show it."""
            size = self.transport.size
            sent = self.parameters.values.numel() * self.wire.itemsize(self.parameters.values.dtype)
            refuse_once(bind(algorithm, sent, self.transport.nodes), size)
            super().prepare(optimizer)

    ByAlgorithm.__name__ = ByAlgorithm.__qualname__ = name_of(algorithm)
    return ByAlgorithm
