"""The offer of a server on a network: what it trains, and what it announces to its workers."""

import json
from collections.abc import Mapping
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
    """What a server announces to workers: the experiment that it trains, and its part of the parameters.

    Attributes:
        version: version of bigbatch on the server.
        settings: the settings of the experiment, in types that JSON can write.
        arm: name of the arm that is trained now.
        micro_batch: number of examples that a worker computes at once.
        accumulation: number of micro-batches behind a gradient.
        examples: number of examples that the arm sees in all.
        part: number, from 0, of the part of the parameters that the server holds.
        parts: number of parts into which the parameters are divided.
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
        """Reads the announcement that the server at `name` has sent.

        Raises:
            MismatchError: the server has another version of bigbatch, or the announcement is not understood.
        """
        try:
            theirs = entries["version"]
            if theirs != bigbatch.__version__:
                raise ValueError(f"it has version {theirs!s:.40}")
            announcement = cls(**entries)
            for value, least in (
                *((number, 1) for number in (announcement.micro_batch, announcement.accumulation, announcement.parts)),
                *((number, 0) for number in (announcement.examples, announcement.part)),
            ):
                if type(value) is not int or value < least:
                    raise ValueError(f"{value!r:.40} is none of its numbers")
            if not isinstance(announcement.settings, dict) or not isinstance(announcement.arm, str):
                raise TypeError("its settings are none")
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError(
                f"The server at {name} announces what this bigbatch, version {bigbatch.__version__}, does not "
                f"understand ({error}). Install the same version on both sides."
            ) from error
        return announcement

    @property
    def plan(self) -> BatchPlan:
        """How a batch is divided; here a batch is one worker's share, and the server says which one is next."""
        return BatchPlan(self.micro_batch, self.accumulation, workers=1)


def facts_of(task: Task, settings: Mapping[str, Any]) -> Facts:
    """Lists the facts about an experiment that must be the same on servers and workers, whenever a worker joins.

    At the address of a server that has ended, one of another experiment may listen, with a model of the same shapes.

    Args:
        task: the task, as it was prepared here.
        settings: the settings of the experiment, as they were announced.
    """
    corpus = [("corpus", name, str(value)) for name, value in facts_about_task(task).items()]
    options = [("option", name, json.dumps(settings[name])) for name in sorted(settings) if name not in OF_ONE_START]
    return [*corpus, *options]


@dataclass(frozen=True)
class Offer:
    """What a server trains, and the kind of server that it is.

    Attributes:
        request: what the user asked for.
        strategy: the strategy of the same kind of server among ranks, with its options.
        plan: how the batches of the accumulated arm are divided over the workers that must join before training starts.
        part: number, from 0, of the part of the parameters that this server holds; the strategy's options say of how
            many.
        patience: seconds of silence after which a worker no longer takes part.
    """

    request: Request
    strategy: type[ParameterServer]
    plan: BatchPlan
    part: int
    patience: float

    @property
    def setup(self) -> ServerOptions:
        """The options that say what kind of server it is, such as its consistency and the number of servers."""
        return self.strategy.options

    def optimizer(self, assembly: Assembly, arm: Arm) -> OptimizerFactory:
        """Makes the factory of an arm's optimiser for this server's part of the parameters.

        Raises:
            ConfigurationError: the optimiser needs whole tensors and there are several servers; or as
                `Assembly.optimizer`.
        """
        made = assembly.optimizer(arm.plan, self.strategy)
        refuse_parts(made, self.setup.servers)
        return made

    def written(self) -> dict[str, Any]:
        """Converts the offer to types that JSON can write."""
        return {
            **self.request.written(),
            **self.setup.written(),
            "plan": asdict(self.plan),
            "part": self.part,
            "patience": self.patience,
            "bigbatch version": bigbatch.__version__,
        }


OF_ONE_START = ("device", "threads", "deadline", "patience")
"""Options that may differ from those of the server whose snapshot this server continues from."""
