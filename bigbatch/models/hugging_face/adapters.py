"""Adapters: a model of transformers in the form in which our tasks, trainer and sessions use models.

There is one adapter for each family of models. It is called as our own model of that kind is, takes the logits from
what the model returns, and computes a loss of its own: summed, over the tokens that count, which the losses of
transformers are not all.
"""

import errno
import inspect
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.models.hugging_face.generating import Writing, generated, keeps, logits_of
from bigbatch.models.hugging_face.library import FAMILIES, library, quiet, reason, silent
from bigbatch.models.model import SavesItself
from bigbatch.tasks.decoding import Generator
from bigbatch.tasks.loss import PADDING, shifted, summed_cross_entropy


class Adapter(nn.Module, SavesItself):
    """A model of transformers, which is called as our own models are.

    Args:
        model: the model. Its parameters stay its own, so that tied weights stay tied.

    Attributes:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._takes = frozenset(inspect.signature(model.forward).parameters)

    @abstractmethod
    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Compute the loss on a batch as data collators of transformers make it: `input_ids`, `labels` and so on.

        The labels are those that the model itself would take: a causal language model shifts them here, once. What
        else the batch has, such as `position_ids`, is passed on to the model.

        Args:
            batch: (batch, sequence) tensors by name; `labels` is -100 where nothing is to be predicted.

        Returns:
            The summed loss in nats, and the number of tokens that it is over, as `Session.backward` takes them.

        Raises:
            ConfigurationError: the batch lacks something, or has what the model does not take; the message names it.
        """

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the model to a folder by `save_pretrained`, from which transformers reads it.

        Args:
            folder: the folder.
            state: what `state_dict` of this adapter returned earlier; None for what it returns now.

        Raises:
            OSError: a file cannot be written.
        """
        state = self.state_dict() if state is None else state
        own = {name.removeprefix("model."): value for name, value in state.items()}
        # A parameter with several names is written once, as long as they all have the same tensor.
        first: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            own[name] = own[first.setdefault(id(parameter), name)]
        # A copy each, for the parameters of a model in training are parts of one buffer.
        copies = {id(value): value.detach().cpu().clone() for value in own.values()}
        try:
            with quiet():
                self.model.save_pretrained(folder, state_dict={name: copies[id(value)] for name, value in own.items()})
        except Exception as error:  # safetensors has an error of its own for a full disk
            if isinstance(error, OSError):
                raise
            raise OSError(errno.EIO, reason(error)) from error

    def _logits(self, **inputs: Tensor | None) -> Any:
        """Calls the model with those inputs that are there."""
        given: dict[str, Any] = {name: value for name, value in inputs.items() if value is not None}
        if "use_cache" in self._takes:
            given["use_cache"] = False  # else keys and values would be kept that nobody asks for in training
        if torch.compiler.is_compiling():
            return self.model(**given)
        with silent():
            return self.model(**given)

    def _from(self, batch: Mapping[str, Tensor], *names: str) -> list[Tensor]:
        for name in names:
            if name not in batch:
                raise ConfigurationError(
                    f"A batch for {type(self.model).__name__} has no {name!r}; it has "
                    f"{', '.join(map(repr, batch)) or 'nothing'}."
                )
        return [batch[name] for name in names]

    def _others(self, batch: Mapping[str, Tensor], *used: str) -> dict[str, Tensor]:
        """What a batch has beside the entries that are used here, for the model's own `forward`."""
        others = {name: value for name, value in batch.items() if name not in used}
        for name in others:
            if name not in self._takes:
                raise ConfigurationError(
                    f"{type(self.model).__name__} does not take {name!r}, which a batch for it has: leave it out."
                )
        return others


class CausalLanguageModel(Adapter):
    """A model that predicts every next token of a sequence, such as GPT-2 or Llama; it is called as our decoder is."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predicts every next token.

        Args:
            tokens: (batch, sequence) token numbers.
            mask: (batch, sequence) 0 or False at padding, on whichever side; None if there is none, or if it only
                follows what counts. Positions are counted without padding.

        Returns:
            (batch, sequence, vocabulary) logits
        """
        return self._predict(tokens, mask)

    def _predict(self, tokens: Tensor, mask: Tensor | None, **others: Tensor) -> Tensor:
        if mask is not None and "position_ids" in self._takes:
            others.setdefault("position_ids", (mask.long().cumsum(1) - 1).clamp(min=0))
        return logits_of(self._logits(input_ids=tokens, attention_mask=_as_numbers(mask), **others))

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Compute the loss on `input_ids` and `labels`, which are the same tokens, with an `attention_mask` or without.

        The label of a token is the token itself, as for the model's own loss: it is predicted from those before it.
        """
        tokens, labels = self._from(batch, "input_ids", "labels")
        others = self._others(batch, "input_ids", "labels", "attention_mask")
        return summed_cross_entropy(self._predict(tokens, batch.get("attention_mask"), **others)[:, :-1], labels[:, 1:])

    def continued(self, prompt: Tensor, end: int, longest: int) -> list[list[int]]:
        """Goes on with texts greedily; see `bigbatch.tasks.decoding.continued`."""
        return generated(self.model, prompt, end, longest, input_ids=prompt)


class SequenceToSequenceModel(Adapter):
    """A model that writes a sequence after reading another, such as T5 or BART; called as our encoder–decoder is."""

    @property
    def start_token(self) -> int | None:
        """The token that stands before a target, as the model's configuration says; None if it says nothing."""
        start: int | None = getattr(self.model.config, "decoder_start_token_id", None)
        return start

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predicts every next token of the target.

        Args:
            source: (batch, source sequence) token numbers of what is read.
            target: (batch, target sequence) token numbers of what is written, from the start token on.
            mask: (batch, source sequence) 0 or False at padding; None if there is none.

        Returns:
            (batch, target sequence, vocabulary) logits
        """
        return self._predict(source, target, mask)

    def _predict(self, source: Tensor, target: Tensor, mask: Tensor | None, **others: Tensor) -> Tensor:
        mask = _as_numbers(mask)
        return logits_of(self._logits(input_ids=source, attention_mask=mask, decoder_input_ids=target, **others))

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Compute the loss on `input_ids`, with an `attention_mask` or without, and `labels`, the target.

        The model reads the target shifted by one place: `decoder_input_ids`, or else the start token and the labels.
        """
        source, labels = self._from(batch, "input_ids", "labels")
        target = batch["decoder_input_ids"] if "decoder_input_ids" in batch else self._shifted(labels)
        others = self._others(batch, "input_ids", "labels", "attention_mask", "decoder_input_ids")
        return summed_cross_entropy(self._predict(source, target, batch.get("attention_mask"), **others), labels)

    def _shifted(self, labels: Tensor) -> Tensor:
        start, pad = self.start_token, getattr(self.model.config, "pad_token_id", None)
        if start is None or pad is None:
            raise ConfigurationError(
                f"{type(self.model).__name__} does not know what a target starts with, or what it reads where a label "
                "is -100: set decoder_start_token_id and pad_token_id in its configuration, or put decoder_input_ids "
                "into the batch."
            )
        return shifted(labels, start, pad)

    def generator(self, source: Tensor, mask: Tensor | None = None) -> Generator | None:
        """Reads sources, as `forward` has them, and makes a generator that writes a target for each.

        Returns None for a model that keeps nothing of earlier tokens.
        """
        return Writing(self.model, source, _as_numbers(mask)) if keeps(self.model) else None

    def continued(self, source: Tensor, mask: Tensor | None, prompt: Tensor, end: int, longest: int) -> list[list[int]]:
        """Goes on with targets greedily; see `bigbatch.tasks.decoding.continued`."""
        mask = torch.ones_like(source) if mask is None else mask.long()
        return generated(
            self.model, prompt, end, longest, input_ids=source, attention_mask=mask, decoder_input_ids=prompt
        )


class SpanModel(Adapter):
    """A model that scores each token as the start and the end of an answer, such as BERT; called as our encoder is."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._segments = "token_type_ids" in self._takes and getattr(model.config, "type_vocab_size", 0) > 1

    def forward(self, tokens: Tensor, passage: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores every token as the first and as the last of the answer.

        Args:
            tokens: (batch, sequence) token numbers of questions and their passages.
            passage: (batch, sequence) True at the tokens of the passage, which are another segment for BERT.
            mask: (batch, sequence) 0 or False at padding; None if there is none.

        Returns:
            (batch, sequence, 2) logits
        """
        segments = {"token_type_ids": passage.long()} if self._segments else {}
        return self._scores(tokens, mask, **segments)

    def _scores(self, tokens: Tensor, mask: Tensor | None, **others: Tensor) -> Tensor:
        called = self._logits(input_ids=tokens, attention_mask=_as_numbers(mask), **others)
        if isinstance(called, tuple):
            return torch.stack(called[:2], -1)
        return torch.stack([called.start_logits, called.end_logits], -1)

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Compute the loss on `input_ids`, `start_positions` and `end_positions`: two targets an example."""
        tokens, starts, stops = self._from(batch, "input_ids", "start_positions", "end_positions")
        others = self._others(batch, "input_ids", "start_positions", "end_positions", "attention_mask")
        scores = self._scores(tokens, batch.get("attention_mask"), **others)
        targets = torch.stack([starts, stops], -1).flatten()
        loss = F.cross_entropy(scores.transpose(1, 2).flatten(0, 1), targets, reduction="sum", ignore_index=PADDING)
        return loss, int((targets != PADDING).sum())


ADAPTERS: Mapping[str, type[Adapter]] = {
    "decoder": CausalLanguageModel,
    "encoder-decoder": SequenceToSequenceModel,
    "encoder": SpanModel,
}
"""The adapters, by the name of our own kind of model that is called in the same way."""


def from_transformers(model: Any) -> Adapter:
    """Puts a model of transformers into the form in which our trainer, our tasks and `attach` use models.

    A causal language model is called as `adapter(tokens)` and returns logits; the other kinds are described with
    `CausalLanguageModel`, `SequenceToSequenceModel` and `SpanModel`. `adapter.loss(batch)` takes the batches of
    transformers, and returns a summed loss and the number of its tokens. The model's own loss is never used: it is a
    mean, and some models (T5, BART, Marian) take no notice of `num_items_in_batch`.

    Args:
        model: a causal language model, a sequence-to-sequence model or a model for question answering. It is not
            copied: `adapter.model` is the model itself, for `save_pretrained` and all else.

    Raises:
        ConfigurationError: transformers is not installed; or the model is none of these, is quantised, or has
            parameters of several types of numbers, which the message names.
    """
    if not isinstance(model, library().PreTrainedModel):
        raise ConfigurationError(
            f"from_transformers takes a model of transformers, such as GPT2LMHeadModel(config), not {quoted(model)}."
        )
    name = type(model).__name__
    if getattr(model, "is_quantized", False):
        raise ConfigurationError(f"The model {name} is quantised, so that it cannot be trained: load it as it was.")
    _refuse_mixed_types(model)
    classes = {key: set(family.classes().values()) for key, family in FAMILIES.items()}
    for kind in type(model).__mro__:
        for key, names in classes.items():
            if kind.__name__ in names:
                return ADAPTERS[key](model)
    raise ConfigurationError(
        f"The model {name} is none of {', '.join(family.what for family in FAMILIES.values())}: take its class with "
        "such a head, for example GPT2LMHeadModel for GPT2Model, or give the model itself to attach."
    )


def _refuse_mixed_types(model: nn.Module) -> None:
    kinds: dict[torch.dtype, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            kinds.setdefault(parameter.dtype, name)
    if len(kinds) > 1:
        found = ", ".join(f"{name} is {str(kind).removeprefix('torch.')}" for kind, name in kinds.items())
        raise ConfigurationError(
            f"The parameters of {type(model).__name__} have several types of numbers ({found}): convert all to one, "
            "for example by model.float()."
        )


def _as_numbers(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.long()
