"""Strategies: what the trainer talks to. A strategy owns the update."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.collectives.broadcast import broadcast
from bigbatch.comm.collectives.recursive_doubling import recursive_doubling
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.parameters import Bucket, FlatParameters, OnHost, OptimizerFactory
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.strategies.description import Description, Workload, describes_itself
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.wires.agreement import agree
from bigbatch.comm.wires.transport import Group, Transport

Result = TypeVar("Result")

START_TAG = 30_000
"""Kept apart from the tags of gradients."""


@dataclass(frozen=True)
class Squares:
    """Squared lengths of gradients, before they are clipped: of several draws, and of their mean.

    Attributes:
        of_each: the mean of the draws' own squares; each draw is divided by its own tokens.
        of_mean: the square of all of them together, divided by all their tokens.
    """

    of_each: float
    of_mean: float


@dataclass(frozen=True)
class StepReport:
    """What became of an update.

    Attributes:
        version: the number of updates that the parameters have had.
        applied: False if this one was skipped, on every rank, because a gradient was not finite or there were no
            tokens behind it.
        weight: tokens behind the gradients that the report is about.
        loss: the loss summed over those tokens, in nats.
        workers: whose gradients those are: all workers' if the update is everybody's, else this worker's alone.
        total_weight: tokens behind all updates so far, of whichever workers.
        next_update: the number, from 0, of the batch of which this worker computes its share next.
        squares: of the workers' gradients, if the strategy tells squares and was asked to.
    """

    version: int
    applied: bool
    weight: float
    loss: float
    workers: int
    total_weight: float
    next_update: int
    squares: Squares | None = None


@dataclass(frozen=True)
class Option:
    """Something that a user can choose about a strategy.

    Attributes:
        name: in words with underscores between.
        default: what it is if nobody chooses; its type is the option's.
        help: a sentence for the user.
        known: the words to choose among; empty if it is a number, a truth value or any word.
        least: the smallest number.
    """

    name: str
    default: Any
    help: str
    known: tuple[str, ...] = ()
    least: float | None = None


class Strategy(ABC):
    """One way to turn every worker's gradients into one update.

    A trainer calls, for every update: `push` for each bucket of summed gradients, as soon as the last micro-batch's
    backward is through with it; `step` with the tokens behind them; `pull` before it computes again. Losses are
    summed over tokens, and the division happens once, by the summed weight, where the update is made.

    To add a strategy, derive from this class (or from `AllReduce`, where only the collective differs) and name it
    in the entry-point group "bigbatch.strategies".

    Args:
        transport: all ranks of the job.

    Attributes:
        workers: how many ranks train; they are the ranks 0 to workers - 1.
        worker: this rank's number among them, or None if it does not train.
        buckets: the slices of the gradients that are pushed, in order; planned by `start`.
        version: the number of updates that this rank's parameters have had.
        next_update: the number, from 0, of the batch of which this worker computes its share first.
        communication_seconds: time this rank's training stood still while data moved: communication that is exposed.
        total_communication_seconds: time in which data moved, hidden behind backward or exposed.
        waiting_seconds: time it stood still for slower workers, its own gradients being ready.
        remarks: what its user should know about what it chose to do, as sentences.
        with_squares: whether `step` is to report squares; whoever wants them says so before the first push.
    """

    options: ClassVar[tuple[Option, ...]] = ()
    """What a user can choose besides; see `configured`."""

    launchers: ClassVar[tuple[str, ...]] = ("mpirun",)
    """The programs that can start the processes, best first: "mpirun", "torchrun"."""

    tells_squares: ClassVar[bool] = False
    """Whether every worker has the mean gradient after `step`, so that the report can have `squares` of all."""

    bucket_bytes: int = 25 * 2**20
    """Gradients are sent in buckets of about this size; torch's DistributedDataParallel uses the same."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.workers = self.workers_among(transport.size)
        self.worker = transport.rank if transport.rank < self.workers else None
        self.version = 0
        self.next_update = 0
        self.communication_seconds = 0.0
        self.total_communication_seconds = 0.0
        self.waiting_seconds = 0.0
        self.remarks: list[str] = []
        self.with_squares = False
        self._workers_group = Group(transport, range(self.workers)) if self.worker is not None else None

    @classmethod
    def configured(cls, choices: Mapping[str, Any]) -> type[Self]:
        """This strategy with some of its `options` chosen.

        Raises:
            ConfigurationError: there is no such option, or they contradict each other.
        """
        if choices:
            raise ConfigurationError(f"{cls.__name__} has no option {' or '.join(choices)}.")
        return cls

    @classmethod
    def variant(cls, words: str) -> type[Self]:
        """This strategy as written after a colon: "ssp:3" of "ps:ssp:3".

        Raises:
            ConfigurationError: there is no such variant.
        """
        raise ConfigurationError(f"{cls.__name__} comes in no variants, but {words!r} was asked for.")

    @classmethod
    def ranks_for(cls, workers: int) -> int:
        """How many processes it takes to have that many workers."""
        return workers

    @classmethod
    def workers_among(cls, ranks: int) -> int:
        """How many of that many processes are workers.

        Raises:
            LaunchError: there are too few.
        """
        workers = ranks - cls.ranks_for(0)
        if workers < 1:
            raise LaunchError(
                f"{cls.__name__} needs at least {cls.ranks_for(1)} ranks, {cls.ranks_for(0)} of them for itself, but "
                f"{ranks} {'was' if ranks == 1 else 'were'} started: use mpirun -n {cls.ranks_for(1)} or more, or "
                "leave mpirun out and say -n WORKERS."
            )
        return workers

    @classmethod
    def steps_per_update(cls, workers: int) -> int:  # noqa: ARG003 - for others
        """How many steps an optimiser makes while every one of `workers` hands in one gradient."""
        return 1

    @classmethod
    def gradients_per_step(cls, workers: int) -> int:
        """How many of the gradients of `workers` are behind one step of an optimiser."""
        return workers

    @classmethod
    def in_step(cls) -> bool:
        """Whether every update is made of everybody's gradients of the same version.

        Then all workers have made the same updates at any time, so that one worker's updates, tokens and seconds until
        something happened are everybody's.
        """
        return True

    @classmethod
    def describe(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:  # noqa: ARG003 - for others
        """What the strategy sends in an update, for simulations that need not run it; ask by `described`.

        This base class says nothing, so that the strategy is run on a `Cluster`, for as many updates as it takes to see
        what repeats. A strategy that knows its period saves that time by saying so.

        Args:
            workload: the gradients of an update.
            workers: how many ranks train.
            nodes: the workers of each node.

        Raises:
            ConfigurationError: the strategy cannot be simulated; says why.
        """
        return Description()

    @classmethod
    def described(cls, workload: Workload, workers: int, nodes: Nodes) -> Description:
        """What `describe` says, or nothing if a subclass has changed what is sent and not what is said about it."""
        return cls.describe(workload, workers, nodes) if describes_itself(cls) else Description()

    @classmethod
    def connect(cls, launch: Launch, device: str, deadline: float) -> Transport:  # noqa: ARG003 - for others
        """The wires it wants, for processes started as `launch` says that compute on `device`."""
        return launch.connect(deadline)

    def start(self, parameters: FlatParameters, optimizer: OptimizerFactory) -> None:  # noqa: ARG002 - for others
        """Agree on the parameters and give everyone rank 0's values. Every rank of the job calls it.

        Whoever makes the updates makes the optimiser, too.

        Args:
            parameters: the model's.
            optimizer: makes the optimiser.

        Raises:
            MismatchError: on every rank, if the parameters differ in name, shape or dtype; names the rank and the
                parameter.
        """
        agree(self.transport, "parameter", parameters.signature)
        self.parameters = parameters
        values = OnHost(parameters.values)
        execute(broadcast, self.transport, values.fetch(), START_TAG)
        values.deliver()
        parameters.place_gradients(self.place(parameters.gradients))
        self.buckets = parameters.buckets(self.bucket_bytes)

    def place(self, gradients: Tensor) -> Tensor:
        """Memory for gradients like these, (elements,), filled with zeros: what they have, unless overridden."""
        return gradients

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Do `work` if this rank is a worker; else serve until all workers are done, and return None."""
        return work()

    @abstractmethod
    def push(self, bucket: Bucket) -> None:
        """A bucket of gradients, summed over this worker's tokens, is ready, perhaps while backward still runs.

        All workers push all buckets in the order of their indices.
        """

    @abstractmethod
    def step(self, weight: float, loss: float) -> StepReport:
        """End an update in which every bucket was pushed.

        Args:
            weight: tokens behind this worker's gradients; 0 if it had no data.
            loss: the loss summed over them, in nats.
        """

    def pull(self) -> int:
        """Make the parameters fresh enough for the next update; returns their version."""
        return self.version

    def align(self) -> None:  # noqa: B027 - most strategies keep them the same anyway
        """Give all workers the same, newest parameters, so that they can be looked at; all workers together."""

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of every worker's `values`, (elements,), on every worker: the same bytes everywhere."""
        assert self._workers_group is not None, "only workers have something to add"
        result = values.astype(np.float64)
        execute(recursive_doubling, self._workers_group, result)
        return result

    def statistics(self) -> dict[str, Any]:
        """What this rank has counted, for the run's summary, in types that JSON can write."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on later."""
        return {"version": self.version}

    def close(self) -> None:
        """Give back what the strategy holds; all ranks together. The gradients are gone afterwards."""
        self.parameters.drop_gradients()
        self.buckets = []

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.version = state["version"]
