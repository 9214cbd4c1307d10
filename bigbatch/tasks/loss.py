"""Losses, which are summed over tokens: cross-entropy, with which models are trained, and a look at anybody's loss."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, is_tensor

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.kinds import Whole, checked

COUNTED = Whole(least=0, most=2**53)
"""The kind of value for the tokens behind a loss: strategies add them up as float64, which counts exactly so far."""

PADDING = -100
"""The target of padding, which does not count in the loss; it is torch's default for `ignore_index`."""


def summed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Computes the cross-entropy summed, never averaged, over the targets that count, and the number of those targets.

    Args:
        logits: (batch, sequence, vocabulary) scores of every token.
        targets: (batch, sequence) token numbers, `PADDING` where there is nothing to predict.
        smoothing: share of a target's weight that is spread evenly over all tokens of the vocabulary, the target
            included (Szegedy et al. 2016, section 7).

    Returns:
        The loss, a scalar in nats, and the number of tokens that it is summed over.
    """
    loss = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="sum", label_smoothing=smoothing
    )
    return loss, int((targets != PADDING).sum())


def shifted(targets: Tensor, start: int, pad: int = 0) -> Tensor:
    """What a model reads to predict targets: the start token, and then every target but the last.

    Args:
        targets: (batch, sequence) token numbers, `PADDING` where there is nothing to predict.
        start: the token that stands first.
        pad: the token that is read in place of `PADDING`.

    Returns:
        (batch, sequence) token numbers
    """
    read = torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], dim=1)
    return read.masked_fill(read == PADDING, pad)


def checked_loss(what: str, returned: Any, *, trains: bool = True) -> tuple[Tensor, int]:
    """Checks a loss and the number of tokens behind it, which a user's code has computed.

    Args:
        what: whose loss it is, at the start of a sentence: "The loss of the task X".
        returned: the two.
        trains: whether its gradient is asked for.

    Raises:
        ConfigurationError: it is no pair of a scalar tensor with a gradient and a number of tokens.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ConfigurationError(
            f"{what} cannot be {quoted(returned)}: it must be a pair of the sum over tokens and their number."
        )
    loss, tokens = returned
    if not is_tensor(loss) or loss.numel() != 1:
        found = f"a tensor of {loss.numel()} numbers" if is_tensor(loss) else quoted(loss)
        raise ConfigurationError(f"{what} cannot be {found}: it must be one number in a tensor, a sum over tokens.")
    if not loss.dtype.is_floating_point or loss.is_meta:
        raise ConfigurationError(
            f"{what} cannot be of the type {loss.dtype} on the device {loss.device}: it must be a real number in nats."
        )
    if trains and not loss.requires_grad:
        raise ConfigurationError(
            f"{what} has no gradient: compute it from the model's parameters, without detach() and outside no_grad()."
        )
    return loss, checked(f"The number of tokens behind {what[0].lower()}{what[1:]}", COUNTED, tokens)
