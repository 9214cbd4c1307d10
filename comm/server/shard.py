"""A shard: the part of the parameters that one server holds, and everything it decides about them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bigbatch.comm.parameters import OptimizerFactory, Piece, all_finite
from bigbatch.comm.server.consistency import Clocks, Consistency
from bigbatch.comm.server.staleness import StaleGradients

BLOCK_ELEMENTS = 1 << 17
"""So many of the sum, of a gradient and of the mean stay in a core's second-level cache, of 2 MB on today's servers."""


@dataclass
class Gradient:
    """What one worker contributes to one update.

    Attributes:
        values: (elements,) summed over tokens; the shard's own memory.
        weight: those tokens.
        loss: the loss summed over them, in nats.
        finite: whether the worker found all of its gradient finite, the parts for other shards included.
        version: of the parameters that it was computed on.
    """

    values: Tensor
    weight: float
    loss: float
    finite: bool
    version: int


@dataclass
class Gathering:
    """The gradients of an update that is not complete.

    Attributes:
        gradients: by worker.
        folded: workers whose gradients are in `total` already.
        total: (elements,) the sum of those.
    """

    gradients: dict[int, Gradient] = field(default_factory=dict)
    folded: set[int] = field(default_factory=set)
    total: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """What became of an update.

    Attributes:
        applied: False if it was skipped: no tokens, or a gradient that is not finite.
        weight: tokens behind it.
        loss: the loss summed over them, in nats.
        contributors: workers whose gradients are in it.
    """

    applied: bool
    weight: float
    loss: float
    contributors: int


class Shard:
    """A slice of the parameters with its optimiser, changed by gradients as a rule of consistency has it.

    It knows no wires: whoever serves hands in what arrived, and asks who may read.

    Args:
        values: (elements,) the parameters, which this takes for its own.
        pieces: what lies where in them.
        optimizer: makes the optimiser.
        consistency: which gradients make an update, and who may read when.
        stale: what becomes of gradients that were computed on old parameters.

    Attributes:
        values: (elements,) the parameters.
        version: the number of updates that they have had.
        clocks: where this shard and its workers stand.
        last: the update before, if there was one.
        staleness: τ -> gradients applied with that τ, the number of updates since their worker had read.
        tokens: behind all updates so far.
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
        self._mean = torch.zeros_like(values)
        self._optimizer = optimizer([(piece.name, self._parameter(piece)) for piece in pieces]) if pieces else None
        self._gatherings: dict[int, Gathering] = {}
        self._versions: dict[int, int] = {}
        self._remembered: dict[int, Tensor] = {}
        self._free: list[Tensor] = []

    @property
    def alike(self) -> bool:
        """Whether all workers compute on the same version, so that an update is everybody's."""
        return self._consistency.alike

    def _parameter(self, piece: Piece) -> nn.Parameter:
        parameter = nn.Parameter(self.values[piece.first : piece.stop].view(piece.shape))
        parameter.grad = self._mean[piece.first : piece.stop].view(piece.shape)
        return parameter

    def join(self, worker: int) -> None:
        """A worker takes part from the next update on; it must read first."""
        self.clocks.pushed[worker] = self.clocks.done
        self.clocks.read[worker] = self.clocks.done

    def leave(self, worker: int) -> None:
        """A worker takes part no more, and nobody waits for it; what it has pushed counts."""
        del self.clocks.pushed[worker], self.clocks.read[worker]
        self._versions.pop(worker, None)
        self._remembered.pop(worker, None)
        self._advance()

    def landing(self) -> Tensor:
        """(elements,) memory for a gradient that arrives, its contents unknown; `push` takes it back."""
        return self._free.pop() if self._free else torch.empty_like(self.values)

    def push(self, worker: int, values: Tensor, weight: float, loss: float, *, finite: bool) -> bool:
        """Take a worker's next gradient, and make the updates that are complete by it.

        Args:
            worker: who takes part.
            values: (elements,) from `landing`, filled.
            weight: tokens behind the gradient.
            loss: summed over them, in nats.
            finite: whether the worker found its whole gradient finite.

        Returns:
            False if it came too late and was dropped.
        """
        number = self._consistency.update_of(self.clocks, worker)
        self.clocks.pushed[worker] += 1
        if number is None:
            self.dropped += 1
            self._free.append(values)
            return False
        gathering = self._gatherings.setdefault(number, Gathering())
        gathering.gradients[worker] = Gradient(values, weight, loss, finite, self._versions[worker])
        self._advance()
        return True

    def readable(self, worker: int) -> bool:
        """Whether a worker may read now, to begin its next gradient."""
        return self._consistency.readable(self.clocks, worker)

    def has(self, worker: int) -> int:
        """The version that a worker read last."""
        return self._versions[worker]

    def pending(self, worker: int) -> int:
        """How many of a worker's gradients wait for others', to make an update together: its last ones."""
        return sum(worker in gathering.gradients for gathering in self._gatherings.values())

    def position(self, worker: int) -> int:
        """The number of the batch of which a worker computes its share next."""
        return self._consistency.position(self.clocks, worker)

    def read(self, worker: int) -> bool:
        """Note that a worker reads now; False if it has these values already."""
        had = self._versions.get(worker)
        self.clocks.read[worker] = self.clocks.done
        self._versions[worker] = self.version
        if self._stale.remembers and had != self.version:
            self._remembered[worker] = self.values.clone()
        return had != self.version

    def statistics(self) -> dict[str, Any]:
        """What it has counted, in types that JSON can write."""
        return {
            "versions": self.version,
            "staleness": {str(tau): count for tau, count in sorted(self.staleness.items())},
            "gradients_taken": self.taken,
            "gradients_dropped": self.dropped,
        }

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on later: values, optimiser's state, counts. What is being gathered is lost."""
        return {
            "values": self.values.clone(),
            "version": self.version,
            "done": self.clocks.done,
            "tokens": self.tokens,
            "staleness": dict(self.staleness),
            "taken": self.taken,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "optimizer": self._optimizer.state_dict() if self._optimizer is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; whoever takes part must read first."""
        self.values.copy_(state["values"])
        self.version = state["version"]
        self.clocks.done = state["done"]
        self.tokens = state["tokens"]
        self.staleness = Counter(state["staleness"])
        self.taken, self.dropped, self.skipped = state["taken"], state["dropped"], state["skipped"]
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._gatherings.clear()
        for worker in list(self.clocks.pushed):
            self.join(worker)

    def _advance(self) -> None:
        """Make every update that is complete."""
        while True:
            gathering = self._gatherings.get(self.clocks.done, Gathering())
            complete = self._consistency.complete(self.clocks, set(gathering.gradients))
            if not complete:
                if self._consistency.everyone:  # who will be in the sum is known, so it can begin
                    self._fold(gathering, sorted({*self.clocks.pushed, *gathering.gradients}))
                return
            self._gatherings.pop(self.clocks.done)
            self._make(gathering)
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
        """Divide the sum by its tokens, once, and let the optimiser make its update, unless something is not finite."""
        gradients = list(gathering.gradients.values())
        weight = sum(gradient.weight for gradient in gradients)
        loss = sum(gradient.loss for gradient in gradients)
        rest = list(self._next(gathering, sorted(gathering.gradients)))
        total = rest.pop(0) if gathering.total is None else gathering.total
        applied = weight > 0 and all(gradient.finite for gradient in gradients)
        if applied and self._optimizer is not None:
            applied = self._average(total, rest, weight)
        self._free += [total, *rest]
        if applied:
            staleness = [self.version - gradient.version for gradient in gradients]
            shares = (g.weight / weight * self._stale.rate(tau) for g, tau in zip(gradients, staleness, strict=True))
            self._step(sum(shares))
            self.version += 1
            self.staleness.update(staleness)
            self.taken += len(gradients)
        else:
            self.skipped += 1
        self.tokens += weight
        self.last = Update(applied, weight, loss, len(gradients))

    def _average(self, total: Tensor, rest: Sequence[Tensor], weight: float) -> bool:
        """Make the mean of the sum and what is to be added to it still; returns whether it is finite.

        Nobody can go on before this is done, so that each block is added, divided and looked at while it is in cache.
        """
        finite = True
        length = BLOCK_ELEMENTS if total.device.type == "cpu" else max(1, len(total))
        for first in range(0, len(total), length):
            block = slice(first, first + length)
            for values in rest:
                total[block].add_(values[block])
            finite &= all_finite(torch.div(total[block], weight, out=self._mean[block]))
        return finite

    def _step(self, factor: float) -> None:
        """One step of the optimiser at `factor` times its learning rate."""
        if self._optimizer is None:
            return
        rates = [group["lr"] for group in self._optimizer.param_groups]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate if factor == 1 else rate * factor
        self._optimizer.step()
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
