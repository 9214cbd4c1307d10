"""The loss that models are trained with: cross-entropy, summed over tokens."""

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

PADDING = -100
"""The target of padding, which does not count in the loss; it is torch's default for `ignore_index`."""


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Computes the cross-entropy summed, never averaged, over the targets that count, and the number of those targets.

    Args:
        logits: (batch, sequence, vocabulary) scores of every token.
        targets: (batch, sequence) token numbers, `PADDING` where there is nothing to predict.

    Returns:
        The loss, a scalar in nats, and the number of tokens that it is summed over.
    """
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="sum")
    return loss, int((targets != PADDING).sum())
