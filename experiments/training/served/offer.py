"""What a server on a network trains, and what it tells its workers about that."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import bigbatch
from bigbatch.comm.errors import MismatchError
from bigbatch.comm.parameters import OptimizerFactory, refuse_parts
from bigbatch.comm.strategies.parameter_server import ParameterServer
from bigbatch.comm.strategies.remote import Facts
from bigbatch.comm.strategies.server_options import ServerOptions
from bigbatch.experiments.training.assemble import Assembly, facts_about_task
from bigbatch.experiments.training.settings import Request
from bigbatch.tasks.task import Task
from bigbatch.training.batches import Arm, BatchPlan


@dataclass(frozen=True)
class Announcement:
    """What a server tells whoever asks what is trained there.

    Attributes:
        version: of bigbatch.
        settings: the experiment's, as JSON has them.
        arm: the name of the arm that is trained now.
        micro_batch: examples that a worker computes at once.
        accumulation: micro-batches behind a gradient.
        examples: to be seen in all.
        part: which part of the parameters the server holds ...
        parts: ... of how many.
    """

    version: str
    settings: dict[str, Any]
    arm: str
    micro_batch: int
    accumulation: int
    examples: int
    part: int
    parts: int

    @classmethod
    def of(cls, entries: Any, name: str) -> Self:
        """As the server at `name` has sent it.

        Raises:
            MismatchError: it is of another version of bigbatch.
        """
        try:
            announcement = cls(**entries)
            announcement.plan.updates(announcement.examples)
            if announcement.version != bigbatch.__version__:
                raise ValueError(announcement.version)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise MismatchError(
                f"The server at {name} announces what this bigbatch, version {bigbatch.__version__}, does not "
                f"understand ({error}). Install the same version on both sides."
            ) from error
        return announcement

    @property
    def plan(self) -> BatchPlan:
        """A batch is one worker's share: the server says which one is next."""
        return BatchPlan(self.micro_batch, self.accumulation, workers=1)


def facts_of(task: Task) -> Facts:
    """What servers and workers must have alike besides the parameters."""
    return [("corpus", name, str(value)) for name, value in facts_about_task(task).items()]


@dataclass(frozen=True)
class Offer:
    """What a server trains, and how.

    Attributes:
        request: what the user asked for.
        strategy: the same kind of server among ranks, with its options.
        plan: of the accumulated arm, with as many workers as must be there to begin.
        part: which part of the parameters this server holds; the strategy's options say of how many.
        patience: seconds of silence after which a worker takes part no more.
    """

    request: Request
    strategy: type[ParameterServer]
    plan: BatchPlan
    part: int
    patience: float

    @property
    def setup(self) -> ServerOptions:
        """What kind of server it is."""
        return self.strategy.options

    def optimizer(self, assembly: Assembly, arm: Arm) -> OptimizerFactory:
        """What makes an arm's optimiser, for this server's part.

        Raises:
            ConfigurationError: it must see the whole, and there are several servers; or as `Assembly.optimizer`.
        """
        made = assembly.optimizer(arm.plan, self.strategy)
        refuse_parts(made, self.setup.servers)
        return made

    def written(self) -> dict[str, Any]:
        """All of it in types that JSON can write."""
        return {
            **self.request.written(),
            **self.setup.written(),
            "plan": asdict(self.plan),
            "part": self.part,
            "patience": self.patience,
            "bigbatch version": bigbatch.__version__,
        }


OF_ONE_START = ("device", "threads", "deadline", "patience")
"""What a server that goes on from a snapshot may do differently."""
