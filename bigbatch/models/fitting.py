"""Whether a model that somebody else has written fits a task: found out before anything is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.foreign import explained
from bigbatch.tasks.loss import checked_loss
from bigbatch.tasks.task import Task, TokenBatch

SEEN = 1e-5
"""A prediction that changes by this share of what others change by has seen what is different; see `_check_causal`."""

ROUNDING = 1e-6
"""Share of the largest logit by which a prediction can change from rounding alone."""

CALLED = {
    "decoder": "which calls model(tokens) and takes (batch, sequence, vocabulary) logits",
    "encoder-decoder": "which calls model(source, target, mask) and takes (batch, target sequence, vocabulary) logits",
    "encoder": "which calls model(tokens, passage, mask) and takes (batch, sequence, 2) logits",
}
"""How tasks call models and what they take, by the kind of model that a task takes."""

OTHERWISE = "which computes its loss in a way of its own"


def check_fits(model: nn.Module, task: Task, name: str) -> None:
    """Computes the loss on the longest training example, and changes nothing about the model.

    Where every next token of a sequence is to be predicted, it is looked at whether the model sees it beforehand.

    Args:
        model: the model.
        task: the task.
        name: the model, at the start of a sentence.

    Raises:
        ConfigurationError: the task cannot call the model, cannot use what it returns, or would teach it to copy.
    """
    lengths = task.lengths("training")
    longest = 0 if lengths is None else int(lengths.max(axis=1).argmax())
    try:
        with looked_at(model):
            batch = task.batch("training", np.array([longest]))
            checked_loss(f"The loss of {name[0].lower()}{name[1:]}", task.loss(model, batch), trains=False)
            if task.default_model == "decoder" and isinstance(batch, TokenBatch):
                _check_causal(model, batch.tokens, task.vocabulary_size, name)
    except BigBatchError:
        raise
    except Exception as error:  # whatever comes of calling a model in a way for which it was not made
        told = explained(error)
        said = str(told).removesuffix(".") if told else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigurationError(
            f"{name} does not fit the task {type(task).__name__}, {CALLED.get(task.default_model, OTHERWISE)}: "
            f"{said.removesuffix('.')}."
        ) from error


@contextmanager
def looked_at(model: nn.Module) -> Iterator[None]:
    """Has a model compute within the context as it does for held-out examples; afterwards it is as it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _check_causal(model: nn.Module, tokens: Tensor, size: int, name: str) -> None:
    """Refuses a language model whose predictions in the first half of a sequence change with the second half."""
    half = tokens.shape[1] // 2
    other = tokens.clone()
    other[:, half:] = (other[:, half:] + 1) % size
    before, after = (model(one) for one in (tokens, other))
    changes = (before - after).abs()
    if half and changes[:, :half].max() > SEEN * changes[:, half:].max() + ROUNDING * before.abs().max():
        raise ConfigurationError(
            f"{name} sees the tokens that follow when it predicts a token, so that it would learn to copy them: choose "
            "a causal one."
        )
