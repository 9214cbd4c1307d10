"""Pairs of texts to learn from, a source and its target: the user's own file, or pairs that are generated."""

import codecs
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from gettext import c2py
from itertools import islice
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import PoFileError, read_po

from bigbatch.comm.cache import keep, kept_json
from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.files import LONGEST_LINE, damaged, parsed, read_bytes, utf8
from bigbatch.tasks.corpora import HELD_OUT, LARGEST_TEXT, Corpus

GENERATED = 42_000
"""Number of pairs that are generated, where there are as many different ones."""

GENERATED_VALIDATION = 2_000
"""Number of generated sources that are held out for validation, at most."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of a source and the target that a model should write for it, to train on and for validation.

    A source that is in one of the two is not in the other.

    Attributes:
        name: where the pairs come from, in words for a reader.
        training: pairs that the vocabulary and the model learn from.
        validation: pairs that they never see while they learn.
        left_out: number of entries of a file that are no pair: one of the sides is empty, or it is not translated.
    """

    name: str
    training: tuple[tuple[str, str], ...]
    validation: tuple[tuple[str, str], ...]
    left_out: int = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 digest (hexadecimal) of all pairs, which identifies them and how they are divided."""
        content = json.dumps([self.training, self.validation], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def corpus(self) -> Corpus:
        """The texts of both sides, each distinct one once in a split: one vocabulary is learnt from both together."""
        training, validation = (
            tuple(dict.fromkeys(text for pair in pairs for text in pair)) for pairs in (self.training, self.validation)
        )
        return Corpus(self.name, training, validation)


def divided(
    name: str, pairs: Iterable[tuple[str, str]], left_out: int = 0, validation: int = GENERATED_VALIDATION
) -> Pairs:
    """Divides pairs by their sources, so that all pairs with the same source go to the same split.

    A repeated pair counts once. The sources are shuffled with a fixed seed.

    Args:
        name: where the pairs come from, in words for a reader.
        pairs: the pairs.
        left_out: number of entries that are no pair.
        validation: number of sources that are held out; fewer where that would be more than every tenth.
    """
    targets: dict[str, list[str]] = {}
    for source, target in dict.fromkeys(pairs):
        targets.setdefault(source, []).append(target)
    sources = list(targets)
    random.Random(0).shuffle(sources)
    border = min(validation, -(-len(sources) // HELD_OUT))
    held_out, learnt = (
        tuple((source, target) for source in part for target in targets[source])
        for part in (sources[:border], sources[border:])
    )
    return Pairs(name, learnt, held_out, left_out)


def generated(name: str, file: Path, candidates: Callable[[], Iterable[tuple[str, str]]]) -> Pairs:
    """Collects generated pairs, as many as `GENERATED` of different sources, and keeps them in a file of the cache.

    Args:
        name: where the pairs come from, in words for a reader.
        file: the file that keeps them; its name tells everything that they depend on, but for their number.
        candidates: generates pairs, the same ones every time. Of several with the same source the first one counts.
    """
    file = file.with_stem(f"{file.stem}-{GENERATED}")
    found: list[list[str]] | None = kept_json(file, list[list[str]])
    if found is None:
        targets: dict[str, str] = {}
        for source, target in islice(candidates(), 4 * GENERATED):  # a poor language repeats itself
            targets.setdefault(source, target)
            if len(targets) == GENERATED:
                break
        found = [[source, target] for source, target in targets.items()]
        keep(file, json.dumps(found, ensure_ascii=False))
    return divided(name, ((source, target) for source, target in found))


Entries = Iterator[tuple[str, str, str]]
"""What a file has: where, such as "line 3", and the two sides, which may be empty."""


def read_pairs(path: Path, source: str, target: str) -> Pairs:
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

    Raises:
        ConfigurationError: the file cannot be read, or some of it cannot be understood, or it has too few pairs.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"The pairs in {path} cannot be read: the name of the file must end in one of {', '.join(READERS)}, which "
            "tells how they are written."
        )
    what = f"The file {path}"
    content = read_bytes(path, what, LARGEST_TEXT)
    found, left_out, first = [], 0, ""
    for where, *sides in reader(content, what, source, target):
        given, wanted = (_checked(side, what, where).strip() for side in sides)
        if given and wanted:
            found.append((given, wanted))
        else:
            left_out, first = left_out + 1, first or where
    pairs = divided(path.name, found, left_out, len(found))
    if not pairs.training:
        empty = (
            f" {left_out} are left out because a side is empty or not translated, the first one in {first}."
            if left_out
            else ""
        )
        raise ConfigurationError(
            f"{what} has too few pairs of a source and a target: {len(pairs.validation)}.{empty} It takes two with "
            "different sources, one to learn from and one held out."
        )
    return pairs


def _checked(text: str, what: str, where: str) -> str:
    """A text that can be learnt from."""
    if "\0" in text:
        raise ConfigurationError(
            f"{what} is not text: {where} has a NUL. If it is in UTF-16, convert it to UTF-8 first."
        )
    if len(text) > LONGEST_LINE:
        raise ConfigurationError(f"{what} cannot be used: {where} is longer than {LONGEST_LINE:,} characters.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{what} cannot be used: {where} has half a character, {error.object[error.start]!a}."
        ) from error
    return text


def _lines(content: bytes, what: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and where it is; lines end as any editor may have ended them."""
    for number, line in enumerate(io.StringIO(utf8(content, what), newline=None), 1):
        if line.strip():
            yield f"line {number}", _checked(line.rstrip("\n"), what, f"line {number}")


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
    for names in ((source, target), ("source", "target")):
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
        yield where, *_sides(value, what, where, source, target)


def _sides(value: object, what: str, where: str, source: str, target: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{what} cannot be used: {where} must be a JSON object with both sides of one pair, but is {quoted(value)}."
        )
    for holder in (value.get("translation"), value):
        for names in ((source, target), ("source", "target")):
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
