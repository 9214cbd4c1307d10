"""Configurations of models of transformers, made from a task and from what the user has chosen.

Every kind of model has names of its own for its sizes: the width is `n_embd`, `d_model` or `hidden_size`. A
configuration here gets a task's vocabulary, context and special tokens, our sizes under all of its own names, and no
dropout unless it is asked for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

from bigbatch.comm.errors import ConfigurationError, quoted, suggestion
from bigbatch.models.hugging_face.library import FAMILIES, Family, library, quiet, reason
from bigbatch.models.settings import STACKS, ModelSettings, value_of
from bigbatch.tasks.task import Task

PREFIX = "hf:"
"""What the name of a kind of model of transformers begins with."""

INNER = 4
"""Width of the network of a block, over that of the residual stream; it is that of our own blocks."""

WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "hidden_dim")
LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
HEADS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads"),
    *("encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"),
    *("num_decoder_attention_heads",),
)
KEY_VALUE_HEADS = ("num_key_value_heads",)
HEAD_WIDTH = ("head_dim", "d_kv")
NETWORK = ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size")
CONTEXT = ("max_position_embeddings", "n_positions")
"""The names that configurations have for a size."""

DROPOUT = (
    *("resid_pdrop", "embd_pdrop", "dropout", "dropout_rate", "hidden_dropout_prob", "hidden_dropout"),
    *("resid_dropout", "embd_dropout", "residual_dropout", "embedding_dropout"),
)
"""Those for the dropout of a sublayer's output and of embeddings, which is our own dropout; others get none."""

SPECIAL = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id", "cls_token_id"),
    *("mask_token_id", "forced_bos_token_id", "forced_eos_token_id"),
)
"""Those for tokens that mean something special, which the task knows."""


def family_for(task: Task, name: str) -> Family:
    """Finds the family of models that can learn a task.

    Args:
        task: the task.
        name: the model, at the start of a sentence.

    Raises:
        ConfigurationError: no family is called as the task calls models.
    """
    if task.default_model not in FAMILIES:
        raise ConfigurationError(
            f"{name} cannot learn the task {type(task).__name__}, which takes the model "
            f"{task.default_model}: models of transformers are called as {', '.join(FAMILIES)} are."
        )
    return FAMILIES[task.default_model]


def kind_in(settings: ModelSettings, task: Task) -> str:
    """The kind of model that hf:KIND names, such as "gpt2".

    Raises:
        ConfigurationError: transformers knows no such kind that can learn the task, or is not installed.
    """
    library()
    kind = str(settings.model).removeprefix(PREFIX)
    family = family_for(task, f"The model {settings.model}")
    known = family.classes()
    if kind in known:
        return kind
    others = [other.what for other in FAMILIES.values() if kind in other.classes()]
    if others:
        raise ConfigurationError(
            f"The task {type(task).__name__} takes {family.what}, and transformers has {kind} only as "
            f"{' and as '.join(others)}: choose another kind, such as {', '.join(_usual(known))}."
        )
    raise ConfigurationError(
        f"transformers knows no {family.what.partition(' ')[2]} of the kind {quoted(kind)}{suggestion(kind, known)}: "
        f"write hf: and a kind, such as {', '.join(_usual(known))}; a model on disk is named by its folder."
    )


def _usual(known: Mapping[str, str]) -> list[str]:
    return [kind for kind in ("gpt2", "llama", "t5", "bart", "bert") if kind in known]


def configuration(settings: ModelSettings, task: Task) -> Any:
    """Makes the configuration of a model of the kind that hf:KIND names.

    Raises:
        ConfigurationError: there is no such kind for this task, it has no such option or does not take its value, or
            two options contradict each other.
    """
    kind = kind_in(settings, task)
    made: Any = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING[kind]
    name = f"The model {settings.model}"
    settings.refuse({"positions"}, "which has its own way to tell where a token stands")
    settings.refuse({"norm"}, "which normalises in its own way")
    known = {field.name: field.type for field in fields(made)}
    assigned = dict(_assigned(settings, made, known, name))
    _refuse_fixed(assigned, task, name)
    values = {
        **_sizes(settings, task, known, assigned, name),
        **_tokens(task, made, known),
        **_dropout(settings, known, assigned, name),
        **_causal(task, known),
    }
    try:
        with quiet():
            return made(**{**values, **assigned})
    except Exception as error:  # transformers has no one error for a value that it does not take
        raise ConfigurationError(f"{name} cannot be configured: {reason(error)}.") from error


def with_options(settings: ModelSettings, task: Task, found: Any, name: str) -> dict[str, Any]:
    """The fields that a model on disk gets anew, such as its dropout, and what the user sets by --model-option.

    Args:
        settings: what the user chose.
        task: the task, whose context bounds what can be set.
        found: the configuration on disk.
        name: the model, at the start of a sentence.

    Raises:
        ConfigurationError: the configuration has no such field, or it is not the user's to set.
    """
    known = {field.name: field.type for field in fields(type(found))}
    assigned = dict(_assigned(settings, type(found), known, name))
    _refuse_fixed(assigned, task, name, "the folder")
    return {**_dropout(settings, known, assigned, name), **_causal(task, known), **assigned}


def _causal(task: Task, known: Collection[str]) -> dict[str, bool]:
    """Has kinds such as bert not see the tokens that they should predict."""
    return {"is_decoder": True} if task.default_model == "decoder" and "is_decoder" in known else {}


def _assigned(settings: ModelSettings, made: Any, known: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """What --model-option sets, under the configuration's own names, with values of the fields' types."""
    before: dict[str, str] = {}
    for given, text in settings.assigned().items():
        own = made.attribute_map.get(given, given)
        if own not in known:
            raise ConfigurationError(
                f"{name} has no option {quoted(given)}{suggestion(given, known)}: --model-option takes the fields of "
                f"{made.__name__}."
            )
        if own in before:
            raise ConfigurationError(
                f"{before[own]} and {given} are one field of {made.__name__}: leave one of them out."
            )
        before[own] = given
        yield own, text if known[own] is str else value_of(text)  # the configuration itself refuses other types


def _refuse_fixed(assigned: Mapping[str, Any], task: Task, name: str, owner: str = "the task") -> None:
    """Refuses values that the task decides, and special tokens, which the task or the folder decides."""
    for field, value in assigned.items():
        least = {"vocab_size": _tokens_in_all(task), **dict.fromkeys(CONTEXT, task.context)}.get(field)
        if field in SPECIAL or (least is not None and not (isinstance(value, int) and value >= least)):
            what = f"the task needs {field}={least} or more" if least is not None else f"{owner} decides {field}"
            raise ConfigurationError(f"{name} cannot have the option {field}={quoted(value)}: {what}. Leave it out.")


def _sizes(
    settings: ModelSettings, task: Task, known: Mapping[str, Any], assigned: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Our sizes under all names that the configuration has for them, and the task's."""
    sizes = settings.sizes(stacks := STACKS[task.default_model])
    flags: tuple[tuple[str, Sequence[str], int | None], ...] = (
        ("layers", LAYERS, settings.layers),
        ("width", WIDTH, settings.width),
        ("heads", HEADS, settings.heads),
    )
    for flag, names, value in flags:
        own = [field for field in names if field in known]
        if value is not None and not own:
            raise ConfigurationError(
                f"{name} has no field for --{flag}: set what it has by --model-option, which takes its fields."
            )
        for field in own:
            if value is not None and assigned.get(field, value) != value:
                raise ConfigurationError(
                    f"--{flag} {value} and --model-option {field}={assigned[field]} contradict each other: leave one "
                    "of them out."
                )
    layers, width, heads = (
        next((assigned[field] for field in names if field in known and field in assigned), usual)
        for names, usual in ((LAYERS, sizes.blocks // stacks), (WIDTH, sizes.width), (HEADS, sizes.heads))
    )
    if not any(field in known for field in WIDTH):
        raise ConfigurationError(f"{name} has no field for a width, such as hidden_size: it is made of several models.")
    chosen: dict[str, Any] = {}
    groups: tuple[tuple[Sequence[str], Any], ...] = (
        (LAYERS, layers),
        (WIDTH, width),
        (HEADS, heads),
        (KEY_VALUE_HEADS, heads),
        (HEAD_WIDTH, width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None),
        (NETWORK, INNER * width if isinstance(width, int) else None),
        (CONTEXT, task.context),
    )
    for names, size in groups:
        chosen |= {field: size for field in names if field in known and size is not None}
    return {**chosen, "vocab_size": _tokens_in_all(task)}


def _tokens_in_all(task: Task) -> int:
    """Number of tokens that a model must know: the task's, and one for padding if the vocabulary has none."""
    return task.vocabulary_size + (task.vocabulary is None or task.vocabulary.pad is None)


def _tokens(task: Task, made: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The task's special tokens: every text ends with one, which also stands before what is written.

    Padding has a number of its own, after the vocabulary's last one if the vocabulary has none: embeddings of some
    models do not learn the token for padding, and the end of a text is one that must be learnt.
    """
    end = None if task.vocabulary is None else task.vocabulary.end
    pad = task.vocabulary_size if task.vocabulary is None or task.vocabulary.pad is None else task.vocabulary.pad
    found = dict.fromkeys(field for field in SPECIAL if field in known)
    ends = dict.fromkeys((field for field in ("bos_token_id", "eos_token_id", "sep_token_id") if field in known), end)
    written = {"decoder_start_token_id": end} if getattr(made, "is_encoder_decoder", False) else {}
    return {**found, **ends, **written, "pad_token_id": pad}


def _dropout(
    settings: ModelSettings, known: Mapping[str, Any], assigned: Mapping[str, Any], name: str
) -> dict[str, float]:
    """What the user has chosen for the dropout that our own models have, too, and none for all other dropout."""
    ours = [field for field in DROPOUT if field in known]
    if settings.dropout and not ours:
        others = [field for field in known if "drop" in field]
        advice = f"leave it out, or use --model-option {others[0]}={settings.dropout:g}" if others else "leave it out"
        raise ConfigurationError(f"{name} cannot drop a share of its sublayers' output (--dropout): {advice}.")
    for field in ours:
        if settings.dropout and assigned.get(field, settings.dropout) != settings.dropout:
            raise ConfigurationError(
                f"--dropout {settings.dropout:g} and --model-option {field}={assigned[field]} contradict each other: "
                "leave one of them out."
            )
    none = {field: 0.0 for field, kind in known.items() if "drop" in field and "float" in str(kind)}
    return {**none, **dict.fromkeys(ours, settings.dropout)}
