"""What a user can choose about the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bigbatch.comm.kinds import TOKENS, File, Name, Whole
from bigbatch.comm.options import Options, option
from bigbatch.tasks import TASKS


@dataclass(frozen=True)
class DataSettings(Options):
    """The options for the data: which task is learnt, from which text.

    Attributes:
        task: a name in the registry of tasks, or FILE.py:Task.
        text: the user's own text, or None for the task's default.
        context: tokens in an example, at most.
        vocabulary: number of different tokens, at most.
        tokens: number of tokens that each arm is trained on.
        validation_tokens: number of held-out tokens on which the validation loss is measured.
    """

    title: ClassVar[str] = "Data"

    task: str = option("language-modelling", Name(TASKS.names, "FILE.py:Task"), "Task to learn.")
    text: Path | None = option(
        None,
        File(),
        "Text to learn from, a file in UTF-8; its last tenth is held out for validation.",
        missing="the documentation in Python's standard library",
    )
    context: int = option(64, Whole(most=2**20), "Tokens in an example, at most.")
    vocabulary: int = option(1024, Whole(most=2**20), "Number of different tokens, at most.")
    tokens: int = option(500_000, TOKENS, "Tokens that each arm is trained on.")
    validation_tokens: int = option(8_000, TOKENS, "Held-out tokens on which the validation loss is measured.")
