"""Pairs in a file of the user's: tab-separated, lines of JSON, or a catalogue of translated messages."""

import codecs
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from gettext import c2py
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import PoFileError, read_po

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.files import damaged, parsed, read_bytes, utf8
from bigbatch.tasks.corpora import LARGEST_TEXT
from bigbatch.tasks.pairs import Entries, Pairs, checked, collected

SUMMARIES = (("text", "summary"), ("document", "summary"), ("article", "highlights"))
"""The names that a text and its summary may have in a file or a data set. The first ones are those to ask for."""


def read_pairs(path: Path, source: str, target: str, named: Collection[str] = ()) -> Pairs:
    """Reads the user's own pairs; every tenth source is held out. White space around a text is no part of it.

    The ending of the file's name tells what is in it:

    * `.tsv`: a pair a line, a tab between the sides, and no quotes around them. If the first line has both names, or
      "source" and "target", it tells the columns; otherwise they are the first two.
    * `.jsonl` or `.json`: a JSON object a line, with the two sides under their names, or under "source" and "target";
      or with an object "translation" that has them, as data sets of Hugging Face do.
    * `.po` or `.mo`: a catalogue of translated messages. Both names are ignored. What is fuzzy is not translated.

    Args:
        path: the file, in UTF-8, or for a catalogue in the encoding that it names.
        source: name of the side that is given, such as "en".
        target: name of the side that a model should write, such as "de".
        named: names of texts that can be asked for instead of a file, for the error message.

    Raises:
        ConfigurationError: the file cannot be read, or some of it cannot be understood, or it has too few pairs.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        others = f" Or name a text that is no file: {', '.join(named)}." if named else ""
        raise ConfigurationError(
            f"The pairs in {path} cannot be read: the name of the file must end in one of {', '.join(READERS)}, which "
            f"tells how they are written.{others}"
        )
    what = f"The file {path}"
    return collected(path.name, what, reader(read_bytes(path, what, LARGEST_TEXT), what, source, target))


def _lines(content: bytes, what: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and where it is; lines end as any editor may have ended them."""
    for number, line in enumerate(io.StringIO(utf8(content, what), newline=None), 1):
        if line.strip():
            yield f"line {number}", checked(line.rstrip("\n"), what, f"line {number}")


def _tab_separated(content: bytes, what: str, source: str, target: str) -> Entries:
    columns: tuple[int, int] | None = None
    for where, line in _lines(content, what):
        cells = line.split("\t")
        if columns is None:
            named = _columns([cell.strip() for cell in cells], what, where, source, target)
            columns = named or (0, 1)
            if named:
                continue
        if len(cells) <= max(columns):
            have = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
            raise ConfigurationError(
                f"{what} cannot be used: {where} has {have}, but the source should be in column {columns[0] + 1} and "
                f"the target in column {columns[1] + 1}, with tabs between columns."
            )
        yield where, cells[columns[0]], cells[columns[1]]


def _columns(cells: list[str], what: str, where: str, source: str, target: str) -> tuple[int, int] | None:
    """Where the two sides are, if the first line tells."""
    for names in _names(source, target):
        if names[0] != names[1] and set(names) <= set(cells):
            return cells.index(names[0]), cells.index(names[1])
    if len({source, target} & set(cells)) == 1 and source != target:
        there, missing = (source, target) if source in cells else (target, source)
        raise ConfigurationError(
            f"{what} cannot be used: {where} names a column {there!r}, but none {missing!r}. It has "
            f"{', '.join(quoted(cell) for cell in cells)}."
        )
    return None


def _json_lines(content: bytes, what: str, source: str, target: str) -> Entries:
    for where, line in _lines(content, what):
        value = parsed(line, what, f"{where} ")
        yield where, *sides(value, what, where, source, target)


def _names(source: str, target: str) -> tuple[tuple[str, str], ...]:
    """The names that the two sides may have, in the order in which they are looked for."""
    return (source, target), ("source", "target"), *(SUMMARIES if (source, target) == SUMMARIES[0] else ())


def sides(value: object, what: str, where: str, source: str, target: str) -> tuple[str, str]:
    """Finds the two sides of a pair in an object of JSON: by their names, or in an object "translation" that has them.

    Args:
        value: the object; None stands for an empty side.
        what: what it belongs to, at the start of a sentence.
        where: where it is, such as "line 3".
        source: name of the side that is given.
        target: name of the side that a model should write.

    Raises:
        ConfigurationError: it is no object, or does not have them.
    """
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{what} cannot be used: {where} must be a JSON object with both sides of one pair, but is {quoted(value)}."
        )
    for holder in (value.get("translation"), value):
        for names in _names(source, target):
            if isinstance(holder, dict) and set(names) <= set(holder):
                return _side(holder, names[0], what, where), _side(holder, names[1], what, where)
    inner = value.get("translation")
    known = ", ".join(map(quoted, inner if isinstance(inner, dict) else value)) or "nothing"
    raise ConfigurationError(f"{what} cannot be used: {where} has no {source!r} and {target!r}, but {known}.")


def _side(holder: Mapping[str, object], name: str, what: str, where: str) -> str:
    side = holder[name]
    if side is not None and not isinstance(side, str):
        raise ConfigurationError(f"{what} cannot be used: {name!r} in {where} must be a text, but is {quoted(side)}.")
    return side or ""


def _editable(content: bytes, what: str, *_: str) -> Entries:
    return _messages(content.removeprefix(codecs.BOM_UTF8), what, partial(read_po, abort_invalid=True))


def _compiled(content: bytes, what: str, *_: str) -> Entries:
    return _messages(content, what, read_mo)


def _messages(content: bytes, what: str, read: Callable[[io.BytesIO], Catalog]) -> Entries:
    """The messages of a catalogue; of one with plural forms, those for one thing and for five."""
    try:
        catalogue = read(io.BytesIO(content))
        plural = c2py(catalogue.plural_expr)
    except PoFileError as error:
        raise damaged(what, f"line {error.lineno + 1} does not belong in a catalogue ({error.args[0]})") from error
    except Exception as error:  # Babel lets through whatever comes of what it reads
        raise damaged(what, f"it cannot be read as a catalogue of messages ({error})") from error
    for number, message in enumerate(catalogue):
        if not message.id:
            continue  # the header
        where = f"line {message.lineno}" if message.lineno else f"message {number}"
        originals = (message.id,) if isinstance(message.id, str) else tuple(message.id)
        texts = (message.string,) if isinstance(message.string, str) else tuple(message.string or ())
        for original, count in zip(originals, (1, 5), strict=False):
            form = min(plural(count), len(texts) - 1) if len(originals) > 1 else 0
            yield where, original, "" if message.fuzzy or not texts else texts[form] or ""


READERS: dict[str, Callable[[bytes, str, str, str], Entries]] = {
    ".tsv": _tab_separated,
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".po": _editable,
    ".mo": _compiled,
}
"""The ending of a file's name, and what reads it: its content, what it is, and the names of the sides."""
