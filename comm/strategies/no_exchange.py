"""No exchange: every worker trains by itself."""

from typing import ClassVar

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.strategies.description import Description, Workload
from bigbatch.comm.strategies.replicated import Replicated


class NoExchange(Replicated):
    """Every worker trains by itself: what the processes could do if exchanging gradients took no time.

    It is the upper bound of every other strategy's throughput. The models differ more and more; the loss is that of
    worker 0, which has learnt from its own share of the data alone.
    """

    sends_nothing: ClassVar[str] = "no-exchange sends no gradients"

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:  # noqa: ARG003 - nothing is sent
        """Describes updates in which nothing is sent."""
        return Description(lambda _: (), period=1)
