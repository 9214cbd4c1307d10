"""All-reduce as an operation on tensors, whoever carries it out: a schedule of ours or a library."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from bigbatch.comm.execute import execute
from bigbatch.comm.parameters import OnHost
from bigbatch.comm.schedule import Schedule
from bigbatch.comm.transport import Transport
from bigbatch.comm.transports.torch_distributed import TorchTransport

Finish = Callable[[], object]
"""Call it to wait for an operation under way."""


class Collective(ABC):
    """Sums tensors over all ranks."""

    @abstractmethod
    def start(self, tensor: Tensor) -> Finish:
        """Begin to sum `tensor`, (elements,), in place over all ranks; all start theirs in the same order.

        Raises, when finished:
            DeadlineError: a rank did not take part in time.
        """


class Scheduled(Collective):
    """Runs one of our schedules. Nothing moves before it is waited for."""

    def __init__(self, schedule: Schedule, transport: Transport) -> None:
        self._schedule = schedule
        self._transport = transport

    def start(self, tensor: Tensor) -> Finish:
        """Plan the schedule on `tensor`."""

        def run() -> None:
            host = OnHost(tensor)
            execute(self._schedule, self._transport, host.fetch())
            host.deliver()

        return run


class TorchAllReduce(Collective):
    """torch.distributed's own all-reduce, which moves data while the caller goes on."""

    def __init__(self, transport: TorchTransport) -> None:
        self._transport = transport

    def start(self, tensor: Tensor) -> Finish:
        """Begin torch's all-reduce on `tensor`."""
        return self._transport.all_reduce(tensor).wait
