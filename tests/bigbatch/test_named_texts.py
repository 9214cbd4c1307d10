"""Natural texts by name: read from made-up folders in the layout of Debian's packages, and nothing from the network."""

import gzip
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks import bible as bibles
from bigbatch.tasks import debian
from bigbatch.tasks.bible import verse
from bigbatch.tasks.named_texts import pairs_of
from bigbatch.tasks.pairs import COPYING, FIRST_WORDS, Pairs
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.summarisation import TEXTS as SHORTENED
from bigbatch.tasks.summarisation import Summarisation
from bigbatch.tasks.translation import TEXTS as TRANSLATED
from bigbatch.tasks.translation import Translation, TranslationOfNumbers


def everything(pairs: Pairs) -> set[tuple[str, str]]:
    assert not {source for source, _ in pairs.training} & {source for source, _ in pairs.validation}
    return {*pairs.training, *pairs.validation}


def translated(text: str, source: str = "en", target: str = "de") -> Pairs:
    return pairs_of(Path(text), source, target, TRANSLATED)


def shortened(text: str) -> Pairs:
    return pairs_of(Path(text), "text", "summary", SHORTENED)


def refused(text: str, source: str = "en", target: str = "de") -> str:
    with pytest.raises(ConfigurationError) as caught:
        translated(text, source, target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def page(folder: Path, language: str, file: str, *paragraphs: str) -> None:
    path = folder / language / "text" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("<html><body>" + "\n".join(paragraphs) + "</body></html>", encoding="utf-8")


@pytest.fixture
def help_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(debian, "HELP", tmp_path / "help")
    return tmp_path / "help"


def test_paragraphs_of_libreoffices_help_meet_by_file_and_id(help_folder: Path):
    switch = '<span class="switchinline"><span class="MAC">Settings</span><span hidden="true">Options</span></span>'
    for language, words in {
        "en-US": ("Edit &amp; undo", "one<br>line", "Choose", "Table", "calc"),
        "de": ("Bearbeiten &amp; rückgängig", "eine<br/>Zeile", "Wählen", "Table", "Rechnen"),
    }.items():
        page(
            help_folder,
            language,
            "swriter/a.html",
            f'<h1 id="hd_id1" dir="auto">\n<a name="x"></a>{words[0]}\n</h1>',
            f'<p id="par_id2" class="paragraph">In the <span class="emph">{words[1]}</span>.</p>',
            f'<p id="par_id3" class="listitem">{words[2]} {switch}</p>',
            f'<p id="par_id4">{words[3]}</p>',
            f'<p class="related">{words[2]}</p>',
            '<p id="par_id2">there twice</p>',
        )
        page(help_folder, language, "scalc/a.html", f'<p id="par_id2">{words[4]}</p>')
    page(help_folder, "en-US", "scalc/b.html", '<p id="par_id9">not translated</p>')
    found = translated("libreoffice-help")
    assert everything(found) == {
        ("Edit & undo", "Bearbeiten & rückgängig"),
        ("In the one line.", "In the eine Zeile."),
        ("calc", "Rechnen"),
    }
    assert found.left_out == 1
    assert found.trivial == COPYING
    assert everything(translated("libreoffice-help", "de", "en")) == {
        (there, here) for here, there in everything(found)
    }


def test_help_that_is_not_installed_is_told_with_the_packages(help_folder: Path):
    packages = "apt-get install --no-install-recommends libreoffice-help-"
    assert refused("libreoffice-help").endswith(f"has no language: {packages}en-us libreoffice-help-de")
    page(help_folder, "en-US", "a.html", '<p id="par_id1">a</p>')
    told = refused("libreoffice-help", "en", "pt_BR")
    assert told.startswith("LibreOffice's help in pt-BR is not in ")
    assert told.endswith(f"which has en-US: {packages}pt-br")
    assert "in one language, en-US: name two" in refused("libreoffice-help", "en", "en-US")
    assert "by its name alone: leave out 'de'" in refused("libreoffice-help:de")


STANZAS = """Package: one
Status: install ok installed
Description: first short
 The first package
 does this.
 .
  * and that
Homepage: none

Package: two
Description: without a long one
Homepage: none

"""

FETCHED = """Package: {0}
Description-md5: 0
Description-en: {0} short
 The long one of {0}.

"""


@pytest.fixture
def catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of apt's lists; a gzip stands in for apt's helper."""
    for name, path in {"LISTS": "lists", "INSTALLED": "status", "APT_HELPER": "apt-helper"}.items():
        monkeypatch.setattr(debian, name, tmp_path / path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "apt-helper").write_text("#!/bin/sh\nexec gzip -dc < $2\n")
    (tmp_path / "apt-helper").chmod(0o755)
    return tmp_path


def test_descriptions_are_those_of_dpkg_and_of_apts_lists(catalogues: Path):
    (catalogues / "status").write_text(STANZAS)
    lists = catalogues / "lists"
    (lists / "debian.org_i18n_Translation-en").write_text(FETCHED.format("three"))
    (lists / "debian.org_other_i18n_Translation-en.gz").write_bytes(gzip.compress(FETCHED.format("four").encode()))
    (lists / "debian.org_i18n_Translation-en_GB").write_text(FETCHED.format("colour"))
    assert everything(shortened("debian-descriptions")) == {
        ("The first package does this. * and that", "first short"),
        ("The long one of three.", "three short"),
        ("The long one of four.", "four short"),
    }


def test_descriptions_that_are_not_there_are_told(catalogues: Path):
    with pytest.raises(
        ConfigurationError, match=r"There are no descriptions .*: on Debian and Ubuntu, apt-get update -o"
    ):
        shortened("debian-descriptions")
    (catalogues / "lists" / "x_Translation-en.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigurationError, match=r"x_Translation-en\.gz cannot be decompressed: .*gzip"):
        shortened("debian-descriptions")
    (catalogues / "apt-helper").unlink()
    with pytest.raises(ConfigurationError, match=r"cannot be decompressed: .*No such file"):
        shortened("debian-descriptions")


@pytest.mark.parametrize(
    ("osis", "words"),
    [
        ('<w lemma="strong:H430">In</w> the beginning', "In the beginning"),
        # The package of the World English Bible has no space between what stands before a note and after it.
        ('God<note placement="foot"><reference>1:1 </reference>Elohim</note><w>created</w>', "God created"),
        ("the light<note>or, lamp</note>, and", "the light, and"),
        (
            '<title type="psalm">A Psalm</title> <l level="1" sID="a"/>Yahweh!<l eID="a"/><l sID="b"/>Many',
            "Yahweh! Many",
        ),
        ('<title/>one<div type="x-milestone"/>two<title>Ch. 2</title>', "one two"),
        ("Tom &amp; he<note>a</note> <note>b</note>went", "Tom & he went"),
        ('<q marker="" who="Jesus">For God</q>', "For God"),
    ],
)
def test_a_verse_is_its_words(osis: str, words: str):
    assert verse(osis) == words


class MadeUpLibrary:
    """What `pysword.modules.SwordModules` does, of two books in each module."""

    modules: dict[str, dict[str, str]]
    verses: dict[str, dict[tuple[str, int, int], str]]

    def __init__(self, paths: list[str]) -> None:
        assert all((Path(path) / "mods.d").is_dir() for path in paths)

    def parse_modules(self) -> dict[str, dict[str, str]]:
        return self.modules

    def get_bible_from_module(self, name: str) -> Any:
        def get(books: list[str], chapters: list[int], verses: list[int], *, clean: bool) -> str:
            assert clean == (self.modules[name].get("sourcetype") == "ThML")
            return self.verses[name].get((books[0], chapters[0], verses[0]), "")

        books = [SimpleNamespace(osis_name="Gen", chapter_lengths=[2, 1])]
        others = [SimpleNamespace(osis_name="John", chapter_lengths=[2])]
        structure = SimpleNamespace(get_books=lambda: {"ot": books, "nt": others})
        return SimpleNamespace(get_structure=lambda: structure, get=get)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[MadeUpLibrary]:
    (tmp_path / "sword" / "mods.d").mkdir(parents=True)
    monkeypatch.setattr(bibles, "FOLDERS", (tmp_path / "none", tmp_path / "sword"))

    class Library(MadeUpLibrary):
        modules = {  # noqa: RUF012 - a test's own
            "web": {"lang": "en", "moddrv": "zText"},
            "spa": {"lang": "es", "moddrv": "RawText", "sourcetype": "ThML"},
            "notes": {"lang": "de", "moddrv": "zCom"},
            "locked": {"lang": "de", "moddrv": "zText", "cipherkey": ""},
        }
        verses = {  # noqa: RUF012 - a test's own
            "web": {("Gen", 1, 1): "In the<note>a</note>beginning", ("Gen", 2, 1): "So", ("John", 1, 2): "He"},
            "spa": {("Gen", 1, 1): "EN el principio", ("John", 1, 2): "Este", ("John", 1, 1): "EN"},
        }

    module: Any = ModuleType("pysword.modules")
    module.SwordModules = Library
    monkeypatch.setitem(sys.modules, "pysword", ModuleType("pysword"))
    monkeypatch.setitem(sys.modules, "pysword.modules", module)
    return Library


@pytest.mark.usefixtures("library")
def test_verses_meet_by_book_chapter_and_number():
    found = translated("bible", "en", "es")
    assert everything(found) == {("In the beginning", "EN el principio"), ("He", "Este")}
    assert found.left_out == 3
    assert everything(translated("bible", "es", "en")) == {(there, here) for here, there in everything(found)}


def test_of_several_bibles_in_a_language_one_is_named(library: type[MadeUpLibrary]):
    library.modules["kjv"] = library.modules["web"]
    library.verses["kjv"] = {("Gen", 1, 1): "In beginning", ("John", 1, 2): "The same"}
    assert "several Bibles in en: kjv, web. Name one with --text bible:NAME" in refused("bible", "en", "es")
    wanted = {("In beginning", "EN el principio"), ("The same", "Este")}
    assert everything(translated("bible:kjv", "en", "es")) == wanted
    assert everything(translated("bible:kjv:web")) == {("In beginning", "In the beginning"), ("The same", "He")}


def test_bibles_that_cannot_be_had_are_told(library: type[MadeUpLibrary], monkeypatch: pytest.MonkeyPatch):
    there = "spa (es), web (en)"
    told = refused("bible")
    assert told.startswith(f"There is no Bible in de for SWORD here, but {there}. Debian has some: apt-get install ")
    assert refused("bible:locked") == f"There is no Bible 'locked' for SWORD here, but {there}."
    assert "the same Bible, spa" in refused("bible", "es", "es")
    assert "but 3 are named: web, spa, web" in refused("bible:web:spa:web")
    library.modules["fra"] = {"lang": "fr", "moddrv": "zText"}
    assert refused("bible:fra", "en", "es") == "The Bible fra is neither in en nor in es: it is in fr."
    library.verses.pop("spa")
    assert refused("bible", "en", "es").startswith("The Bible spa is damaged: it cannot be read (")
    monkeypatch.setitem(sys.modules, "pysword", None)
    monkeypatch.setitem(sys.modules, "pysword.modules", None)
    assert refused("bible", "en", "es").endswith("pip install 'bigbatch[bible]'")


def write_module(folder: Path, name: str, language: str, word: str) -> None:
    """Writes a module in SWORD's format zText: the New Testament of the versification KJV, a block for a book."""
    from pysword.books import BibleStructure

    data = folder / "modules" / name
    data.mkdir(parents=True)
    (folder / "mods.d").mkdir(exist_ok=True)
    conf = f"[{name}]\nDataPath=./modules/{name}/\nModDrv=zText\nSourceType=OSIS\nBlockType=BOOK\nLang={language}\n"
    (folder / "mods.d" / f"{name}.conf").write_text(conf)
    blocks = texts = b""
    verses = struct.pack("<IIH", 0, 0, 0) * 2  # the module's and the testament's headings
    for number, book in enumerate(BibleStructure("kjv").get_books()["nt"]):
        block = b""
        verses += struct.pack("<IIH", 0, 0, 0)
        for chapter, length in enumerate(book.chapter_lengths, 1):
            verses += struct.pack("<IIH", 0, 0, 0)
            for one in range(1, length + 1):
                text = f"<w>{word}</w> {book.osis_name} {chapter} {one}".encode()
                verses += struct.pack("<IIH", number, len(block), len(text))
                block += text
        packed = zlib.compress(block)
        blocks += struct.pack("<III", len(texts), len(packed), len(block))
        texts += packed
    for ending, content in {"bzv": verses, "bzs": blocks, "bzz": texts}.items():
        (data / f"nt.{ending}").write_bytes(content)


def test_pysword_reads_modules_in_their_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pysword", reason="the extra is not installed")
    monkeypatch.setattr(bibles, "FOLDERS", (tmp_path,))
    write_module(tmp_path, "eng", "en", "verse")
    write_module(tmp_path, "spa", "es", "verso")
    found = everything(translated("bible", "en", "es"))
    assert ("verse John 3 16", "verso John 3 16") in found
    assert ("verse Rev 22 21", "verso Rev 22 21") in found
    assert len(found) == 7957, "the verses of the New Testament in the King James Version"


class MadeUpDatasets(ModuleType):
    """What the package `datasets` does, with rows of a test's own."""

    def __init__(self, loaded: Any) -> None:
        super().__init__("datasets")
        self.loaded = loaded
        self.asked: list[tuple[str, str | None]] = []

    def disable_progress_bars(self) -> None:
        """There are none."""

    def load_from_disk(self, name: str) -> Any:
        raise FileNotFoundError(name)

    def load_dataset(self, name: str, configuration: str | None) -> Any:
        self.asked.append((name, configuration))
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


ROWS = [{"translation": {"en": f"house {number}", "de": f"Haus {number}"}} for number in range(20)]
ARTICLES = [{"id": number, "article": f"long {number}", "highlights": f"{number}"} for number in range(20)]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> MadeUpDatasets:
    module = MadeUpDatasets({"test": ROWS[:1], "train": ROWS})
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_data_set_is_read_by_its_name(datasets: MadeUpDatasets, tmp_path: Path):
    wanted = {(f"house {number}", f"Haus {number}") for number in range(20)}
    assert everything(translated("hugging-face:wmt/wmt14:de-en")) == wanted
    assert everything(translated(f"hugging-face:{tmp_path}")) == wanted
    assert datasets.asked == [("wmt/wmt14", "de-en"), (str(tmp_path), None)]
    assert "row 1 has no 'en' and 'fr', but 'en', 'de'" in refused("hugging-face:wmt/wmt14", "en", "fr")
    datasets.loaded = {"validation": ARTICLES}
    assert everything(shortened("hugging-face:cnn")) == {(f"long {number}", f"{number}") for number in range(20)}
    datasets.loaded = [{"document": "a b", "summary": "a"}, {"document": "c d", "summary": None}, *ARTICLES[:1]]
    assert shortened("hugging-face:xsum").left_out == 1


def test_no_more_of_a_data_set_is_read_than_can_be_learnt_from(
    datasets: MadeUpDatasets, monkeypatch: pytest.MonkeyPatch
):
    def endless() -> Iterator[dict[str, str]]:
        yield from ({"en": f"{number}", "de": "x"} for number in range(10**9))

    monkeypatch.setattr("bigbatch.tasks.hugging_face.MOST_ROWS", 30)
    datasets.loaded = {"train": endless()}
    assert len(everything(translated("hugging-face:endless"))) == 30


def test_a_data_set_that_cannot_be_had_is_told(datasets: MadeUpDatasets, monkeypatch: pytest.MonkeyPatch):
    assert refused("hugging-face").endswith("takes the name of a data set: --text hugging-face:NAME")
    datasets.loaded = ConnectionError("Couldn't reach 'a/b' on the Hub.\nTry again.")
    told = refused("hugging-face:a/b")
    assert told.startswith("The data set a/b cannot be loaded (Couldn't reach 'a/b' on the Hub): check ")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refused("hugging-face:a/b").endswith("pip install 'bigbatch[hf]'")


@pytest.mark.slow
def test_datasets_reads_a_folder_that_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets", reason="the extra is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    program = (
        "import json, sys, datasets\n"
        "rows = datasets.Dataset.from_list(json.loads(sys.argv[1]))\n"
        "datasets.DatasetDict({'train': rows, 'test': rows}).save_to_disk(sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", program, json.dumps(ROWS), tmp_path / "saved"], check=True)
    wanted = {(f"house {number}", f"Haus {number}") for number in range(20)}
    assert everything(translated(f"hugging-face:{tmp_path / 'saved'}")) == wanted


def test_a_file_comes_before_a_text_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    named = "Or name a text that is no file: libreoffice-help, bible, hugging-face."
    assert refused("pairs.txt").endswith(named)
    Path("bible").write_text("a\tb\n")
    assert refused("bible").startswith("The pairs in bible cannot be read: the name of the file must end in ")


def test_a_text_and_its_summary_have_any_of_the_usual_names(tmp_path: Path):
    file = tmp_path / "articles.jsonl"
    file.write_text("\n".join(map(json.dumps, ARTICLES)))
    wanted = {(f"long {number}", f"{number}") for number in range(20)}
    assert everything(shortened(str(file))) == wanted
    table = tmp_path / "articles.tsv"
    table.write_text("highlights\tarticle\n" + "".join(f"{short}\t{long}\n" for long, short in sorted(wanted)))
    assert everything(shortened(str(table))) == wanted


def test_a_summary_is_held_against_the_first_eight_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "own.jsonl"
    long = "one two  three four five six seven eight nine ten"
    rows = [{"text": f"{long} {number}", "summary": "one"} for number in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = DataSettings(text=file, vocabulary=300)
    summarisation = Summarisation.prepare(settings)
    assert summarisation.trivial_answer == "the first eight words"
    assert summarisation.trivial(long) == "one two three four five six seven eight"
    assert FIRST_WORDS.answer("short one") == "short one"
    translation = Translation.prepare(replace(settings, source="text", target_language="summary"))
    assert translation.trivial_answer == "copying the source"
    assert translation.trivial(long) == long


@pytest.mark.parametrize("installed", [True, False])
def test_summaries_have_a_rouge_l_if_rouge_score_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bigbatch.tasks.summarisation.has_rouge", lambda: installed)
    monkeypatch.setattr("bigbatch.tasks.summarisation.rouge_l", lambda outputs, references: 12.5)  # noqa: ARG005
    scores = Summarisation.scores(Summarisation.__new__(Summarisation), ["a b"], ["a b"])
    assert scores == {"chrF": 100, "exact match": 1, **({"ROUGE-L": 12.5} if installed else {})}


def test_number_words_are_learnt_from_no_text(tmp_path: Path):
    with pytest.raises(
        ConfigurationError, match=r"^The task translation:numbers makes its own pairs .* leave out --text"
    ):
        TranslationOfNumbers.pairs(DataSettings(task="translation:numbers", text=Path("bible")), tmp_path)
