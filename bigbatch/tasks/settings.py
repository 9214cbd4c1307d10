"""What a user can choose about the data."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bigbatch.comm.kinds import TOKENS, File, Name, Number, Text, Whole
from bigbatch.comm.options import Options, option, options_of
from bigbatch.tasks import TASKS

TOO_LONG = ("cut", "drop")
"""What can become of an example with more tokens than the context: its end is cut off, or it is left out."""


class TokensOrFolder(Whole):
    """An option value that is a number of tokens, or the path of a folder."""

    metavar = "INTEGER|FOLDER"

    def read(self, value: Any) -> int | Path:  # type: ignore[override]  # a number is not all that can be meant
        """Reads a path where there is a folder, or a separator in the text; else a whole number."""
        # Not Path.is_dir, which raises an error for a name that no file system takes.
        if isinstance(value, Path) or (isinstance(value, str) and ("/" in value or os.path.isdir(value))):  # noqa: PTH112
            return File().read(value)
        return super().read(value)

    def write(self, value: int | Path) -> int | str:
        """Returns a path as text with a separator at its end, which JSON can write and `read` knows for a folder's."""
        return value if isinstance(value, int) else f"{value}/"


@dataclass(frozen=True)
class DecodingSettings(Options):
    """The options for decoding: how a trained model chooses what it writes.

    Attributes:
        beam: number of hypotheses that beam search keeps; 1 for greedy decoding.
        length_penalty: exponent of the length by which a hypothesis's log-probability is divided; see
            `bigbatch.tasks.decoding.beam`.
    """

    title: ClassVar[str] = "Decoding"

    beam: int | None = option(
        None, Whole(most=1024), "Hypotheses that beam search keeps.", missing="1, greedy decoding"
    )
    length_penalty: float | None = option(
        None,
        Number(least=0, most=10),
        "Exponent of the length by which beam search divides a hypothesis's log-probability.",
        missing="0.6",
    )


@dataclass(frozen=True)
class DataSettings(Options):
    """The options for the data: which task is learnt, from which text.

    Attributes:
        task: a name in the registry of tasks, or FILE.py:Task.
        text: the user's own text, or None for the task's default.
        source: the language that is read, by its code; None for the task's default.
        target_language: the language that is written, by its code; None for the task's default.
        context: tokens in a sequence, at most; None for the task's default.
        too_long: one of `TOO_LONG`; None for the first.
        vocabulary: number of different tokens, at most, that a vocabulary is learnt of; or the folder of a tokenizer.
        label_smoothing: share of a target's weight that is spread evenly over all tokens in the training loss; None
            for none.
        tokens: number of tokens that each arm is trained on; None for the task's default.
        validation_tokens: number of held-out tokens on which the validation loss is measured.
        decoding: how a trained model chooses what it writes.
    """

    title: ClassVar[str] = "Data"

    task: str = option("language-modelling", Name(TASKS.names, "FILE.py:Task"), "Task to learn.")
    text: Path | None = option(
        None,
        File(),
        "File in UTF-8 to learn from, or the name of a text, such as libreoffice-help; a tenth is held out.",
        missing="what the task finds on this machine",
    )
    source: str | None = option(None, Text("LANGUAGE"), "Language that is read, such as en.", missing="en")
    target_language: str | None = option(None, Text("LANGUAGE"), "Language that is written, such as de.", missing="de")
    context: int | None = option(
        None, Whole(most=2**20), "Tokens in a sequence, at most.", missing="64, or as the task says"
    )
    too_long: str | None = option(
        None, Name(lambda: TOO_LONG), "What becomes of a text with more tokens.", missing="cut"
    )
    vocabulary: int | Path = option(
        1024,
        TokensOrFolder(most=2**20),
        "Number of different tokens, at most, or a folder with the tokenizer to use (tokenizer.json).",
    )
    label_smoothing: float | None = option(
        None,
        Number(least=0, most=0.9),
        "Share of a target's weight that the training loss spreads evenly over all tokens.",
        missing="0",
    )
    tokens: int | None = option(
        None, TOKENS, "Tokens that each arm is trained on.", missing="500k, or as the task says"
    )
    validation_tokens: int = option(8_000, TOKENS, "Held-out tokens on which the validation loss is measured.")
    decoding: DecodingSettings = field(default_factory=DecodingSettings)

    def not_taken(self, takes: frozenset[str]) -> Iterator[str]:
        """Lists the flags of options that the user has set and a task does not take, which takes those named."""
        values = self.flat()
        for one in options_of(type(self)):
            if one.name in FOR_SOME - takes and values[one.name] is not None:
                yield one.flag


FOR_SOME = frozenset({"source", "target_language", "too_long", "label_smoothing", "beam", "length_penalty"})
"""The options for the data that only some tasks take; the others refuse them."""
