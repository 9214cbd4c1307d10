"""A model of transformers in a folder on disk: its configuration, its weights, and whether they fit the task.

No program in the folder is run, and nothing is looked up on a network.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.files import damaged, parsed, read_bytes, utf8
from bigbatch.models.hugging_face.library import quiet, reason
from bigbatch.tasks.task import Task
from bigbatch.tasks.tokenizer_files import MODEL, TOKENIZER, vocabulary_in

LARGEST_CONFIGURATION = 2**24
"""Size of the largest config.json that is read, in bytes."""


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


def read_weights(made: Any, folder: Path, config: Any, name: str, options: Collection[str]) -> tuple[Any, list[str]]:
    """Reads a model's weights in float32, whichever type they were saved in.

    Args:
        made: the model's class.
        folder: the folder.
        config: the model's configuration.
        name: the model, at the start of a sentence.
        options: the options that have changed the configuration, as the user wrote them.

    Returns:
        The model, and sentences without full stops: what is drawn at random, and what was left out. Only the scores of
        an answer are drawn, since models are downloaded without them. Only whole parts beside the model's blocks are
        left out: scores of other tasks, and poolers.

    Raises:
        ConfigurationError: there are no safetensors, or they are those of another model.
    """
    if (folder / ADAPTER).exists():
        raise ConfigurationError(
            f"{folder} has an {ADAPTER}, so that its weights are changes to those of a model elsewhere: name a folder "
            "with all of the weights, as merge_and_unload of peft makes them."
        )
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
        raise ConfigurationError(f"{name} cannot be read: {reason(error)}{_blamed(options)}.") from error
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    lacking = [key for key in missing if key.partition(".")[0] != DRAWN]
    if lacking:
        raise ConfigurationError(f"{name} has no weights for {_listed(lacking)}{_blamed(options) or OTHERS}.")
    body, within = model.base_model, f"{model.base_model_prefix}."
    parts = {part for part, _ in body.named_children()}
    surplus = [key for key in unexpected if key.removeprefix(within).partition(".")[0] in parts]
    if surplus:
        raise ConfigurationError(
            f"{name} has weights for {_listed(surplus)}, which it would leave out{_blamed(options) or OTHERS}."
        )
    remarks = [f"{name} has no weights for {_listed(missing)}: they are drawn at random"] if missing else []
    return model, [*remarks, *([f"{name} leaves out the weights {_listed(unexpected)}"] if unexpected else [])]


ADAPTER = "adapter_config.json"
"""The file by which a folder says that its weights belong to another folder's, or to a model on the hub."""

DRAWN = "qa_outputs"
"""What transformers calls the scores of an answer's start and end."""

OTHERS = ": its safetensors are those of another model than its config.json"


def _listed(keys: Sequence[str]) -> str:
    return f"{keys[0]}{f' and {len(keys) - 1} more' if keys[1:] else ''}"


def _blamed(options: Collection[str]) -> str:
    """What to do if options may be to blame; empty if there are none."""
    chosen = " ".join(f"--model-option {option}" for option in options)
    return f": leave {chosen} out, or name a folder with a model of that size" if chosen else ""


def check_vocabulary(config: Any, folder: Path, task: Task) -> None:
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
