"""No exchange: every worker trains by itself."""

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import FP32
from bigbatch.comm.strategies.description import Description, Workload
from bigbatch.comm.strategies.replicated import Replicated


class NoExchange(Replicated):
    """Every worker trains by itself: what the processes could do if exchanging gradients took no time.

    It is the upper bound of every other strategy's throughput. The models differ more and more; the loss is that of
    worker 0, which has learnt from its own share of the data alone.
    """

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:  # noqa: ARG003 - nothing is sent
        """Describes updates in which nothing is sent."""
        return Description(lambda _: (), period=1)

    @classmethod
    def check_wire(cls, precision: str) -> None:
        """Refuses half precision, because nothing is sent.

        Raises:
            ConfigurationError: it is one; marked `everywhere`.
        """
        if precision != FP32:
            raise ConfigurationError(
                f"no-exchange sends no gradients that --wire {precision} could make smaller: leave it out.",
                everywhere=True,
            )
