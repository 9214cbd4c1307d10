"""The weights of a run's trained models, a file or a folder for each arm."""

import io
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import damaged, read_bytes, replacing
from bigbatch.models.model import SavesItself
from bigbatch.tasks.tokenizer_files import write_vocabulary
from bigbatch.tasks.vocabulary import Vocabulary

WEIGHTS = "model-*.pt"
"""The pattern of the files' names."""

LARGEST_WEIGHTS = 2**36
"""Size of the largest file of weights that is read, in bytes."""


def weights_file(arm: str) -> str:
    """The name of the file that has the weights of an arm's model."""
    return WEIGHTS.replace("*", arm)


def model_folder(arm: str) -> str:
    """The name of the folder that has an arm's model instead, if that is saved in a form of its own."""
    return weights_file(arm).removesuffix(".pt")


def write_model(folder: Path, model: SavesItself, weights: Mapping[str, Tensor], vocabulary: Vocabulary | None) -> None:
    """Write a model that is saved in a form of its own, with the tokenizer that belongs to it.

    Raises:
        OSError: a file cannot be written.
    """
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
        model.save(Path(part), weights)
        if vocabulary is not None:
            write_vocabulary(Path(part), vocabulary)
        folder.mkdir(exist_ok=True)
        for path in sorted(Path(part).iterdir()):
            path.replace(folder / path.name)


def remove_models(run: Path) -> None:
    """Remove the models of an earlier run from a run's folder, and nothing else.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in run.glob(WEIGHTS):
        path.unlink()
    for folder in run.glob(model_folder("*")):
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.iterdir():
                if path.is_file() and path.suffix in (".json", ".safetensors"):
                    path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a model's state, as `torch.save` does.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # writing to a file itself, torch would raise an error of its own for a full disk
    torch.save(dict(weights), content)
    with replacing(path) as part:
        part.write_bytes(content.getbuffer())


def read_weights(folder: Path, arm: str) -> dict[str, Any]:
    """Reads the state of an arm's model from a run's folder; nothing in the file is run.

    Raises:
        ConfigurationError: there are no such weights, or they are damaged.
    """
    path = folder / weights_file(arm)
    if not path.exists():
        there = ", ".join(sorted(file.name for file in folder.glob(WEIGHTS))) or "none"
        raise ConfigurationError(
            f"{folder} has no weights of the arm {arm}: there is no {path.name}; the files of weights are: {there}. "
            "Every run keeps its models, but for those with --no-weights, and those over ps serve."
        )
    what = f"The file {path}"
    content = read_bytes(path, what, LARGEST_WEIGHTS)
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no one error for a file that is none of its own
        raise damaged(what, "torch cannot read it") from error
    if not isinstance(weights, dict):
        raise damaged(what, f"it holds a {type(weights).__name__}, and should hold a model's state")
    return weights
