"""Pairs of a data set in the form that Hugging Face's package `datasets` reads: of the Hub, or a folder."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.pair_files import sides
from bigbatch.tasks.pairs import Pairs, collected

MOST_ROWS = 100_000
"""Rows of a data set that are read, at most: more than any arm here learns from."""


def hugging_face(rest: str, source: str, target: str) -> Pairs:
    """Reads the pairs of a data set: of its split "train", or of its first one if it has no such split.

    A row has the two sides as an object of JSON in a file of pairs has them; see `bigbatch.tasks.pair_files.sides`.

    Args:
        rest: NAME or NAME:CONFIGURATION of a data set; NAME can be the path of a folder.
        source: name of the side that is given.
        target: name of the side that a model should write.

    Raises:
        ConfigurationError: `datasets` is not installed, or there is no such data set, or it has no such pairs.
    """
    name, _, configuration = rest.partition(":")
    if not name:
        raise ConfigurationError("The text hugging-face takes the name of a data set: --text hugging-face:NAME")
    what = f"The data set {rest}"
    rows = _rows(name, configuration, what)
    return collected(f"data set {rest}", what, _entries(rows, what, source, target))


def _rows(name: str, configuration: str, what: str) -> Iterable[object]:
    try:
        import datasets  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise ConfigurationError(
            "datasets is not installed, so that no data set of Hugging Face can be read: pip install 'bigbatch[hf]'"
        ) from None
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of each attempt
    try:
        loaded = _loaded(datasets, name, configuration or None)
    except Exception as error:  # whatever comes of the network, of the Hub and of what it has
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise ConfigurationError(
            f"{what} cannot be loaded ({reason}): check its name, its configuration and the network."
        ) from error
    if isinstance(loaded, Mapping):
        splits: Mapping[str, Iterable[object]] = loaded
        return splits["train"] if "train" in splits else next(iter(splits.values()))
    rows: Iterable[object] = loaded
    return rows


def _loaded(datasets: Any, name: str, configuration: str | None) -> Any:
    if configuration is None and Path(name).is_dir():
        try:
            return datasets.load_from_disk(name)
        except FileNotFoundError:  # a folder of files, not one that was saved by `datasets`
            pass
    return datasets.load_dataset(name, configuration)


def _entries(rows: Iterable[object], what: str, source: str, target: str) -> Iterator[tuple[str, str, str]]:
    for number, row in enumerate(islice(rows, MOST_ROWS), 1):
        yield f"row {number}", *sides(row, what, f"row {number}", source, target)
