"""Verses of two Bibles that are installed for SWORD, such as Debian's, read by the package pysword."""

import html
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.files import damaged
from bigbatch.tasks.pairs import Pairs, collected

FOLDERS = (Path("/usr/share/sword"), Path("~/.sword"))
"""Where packages and users install what SWORD reads."""

DRIVERS = ("ztext", "ztext4", "rawtext", "rawtext4")
"""The formats of SWORD's Bibles, by what the modules call them."""

ASIDE = r"<(note|title|figure)\b(?:[^>]*/>|[^>]*>.*?</\1>)"
"""A footnote, a heading or a picture in OSIS; none of them is part of the verse."""

BREAK = re.compile(r"</?(?:l|lg|lb|p|div|br|milestone)\b[^>]*>")
"""The start or the end of a line or a paragraph in OSIS."""

Place = tuple[str, int, int]
"""The book by its name in OSIS, the chapter and the verse."""


def bible(rest: str, source: str, target: str) -> Pairs:
    """Reads the verses that two Bibles have in the same book, chapter and verse.

    Args:
        rest: names of modules with a colon between them, such as "engWEB2015eb": one for a language that has several,
            or two, whose languages do not matter then. Empty where each language has one.
        source: language of the Bible that is given, such as "en".
        target: language of the Bible that a model should write, such as "es".

    Raises:
        ConfigurationError: pysword is not installed, or there is not one Bible for each side, or it cannot be read.
    """
    try:
        from pysword.modules import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
            SwordModules,
        )
    except ImportError:
        raise ConfigurationError(
            "pysword is not installed, so that no Bible can be read: pip install 'bigbatch[bible]'"
        ) from None
    folders = [folder for folder in map(Path.expanduser, FOLDERS) if (folder / "mods.d").is_dir()]
    library = SwordModules([str(folder) for folder in folders])
    known: Mapping[str, Mapping[str, str]] = library.parse_modules()
    languages = {
        name: entries.get("lang", "en")
        for name, entries in sorted(known.items())
        if entries.get("moddrv", "").lower() in DRIVERS and "cipherkey" not in entries
    }
    names = _chosen(rest.split(":") if rest else [], languages, source, target)
    given, wanted = (_verses(library, name, known[name]) for name in names)
    entries = (
        (f"{book} {chapter}:{verse}", text, wanted.get((book, chapter, verse), ""))
        for (book, chapter, verse), text in given.items()
    )
    return collected(f"the Bibles {names[0]} and {names[1]}", f"The pair of Bibles {' and '.join(names)}", entries)


def _chosen(named: list[str], languages: Mapping[str, str], source: str, target: str) -> list[str]:
    """The names of the modules for both sides."""
    there = ", ".join(f"{name} ({language})" for name, language in languages.items()) or "none"
    for name in named:
        if name not in languages:
            raise ConfigurationError(f"There is no Bible {quoted(name)} for SWORD here, but {there}.")
    if len(named) > 2:
        raise ConfigurationError(
            f"A source and a target are two Bibles, but {len(named)} are named: {', '.join(named)}."
        )
    if len(named) == 2:
        return named
    chosen = []
    for side in (source, target):
        fitting = [name for name, language in languages.items() if language == side.replace("_", "-")]
        fitting = [name for name in fitting if name in named] or fitting
        if not fitting:
            raise ConfigurationError(
                f"There is no Bible in {side} for SWORD here, but {there}. Debian has some: apt-get install "
                "sword-text-web sword-text-sparv, which are in English and Spanish: --source en --target-language es"
            )
        if len(fitting) > 1:
            raise ConfigurationError(
                f"There are several Bibles in {side}: {', '.join(fitting)}. Name one with --text bible:NAME."
            )
        chosen += fitting
    if chosen[0] == chosen[1]:
        raise ConfigurationError(
            f"The source and the target are the same Bible, {chosen[0]}: name two languages with --source and "
            f"--target-language, or two of {there} with --text bible:NAME:NAME."
        )
    if set(named) - set(chosen):
        raise ConfigurationError(
            f"The Bible {named[0]} is neither in {source} nor in {target}: it is in {languages[named[0]]}."
        )
    return chosen


def _verses(library: Any, name: str, entries: Mapping[str, str]) -> dict[Place, str]:
    osis = entries.get("sourcetype", "OSIS").upper() == "OSIS"
    try:
        found = dict(_read(library.get_bible_from_module(name), osis=osis))
    except Exception as error:  # pysword lets through whatever comes of what it reads
        raise damaged(f"The Bible {name}", f"it cannot be read ({error})") from error
    return {place: verse(text) if osis else text for place, text in found.items()}


def _read(module: Any, *, osis: bool) -> Iterator[tuple[Place, str]]:
    decompressed = getattr(module, "_decompressed_text", None)
    if decompressed is not None:  # pysword decompresses a book anew for each of its verses: minutes instead of seconds
        module._decompressed_text = lru_cache(2)(decompressed)
    for books in module.get_structure().get_books().values():
        for book in books:
            for chapter, length in enumerate(book.chapter_lengths, 1):
                for number in range(1, length + 1):
                    text = module.get(books=[book.osis_name], chapters=[chapter], verses=[number], clean=not osis)
                    yield (book.osis_name, chapter, number), text


def verse(osis: str) -> str:
    """The words of a verse in OSIS, without tags, footnotes and headings.

    pysword's own cleaning puts two words together where a footnote or the end of a line stands between them.
    """
    text = re.sub(ASIDE + r"(?=\s*[,.;:!?”)])", "", osis, flags=re.DOTALL)
    text = BREAK.sub(" ", re.sub(ASIDE, " ", text, flags=re.DOTALL))
    return " ".join(html.unescape(re.sub("<[^>]*>", "", text)).split())
