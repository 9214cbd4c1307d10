"""Evaluation: what a model is worth on held-out examples, a share of them at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.loss import checked_loss
from bigbatch.tasks.task import Split, Task
from bigbatch.training.whole_model import RandomStream, evaluating

MEASURED_AT_ONCE = 64
"""Number of examples on which a model is measured at once, so that text is written for many together."""

SCORES_AT_ONCE = 2**23
"""Numbers that a model may make of them, a score for each token of a vocabulary: 32 MB, of which there are copies.

Fewer examples are measured at once if the sequences are long or the vocabulary is large, but always as many as are
trained on at once: what fits with gradients fits without."""


class Examples:
    """The examples of a task, and what a model makes of them.

    Args:
        task: the task.
        model: the model.
        device: the device of the model.
        at_once: number of held-out examples whose loss is computed at once.
        random: the random numbers that are drawn while the model is evaluated, the same each time.
    """

    def __init__(self, task: Task, model: nn.Module, device: torch.device, at_once: int, random: RandomStream) -> None:
        self._task = task
        self._model = model
        self._device = device
        self._at_once = at_once
        self._random = random
        scores = task.context * task.vocabulary_size
        self._measured_at_once = max(at_once, min(MEASURED_AT_ONCE, SCORES_AT_ONCE // scores))

    def loss(self, split: Split, numbers: NDArray[np.int64]) -> tuple[Tensor, int]:
        """Computes the summed loss on the examples with these numbers, (examples,), and their tokens."""
        returned = self._task.loss(self._model, self._task.batch(split, numbers).to(self._device))
        return checked_loss(f"The loss of the task {type(self._task).__name__}", returned, trains=split == "training")

    def validated(self, examples: int | None, share: int, shares: int) -> NDArray[np.float64]:
        """Computes the summed loss on a share of the held-out examples, and their tokens: (2,).

        Args:
            examples: number of held-out examples, the first ones; None for all.
            share: number of the share, from 0.
            shares: number of shares.
        """
        total, counted = 0.0, 0
        with evaluating(self._model, self._random):
            for numbers in self._held_out(examples, share, shares, self._at_once):
                loss, tokens = self.loss("validation", numbers)
                total, counted = total + float(loss), counted + tokens
        return np.array([total, counted])

    def measured(self, examples: int | None, share: int, shares: int) -> list[tuple[int, Any]]:
        """Has the task measure a share of the held-out examples, as for `validated`.

        Returns:
            The number of each example, and what was measured on it.

        Raises:
            ConfigurationError: the task has measured something, but not on each example.
        """
        found: list[tuple[int, Any]] = []
        with evaluating(self._model, self._random):
            for numbers in self._held_out(examples, share, shares, self._measured_at_once):
                entries = self._task.measure(self._model, self._task.batch("validation", numbers).to(self._device))
                if len(entries) not in (0, len(numbers)):
                    raise ConfigurationError(
                        f"The task {type(self._task).__name__} has measured {len(entries)} entries on a batch of "
                        f"{len(numbers)} examples: measure must return one for each, or none at all."
                    )
                found += zip(numbers.tolist(), entries, strict=False)
        return found

    def _held_out(self, examples: int | None, share: int, shares: int, at_once: int) -> Iterator[NDArray[np.int64]]:
        """The numbers of the held-out examples of a share, in batches of similar lengths."""
        size = self._task.sizes["validation"]
        mine = np.arange(share, min(size, examples or size), shares)
        lengths = self._task.lengths("validation")
        if lengths is not None:
            mine = mine[np.argsort(lengths[mine].sum(axis=1), kind="stable")]
        for start in range(0, len(mine), at_once):
            yield mine[start : start + at_once]
