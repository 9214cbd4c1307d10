"""A shard: the part of the parameters that one server holds, and everything it decides about them."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.errors import MalformedError
from bigbatch.comm.gradients import GradientViews
from bigbatch.comm.parameters import OptimizerFactory, Piece, optimizer_for
from bigbatch.comm.server.consistency import Clocks, Consistency
from bigbatch.comm.server.kept import check_optimizer, check_settled
from bigbatch.comm.server.staleness import StaleGradients
from bigbatch.comm.update import Outcome, make_update
from bigbatch.comm.values import ValueViews


@dataclass
class Gradient:
    """The gradient that one worker contributes to one update.

    Attributes:
        values: (elements,) summed over tokens; the shard's own memory.
        weight: the number of those tokens.
        loss: the loss summed over them, in nats.
        finite: whether the worker found all of its gradient finite, the parts for other shards included.
        version: the version of the parameters that it was computed on.
    """

    values: Tensor
    weight: float
    loss: float
    finite: bool
    version: int


@dataclass
class Gathering:
    """The gradients that have arrived for an update that is not complete.

    Attributes:
        gradients: the gradients, by worker.
        folded: workers whose gradients are in `total` already.
        total: (elements,) the sum of the gradients of `folded`; None as long as there is none.
        passing: workers that have no gradient for this update, and are not waited for.
        refused: whether one of them had a gradient that was not finite.
    """

    gradients: dict[int, Gradient] = field(default_factory=dict)
    folded: set[int] = field(default_factory=set)
    total: Tensor | None = None
    passing: set[int] = field(default_factory=set)
    refused: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything but the gradients that are in the sum already, whose memory is used again."""
        return {
            "gradients": {
                worker: {**vars(gradient), "values": None if worker in self.folded else gradient.values.clone()}
                for worker, gradient in self.gradients.items()
            },
            "folded": sorted(self.folded),
            "total": _copied(self.total),
            "passing": sorted(self.passing),
            "refused": self.refused,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Makes a gathering from a copy of what `state_dict` gave."""
        gradients = {}
        for worker, kept in state["gradients"].items():
            values = torch.empty(0) if kept["values"] is None else kept["values"].clone()
            gradients[worker] = Gradient(**{**kept, "values": values})
        total, passing = _copied(state["total"]), set(state["passing"])
        return cls(gradients, set(state["folded"]), total, passing, state["refused"])


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


@dataclass(frozen=True)
class Update:
    """The result of an update: whether it was applied, and whose gradients and tokens were behind it.

    Attributes:
        outcome: applied, or why the parameters are what they were.
        weight: tokens behind it.
        loss: the loss summed over them, in nats.
        contributors: the number of workers whose gradients are in it.
    """

    outcome: Outcome
    weight: float
    loss: float
    contributors: int


class Shard:
    """A slice of the parameters and its optimiser. The consistency rule decides when a pushed gradient is applied.

    It knows no wires: whoever serves hands in what arrived, and asks who may read.

    Args:
        values: (elements,) the parameters; the shard keeps and changes this very memory.
        pieces: the parameters, or parts of them, that lie in `values`.
        optimizer: makes the optimiser of these parameters.
        consistency: which gradients make an update, and who may read when.
        stale: what becomes of gradients that were computed on old parameters.

    Attributes:
        values: (elements,) the parameters.
        version: the number of updates that the parameters have had.
        clocks: where this shard and its workers stand.
        last: the result of the last update; None before the first.
        staleness: τ -> gradients applied with that τ, the number of updates since their worker had read.
        tokens: tokens behind all updates that were applied so far.
        taken: gradients that were applied.
        dropped: gradients that came too late for the update they were computed for.
        skipped: updates that were not applied.
    """

    def __init__(
        self,
        values: Tensor,
        pieces: Sequence[Piece],
        optimizer: OptimizerFactory,
        consistency: Consistency,
        stale: StaleGradients,
    ) -> None:
        self.values = values
        self.version = 0
        self.clocks = Clocks()
        self.last: Update | None = None
        self.staleness: Counter[int] = Counter()
        self.tokens = 0.0
        self.taken = self.dropped = self.skipped = 0
        self._consistency = consistency
        self._stale = stale
        self._make_optimizer, self._pieces = optimizer, pieces
        self._optimizer, self._views, self._value_views = self._new_optimizer(self.values)
        self._gatherings: dict[int, Gathering] = {}
        self._versions: dict[int, int] = {}
        self._remembered: dict[int, Tensor] = {}
        self._free: list[Tensor] = []

    @property
    def alike(self) -> bool:
        """Whether all workers compute on the same version, so that an update is everybody's."""
        return self._consistency.alike

    @property
    def workers(self) -> list[int]:
        """The numbers of the workers that take part."""
        return list(self.clocks.pushed)

    def _new_optimizer(self, values: Tensor) -> tuple[Optimizer | None, GradientViews, ValueViews]:
        """Makes an optimiser that changes `values`, and its gradients; None if there are no parameters."""
        named = [(p.name, nn.Parameter(values[p.first : p.stop].view(p.shape))) for p in self._pieces]
        starts = [piece.first for piece in self._pieces]
        views, value_views = GradientViews(named, torch.zeros_like(values), starts), ValueViews(named, values, starts)
        return optimizer_for(self._make_optimizer, named) if named else None, views, value_views

    def join(self, worker: int) -> None:
        """Lets a worker take part from the next update on; it must read first."""
        self.clocks.pushed[worker] = self.clocks.done
        self.clocks.read[worker] = self.clocks.done

    def leave(self, worker: int) -> None:
        """Lets a worker go. Nobody waits for it any more, and what it has pushed counts."""
        del self.clocks.pushed[worker], self.clocks.read[worker]
        self._versions.pop(worker, None)
        self._remembered.pop(worker, None)
        self._advance()

    def landing(self) -> Tensor:
        """(elements,) memory for a gradient that arrives, its contents unknown; `push` takes it back."""
        return self._free.pop() if self._free else torch.empty_like(self.values)

    def push(self, worker: int, values: Tensor, weight: float, loss: float, *, finite: bool) -> Outcome:
        """Take a worker's next gradient, and make the updates that are complete by it.

        Args:
            worker: the number of a worker that takes part.
            values: (elements,) from `landing`, filled.
            weight: tokens behind the gradient.
            loss: the loss summed over those tokens, in nats.
            finite: whether the worker found its whole gradient finite.

        Returns:
            What becomes of the gradient by itself: it is dropped if it came too late, and without effect if there are
            no tokens behind it. One that is not finite is refused; where workers share their updates, nobody's
            gradient is then applied, so that all of them know what became of it.
        """
        number = self._consistency.update_of(self.clocks, worker)
        self.clocks.pushed[worker] += 1
        if number is None:
            self.dropped += 1
            self._free.append(values)
            return Outcome.DROPPED
        gathering = self._gatherings.setdefault(number, Gathering())
        if finite or self.alike:
            gathering.gradients[worker] = Gradient(values, weight, loss, finite, self._versions[worker])
        else:
            gathering.passing.add(worker)
            gathering.refused = True
            self._free.append(values)
        self._advance()
        if not weight > 0:
            return Outcome.NO_DATA
        return Outcome.APPLIED if finite else Outcome.NOT_FINITE

    def pass_by(self, worker: int) -> None:
        """Counts a worker's next gradient as if it had come, but without any effect: the shard has it already."""
        number = self._consistency.update_of(self.clocks, worker)
        self.clocks.pushed[worker] += 1
        if number is not None:
            self._gatherings.setdefault(number, Gathering()).passing.add(worker)
            self._advance()

    def readable(self, worker: int) -> bool:
        """Whether a worker may read now, to begin its next gradient."""
        return self._consistency.readable(self.clocks, worker)

    def has(self, worker: int) -> int:
        """The version of the parameters that a worker read last."""
        return self._versions[worker]

    def pending(self, worker: int) -> int:
        """How many of a worker's gradients wait for others', to make an update together: its last ones."""
        return sum(worker in gathering.gradients for gathering in self._gatherings.values())

    def position(self, worker: int) -> int:
        """The number of the batch of which a worker computes its share next."""
        return self._consistency.position(self.clocks, worker)

    def read(self, worker: int) -> bool:
        """Notes that a worker reads now; returns False if it has these values already."""
        had = self._versions.get(worker)
        self.clocks.read[worker] = self.clocks.done
        self._versions[worker] = self.version
        if self._stale.remembers and had != self.version:
            self._remembered[worker] = self.values.clone()
        return had != self.version

    def statistics(self) -> dict[str, Any]:
        """What the shard has counted, in types that JSON can write."""
        return {
            "versions": self.version,
            "staleness": {str(tau): count for tau, count in sorted(self.staleness.items())},
            "gradients_taken": self.taken,
            "gradients_dropped": self.dropped,
        }

    def settled_state(self) -> dict[str, Any]:
        """The state without its workers: values, optimiser and counts, but no gradients that wait for others."""
        return {
            "values": self.values.clone(),
            "version": self.version,
            "done": self.clocks.done,
            "tokens": self.tokens,
            "staleness": dict(self.staleness),
            "taken": self.taken,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "optimizer": copy.deepcopy(self._optimizer.state_dict()) if self._optimizer is not None else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything: `settled_state`, where each worker stands, and the gradients that wait for others."""
        return {
            **self.settled_state(),
            "last": None if self.last is None else asdict(self.last),
            "workers": {
                worker: {
                    "pushed": pushed,
                    "read": self.clocks.read[worker],
                    "version": self._versions.get(worker),
                    "remembered": _copied(self._remembered.get(worker)),
                }
                for worker, pushed in self.clocks.pushed.items()
            },
            "gatherings": {number: gathering.state_dict() for number, gathering in self._gatherings.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        """Restores what `state_dict` gave, or `settled_state`, after which every worker must read first.

        Raises:
            MalformedError: it is no state of such a shard; nothing is restored.
        """
        check_settled(state, self.values)
        self._rehearse(state["values"], state["optimizer"])
        self.values.copy_(state["values"])
        self.version = state["version"]
        self.clocks.done = state["done"]
        self.tokens = state["tokens"]
        self.staleness = Counter(state["staleness"])
        self.taken, self.dropped, self.skipped = state["taken"], state["dropped"], state["skipped"]
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._gatherings.clear()
        if "workers" not in state:
            for worker in list(self.clocks.pushed):
                self.join(worker)
            return
        last, workers = state["last"], state["workers"]
        self.last = None if last is None else Update(**{**last, "outcome": Outcome(last["outcome"])})
        self.clocks.pushed = {worker: kept["pushed"] for worker, kept in workers.items()}
        self.clocks.read = {worker: kept["read"] for worker, kept in workers.items()}
        self._versions = {w: kept["version"] for w, kept in workers.items() if kept["version"] is not None}
        self._remembered = {
            worker: kept["remembered"].clone() for worker, kept in workers.items() if kept["remembered"] is not None
        }
        for number, kept in state["gatherings"].items():
            self._gatherings[number] = Gathering.of(kept)

    def _rehearse(self, values: Tensor, state: Any) -> None:
        """See that an optimiser can go on from a state, with a step of another one that changes nothing here."""
        trial, *_ = self._new_optimizer(values.clone())
        if trial is None:
            return
        check_optimizer(state, trial)
        try:
            trial.load_state_dict(copy.deepcopy(state))
            trial.step()
        except Exception as error:  # whatever an optimiser raises on what is not its own
            raise MalformedError(f"the optimiser cannot go on from its state ({type(error).__name__})") from error

    def _advance(self) -> None:
        """Make every update that is complete."""
        while True:
            gathering = self._gatherings.get(self.clocks.done, Gathering())
            complete = self._consistency.complete(self.clocks, {*gathering.gradients, *gathering.passing})
            if not complete:
                if self._consistency.everyone:  # who will be in the sum is known, so it can begin
                    self._fold(gathering, sorted({*self.clocks.pushed, *gathering.gradients} - gathering.passing))
                return
            self._gatherings.pop(self.clocks.done)
            if gathering.gradients:
                self._make(gathering)
            else:
                self.skipped += gathering.refused
                self.last = Update(Outcome.NO_DATA, 0.0, 0.0, 0)
            self.clocks.done += 1

    def _fold(self, gathering: Gathering, order: Sequence[int]) -> None:
        """Add up what is there in that order, up to the first that is not, so that the bytes are always the same."""
        for values in self._next(gathering, order):
            if gathering.total is None:
                gathering.total = values
            else:
                gathering.total.add_(values)
                self._free.append(values)

    def _next(self, gathering: Gathering, order: Sequence[int]) -> Iterator[Tensor]:
        """The corrected gradients that come next in that order, up to the first that is not there; each but once."""
        for worker in order:
            if worker in gathering.folded:
                continue
            if worker not in gathering.gradients:
                return
            gradient = gathering.gradients[worker]
            self._stale.correct(gradient.values, gradient.weight, self.values, self._remembered.get(worker))
            gathering.folded.add(worker)
            yield gradient.values

    def _make(self, gathering: Gathering) -> None:
        """Make an update of the gradients that were gathered."""
        gradients = list(gathering.gradients.values())
        weight = sum(gradient.weight for gradient in gradients)
        loss = sum(gradient.loss for gradient in gradients)
        rest = list(self._next(gathering, sorted(gathering.gradients)))
        total = rest.pop(0) if gathering.total is None else gathering.total
        staleness = [self.version - gradient.version for gradient in gradients]
        shares = [gradient.weight * self._stale.rate(tau) for gradient, tau in zip(gradients, staleness, strict=True)]
        outcome = make_update(
            self._optimizer,
            self._views,
            total,
            weight,
            values=self._value_views,
            rest=rest,
            finite=all(gradient.finite for gradient in gradients),
            rate=sum(shares) / weight if weight else 1.0,
        )
        self._free += [total, *rest]
        if outcome is Outcome.APPLIED:
            self.version += 1
            self.tokens += weight
            self.staleness.update(staleness)
            self.taken += len(gradients)
        else:
            self.skipped += 1
        self.last = Update(outcome, weight, loss, len(gradients))
