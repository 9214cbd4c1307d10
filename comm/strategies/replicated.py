"""Replicated: every worker holds all parameters and an optimiser for them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bigbatch.comm.parameters import Bucket, OptimizerFactory, optimizer_for
from bigbatch.comm.strategies.strategy import Squares, StepReport, Strategy
from bigbatch.comm.update import Outcome, make_update


class Replicated(Strategy):
    """Every worker makes its own updates of all parameters; a subclass says what it exchanges with others, and when.

    Each of these can be replaced alone: `push`, what is done with a bucket while backward runs (nothing); `update`,
    how the gradients become an update (the worker's own optimiser makes a step); `step`, the whole.

    Attributes:
        optimizer: the optimiser of this worker; made by `start`.
        steps: how often this worker has called `step`.
        tokens: tokens behind all of this worker's updates so far that were applied.
    """

    optimizer: torch.optim.Optimizer

    def prepare(self, optimizer: OptimizerFactory) -> None:
        """Makes this worker's optimiser, and sets its counts of steps and tokens to 0."""
        self.optimizer = optimizer_for(optimizer, self.parameters.named_parameters())
        self.steps, self.tokens = 0, 0.0
        self._kept: dict[str, dict[int, Tensor]] = {}

    @classmethod
    def replicas(cls, workers: int) -> int:
        """As many as there are workers, each with a model of its own, unless a subclass says otherwise."""
        return workers

    @classmethod
    def in_step(cls) -> bool:
        """False: a worker's updates are its own, unless a subclass says otherwise."""
        return False

    @classmethod
    def gradients_per_step(cls, workers: int) -> int:  # noqa: ARG003 - it is the same for any number
        """One: the worker's own gradient, unless a subclass says otherwise."""
        return 1

    def push(self, bucket: Bucket) -> None:
        """Does nothing; a subclass may begin to send the bucket."""

    def update(self, weight: float) -> Outcome:
        """Divide the gradients by `weight`, the tokens behind them, and let the optimiser make its step."""
        parameters = self.parameters
        return make_update(
            self.optimizer, parameters.views, parameters.gradients, weight, values=parameters.value_views
        )

    def step(self, weight: float, loss: float) -> StepReport:
        """Makes this worker's own update, and reports it."""
        self.parameters.refuse()
        return self.report(self.update(weight), weight, loss, workers=1)

    def report(
        self, outcome: Outcome, weight: float, loss: float, workers: int, squares: Squares | None = None
    ) -> StepReport:
        """Count a step, and say what became of it.

        Args:
            outcome: what became of the step.
            weight: tokens behind the update.
            loss: the loss summed over those tokens, in nats.
            workers: the number of workers whose tokens those are.
            squares: the squares of the workers' gradients, if they are known.
        """
        if outcome is Outcome.APPLIED:
            self.version += 1
            self.tokens += weight
        self.steps += 1
        self.next_update = self.steps
        return StepReport(self.version, outcome, weight, loss, workers, self.tokens, self.next_update, squares)

    def kept(self, name: str, bucket: Bucket) -> Tensor:
        """Memory for each bucket that lasts from update to update, and is saved with the strategy's state.

        Args:
            name: what it is for, such as "residual".
            bucket: the bucket that the memory belongs to.

        Returns:
            (elements,) like the bucket's gradients; filled with zeros at first.
        """
        kept = self._kept.setdefault(name, {})
        if bucket.index not in kept:
            kept[bucket.index] = torch.zeros_like(bucket.gradients)
        return kept[bucket.index]

    def state_dict(self) -> dict[str, Any]:
        """The parameters, the optimiser's state, what was counted, and what is kept for each bucket."""
        return {
            **super().state_dict(),
            "steps": self.steps,
            "tokens": self.tokens,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "kept": copy.deepcopy(self._kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave on this rank."""
        super().load_state_dict(state)
        self.steps, self.tokens = state["steps"], state["tokens"]
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._kept = copy.deepcopy(state["kept"])
