"""Models of transformers as kinds of models: built from a configuration, or read from a folder on disk."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.files import damaged, parsed, read_bytes, utf8
from bigbatch.models.fitting import check_causal, check_fits
from bigbatch.models.hugging_face.adapters import ADAPTERS, Adapter, from_transformers
from bigbatch.models.hugging_face.configuration import CONTEXT, configuration, family_for, kind_in, with_options
from bigbatch.models.hugging_face.library import FAMILIES, library, quiet, reason
from bigbatch.models.model import Model, seeded
from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize, training_flops
from bigbatch.tasks.task import Task
from bigbatch.tasks.tokenizer_files import MODEL, TOKENIZER, vocabulary_in

LARGEST_CONFIGURATION = 2**24
"""Size of the largest config.json that is read, in bytes."""


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
        check_fits(adapter, task, name)
        if task.default_model == "decoder":
            check_causal(adapter, task, name)
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
            advice = ""
            if "padding" in (said := reason(error)).lower() or "out of bounds" in said:
                room = config.pad_token_id + task.context + 2
                advice = (
                    ". If it counts positions from the number of the token for padding, give it room by --model-option "
                    f"max_position_embeddings={room}"
                )
            raise ConfigurationError(f"The model {settings.model} cannot be built: {said}{advice}.") from error
        return ADAPTERS[task.default_model](model)


class OnDisk(HuggingFaceModel):
    """A model in a folder, as a run or `save_pretrained` wrote it, or as it was downloaded: config.json, safetensors.

    No program in the folder is run, and nothing is looked up on a network.
    """

    drawn = False

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> nn.Module:
        """Reads the model; what the folder has no weights for, such as scores for answers, is drawn at random."""
        folder = Path(str(settings.model))
        name = f"The model in {folder}"
        config = cls._configuration(task, settings)
        made = _class_for(config, task, name)
        with seeded(seed):
            model = _read(made, folder, config, name)
        _check_vocabulary(model.config, folder, task)
        _check_context(model.config, name, task)
        adapter = from_transformers(model)
        _recompute(adapter, settings, name)
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
                for field, value in with_options(settings, config, name).items():
                    setattr(config, field, value)
                config.validate()
        except ConfigurationError:
            raise
        except Exception as error:  # transformers has no one error for a value that it does not take
            raise ConfigurationError(f"{name} cannot be configured: {reason(error)}.") from error
        return config


def read_configuration(folder: Path) -> dict[str, Any]:
    """Reads the configuration of a model in a folder.

    Raises:
        ConfigurationError: there is no such folder or file, or it is damaged.
    """
    path = folder / MODEL
    if not path.is_file():
        runs = ", ".join(sorted(str(found.parent) for found in folder.glob(f"*/{MODEL}")))
        there = f"; there are {runs}" if runs else ""
        state = f"has no {MODEL}{there}" if folder.is_dir() else "does not exist"
        raise ConfigurationError(
            f"{folder} {state}: name a folder that a run or save_pretrained has written a model of transformers to."
        )
    what = f"The file {path}"
    found = parsed(utf8(read_bytes(path, what, LARGEST_CONFIGURATION), what), what)
    if not isinstance(found, dict):
        raise damaged(what, "it is no object of JSON")
    if "model_type" not in found:
        runs = ", ".join(sorted(str(one.parent) for one in folder.glob(f"model-*/{MODEL}")))
        raise ConfigurationError(
            f"{path} describes no model of transformers: it has no model_type"
            f"{f'; those that this run has trained are in {runs}' if runs else ''}."
        )
    return found


def _class_for(config: Any, task: Task, name: str) -> Any:
    family = FAMILIES[task.default_model]
    classes = family.classes()
    if config.model_type not in classes:
        raise ConfigurationError(
            f"{name} is of the kind {config.model_type}, which transformers does not have as {family.what}, and the "
            f"task {type(task).__name__} takes one."
        )
    if task.default_model == "decoder" and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return getattr(library(), classes[config.model_type])


def _read(made: Any, folder: Path, config: Any, name: str) -> Any:
    """Reads a model's weights in float32, whichever type they were saved in.

    Raises:
        ConfigurationError: there are no safetensors, or they are those of another model.
    """
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for path in folder.glob("*.bin"))
        advice = f"; {others[0]} can hold a program, and is not read" if others else ""
        raise ConfigurationError(
            f"{folder} has no weights in the form of safetensors{advice}: save the model by save_pretrained."
        )
    try:
        with quiet():
            model, found = made.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers has no one error for weights that do not fit
        raise ConfigurationError(f"{name} cannot be read: {reason(error)}.") from error
    body = f"{made.base_model_prefix}."
    lacking = sorted(key for key in found["missing_keys"] if key.startswith(body))
    if lacking:
        raise ConfigurationError(
            f"{name} has no weights for {lacking[0]}{f' and {len(lacking) - 1} others' if lacking[1:] else ''}: its "
            "safetensors are those of another model than its config.json."
        )
    return model


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


def _check_vocabulary(config: Any, folder: Path, task: Task) -> None:
    """Refuses a model that knows other tokens than the task's.

    Raises:
        ConfigurationError: it has too few, or its tokenizer gives them other numbers.
    """
    text = config.get_text_config()
    theirs, advice = text.vocab_size, f"add --vocabulary {folder} to use the model's own tokenizer"
    if theirs < task.vocabulary_size:
        raise ConfigurationError(
            f"The model in {folder} knows {theirs:,} tokens, and the task has {task.vocabulary_size:,}: {advice}."
        )
    if task.vocabulary is None or not (folder / TOKENIZER).is_file():
        if theirs > task.vocabulary_size + 1:  # one more for padding
            raise ConfigurationError(
                f"The model in {folder} knows {theirs:,} tokens, the task has {task.vocabulary_size:,}, and nothing in "
                f"the folder says which are which: put the model's {TOKENIZER} there, and {advice}."
            )
        return
    known: Mapping[str, int] = vocabulary_in(folder).tokenizer.get_vocab()
    for token, number in task.vocabulary.tokenizer.get_vocab().items():
        if known.get(token) != number:
            raise ConfigurationError(
                f"The model in {folder} knows other tokens than the task (token {number} is not {quoted(token)} "
                f"there): {advice}."
            )


def _check_context(config: Any, name: str, task: Task) -> None:
    """Refuses a model that has fewer positions than the task's longest sequence has tokens.

    Raises:
        ConfigurationError: it has.
    """
    for field in CONTEXT:
        most = getattr(config.get_text_config(), field, None)
        if isinstance(most, int) and most < task.context:
            raise ConfigurationError(
                f"{name} takes at most {most:,} tokens, and the task's sequences have up to {task.context:,}: add "
                f"--context {most}."
            )


def size_of(model: Any, task: Task, name: str) -> ModelSize:
    """Computes the size of a model of transformers for a task.

    A token is multiplied with every parameter but those of tables in which it is only looked up. For each target of a
    task that reads a source, a share of the source is read, too.

    Args:
        model: the model, which may have no memory.
        task: the task.
        name: the model's name in tables and figures.
    """
    config = model.config.get_text_config()
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    counts = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    read, written = task.source_tokens, task.example_tokens
    if task.default_model == "encoder-decoder":
        encoder = _multiplied(model.get_encoder())
        flops = training_flops(_multiplied(model) - encoder, layers, width, round(read + written))
        flops += read / written * training_flops(encoder, layers, width, round(read))
        layers *= FAMILIES[task.default_model].stacks
    elif task.default_model == "encoder":
        flops = read / written * training_flops(_multiplied(model), layers, width, round(read))
    else:
        flops = training_flops(_multiplied(model), layers, width, task.context)
    parts = tuple(reversed(list(filter(None, counts))))
    return ModelSize(name, layers, width, task.context, task.vocabulary_size, sum(counts), flops, parts)


def _multiplied(model: Any) -> int:
    """Parameters of a model that a token is multiplied with: a table counts if it is the output layer, too."""
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    tables: set[int] = set()
    matrices: set[int] = set()
    for part in model.modules():
        own = {id(parameter) for parameter in part.parameters(recurse=False)}
        (tables if isinstance(part, nn.Embedding) else matrices).update(own)
    return sum(number for key, number in parameters.items() if key not in tables - matrices)
