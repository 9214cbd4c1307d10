"""All-reduce: every worker ends with the same sum of gradients and makes the same update."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from bigbatch.comm.collective import Collective, Scheduled, TorchAllReduce
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.launch import Launch
from bigbatch.comm.parameters import Bucket
from bigbatch.comm.strategy import StepReport, Strategy
from bigbatch.comm.transport import Transport
from bigbatch.comm.transports.torch_distributed import TorchTransport


class AllReduce(Strategy):
    """Sums every bucket over all workers, who then all make the same update.

    A strategy of this family names its collective and nothing else.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._collective = self.collective(transport)
        self._pushed: list[Bucket] = []

    @abstractmethod
    def collective(self, transport: Transport) -> Collective:
        """The all-reduce to use."""

    def push(self, bucket: Bucket) -> None:
        """Keep the bucket for `step`."""
        self._pushed.append(bucket)

    def step(self, weight: float, loss: float) -> StepReport:
        """Sum the weights, then the buckets; divide; update.

        Nobody's sum of weights is complete before everybody has come: the time it takes is the time waited for
        the slowest worker, and the time after it is that of moving the gradients.
        """
        ready = self.transport.now()
        weight, loss = self.total(np.array([weight, loss])).tolist()
        everyone_ready = self.transport.now()
        for finish in [self._collective.start(bucket.gradients) for bucket in self._pushed]:
            finish()
        self._pushed.clear()
        self.waiting_seconds += everyone_ready - ready
        self.communication_seconds += self.transport.now() - everyone_ready
        applied = self.parameters.apply(self.optimizer, weight)
        self.version += applied
        return StepReport(self.version, applied, weight, loss)


class Ring(AllReduce):
    """Ring all-reduce, written here, over point-to-point messages."""

    def collective(self, transport: Transport) -> Collective:
        """The ring schedule."""
        return Scheduled(ring, transport)


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
        """By torch's all-reduce too: over gloo, one call is quicker than several messages of ours."""
        result = torch.from_numpy(values.astype(np.float64))
        self._collective.start(result)()
        return result.numpy()

    def collective(self, transport: Transport) -> Collective:
        """Torch's own."""
        if not isinstance(transport, TorchTransport):
            raise TypeError(f"torch.distributed cannot reduce over {type(transport).__name__}")
        return TorchAllReduce(transport)
