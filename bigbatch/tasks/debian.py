"""Natural texts that Debian's packages bring to a machine: LibreOffice's help, and the descriptions of packages."""

import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import read_bytes, utf8
from bigbatch.tasks.corpora import LARGEST_TEXT
from bigbatch.tasks.named_texts import alone
from bigbatch.tasks.pairs import Pairs, collected

HELP = Path("/usr/share/libreoffice/help")
"""Where the packages libreoffice-help-… put a folder for each language."""

PARAGRAPH = re.compile(r'<(p|h[1-6]) id="(\w+)"[^>]*>(.*?)</\1>', re.DOTALL)
"""A paragraph or a heading of the help; its id is the same in all languages."""

SWITCH = "switchinline"
"""Marks the words in a paragraph of which a browser shows one of several, by operating system or application."""

LISTS = Path("/var/lib/apt/lists")
"""Where apt keeps what `apt-get update` fetched."""

INSTALLED = Path("/var/lib/dpkg/status")
"""Where dpkg keeps what it knows of the packages that are installed."""

APT_HELPER = Path("/usr/lib/apt/apt-helper")
"""Apt's program that decompresses its lists, however they are compressed."""

DESCRIPTION = re.compile(r"^Description(?:-en)?: (.*)\n((?: .*\n)+)", re.MULTILINE)
"""The short description of a package, and the long one below it (Debian Policy, 5.6.13)."""


def libreoffice_help(rest: str, source: str, target: str) -> Pairs:
    """Reads the paragraphs of LibreOffice's help in two languages that have the same id in the same file.

    What is the same in both languages is left out, and so are paragraphs that differ between operating systems.

    Raises:
        ConfigurationError: something stands behind the name, or the help is not installed in both languages.
    """
    alone("libreoffice-help", rest)
    folders = [_folder(language) for language in (source, target)]
    if folders[0] == folders[1]:
        raise ConfigurationError(
            f"The source and the target are LibreOffice's help in one language, {folders[0].name}: name two with "
            "--source and --target-language."
        )
    missing = [folder.name for folder in folders if not (folder / "text").is_dir()]
    if missing:
        packages = " ".join(f"libreoffice-help-{name.lower()}" for name in missing)
        there = ", ".join(sorted(folder.parent.name for folder in HELP.glob("*/text"))) or "no language"
        raise ConfigurationError(
            f"LibreOffice's help in {' and '.join(missing)} is not in {HELP}, which has {there}: "
            f"apt-get install --no-install-recommends {packages}"
        )
    given, wanted = map(_paragraphs, folders)
    both = ((f"{file}, {name}", text, wanted.get((file, name), "")) for (file, name), text in given.items())
    name = f"LibreOffice help {folders[0].name} to {folders[1].name}"
    return collected(name, f"The {name}", (entry for entry in both if entry[1] != entry[2]))


def _folder(language: str) -> Path:
    return HELP / ("en-US" if language == "en" else language.replace("_", "-"))


def _paragraphs(folder: Path) -> dict[tuple[str, str], str]:
    """The text of each paragraph by its file and its id, without tags; the first one if an id is there twice."""
    found: dict[tuple[str, str], str] = {}
    for file in sorted((folder / "text").rglob("*.html")):
        place, what = str(file.relative_to(folder)), f"The file {file}"
        for _, name, content in PARAGRAPH.findall(utf8(read_bytes(file, what), what)):
            if SWITCH not in content:
                bare = re.sub("<[^>]*>", "", content.replace("<br", " <br"))
                found.setdefault((place, name), " ".join(html.unescape(bare).split()))
    return found


def debian_descriptions(rest: str, source: str, target: str) -> Pairs:  # noqa: ARG001 - they have but one language
    """Reads the long descriptions of Debian's packages, in English, and the short ones that stand above them.

    They are those of the packages that are installed, and those that apt has fetched for all others.

    Raises:
        ConfigurationError: something stands behind the name, or there are no descriptions on this machine.
    """
    alone("debian-descriptions", rest)
    found = [
        (short.strip(), " ".join(word for line in long.splitlines() if line != " ." for word in line.split()))
        for content in _catalogues()
        for short, long in DESCRIPTION.findall(content)
    ]
    if not found:
        raise ConfigurationError(
            f"There are no descriptions of packages in {LISTS} and {INSTALLED}: on Debian and Ubuntu, "
            "apt-get update -o Acquire::Languages=en"
        )
    name = "Debian's descriptions of packages"
    entries = ((f"description {number}", long, short) for number, (short, long) in enumerate(found, 1))
    return collected(name, name, entries)


def _catalogues() -> Iterator[str]:
    if INSTALLED.is_file():
        what = f"The file {INSTALLED}"
        yield utf8(read_bytes(INSTALLED, what, LARGEST_TEXT), what)
    for file in sorted(LISTS.glob("*_Translation-en*")):
        what = f"The file {file}"
        language, _, compressed = file.name.rpartition("_Translation-")[2].partition(".")
        if language == "en":
            yield utf8(_decompressed(file, what) if compressed else read_bytes(file, what, LARGEST_TEXT), what)


def _decompressed(file: Path, what: str) -> bytes:
    try:
        return subprocess.run([APT_HELPER, "cat-file", file], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
        raise ConfigurationError(f"{what} cannot be decompressed: {said or error}") from error
