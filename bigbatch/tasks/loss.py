"""The loss that models are trained with: cross-entropy, summed over tokens."""

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

PADDING = -100
"""A target that does not count: torch's own choice for `ignore_index`."""


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The cross-entropy summed, never averaged, over the targets that count, and how many those are.

    Args:
        logits: (batch, sequence, vocabulary).
        targets: (batch, sequence) token numbers, `PADDING` where there is nothing to predict.

    Returns:
        The loss, a scalar in nats, and the number of tokens behind it.
    """
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="sum")
    return loss, int((targets != PADDING).sum())
