"""Whether a model that somebody else has written fits a task: found out before anything is trained."""

import numpy as np
import torch
from torch import nn

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.foreign import explained
from bigbatch.tasks.loss import checked_loss
from bigbatch.tasks.task import Task

LOOKED_AT = 8
"""Number of tokens in which it is looked at whether a model sees what it should predict."""


CALLED = {
    "decoder": "which calls model(tokens) and takes (batch, sequence, vocabulary) logits",
    "encoder-decoder": "which calls model(source, target, mask) and takes (batch, target sequence, vocabulary) logits",
    "encoder": "which calls model(tokens, passage, mask) and takes (batch, sequence, 2) logits",
}
"""How tasks call models and what they take, by the kind of model that a task takes."""

OTHERWISE = "which computes its loss in a way of its own"


def check_fits(model: nn.Module, task: Task, name: str) -> None:
    """Computes the loss on the longest training example, and changes nothing about the model.

    Args:
        model: the model.
        task: the task.
        name: the model, at the start of a sentence.

    Raises:
        ConfigurationError: the task cannot call the model, or cannot use what it returns.
    """
    lengths = task.lengths("training")
    longest = 0 if lengths is None else int(lengths.max(axis=1).argmax())
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            returned = task.loss(model, task.batch("training", np.array([longest])))
        checked_loss(f"The loss of {name[0].lower()}{name[1:]}", returned, trains=False)
    except BigBatchError:
        raise
    except Exception as error:  # whatever comes of calling a model in a way for which it was not made
        told = explained(error)
        said = str(told).removesuffix(".") if told else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigurationError(
            f"{name} does not fit the task {type(task).__name__}, {CALLED.get(task.default_model, OTHERWISE)}: "
            f"{said.removesuffix('.')}."
        ) from error
    finally:
        for part, training in modes:
            part.training = training


def check_causal(model: nn.Module, task: Task, name: str) -> None:
    """Refuses a language model whose prediction of a token changes with the tokens that follow.

    Args:
        model: the model; it is called as the decoder is.
        task: the task.
        name: the model, at the start of a sentence.

    Raises:
        ConfigurationError: it does.
    """
    one = torch.arange(LOOKED_AT)[None, : task.context] % task.vocabulary_size
    other = one.clone()
    other[:, -1] = (one[:, -1] + 1) % task.vocabulary_size
    training = model.training
    with torch.no_grad():
        before, after = (model.eval()(tokens)[:, :-1] for tokens in (one, other))
    model.train(training)
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise ConfigurationError(
            f"{name} sees the tokens that follow when it predicts a token, so that it would learn to copy them: choose "
            "a causal one."
        )
