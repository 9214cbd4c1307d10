"""Strategies such as a user may write, for the tests of simulations."""

from collections.abc import Sequence

import numpy as np

from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.parameters import OnHost
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.simulation.replay import Phase
from bigbatch.comm.strategies.all_reduce import AllReduce, all_reduce_by
from bigbatch.comm.strategies.description import Description
from bigbatch.comm.strategies.parameter_server import ParameterServer
from bigbatch.comm.strategies.strategy import StepReport, Strategy

Ring = all_reduce_by(ring)


class Alone(Strategy):
    """Every worker makes its own updates, and nobody sends anything."""

    steps = 0

    def push(self, bucket):
        pass

    def step(self, weight, loss):
        self.steps += 1
        self.meet()
        return StepReport(self.steps, True, weight, loss, 1, self.steps * weight, self.steps)

    def meet(self):
        """Send what there is to send."""


class LocalAveraging(Alone):
    """Averages the parameters after every fourth update."""

    period = 4

    def meet(self):
        if self.steps % self.period == 0:
            started = self.transport.now()
            execute(ring, self.transport, OnHost(self.parameters.values).fetch())
            self.communication_seconds += self.transport.now() - started


class EveryFifth(LocalAveraging):
    """The same after every fifth, without saying so."""

    period = 5


class EveryFifthTold(EveryFifth):
    """The same, told."""

    @classmethod
    def describe(cls, workload, workers, nodes):  # noqa: ARG003
        def phases(number) -> Sequence[Phase]:
            return [Phase(ring, sum(workload.buckets), 1.0, workload.itemsize)] if number == cls.period - 1 else []

        return Description(phases, cls.period)


class Quarrelling(LocalAveraging):
    """Never does the same twice: update k moves k elements."""

    def meet(self):
        if self.transport.size > 1:
            execute(ring, self.transport, np.zeros(1000 * self.steps))


class ToTheRoot(Collective):
    """Everybody sends rank 0 everything, and gets the sum back, in messages of its own."""

    def _sum(self, tensor):
        buffer, own = OnHost(tensor).fetch(), self.transport
        if own.rank:
            own.isend(buffer, 0).wait()
            own.irecv(buffer, 0).wait()
            return
        for peer in range(1, own.size):
            landing = own.scratch(len(buffer), buffer.dtype) if isinstance(buffer, np.ndarray) else buffer
            own.irecv(landing, peer).wait()
            own.add(buffer, landing)
        for peer in range(1, own.size):
            own.isend(buffer, peer).wait()


class OwnMessages(AllReduce):
    """An all-reduce whose collective is made of no rounds."""

    @classmethod
    def collective(cls, transport):
        return ToTheRoot(transport)


class Lazy(Ring):
    """A ring that forgets its buckets."""

    def push(self, bucket):
        pass


class Counting(Ring):
    """A ring that only counts besides."""

    def statistics(self):
        return {"rings": 1}


class OwnServers(ParameterServer):
    """Servers under another name."""
