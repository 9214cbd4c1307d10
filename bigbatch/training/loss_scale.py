"""Loss scales: factors that keep small gradients from vanishing in half precision, and large ones from overflowing.

A loss is summed over tokens. It is multiplied by S/n₀ before backward, where n₀ is the expected number of tokens of a
micro-batch, so that S applies to the mean; gradients are divided by S/n₀ before anybody looks at them. Both are powers
of two, so that multiplying and dividing are exact.

Source: Micikevicius et al., "Mixed precision training" (2018), section 3.2.
"""

import math
from collections.abc import Mapping
from typing import Any

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import FP16
from bigbatch.comm.update import Outcome
from bigbatch.training.precision import Precision

FIRST_SCALE = 2.0**16
"""S at first, as in NVIDIA Apex and torch.amp.GradScaler."""

LEAST_SCALE = 2.0**-10
"""The smallest S: gradients of the mean loss of up to 6e7 still fit into fp16, so that what is not finite even then is
not for lack of range."""

GOOD_UPDATES = 2_000
"""Number of updates applied in a row after which S doubles, as in NVIDIA Apex and torch.amp.GradScaler."""


class LossScale:
    """What the summed losses of a worker are multiplied by; this base class leaves them as they are.

    Attributes:
        value: S, if it changes; else NaN.
    """

    value = math.nan

    @property
    def factor(self) -> float:
        """What a summed loss is multiplied by: a power of two, constant within an update."""
        return 1.0

    def follow(self, outcome: Outcome) -> None:
        """Takes in what became of the worker's update, before it begins the next."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the factor depends on, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""


class MeanLoss(LossScale):
    """Makes losses about as large as means: S is 1, as if there were no scale.

    Args:
        tokens: n₀, the expected number of tokens of a micro-batch, which is rounded to a power of two; the same on all
            workers.
    """

    def __init__(self, tokens: float) -> None:
        self._expected = 2.0 ** round(math.log2(max(1.0, tokens)))

    @property
    def factor(self) -> float:
        """What a summed loss is multiplied by: 1/n₀, so that it is about a mean."""
        return 1 / self._expected


class DynamicLossScale(MeanLoss):
    """A scale S that is as large as gradients allow: it halves if they are not finite, and doubles after a long time.

    S depends on nothing but the outcomes of the updates in their order. So workers who make the same updates have the
    same S and need not talk about it; a worker whose updates are its own has an S of its own.

    Args:
        tokens: as for `MeanLoss`.
        alike: whether all workers make the same updates.

    Attributes:
        value: S.
        good: number of updates that were applied since S changed.
    """

    def __init__(self, tokens: float, *, alike: bool = True) -> None:
        super().__init__(tokens)
        self._alike = alike
        self.value = FIRST_SCALE
        self.good = 0

    @property
    def factor(self) -> float:
        """What a summed loss is multiplied by: S/n₀, constant until `follow`."""
        return self.value * super().factor

    def follow(self, outcome: Outcome) -> None:
        """Halves S if the worker's gradients were not finite, and doubles it after many updates that were applied.

        Raises:
            ConfigurationError: gradients are not finite although S is at its least; marked `everywhere` if all workers
                make the same updates, and so find the same.
        """
        if outcome is Outcome.NOT_FINITE:
            if self.value <= LEAST_SCALE:
                raise ConfigurationError(
                    f"The gradients are not finite even with the smallest loss scale, {LEAST_SCALE:g}: the training "
                    "has diverged. Use a lower --learning-rate, --warmup or --clip; or --precision bf16, which has a "
                    "wider range.",
                    everywhere=self._alike,
                )
            self.value, self.good = self.value / 2, 0
        elif outcome is Outcome.APPLIED:
            self.good += 1
            if self.good == GOOD_UPDATES:
                self.value, self.good = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """S, and the number of updates since it changed."""
        return {"scale": self.value, "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.value, self.good = state["scale"], state["good"]


def loss_scale_for(precision: Precision, tokens: float, *, alike: bool = True) -> LossScale:
    """Makes the loss scale that a precision needs: only fp16 needs any.

    Args:
        precision: what the model computes in.
        tokens: the expected number of tokens of a micro-batch.
        alike: whether all workers make the same updates.
    """
    if precision.computes != FP16:
        return LossScale()
    return DynamicLossScale(tokens, alike=alike) if precision.scaled else MeanLoss(tokens)
