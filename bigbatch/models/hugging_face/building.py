"""Models of transformers as kinds of models: built from a configuration, or read from a folder on disk."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.models.fitting import check_fits, looked_at
from bigbatch.models.hugging_face.adapters import ADAPTERS, Adapter, from_transformers
from bigbatch.models.hugging_face.configuration import CONTEXT, configuration, family_for, kind_in, with_options
from bigbatch.models.hugging_face.folder import check_vocabulary, read_configuration, read_weights
from bigbatch.models.hugging_face.library import library, quiet, reason
from bigbatch.models.hugging_face.sizes import size_of
from bigbatch.models.model import Model, seeded
from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize
from bigbatch.tasks.task import Task


class HuggingFaceModel(Model):
    """A model of transformers, in the form in which the task calls models.

    Its size is counted by building it without memory.
    """

    takes_options = True
    recomputes = True

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Counts parameters, and computes FLOPs per token as for our own models; see `bigbatch.models.sizes`."""
        with torch.device("meta"):
            model = cls.made(task, settings).model
        return replace(size_of(model, task, str(settings.model)), recomputed=float(settings.recompute))

    @classmethod
    def made(cls, task: Task, settings: ModelSettings) -> Adapter:
        """Makes a model of the right shape, whose weights may be any.

        Raises:
            ConfigurationError: it cannot be built for this task.
        """
        raise NotImplementedError


class Configured(HuggingFaceModel):
    """A kind of model that transformers knows, hf:KIND, with random weights."""

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> nn.Module:
        """Builds a model with the task's vocabulary, context and special tokens; nothing is downloaded."""
        name = f"The model {settings.model}"
        with seeded(seed):
            adapter = cls.made(task, settings)
        _recompute(adapter, settings, name)
        room = getattr(adapter.model.config, "max_position_embeddings", task.context) + task.context
        _check_context(adapter, task, name, lambda most: f"--model-option max_position_embeddings={room - most}")
        check_fits(adapter, task, name)
        return adapter

    @classmethod
    def made(cls, task: Task, settings: ModelSettings) -> Adapter:
        """Makes the model from a configuration."""
        kind = kind_in(settings, task)
        config = configuration(settings, task)
        try:
            with quiet():
                model = getattr(library(), family_for(task, kind).classes()[kind])(config)
                model.generation_config = library().GenerationConfig.from_model_config(config)
        except Exception as error:  # transformers has no one error for a configuration that it cannot build
            padded = "padding" in (said := reason(error)).lower() or "out of bounds" in said
            advice = (
                ". If it counts positions from the number of the token for padding, give it room by --model-option "
                f"max_position_embeddings={config.pad_token_id + 1 + task.context}"
            )
            raise ConfigurationError(
                f"The model {settings.model} cannot be built: {said}{advice if padded else ''}."
            ) from error
        return ADAPTERS[task.default_model](model)


class OnDisk(HuggingFaceModel):
    """A model in a folder, as a run or `save_pretrained` wrote it, or as it was downloaded: config.json, safetensors.

    No program in the folder is run, and nothing is looked up on a network.
    """

    drawn = False

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> nn.Module:
        """Reads the model; the scores for answers are drawn at random if the folder has no weights for them."""
        folder = Path(str(settings.model))
        name = f"The model in {folder}"
        config = cls._configuration(task, settings)
        made = _class_for(config, task, name)
        with seeded(seed):
            model, remarks = read_weights(made, folder, config, name, settings.model_option)
        check_vocabulary(model.config, folder, task)
        adapter = from_transformers(model)
        adapter.remarks = remarks
        _recompute(adapter, settings, name)
        _check_context(adapter, task, name, lambda most: f"--context {most}")
        check_fits(adapter, task, name)
        return adapter

    @classmethod
    def made(cls, task: Task, settings: ModelSettings) -> Adapter:
        """Makes a model of the shape of that in the folder."""
        config = cls._configuration(task, settings)
        with quiet():
            model = _class_for(config, task, f"The model in {settings.model}")(config)
        return ADAPTERS[task.default_model](model)

    @classmethod
    def _configuration(cls, task: Task, settings: ModelSettings) -> Any:
        folder = Path(str(settings.model))
        name = f"The model in {folder}"
        settings.refuse({"layers", "width", "heads", "positions", "norm"}, "which is as it was saved")
        library()
        family_for(task, name)
        entries = read_configuration(folder)
        kind = entries.get("model_type")
        known: Any = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
        if kind not in known:
            raise ConfigurationError(f"{name} is of the kind {quoted(kind)}, which transformers does not know.")
        if "quantization_config" in entries:
            raise ConfigurationError(f"{name} is quantised, so that it cannot be trained: name one with all its bits.")
        try:
            with quiet():
                config = known[kind].from_dict(entries)
                for field, value in {**with_options(settings, task, config, name), **OUR_OWN}.items():
                    setattr(config, field, value)
                config.validate()
        except ConfigurationError:
            raise
        except Exception as error:  # transformers has no one error for a value that it does not take
            raise ConfigurationError(f"{name} cannot be configured: {reason(error)}.") from error
        return config


OUR_OWN = dict.fromkeys(("_attn_implementation", "_experts_implementation", "transformers_weights"))
"""What a folder does not decide: the first two can name a program on the hub, and the last another file of weights."""


def _class_for(config: Any, task: Task, name: str) -> Any:
    family = family_for(task, name)
    classes = family.classes()
    if config.model_type not in classes:
        raise ConfigurationError(
            f"{name} is of the kind {config.model_type}, which transformers does not have as {family.what}, and the "
            f"task {type(task).__name__} takes one."
        )
    return getattr(library(), classes[config.model_type])


def _recompute(adapter: Adapter, settings: ModelSettings, name: str) -> None:
    """Has backward compute the model's blocks again, if the settings ask for it.

    Raises:
        ConfigurationError: transformers cannot do so with this kind of model.
    """
    if not settings.recompute:
        return
    if not adapter.model.supports_gradient_checkpointing:
        raise ConfigurationError(f"{name} cannot compute its activations again: leave --recompute out.")
    with quiet():
        adapter.model.gradient_checkpointing_enable({"use_reentrant": False})


def _check_context(adapter: Adapter, task: Task, name: str, advice: Callable[[int], str]) -> None:
    """Refuses a model that cannot take a sequence as long as the task's context, which no training example need be.

    Some kinds count positions from the number of the token for padding, so that their configuration does not say how
    many tokens they take: it is tried.

    Args:
        adapter: the model.
        task: the task.
        name: the model, at the start of a sentence.
        advice: says what to do about a model that takes at most so many tokens.

    Raises:
        ConfigurationError: it cannot.
    """
    config = adapter.model.config.get_text_config()
    stated = [most for field in CONTEXT if isinstance(most := getattr(config, field, None), int)]
    most = min([task.context, *stated])
    if not _takes(adapter, task, most):
        most = bisect_left(range(1, most), True, key=lambda length: not _takes(adapter, task, length))
    if 0 < most < task.context:  # a model that takes no token at all has another fault
        raise ConfigurationError(
            f"{name} takes at most {most:,} tokens, and the task's sequences have up to {task.context:,}: add "
            f"{advice(most)}."
        )


def _takes(adapter: Adapter, task: Task, length: int) -> bool:
    """Whether a model can compute a sequence of so many tokens, none of which is padding."""
    tokens = torch.full((1, length), int(adapter.model.config.get_text_config().pad_token_id == 0))
    inputs = {"encoder-decoder": (tokens, tokens), "encoder": (tokens, torch.ones_like(tokens, dtype=torch.bool))}
    try:
        with looked_at(adapter):
            adapter(*inputs.get(task.default_model, (tokens,)))
    except Exception:  # whatever comes of too many tokens
        return False
    return True
