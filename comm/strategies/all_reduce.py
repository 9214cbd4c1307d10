"""All-reduce: every worker ends with the same sum of gradients and makes the same update."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.collectives import Nodes, bind
from bigbatch.comm.collectives.hierarchical import hierarchical
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import Bucket, FlatParameters, OptimizerFactory, square, total
from bigbatch.comm.reducers.collective import Collective, Reduction, Scheduled, covered
from bigbatch.comm.reducers.library import MPIAllReduce, TorchAllReduce
from bigbatch.comm.reducers.shared_memory import SharedMemory
from bigbatch.comm.schedules.prove import prove
from bigbatch.comm.strategies.description import Description, Workload, all_reduced
from bigbatch.comm.strategies.strategy import Squares, StepReport, Strategy
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.transports.mpi import MPITransport
from bigbatch.comm.transports.torch_distributed import TorchTransport
from bigbatch.comm.wires.recording import COMPUTE
from bigbatch.comm.wires.transport import Transport


class AllReduce(Strategy):
    """Sums every bucket over all workers, who then all make the same update.

    Buckets are summed while backward still runs, all but the last: when that one is ready there is nothing left to
    hide behind.

    A strategy of this family names its collective and nothing else.

    Attributes:
        rounds: the algorithm, if the collective is made of rounds.
    """

    rounds: ClassVar[Callable[..., Any] | None] = None
    tells_squares: ClassVar[bool] = True

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._collective = self.collective(transport)
        self._early: list[Reduction] = []
        self._last: Bucket | None = None
        self._squares: list[Tensor] = []
        self._steps = 0
        self._total_weight = 0.0

    @classmethod
    @abstractmethod
    def collective(cls, transport: Transport) -> Collective:
        """The all-reduce to use."""

    def place(self, gradients: Tensor) -> Tensor:
        """Where the collective wants them."""
        return self._collective.allocate(gradients.numel(), gradients.dtype, gradients.device)

    def start(self, parameters: FlatParameters, optimizer: OptimizerFactory) -> None:
        """Agree on the parameters and on the buckets; everyone makes the same updates."""
        super().start(parameters, optimizer)
        self.optimizer = optimizer(parameters.named_parameters())
        for bucket in self.buckets:
            self._collective.introduce(bucket.gradients)

    def state_dict(self) -> dict[str, Any]:
        """The version and the optimiser's state."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])

    def push(self, bucket: Bucket) -> None:
        """Begin to sum the bucket, unless it is the last: that is left to `step`."""
        if self.with_squares:
            self._squares.append(square(bucket.gradients))  # soon it holds everybody's
        if bucket.index < len(self.buckets) - 1:
            self._early.append(self._collective.start(bucket.gradients))
        else:
            self._last = bucket

    def step(self, weight: float, loss: float) -> StepReport:
        """Sum what is left: the weights, then the last bucket; divide; update.

        Nobody's sum of weights is complete before everybody has come: the time until then is time waited for the
        slowest worker, less what earlier buckets took of it to move. The time after is that of moving the rest.

        The square of the worker's own mean gradient, if it is asked for, is summed with the weights.
        """
        clock = self.transport.now
        own = [total(self._squares) / max(weight, 1) ** 2] if self.with_squares else []
        tally = np.array([weight, loss, *own])
        ready = clock()
        if self._early:
            self._collective.in_turn(lambda: np.copyto(tally, self.total(tally)))
        else:
            tally = self.total(tally)
        everyone_ready = clock()
        for reduction in self._early:
            reduction.wait()
        if self._last is not None:
            self._collective.reduce(self._last.gradients)
        done = clock()
        exposed_early = covered([r.moving for r in self._early if r.began is not None], ready, everyone_ready)
        self.waiting_seconds += everyone_ready - ready - exposed_early
        self.communication_seconds += exposed_early + done - everyone_ready
        self.total_communication_seconds += covered([*(r.moving for r in self._early), (everyone_ready, done)])
        self._early, self._last, self._squares = [], None, []
        weight, loss, *summed = tally.tolist()
        squares = None
        with self.transport.span(COMPUTE, "apply"):
            if summed:
                of_mean = float(square(self.parameters.gradients)) / max(weight, 1) ** 2
                squares = Squares(summed[0] / self.workers, of_mean)
            applied = self.parameters.apply(self.optimizer, weight)
        self.version += applied
        self._steps += 1
        self._total_weight += weight
        return StepReport(self.version, applied, weight, loss, self.workers, self._total_weight, self._steps, squares)

    def close(self) -> None:
        """Give the collective's memory and thread back."""
        super().close()
        self._collective.close()


class TorchDistributed(AllReduce):
    """torch.distributed's all-reduce: gloo between processors, NCCL where every rank has a GPU."""

    launchers: ClassVar[tuple[str, ...]] = ("mpirun", "torchrun")

    @classmethod
    def connect(cls, launch: Launch, device: str, deadline: float) -> Transport:
        """A process group, whoever started the processes."""
        # NCCL refuses two ranks on one GPU; gloo reduces tensors on GPUs too, only slower.
        own_gpu = device.startswith("cuda") and torch.cuda.device_count() >= launch.local_size
        return launch.connect_torch(deadline, "cpu:gloo,cuda:nccl" if own_gpu else "gloo")

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """By torch's all-reduce too: over gloo, one call is quicker than several messages of ours.

        Not while others are under way, behind which it would queue: what they take to move would seem to be waiting.
        """
        if self._early:
            return super().total(values)
        result = torch.from_numpy(values.astype(np.float64))
        self._collective.reduce(result)
        return result.numpy()

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """Torch's own."""
        if not isinstance(transport, TorchTransport):
            raise ConfigurationError(
                f"torch.distributed's all-reduce runs on its own wires alone, not on {type(transport).__name__}. Start "
                "processes for it; or, to simulate, take ring, which is what gloo does."
            )
        return TorchAllReduce(transport)


class MPI(AllReduce):
    """MPI_Allreduce in place, the MPI library's own all-reduce: something to compare with."""

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """The library's."""
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

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """Shared memory, for a single node."""
        if len(transport.nodes) > 1:
            raise ConfigurationError(
                f"shared needs every rank on one machine, but there are {len(transport.nodes)}. Use hierarchical, "
                "which shares memory within each and sends messages between them."
            )
        return SharedMemory(transport)


class Hierarchical(AllReduce):
    """Shared memory within the nodes, a ring between them; messages everywhere if memory cannot be shared."""

    def place(self, gradients: Tensor) -> Tensor:
        """Shared memory holds nothing that is on a GPU."""
        if gradients.device.type != "cpu":
            self._collective.close()
            self._collective = Scheduled(hierarchical, self.transport)
        return super().place(gradients)

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """Shared memory where that can be had and every node has as many ranks, else the schedule of that name."""
        alike = len({len(node) for node in transport.nodes}) == 1
        return SharedMemory(transport) if alike and transport.shares_memory else Scheduled(hierarchical, transport)

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:
        """The rounds that it sends where memory cannot be shared: on any network that takes time."""
        return all_reduced(hierarchical, workload, workers, nodes)


MOST_RANKS_PROVEN = 64
"""Beyond that a proof takes longer than a user would wait for it."""


def all_reduce_by(algorithm: Callable[..., Any]) -> type[AllReduce]:
    """The strategy that sums by an algorithm of rounds.

    Args:
        algorithm: a function of the number of ranks that yields rounds; see `bigbatch.comm.collectives`.
    """

    class ByAlgorithm(AllReduce):
        __doc__ = algorithm.__doc__
        rounds = staticmethod(algorithm)

        @classmethod
        def collective(cls, transport: Transport) -> Collective:
            """The algorithm's rounds, on whatever transport there is."""
            return Scheduled(algorithm, transport)

        @classmethod
        def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:
            """The algorithm's rounds, bucket by bucket."""
            return all_reduced(algorithm, workload, workers, nodes)

        def start(self, parameters: FlatParameters, optimizer: OptimizerFactory) -> None:
            """Refuse rounds that do not end with everybody's sum: a training would not show it."""
            size = self.transport.size
            if size <= MOST_RANKS_PROVEN:
                proof = prove(bind(algorithm, parameters.nbytes, self.transport.nodes), size)
                if not proof.holds:
                    raise ConfigurationError(
                        f"{type(self).__name__} over {size} ranks is no all-reduce: {proof}.", everywhere=True
                    )
            super().start(parameters, optimizer)

    ByAlgorithm.__name__ = ByAlgorithm.__qualname__ = algorithm.__name__
    return ByAlgorithm
