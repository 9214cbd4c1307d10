"""The documentation: its links lead somewhere, its commands parse, its Python runs."""

import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from jobs import quick

from bigbatch.comm.errors import BigBatchError
from bigbatch.experiments.commands.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"#+ +(.*)")
INLINE = re.compile(r"`(bigbatch-exp [^`]+)`")
FILE, NOT_RUN = re.compile(r"<!-- file: (\S+) -->"), re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """A fenced block of code: `line` is that of its first line, from 0; `comment` is the line above its fence."""

    page: Path
    line: int
    language: str
    comment: str
    code: str

    @property
    def file(self) -> str | None:
        found = FILE.fullmatch(self.comment)
        return found[1] if found else None


def split(page: Path) -> tuple[list[str], list[Block]]:
    """The lines of a page with those of its code left empty; its blocks of code."""
    prose: list[str] = []
    blocks: list[Block] = []
    code: list[str] | None = None
    language = comment = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        if line.startswith("```"):
            if code is None:
                language, comment, code = line.removeprefix("```"), prose[-1] if prose else "", []
            else:
                blocks.append(Block(page, number - len(code), language, comment, "\n".join(code) + "\n"))
                code = None
        elif code is not None:
            code.append(line)
        prose.append("" if code is not None or line.startswith("```") else line)
    assert code is None, f"{page} has a block of code without an end"
    return prose, blocks


TEXTS = {page: split(page) for page in PAGES}
BLOCKS = [block for _, blocks in TEXTS.values() for block in blocks]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = [found[1] for found in map(HEADING.fullmatch, TEXTS[page][0]) if found]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall("\n".join(TEXTS[page][0])):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}, which is not there"
        assert not heading or heading in anchors(file), f"{name(page)} links to {target}, which has no such heading"


def test_every_page_is_in_the_table_of_contents():
    contents = ROOT / "docs" / "README.md"
    linked = {(contents.parent / target).resolve() for target in LINK.findall("\n".join(TEXTS[contents][0]))}
    assert {page for page in PAGES if ROOT / "docs" in page.parents} - {contents} <= linked


def test_the_reference_of_options_is_made_from_the_options():
    made = CliRunner().invoke(cli, ["reference"], catch_exceptions=False)
    assert made.output == (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8"), (
        "make the page again: bigbatch-exp reference > docs/reference/options.md"
    )


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with all files that the pages ask their reader to write."""
    for block in BLOCKS:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words behind every `bigbatch-exp` of a page, in blocks of code and in the text."""
    prose, blocks = TEXTS[page]
    shell = "\n".join(block.code for block in blocks if block.language == "sh").replace("\\\n", " ")
    for line in [*shell.splitlines(), *INLINE.findall("\n".join(prose))]:
        words = shlex.split(line, comments=True)
        for program in (["bigbatch-exp"], ["-m", "bigbatch.experiments"]):
            starts = [at + len(program) for at in range(len(words)) if words[at : at + len(program)] == program]
            yield from (words[start:] for start in starts)


def parse(command: click.Command, called: str, words: list[str], parent: click.Context | None = None) -> None:
    """Read a command line as click does, and run nothing."""
    with command.make_context(called, list(words), parent) as context:
        rest = [*context._protected_args, *context.args]
        if isinstance(command, click.Group) and rest:
            inner, found, rest = command.resolve_command(context, rest)
            assert found is not None, f"there is no command {inner}"
            parse(found, str(inner), rest, context)


@pytest.mark.parametrize(
    "words", [["rnig"], ["ring", "--no-such-option"], ["ps", "serve", "--no-such-option"], ["simulate"]], ids=shlex.join
)
def test_a_wrong_command_line_is_noticed(words):
    with pytest.raises((click.ClickException, BigBatchError)):
        parse(cli, "bigbatch-exp", words)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_parse(page):
    for words in command_lines(page):
        try:
            parse(cli, "bigbatch-exp", words)
        except click.exceptions.Exit:  # --help and its like
            continue
        except Exception as error:
            raise AssertionError(f"{name(page)}: bigbatch-exp {shlex.join(words)}: {error}") from error


def test_command_lines_are_found():
    assert sum(1 for page in PAGES for _ in command_lines(page)) > 60


RUN = [block for block in BLOCKS if block.language == "python" and not NOT_RUN.fullmatch(block.comment)]


PAGES_RUN = sorted({block.page for block in RUN})


@pytest.mark.parametrize("page", quick(PAGES_RUN, lambda page: page.name != "python.md"), ids=name)
def test_python_blocks_run(page, files):
    """All of a page, one block after the other, at the lines where they stand in it."""
    lines = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in RUN:
        if block.page == page:
            lines[block.line : block.line + block.code.count("\n")] = block.code.splitlines()
    program = files / f"{page.stem.lower().replace('-', '_')}_page.py"
    program.write_text("\n".join(lines), encoding="utf-8")
    runpy.run_path(str(program))
