"""The user's own pairs: every kind of file, how they are divided, and a sentence for each thing that can be wrong."""

import gettext
import json
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.pair_files import read_pairs
from bigbatch.tasks.pairs import Pairs, divided

WORDS = [(f"word {number}", f"Wort {number}") for number in range(40)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(pairs: list[tuple[str, str]], between: str = "\t", end: str = "\n") -> str:
    return "".join(f"{source}{between}{target}{end}" for source, target in pairs)


def everything(pairs: Pairs) -> set[tuple[str, str]]:
    return {*pairs.training, *pairs.validation}


def test_every_kind_of_file_holds_the_same_pairs(tmp_path):
    objects = [
        lambda source, target: {"en": source, "de": target},
        lambda source, target: {"id": 1, "translation": {"en": source, "de": target}},
        lambda source, target: {"target": target, "source": source},
    ]
    catalogue = Catalog(locale="de")
    for source, target in WORDS:
        catalogue.add(source, target)
    with (tmp_path / "pairs.mo").open("wb") as file:
        write_mo(file, catalogue)
    files = [
        written(tmp_path, "plain.tsv", lines(WORDS)),
        written(tmp_path, "third.TSV", "".join(f"{source}\t{target}\tCC-BY\n" for source, target in WORDS)),
        written(
            tmp_path, "named.tsv", "id\tde\ten\n" + "".join(f"1\t{target}\t{source}\n" for source, target in WORDS)
        ),
        written(tmp_path, "marked.tsv", "\ufeffen\tde\r\n" + lines(WORDS, end="\r\n")),
        written(tmp_path, "blank.tsv", "\n" + lines(WORDS, end="\n\n").rstrip()),
        written(tmp_path, "wide.tsv", lines([(f" {source} ", f"{target}\u00a0") for source, target in WORDS])),
        *(
            written(tmp_path, f"{number}.jsonl", "\n".join(json.dumps(make(*pair)) for pair in WORDS))
            for number, make in enumerate(objects)
        ),
        written(tmp_path, "marked.json", "\ufeff" + "\r\n".join(json.dumps(objects[0](*pair)) for pair in WORDS)),
        written(
            tmp_path, "pairs.po", "\ufeff" + "".join(f'msgid "{one}"\nmsgstr "{other}"\n\n' for one, other in WORDS)
        ),
        tmp_path / "pairs.mo",
    ]
    for file in files:
        found = read_pairs(file, "en", "de")
        assert everything(found) == set(WORDS), file
        assert (len(found.validation), found.left_out, found.name) == (4, 0, file.name), file


def test_a_source_is_never_on_both_sides_of_the_division(tmp_path):
    several = [(f"source {number % 50}", f"target {number}") for number in range(200)]
    found = read_pairs(written(tmp_path, "several.tsv", lines(several + several)), "en", "de")
    sources = [{source for source, _ in split} for split in (found.training, found.validation)]
    assert not sources[0] & sources[1]
    assert [len(one) for one in sources] == [45, 5]
    assert len(found.training) + len(found.validation) == len(everything(found)) == 200
    assert [source for source, _ in found.validation] != sorted(source for source, _ in found.validation)
    assert found == read_pairs(tmp_path / "several.tsv", "en", "de")


def test_the_digest_knows_the_texts_and_their_division():
    pairs = divided("some", WORDS)
    assert pairs.sha256 == divided("others", WORDS, left_out=3).sha256
    digests = {pairs.sha256, divided("some", WORDS[1:]).sha256, divided("some", WORDS, validation=1).sha256}
    assert len({*digests, Pairs("some", pairs.validation, pairs.training).sha256}) == 4


def test_both_sides_are_documents_of_the_corpus_and_each_text_counts_once():
    corpus = Pairs("some", (("a", "b"), ("c", "b"), ("b", "a")), (("d", "d"),)).corpus()
    assert (corpus.name, corpus.training, corpus.validation) == ("some", ("a", "b", "c"), ("d",))


def test_what_has_an_empty_side_is_left_out_and_counted(tmp_path):
    rows = "only\t\n\tonly\n \t.\n"
    assert read_pairs(written(tmp_path, "some.tsv", rows + lines(WORDS)), "en", "de").left_out == 3
    objects = '{"en": null, "de": "x"}\n{"en": "x", "de": " "}\n' + "".join(
        json.dumps({"en": source, "de": target}) + "\n" for source, target in WORDS
    )
    assert read_pairs(written(tmp_path, "some.jsonl", objects), "en", "de").left_out == 2
    with pytest.raises(ConfigurationError, match=r"too few pairs .*: 0\. 3 are left out .* the first one in line 1\."):
        read_pairs(written(tmp_path, "none.tsv", rows), "en", "de")


def test_a_catalogue_gives_what_is_translated(tmp_path):
    content = (
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=iso-8859-1\\n"\n\n'
        'msgid "open"\nmsgstr "öffnen"\n\nmsgctxt "state"\nmsgid "open"\nmsgstr "offen"\n\n'
        '#, fuzzy\nmsgid "guess"\nmsgstr "geraten"\n\nmsgid "nothing"\nmsgstr ""\n\n'
        'msgid "one "\n"line"\nmsgstr "eine "\n"Zeile"\n\n#~ msgid "old"\n#~ msgstr "alt"\n'
    )
    found = read_pairs(written(tmp_path, "a.po", content.encode("iso-8859-1")), "en", "de")
    assert everything(found) == {("open", "öffnen"), ("open", "offen"), ("one line", "eine Zeile")}
    assert found.left_out == 2


def test_a_plural_form_is_the_one_that_gettext_takes(tmp_path):
    """In Arabic the form for one is the second of six, in Japanese there is one for all."""
    arabic = "nplurals=6; plural=(n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 ? 4 : 5)"
    for language, rule, forms in [
        ("ar", arabic, 6),
        ("ja", "nplurals=1; plural=0", 1),
        ("de", "nplurals=2; plural=(n != 1)", 2),
    ]:
        catalogue = Catalog(locale=language)
        catalogue.mime_headers = [("Content-Type", "text/plain; charset=utf-8"), ("Plural-Forms", rule)]
        texts = tuple(f"form {number}" for number in range(forms))
        catalogue.add(("file", "files"), texts if forms > 1 else (texts[0],))
        catalogue.add("other", "autre")
        file = tmp_path / f"{language}.mo"
        with file.open("wb") as stream:
            write_mo(stream, catalogue)
        with file.open("rb") as stream:
            oracle = gettext.GNUTranslations(stream)
        wanted = {("file", oracle.ngettext("file", "files", 1)), ("files", oracle.ngettext("file", "files", 5))}
        assert everything(read_pairs(file, "en", language)) == wanted | {("other", "autre")}


GOOD = '{"en": "a", "de": "b"}\n'
BAD = {
    "one column": ("a.tsv", "a\tb\nonly one\n", r"a\.tsv cannot be used: line 2 has 1 column, but .* column 1 and the"),
    "a third column": ("a.tsv", "x\ten\tde\n1\t2\t3\n4\t5\n", r"line 3 has 2 columns, but .* target in column 3, with"),
    "half a header": (
        "a.tsv",
        "en\tgerman\na\tb\n",
        r"line 1 names a column 'en', but none 'de'\. It has 'en', 'german'",
    ),
    "10 MB in a line": ("a.tsv", "a\tb\nc\t" + "d" * 10**7, r"line 2 is longer than 1,048,576 characters"),
    "10 MB of JSON": ("a.jsonl", GOOD + '{"en": "' + "d" * 10**7 + '"}', r"line 2 is longer than 1,048,576 characters"),
    "10 MB in a message": ("a.po", f'msgid "a"\nmsgstr "{"d" * 10**7}"\n', r"line 1 is longer than 1,048,576 char"),
    "UTF-16": ("a.tsv", "a\tb\n".encode("utf-16"), r"a\.tsv is not in UTF-8: byte 0 .* Convert it to UTF-8 first"),
    "UTF-16 without a mark": (
        "a.tsv",
        "a\tb\n".encode("utf-16-le"),
        r"not text: line 1 has a NUL\. .* convert it to UTF-8",
    ),
    "UTF-16 in a catalogue": ("a.po", 'msgid "a"'.encode("utf-16"), r"a\.po is damaged: it cannot be read as a cat"),
    "Latin-1": ("a.tsv", "a\tb\nä\tö\n".encode("latin-1"), r"not in UTF-8: byte 4"),
    "NUL": ("a.tsv", "a\tb\nc\0\td\n", r"not text: line 2 has a NUL"),
    "NUL in JSON": ("a.jsonl", GOOD + '{"en": "a\\u0000", "de": "b"}', r"line 2 has a NUL"),
    "NUL in a catalogue": ("a.po", 'msgid "a"\nmsgstr "b\0"\n', r"line 1 has a NUL"),
    "half a character": ("a.jsonl", '{"en": "\\ud83d", "de": "b"}', r"line 1 has half a character, '\\ud83d'"),
    "unknown ending": (
        "a.csv",
        "a,b\n",
        r"a\.csv cannot be read: .* must end in one of \.tsv, \.jsonl, \.json, \.po, \.mo",
    ),
    "no ending": ("pairs", "a\tb\n", r"must end in one of"),
    "no JSON": ("a.jsonl", GOOD * 6 + "{en: a}\n", r"a\.jsonl is damaged: line 7 is not JSON"),
    "an array": ("a.json", '[{"en": "a", "de": "b"}]', r"line 1 must be a JSON object .* but is \[\{"),
    "other names": ("a.jsonl", GOOD + '{"en": "a", "fr": "b"}', r"line 2 has no 'en' and 'de', but 'en', 'fr'"),
    "nothing in it": ("a.jsonl", GOOD + "{}", r"line 2 has no 'en' and 'de', but nothing"),
    "a number": ("a.jsonl", GOOD + '{"en": 3, "de": "b"}', r"'en' in line 2 must be a text, but is 3"),
    "no catalogue": ("a.po", 'msgid "a"\nmsgstr "b"\nnonsense\n', r"a\.po is damaged: line 3 does not belong in a cat"),
    "no encoding": (
        "a.po",
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=klingon\\n"\n\nmsgid "a"\nmsgstr "b"\n',
        r"a\.po is damaged: .*unknown encoding: klingon",
    ),
    "no compiled one": ("a.mo", b"junk" * 10, r"a\.mo is damaged: it cannot be read as a catalogue of messages"),
    "a short one": ("a.mo", b"\xde\x12\x04\x95", r"a\.mo is damaged"),
    "empty": ("a.tsv", "", r"too few pairs of a source and a target: 0\. It takes two with different sources"),
    "one source": ("a.tsv", "a\tb\na\tc\na\tb\n", r"too few pairs of a source and a target: 2\. It takes two"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path, what):
    name, content, sentence = BAD[what]
    path = written(tmp_path, name, content)
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        read_pairs(path, "en", "de")
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"The file .*none\.tsv cannot be read: No such file"):
        read_pairs(tmp_path / "none.tsv", "en", "de")


def test_names_that_are_the_same_name_no_columns(tmp_path):
    file = written(tmp_path, "a.tsv", "en\tshort\n" + lines(WORDS))
    assert everything(read_pairs(file, "en", "en")) == {*WORDS, ("en", "short")}
