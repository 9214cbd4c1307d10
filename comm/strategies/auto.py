"""Auto: whichever all-reduce was measured to be the fastest here for the size at hand."""

import logging
from typing import ClassVar

import torch
from torch import Tensor

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import OptimizerFactory
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.reducers.tuning import Tuning, load_tuning, tune
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.description import Description, Workload
from bigbatch.comm.strategies.strategy import ANY_WIRE
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.transport import Transport


def candidates(transport: Transport) -> dict[str, Collective]:
    """Every all-reduce that can run on `transport`, by name."""
    found = {}
    for name in STRATEGIES.names():
        strategy = STRATEGIES.load(name)
        if issubclass(strategy, AllReduce) and strategy is not Auto:
            try:
                found[name] = strategy.collective(transport)
            except ConfigurationError:
                continue  # it needs other wires than these
    return found


class Fastest(Collective):
    """Hands every tensor to the collective that a table says is the fastest for its size.

    Args:
        transport: the transport of all ranks.
        tuning: the table of measured times.
    """

    def __init__(self, transport: Transport, tuning: Tuning) -> None:
        super().__init__(transport)
        self._tuning = tuning
        self._usable = candidates(transport)
        self._placed: Collective | None = None

    def admit(self, wire: WireFormat) -> None:
        """Takes only those from now on that can send in this format, and have something to send.

        Raises:
            ConfigurationError: on every rank, if none can.
        """
        for name, collective in list(self._usable.items()):
            try:
                STRATEGIES.load(name).check_wire(wire.precision)
                collective.admit(wire)
            except ConfigurationError:
                self._usable.pop(name).close()
        if not self._usable:
            raise ConfigurationError(
                f"None of the all-reduces that can run here sends gradients in {wire.precision}: leave --wire out.",
                everywhere=True,
            )

    def choice(self, nbytes: int) -> str:
        """The name of the fastest all-reduce that can be used here for a buffer of `nbytes` bytes."""
        for name in self._tuning.ranking(nbytes):
            if name in self._usable and self._takes(self._usable[name]):
                return name
        raise ConfigurationError(
            f"The table of measurements for {self._tuning.layout} names no all-reduce that can be used here. Measure "
            "anew with bigbatch-exp tune."
        )

    def _takes(self, collective: Collective) -> bool:
        return type(collective).allocate is Collective.allocate or collective is self._placed

    def allocate(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocates memory as the fastest all-reduce for that size wants it; the others can work in it too."""
        self.close()
        if device.type == "cpu":
            for name in self._tuning.ranking(elements * torch.empty(0, dtype=dtype).element_size()):
                if name in self._usable:
                    self._placed = self._usable[name]
                    return self._placed.allocate(elements, dtype, device)
        return super().allocate(elements, dtype, device)

    def close(self) -> None:
        """Gives back the memory that `allocate` returned last."""
        super().close()
        if self._placed is not None:
            self._placed.close()
        self._placed = None

    def _sum(self, tensor: Tensor) -> None:
        self._sum_in(tensor, WHOLE)

    def _sum_in(self, tensor: Tensor, wire: WireFormat) -> None:
        self._usable[self.choice(tensor.numel() * wire.itemsize(tensor.dtype))].reduce(tensor, wire)


class Auto(AllReduce):
    """The all-reduce that was measured to be the fastest here: `bigbatch-exp tune` measures, once.

    If nobody has measured this layout of ranks yet, the first run does. It measures in float32, and what is sent in
    half precision is looked up by the bytes that it then has.
    """

    wires: ClassVar[tuple[str, ...]] = ANY_WIRE

    def prepare(self, optimizer: OptimizerFactory) -> None:
        """Get ready as other all-reduces do, and say which one was picked for each size."""
        super().prepare(optimizer)
        collective = self._collective
        assert isinstance(collective, Fastest), "see `collective`"
        picks = {len(bucket.gradients) * self.wire.itemsize(bucket.gradients.dtype) for bucket in self.buckets}
        self.remarks = [
            f"auto picked {collective.choice(nbytes)} for buckets of {nbytes / 2**20:.3g} MB"
            for nbytes in sorted(picks)
        ]

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:  # noqa: ARG003 - for others
        """Refuse: what is measured on one layout of ranks says nothing about others.

        Raises:
            ConfigurationError: at every call.
        """
        raise ConfigurationError("auto takes whichever all-reduce was measured to be the fastest: simulate that one.")

    @classmethod
    def collective(cls, transport: Transport) -> Collective:
        """The fastest all-reduce for each size, by a table of measurements; if there is none, it is measured now."""
        tuning = load_tuning(transport)
        if tuning is None:
            measured = candidates(transport)
            tuning = tune(measured, transport, _tell if transport.rank == 0 else lambda _: None)
            for collective in measured.values():
                collective.close()
        return Fastest(transport, tuning)


def _tell(text: str) -> None:
    logging.getLogger(__name__).warning("auto: %s", text)
