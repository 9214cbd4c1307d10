"""All-reduce as an operation on tensors, whoever carries it out: a schedule of ours, shared memory, or a library."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigbatch.comm.collectives import bind
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import OnHost
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.wires.agreement import agree
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.recording import ALL_REDUCE, WAIT
from bigbatch.comm.wires.transport import Transport


@dataclass
class Reduction:
    """A sum over all ranks that is under way, with its times.

    Attributes:
        asked: when it was started, in seconds on the transport's clock, as are the others.
        began: when every rank had come to it and data began to move, or None if the library does not tell.
        ended: when it was complete; known once it was waited for.
        wait: returns when the tensor holds the sum; raises what went wrong.
    """

    asked: float
    began: float | None = None
    ended: float = math.nan
    wait: Callable[[], None] = field(init=False)

    @property
    def moving(self) -> tuple[float, float]:
        """(begin, end) of the time in which data moved; at most that, where the library does not tell."""
        return self.asked if self.began is None else self.began, self.ended


class Collective(ABC):
    """Sums tensors over all ranks, in place.

    Every rank must ask for the same sums in the same order.

    Sums can be asked for in a wire format. Then every number is rounded when it is sent and nowhere else: what arrives
    is added in the tensor's own precision, and all ranks end with the same bytes.

    Args:
        transport: the transport of all ranks.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._queue = transport.queue(idle=lambda: transport.span(WAIT))
        self._calls = 0
        self._introduced: set[tuple[int, torch.dtype, WireFormat]] = set()

    def allocate(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for tensors that will be summed, filled with zeros; all ranks call it together."""
        return torch.zeros(elements, dtype=dtype, device=device)

    def admit(self, wire: WireFormat) -> None:  # noqa: B027 - most send whatever they sum
        """Gets ready to sum in a wire format, before `allocate`; all ranks call it together.

        Raises:
            ConfigurationError: on every rank, if the format would change nothing, since nothing is sent.
        """

    def introduce(self, tensor: Tensor, wire: WireFormat = WHOLE) -> None:
        """Make sure that all ranks mean the same, before the first sum of a tensor of that length and dtype.

        Raises:
            MismatchError: on every rank, if their tensors differ in length or dtype, or their wire formats; names the
                rank and its tensor.
            DeadlineError: on every rank that came, if one did not; names it.
            ConfigurationError: on every rank, if tensors of that dtype cannot be sent in that format.
        """
        self._calls += 1
        wire.check(tensor.dtype)
        signature = (tensor.numel(), tensor.dtype, wire)
        if signature in self._introduced or self.transport.size == 1:
            return
        sent = "" if wire.whole else f", sent as {wire}"
        what = f"{tensor.numel()} × {str(tensor.dtype).removeprefix('torch.')}{sent}"
        agree(self.transport, "tensor of all-reduce", [(f"number {self._calls}", what)])
        self._introduced.add(signature)

    def reduce(self, tensor: Tensor, wire: WireFormat = WHOLE) -> None:
        """Sum `tensor`, (elements,), over all ranks. No sum may be under way.

        Args:
            tensor: this rank's values, and afterwards the sum.
            wire: the format in which they travel.

        Raises:
            MismatchError, DeadlineError: see `introduce`; later, a rank that left the others in the lurch.
            ConfigurationError: this collective, or a tensor of that dtype, cannot be sent in that format.
        """
        self.introduce(tensor, wire)
        with self.transport.span(ALL_REDUCE, nbytes=tensor.numel() * wire.itemsize(tensor.dtype)):
            if wire.whole:
                self._sum(tensor)
            elif self.transport.size > 1:
                self._sum_in(tensor, wire)

    def start(self, tensor: Tensor, wire: WireFormat = WHOLE) -> Reduction:
        """Begins to sum `tensor`, (elements,), which must be left alone until `wait` on the result returns.

        Several may be under way. They are carried out in the order of their start, and may be waited for in any.
        """
        return self.begin(partial(self.reduce, tensor, wire))

    def begin(self, reduce: Callable[[], None]) -> Reduction:
        """Queues any way of summing behind the sums that are under way, as `start` does with `reduce`.

        Args:
            reduce: does the sum, on all ranks alike; it may use this collective or any other wires between them.
        """
        reduction = Reduction(asked=self.transport.now())

        def work() -> None:
            self.transport.barrier()  # what comes before is waiting for others, what comes after is moving data
            reduction.began = self.transport.now()
            reduce()
            reduction.ended = self.transport.now()

        reduction.wait = self._queue.submit(work)
        return reduction

    def in_turn(self, work: Callable[[], None]) -> None:
        """Does other communication in its turn, after what is under way and before what is started later."""
        self._queue.submit(work)()

    def close(self) -> None:
        """Gives back the thread, and memory from `allocate`. All ranks call it, each at its own time."""
        self._queue.close()

    @abstractmethod
    def _sum(self, tensor: Tensor) -> None:
        """Sum a tensor that all ranks agree on."""

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:  # noqa: ARG002 - for others
        """Sum a tensor that all ranks agree on, in half precision on the wires."""
        raise ConfigurationError(
            f"{type(self).__name__} cannot send numbers in {wire.precision}: leave --wire out.", everywhere=True
        )


class Scheduled(Collective):
    """Sums tensors by an algorithm of rounds, such as the ring.

    Args:
        algorithm: yields the rounds; see `bigbatch.comm.collectives`.
        transport: the transport that moves the data.
    """

    def __init__(self, algorithm: Callable[..., Any], transport: Transport) -> None:
        super().__init__(transport)
        self._algorithm = algorithm

    def _sum(self, tensor: Tensor) -> None:
        self._sum_in(tensor, WHOLE)

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:
        host = OnHost(tensor)
        buffer = host.fetch()
        schedule = bind(self._algorithm, wire.nbytes(buffer), self.transport.nodes)
        execute(schedule, self.transport, buffer, wire=wire)
        host.deliver()


def covered(intervals: Iterable[tuple[float, float]], first: float = -math.inf, stop: float = math.inf) -> float:
    """The seconds from `first` to `stop` in which at least one of the intervals, (begin, end) each, was under way."""
    total, reached = 0.0, first
    for begin, end in sorted(intervals):
        until = min(end, stop)
        total += max(0.0, until - max(begin, reached))
        reached = max(reached, until)
    return total
