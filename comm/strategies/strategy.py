"""Strategies: what the trainer talks to. A strategy owns the update."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.comm.collectives import Nodes
from bigbatch.comm.collectives.broadcast import broadcast
from bigbatch.comm.collectives.recursive_doubling import recursive_doubling
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.options import Options
from bigbatch.comm.parameters import Bucket, FlatParameters, OnHost, OptimizerFactory, described
from bigbatch.comm.precisions import BYTES, FP32
from bigbatch.comm.reducers.all_gather import AllGather
from bigbatch.comm.reducers.collective import Collective, Scheduled
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.strategies.description import Description, Workload, describes_itself, holds_for
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.update import Outcome
from bigbatch.comm.wires.agreement import agree
from bigbatch.comm.wires.format import TOKENS_A_WORKER, WHOLE, WireFormat
from bigbatch.comm.wires.transport import Group, Transport

Result = TypeVar("Result")

START_TAG = 30_000
"""Kept apart from the tags of gradients."""


@dataclass(frozen=True)
class Squares:
    """Squared lengths of gradients, before they are clipped: of several draws, and of their mean.

    Attributes:
        of_each: the mean of the squared lengths of the draws, each divided by its own tokens.
        of_mean: the squared length of all draws together, divided by all their tokens.
    """

    of_each: float
    of_mean: float


@dataclass(frozen=True)
class StepReport:
    """What `Strategy.step` tells a worker about an update.

    Attributes:
        version: the number of updates that the parameters have had.
        outcome: what became of the gradients that the report is about.
        weight: tokens behind the gradients that the report is about.
        loss: the loss summed over those tokens, in nats.
        workers: the number of workers whose gradients those are: all if the update is everybody's, else only this one.
        total_weight: tokens behind all updates that were applied so far to the model that the worker trains, of
            whichever workers.
        next_update: the number, from 0, of the batch of which this worker computes its share next.
        squares: the squares of the workers' gradients, if the strategy tells squares and was asked to.
    """

    version: int
    outcome: Outcome
    weight: float
    loss: float
    workers: int
    total_weight: float
    next_update: int
    squares: Squares | None = None

    @property
    def applied(self) -> bool:
        """Whether the parameters were changed by the gradients that the report is about."""
        return self.outcome is Outcome.APPLIED


def joint_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of an update whose parts were made in several places: applied, if all parts were."""
    return next((outcome for outcome in outcomes if outcome is not Outcome.APPLIED), Outcome.APPLIED)


def share(transport: Transport, tensors: Sequence[Tensor]) -> None:
    """Gives every rank of a transport rank 0's contents of some tensors, in one broadcast.

    Args:
        transport: all ranks that take part.
        tensors: of any shapes and dtypes, the same on every rank.
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled or transport.size == 1:
        return
    flats = [tensor.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8) for tensor in filled]
    together = flats[0] if len(flats) == 1 else torch.cat(flats)
    values = OnHost(together)
    execute(broadcast, transport, values.fetch(), START_TAG)
    values.deliver()
    parts = [together] if len(flats) == 1 else [part.clone() for part in torch.split(together, list(map(len, flats)))]
    for tensor, part in zip(filled, parts, strict=True):
        tensor.detach().copy_(part.view(tensor.dtype).view(tensor.shape))


ANY_WIRE = tuple(BYTES)
"""The `wires` of a strategy that can send its gradients in any precision."""

BUCKET_BYTES = 25 * 2**20
"""Gradients are sent in buckets of about this size; torch's DistributedDataParallel uses the same."""


class Strategy(ABC):
    """One way to turn every worker's gradients into one update.

    A trainer calls, for every update: `push` for each bucket of summed gradients, as soon as the last micro-batch's
    backward is through with it; `step` with the tokens behind them; `pull` before it computes again. Losses are
    summed over tokens, and the division happens once, by the summed weight, where the update is made.

    To add a strategy, derive from this class, from `Replicated` (every worker makes its own updates) or from
    `AllReduce` (everybody makes the same updates), and name it in the entry-point group "bigbatch.strategies".

    Args:
        transport: the transport of all ranks of the job.

    Attributes:
        workers: how many ranks train; they are the ranks 0 to workers - 1.
        worker: this rank's number among them, or None if it does not train.
        parameters: the model's flat parameters; set by `start`.
        buckets: the slices of the gradients that are pushed, in order; planned by `start`.
        wire: the format in which gradients are sent; `wire.of_values` is that of parameters. Set by `start`.
        version: the number of updates that this rank's parameters have had.
        next_update: the number, from 0, of the batch of which this worker computes its share next.
        communication_seconds: seconds for which this rank's training stood still while data moved: communication that
            is exposed.
        total_communication_seconds: seconds in which data moved, hidden behind backward or exposed.
        waiting_seconds: seconds for which it stood still for slower workers, its own gradients being ready.
        remarks: sentences that tell the user what the strategy chose to do.
        with_squares: whether `step` reports squares; see `start`.
    """

    options: ClassVar[Options] = Options()
    """What a user can choose about this strategy: fields of a frozen dataclass, with what was chosen as its values.

    See `bigbatch.comm.options`; `configured` gives the strategy with other values."""

    launchers: ClassVar[tuple[str, ...]] = ("mpirun",)
    """The programs that can start the processes, best first: "mpirun", "torchrun"."""

    exact: ClassVar[bool] = True
    """Whether updates that workers make in step are those of one process that sums all their gradients, but for
    rounding. A strategy that leaves out, rounds or changes gradients on purpose says False."""

    wires: ClassVar[tuple[str, ...]] = (FP32,)
    """The precisions in which gradients can be sent, by name; see `bigbatch.comm.precisions`. A strategy that says
    `ANY_WIRE` sends them in the format `self.wire`. A subclass that changes what is sent must say so anew; see
    `check_wire`."""

    sends_nothing: ClassVar[str] = ""
    """Says, if it sends no gradients, that it does not, and why: a sentence without its full stop."""

    tells_squares: ClassVar[bool] = False
    """Whether every worker has the mean gradient after `step`, so that the report can have `squares` of all."""

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
        self.wire = WHOLE
        self._workers_group = Group(transport, range(self.workers)) if self.worker is not None else None
        self._all_reduce: Collective | None = None
        self._all_gather: AllGather | None = None

    @classmethod
    def configured(cls, choices: Mapping[str, Any]) -> type[Self]:
        """This strategy with some of its `options` chosen, by name.

        Returns:
            A class derived from this one whose `options` have the values chosen.

        Raises:
            ConfigurationError: there is no such option, it does not take the value, or values contradict each other.
        """
        if not choices:
            return cls
        body = {"options": cls.options.changed(choices), "__doc__": cls.__doc__, "__module__": cls.__module__}
        return type(cls.__name__, (cls,), body)

    @classmethod
    def variant(cls, words: str) -> type[Self]:
        """This strategy as written after a colon: "ssp:3" of "ps:ssp:3".

        Raises:
            ConfigurationError: there is no such variant.
        """
        raise ConfigurationError(f"{cls.__name__} comes in no variants, but {words!r} was asked for.")

    @classmethod
    def ranks_for(cls, workers: int) -> int:
        """The number of processes that it takes to have `workers` workers."""
        return workers

    @classmethod
    def workers_among(cls, ranks: int) -> int:
        """The number of workers among `ranks` processes.

        Raises:
            LaunchError: there are too few processes for a single worker.
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
        """How many gradients of the `workers` workers are behind one step of an optimiser."""
        return workers

    @classmethod
    def replicas(cls, workers: int) -> int:  # noqa: ARG003 - for others
        """How many models are trained apart: one that all train, or every worker's own."""
        return 1

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
    def check_wire(cls, precision: str) -> None:
        """Refuses half precision if nothing is sent, or the strategy does not say that it sends it; see `wires`.

        What a class says about its wires does not hold for a subclass that overrides what it sends.

        Args:
            precision: "fp32", "bf16" or "fp16".

        Raises:
            ConfigurationError: marked `everywhere`, for all ranks have the same strategy.
        """
        if precision != FP32 and cls.sends_nothing:
            raise ConfigurationError(
                f"--wire {precision} has nothing to make smaller: {cls.sends_nothing}. Leave it out, or take a "
                "strategy that sends messages, such as ring.",
                everywhere=True,
            )
        if precision != FP32 and not (precision in cls.wires and holds_for(cls, "wires")):
            raise ConfigurationError(
                f"{cls.__name__} does not say that it can send gradients in {precision}: leave --wire out; or, if the "
                "strategy is yours, send what you send in the format self.wire, and say so in the class: "
                f'wires = ("{FP32}", "{precision}").',
                everywhere=True,
            )

    @classmethod
    def check_wire_here(cls, precision: str, transport: Transport, device: torch.device) -> None:  # noqa: ARG003 - for others
        """Refuses a precision that has nothing to gain on these wires, before anything else is done on them.

        Args:
            precision: "fp32", "bf16" or "fp16".
            transport: the transport of all ranks, whose nodes are known.
            device: the device that holds the gradients.

        Raises:
            ConfigurationError: on every rank.
        """
        cls.check_wire(precision)

    @classmethod  # noqa: B027 - most strategies have no rounds of a user's
    def check_rounds(cls, workers: int) -> None:
        """Refuses, before `workers` workers are simulated, rounds of a user that are no all-reduce.

        Raises:
            ConfigurationError: the rounds do not end with everybody's sum; says where.
        """

    @classmethod
    def connect(cls, launch: Launch, device: str, deadline: float) -> Transport:  # noqa: ARG003 - for others
        """Connects the processes that `launch` tells of, which compute on `device`, by the wires that it wants."""
        return launch.connect(deadline)

    def start(
        self,
        parameters: FlatParameters,
        optimizer: OptimizerFactory,
        *,
        bucket_bytes: int = BUCKET_BYTES,
        with_squares: bool = False,
        wire: str = FP32,
        expected_tokens: float | None = None,
    ) -> None:
        """Agrees on the parameters and gives everyone rank 0's values. Every rank of the job calls it.

        That holds for the whole module: frozen parameters and buffers, too.

        Whoever makes the updates makes the optimiser, too; see `prepare`.

        Args:
            parameters: the model's flat parameters.
            optimizer: makes the optimiser.
            bucket_bytes: gradients are sent in buckets of about this size.
            with_squares: whether `step` is to report the squares of the workers' gradients, where the strategy can
                tell them and there are several workers.
            wire: the precision in which gradients are sent: "fp32" for as they are, "bf16" or "fp16".
            expected_tokens: about how many tokens of all workers are behind an update; None for 1024 of each. By that
                number gradients are divided before they are sent in fp16, whose range is small.

        Raises:
            MismatchError: on every rank, if parameters or buffers differ in name, shape or dtype, or if the wire's
                format does; names the rank and the first that does.
            ConfigurationError: on every rank, if the strategy or the parameters' dtype does not go with the wire.
        """
        self.parameters = parameters  # so that `close` has them if this is refused
        self.check_wire(wire)
        if expected_tokens is None:
            expected_tokens = TOKENS_A_WORKER * self.workers
        self.wire = WireFormat.for_gradients(wire, expected_tokens)
        self.wire.check(parameters.values.dtype)
        agree(self.transport, "option", [("wire", str(self.wire))])
        fixed = [(name, f"{described(tensor)}, not trained") for name, tensor in parameters.module.fixed]
        agree(self.transport, "parameter", [*parameters.signature, *fixed])
        share(self.transport, [parameters.values])
        share(self.transport, [tensor for _, tensor in parameters.module.fixed])
        parameters.place_gradients(self.place(parameters.gradients))
        self.buckets = parameters.buckets(bucket_bytes)
        self.with_squares = with_squares and self.tells_squares and self.workers > 1
        self.prepare(optimizer)

    def prepare(self, optimizer: OptimizerFactory) -> None:  # noqa: B027 - not everyone makes updates
        """Get ready to train, at the end of `start`: parameters and buckets are there.

        Args:
            optimizer: makes the optimiser, for whoever makes updates.
        """

    def place(self, gradients: Tensor) -> Tensor:
        """Memory for the gradients, (elements,), filled with zeros: what they have, unless overridden."""
        return gradients

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Do `work` if this rank is a worker; else serve until all workers are done, and return None."""
        self.enter()
        result = work() if self.worker is not None else None
        self.leave()
        return result

    def enter(self) -> None:  # noqa: B027 - most strategies have nothing to do
        """Begin to take part, once started; a rank that only serves does so until all workers have left."""

    def leave(self) -> None:  # noqa: B027 - most strategies have nothing to do
        """Stops taking part, because this worker makes no further update."""

    @abstractmethod
    def push(self, bucket: Bucket) -> None:
        """Takes a bucket of gradients, summed over this worker's tokens, perhaps while backward still runs.

        All workers push all buckets in the order of their indices.
        """

    @abstractmethod
    def step(self, weight: float, loss: float) -> StepReport:
        """Ends an update in which every bucket was pushed, and reports what became of it.

        Args:
            weight: tokens behind this worker's gradients; 0 if it had no data.
            loss: the loss summed over those tokens, in nats.
        """

    def pull(self) -> int:
        """Make the parameters fresh enough for the next update; returns their version."""
        return self.version

    @contextmanager
    def newest(self, *, together: bool) -> Iterator[None]:  # noqa: ARG002 - for others
        """Gives this worker the newest parameters there are within the context, for a look at them.

        Afterwards they are what they were, and so is everything else: a look never changes a training. Unless it is
        overridden, a worker's own parameters are the newest.

        Args:
            together: whether all workers look at the same time, which they do if they are `in_step`, and otherwise
                once all of them have ended their training. If not, this worker looks alone, and must not keep others
                waiting.
        """
        yield

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Gives every worker the contents that worker 0's tensors have, in place; their shapes and dtypes are alike."""
        share(self._group, tensors)

    def agree(self, what: str, entries: Sequence[tuple[str, Any]]) -> None:
        """Makes sure that every worker has the same entries; see `bigbatch.comm.wires.agreement.agree`."""
        agree(self._group, what, entries)

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of every worker's `values`, (elements,), on every worker: the same bytes everywhere."""
        result = values.astype(np.float64)
        execute(recursive_doubling, self._group, result)
        return result

    def all_reduce(self, tensor: Tensor, wire: WireFormat = WHOLE) -> None:
        """Sum a flat tensor, (elements,), over all workers, in place: the same bytes on every worker.

        Args:
            tensor: this worker's values, and afterwards the sum.
            wire: the format in which they travel: as they are, `self.wire` for gradients that are summed over tokens,
                or `self.wire.of_values`.
        """
        if self._all_reduce is None:
            self._all_reduce = Scheduled(ring, self._group)
        self._all_reduce.reduce(tensor, wire)

    def all_gather(self, tensor: Tensor, wire: WireFormat = WHOLE, *, alike: bool = True) -> list[Tensor]:
        """Gives every worker the flat tensors of all workers, by worker.

        Args:
            tensor: (elements,) this worker's tensor, of the same dtype on all.
            wire: the format in which they travel, as for `all_reduce`; every worker gets its own rounded, too.
            alike: whether it has the same length on all of them; if not, they tell each other the lengths first.
        """
        if self._all_gather is None:
            self._all_gather = AllGather(self._group)
        return self._all_gather.gather(tensor, wire, alike=alike)

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Counts the time that a worker spends within as communication, which all workers begin together.

        What passes until all of them have come counts as waiting.
        """
        now, ready = self.transport.now, self.transport.now()
        self._group.barrier()
        began = now()
        yield
        seconds = now() - began
        self.waiting_seconds += began - ready
        self.communication_seconds += seconds
        self.total_communication_seconds += seconds

    @property
    def _group(self) -> Group:
        assert self._workers_group is not None, "only workers have something to add"
        return self._workers_group

    def statistics(self) -> dict[str, Any]:
        """What this rank has counted, for the run's summary, in types that JSON can write."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that this rank needs to go on later, in another process, as if it had never stopped.

        To be called between two updates of a worker, or after `run`. The tensors in it are copies.
        """
        values = None if self.worker is None else self.parameters.values.clone()
        return {"version": self.version, "next_update": self.next_update, "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave on the same rank; after `start`, and before `run`."""
        self.version, self.next_update = state["version"], state["next_update"]
        if state["values"] is not None:
            self.parameters.values.copy_(state["values"])

    def close(self) -> None:
        """Give back what the strategy holds, once started or refused. The gradients are gone afterwards.

        All ranks call it, each at its own time, so that it sends nothing and waits for nobody.
        """
        self.parameters.drop_gradients()
        self.buckets = []
        if self._all_reduce is not None:
            self._all_reduce.close()
