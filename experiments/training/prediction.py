"""Predictions of trained models, on words of the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.options import options_of
from bigbatch.experiments.runs.run import CONFIG, Run
from bigbatch.experiments.runs.weights import model_folder, read_weights
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.experiments.training.settings import Settings
from bigbatch.models.settings import ModelSettings


def predict(folder: Path, texts: Sequence[str], arm: str | None = None, **choices: Any) -> list[str]:
    """What the model that a run has trained answers to texts.

    The task is prepared again, from the same data, since the model knows tokens and no words.

    Args:
        folder: the run's folder.
        texts: the inputs, such as phrases to translate.
        arm: the arm whose model answers; None for the one with the lowest validation loss.
        choices: options for decoding by name: `beam` and `length_penalty`.

    Raises:
        ConfigurationError: there is no run, arm or model in the folder; the data are not the same any more; or a text
            is no input for the task.
    """
    run = Run.read(folder)
    name = chosen_arm(run.summary["arms"], arm, folder)
    settings = _settings(run.config(), folder).changed(choices)
    saved = folder / model_folder(name)
    weights = None
    if saved.is_dir():  # the model is in a form of its own, sizes and all
        settings = replace(settings, model=ModelSettings(model=str(saved)))
    else:
        weights = read_weights(folder, name)
    task = task_of(settings.data)
    if task.corpus_sha256 != run.summary.get("corpus_sha256"):
        raise ConfigurationError(
            f"The text that the run in {folder} has learnt from is another one today, or it is read in another way, so "
            "that the tokens of its model mean something else: train again."
        )
    model = Assembly(settings, task).model()
    try:
        if weights is not None:
            model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        raise ConfigurationError(
            f"The weights of the arm {name} in {folder} do not fit the model that {CONFIG} describes: {error}"
        ) from error
    model.eval()
    with torch.no_grad():
        return task.predict(model, texts)


def chosen_arm(arms: Sequence[Mapping[str, Any]], name: str | None, folder: Path) -> str:
    """Chooses the arm whose model answers: the one that is named, or the one with the lowest validation loss.

    Raises:
        ConfigurationError: there is no arm of that name.
    """
    names = [str(arm["name"]) for arm in arms]
    if name is not None:
        if name not in names:
            raise ConfigurationError(f"The run in {folder} has no arm {name!r}; it has {', '.join(names)}.")
        return name

    def loss(arm: Mapping[str, Any]) -> float:
        found = arm["validation_loss"]
        return float("inf") if found is None else float(found)

    return str(min(arms, key=loss)["name"])


def _settings(config: Mapping[str, Any], folder: Path) -> Settings:
    names = {one.name for one in options_of(Settings)}
    known = {name: value for name, value in config.items() if name in names}
    if "task" not in known:
        raise ConfigurationError(f"{folder / CONFIG} does not say which task was learnt: the run cannot be repeated.")
    return Settings.of(known)
