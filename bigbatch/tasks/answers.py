"""Tasks whose models answer in words: outputs are held against references, and against a trivial answer's."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from bigbatch.tasks.task import Task


class Answer(NamedTuple):
    """What a model wrote for an input, and what it should have written."""

    input: str
    reference: str
    output: str


class AnsweringTask(Task):
    """A task whose model writes an answer in words for an input.

    Attributes:
        trivial_answer: what the baseline does, which has learnt nothing, such as "copying the source".
    """

    trivial_answer: str = "the trivial answer"

    @abstractmethod
    def answers(self, model: nn.Module, batch: Any) -> list[str]:
        """What the model, in evaluation mode and without gradients, writes for each input of a batch."""

    @abstractmethod
    def trivial(self, source: str) -> str:
        """What the baseline writes for an input."""

    @abstractmethod
    def scores(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Score the outputs for a whole corpus against one reference for each; scores by name."""

    def measure(self, model: nn.Module, batch: Any) -> list[list[str]]:
        """Measure a model's answers to a batch: the input, the reference and the output of each example."""
        outputs = self.answers(model, batch)
        return [list(answer) for answer in zip(batch.inputs, batch.references, outputs, strict=True)]

    def metrics(self, measured: Sequence[Any]) -> dict[str, float]:
        """Compute the scores of all answers together: those of a corpus are no means of those of its parts."""
        answers = [Answer(*entry) for entry in measured]
        return self.scores([answer.output for answer in answers], [answer.reference for answer in answers])

    def baseline(self, measured: Sequence[Any]) -> dict[str, float]:
        """Compute the scores that the trivial answers to the same inputs have."""
        return self.metrics([[source, reference, self.trivial(source)] for source, reference, _ in measured])
