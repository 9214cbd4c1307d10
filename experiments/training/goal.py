"""Goals: the validation loss, or the score, at which an arm ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigbatch.comm.errors import quoted
from bigbatch.comm.kinds import Kind, Number

LOSS = Number(above=0)

SCORE = Number()

LOWER_IS_BETTER = frozenset({"bits per byte"})
"""Metrics of which a lower value is better."""


@dataclass(frozen=True)
class Goal:
    """A validation loss or a score that an arm trains to.

    Attributes:
        value: the loss in nats per token, or the score.
        metric: name of the score among the task's metrics, such as "chrF", in small or capital letters; None for the
            loss.
    """

    value: float
    metric: str | None = None

    def __str__(self) -> str:
        value = repr(float(self.value)).removesuffix(".0")  # every digit: what is written is read again
        return value if self.metric is None else f"{self.metric}:{value}"

    def measured(self, loss: float, metrics: Mapping[str, float]) -> float:
        """What was measured of the goal, turned so that lower is better; NaN if it is not among the metrics."""
        if self.metric is None:
            return loss
        name = self.name_among(metrics)
        return self._turned(metrics[name], name) if name else float("nan")

    @property
    def threshold(self) -> float:
        """The value to reach, turned as `measured` turns it."""
        return self.value if self.metric is None else self._turned(self.value, self.metric)

    def name_among(self, metrics: Mapping[str, float]) -> str | None:
        """The name that the goal's score has among the metrics; None if it has none."""
        return next(
            (name for name in metrics if self.metric is not None and name.casefold() == self.metric.casefold()), None
        )

    @staticmethod
    def _turned(value: float, name: str) -> float:
        return value if name.casefold() in LOWER_IS_BETTER else -value


class Goals(Kind):
    """An option value that is a goal: a loss such as 3.3, or a score such as chrF:70."""

    metavar = "LOSS|SCORE:NUMBER"

    def read(self, value: Any) -> Goal:
        """Reads a loss, or the name of a score with a colon and a number behind it."""
        if isinstance(value, Goal):
            value = str(value)
        name, colon, number = value.rpartition(":") if isinstance(value, str) else ("", "", value)
        if not colon:
            return Goal(LOSS.read(value))
        if not name.strip():
            raise ValueError("names no score before the colon; write a loss such as 3.3, or a score such as chrF:70")
        try:
            return Goal(SCORE.read(number), name.strip())
        except ValueError as error:
            raise ValueError(f"has {quoted(number)} behind the colon, which {error}") from None

    def write(self, value: Any) -> Any:
        """Returns a loss as a number, and a score as text."""
        return value.value if value.metric is None else str(value)
