"""Texts that a user asks for by name instead of a file: they are on the machine, or somebody else serves them."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.tasks.pair_files import read_pairs
from bigbatch.tasks.pairs import Pairs

NamedText = Callable[[str, str, str], Pairs]
"""Reads a text: from what stands behind its name and a colon, and the names of the source and the target."""


def pairs_of(text: Path, source: str, target: str, texts: Mapping[str, NamedText]) -> Pairs:
    """Reads what the user names with --text: a text of this name, unless there is a file of this name, or a file.

    Args:
        text: NAME or NAME:REST of a text, or the path of a file.
        source: name of the side that is given, such as "en".
        target: name of the side that a model should write, such as "de".
        texts: the texts that can be named.

    Raises:
        ConfigurationError: it cannot be read; the message says what to install or to name.
    """
    name, _, rest = str(text).partition(":")
    if name in texts and not os.path.exists(text):  # noqa: PTH110 - unlike Path's, it says no of what it may not see
        return texts[name](rest, source, target)
    return read_pairs(text, source, target, texts)


def alone(name: str, rest: str) -> None:
    """Refuses what stands behind the name of a text that is named by its name alone.

    Raises:
        ConfigurationError: something stands there.
    """
    if rest:
        raise ConfigurationError(f"The text {name} is named by its name alone: leave out {quoted(rest)}.")
