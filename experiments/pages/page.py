"""Makes one HTML page about any runs, in a single file that needs no network."""

import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import read_bytes
from bigbatch.experiments.laboratory.claim import Column
from bigbatch.experiments.runs.results import Results, own_look
from bigbatch.experiments.runs.run import Run, is_comparison, is_run, names_of, read_config, read_summary, runs_in
from bigbatch.experiments.runs.table import TableSection, compared_verdict, incomparable, setting, table_of, verdict

Facts = list[tuple[str, str]]
"""Pairs of a name and a value, as text."""

TEMPLATE = "page.html.jinja"

PNG = b"\x89PNG\r\n\x1a\n"

SHOWN = {
    "comparison": "Throughput, where the time goes, and losses against tokens and time",
    "staleness": "How old gradients were when they were applied",
    "timeline": "What every rank did when",
    "bench": "Time and bus bandwidth against the size of the buffer",
    "scaling": "How updates scale with the number of workers",
    "crossover": "Where a parameter server takes less time than a ring",
    "calibration": "What was measured of this machine, and the fit",
    "validation": "What was predicted, against what was measured",
}
"""What each figure shows, by its file's name without the ending; other figures are named after their files."""


@dataclass(frozen=True)
class Picture:
    """A figure that is embedded in the page.

    Attributes:
        source: the PNG image as a data: URI.
        width, height: size of the image, in pixels.
        alternative: text for readers who cannot see the image.
        caption: text below the figure.
    """

    source: str
    width: int
    height: int
    alternative: str
    caption: str


MOST_CELLS = 100_000
"""The largest number of cells of a table in the page; a browser takes seconds to show so many."""


@dataclass(frozen=True)
class Grid:
    """A table of the page.

    Attributes:
        heads: heads of the columns; the first may be empty.
        blocks: blocks of rows; a row's label is its first column.
        numbers: for each column, whether it holds numbers, which are aligned at the right.
        caption: text above the table; may be empty.
    """

    heads: list[str]
    blocks: list[TableSection]
    numbers: list[bool]
    caption: str = ""


@dataclass
class Section:
    """A section of the page, about one folder.

    Attributes:
        title: heading of the section.
        anchor: name that links within the page lead to.
        folder: path of the folder, as the user gave it.
        kind: what the folder holds, in words.
        claim: the claim that was examined; empty if there is none.
        source: the source of the claim; empty if there is none.
        sentences: the results in words.
        tables: the results in numbers.
        results: single numbers besides the tables.
        pictures: all figures in the folder.
        asked: headings, and the options below each.
        environment: versions of the software, and the platform.
    """

    title: str
    anchor: str
    folder: str
    kind: str = "measurements"
    claim: str = ""
    source: str = ""
    sentences: list[str] = field(default_factory=list)
    tables: list[Grid] = field(default_factory=list)
    results: Facts = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    asked: list[tuple[str, Facts]] = field(default_factory=list)
    environment: Facts = field(default_factory=list)


def make_page(folders: Sequence[Path], failed: Callable[[str], object] = lambda _: None) -> str:
    """Makes the page as HTML text.

    Args:
        folders: folders with a summary.json each, of experiments or of other measurements; each folder once.
        failed: called with a sentence, without its full stop, about a figure that cannot be drawn and is left out.

    Raises:
        ConfigurationError: a folder has no summary.json, or a file in it cannot be read.
    """
    titles = names_of(folders)
    sections, runs = [], dict[Path, Run]()
    for number, (folder, title) in enumerate(zip(folders, titles, strict=True), 1):
        summary = read_summary(folder)
        section = Section(title, f"run-{number}", str(folder))
        section.environment = _facts(summary.get("environment") or {})
        if is_run(summary) or is_comparison(summary):
            found = runs_in(folder)
            runs |= {run.folder.resolve(): run for run in found}
            _experiment(section, found)
        elif "figure" in summary:
            _claim(section, summary)
        else:
            _measurements(section, summary)
        if not section.asked and read_config(folder):
            section.asked = [("What was asked", _facts(read_config(folder)))]
        section.pictures = [
            _embedded(
                path, " ".join([section.claim or f"{title}: {SHOWN.get(path.stem, path.stem)}.", *section.sentences])
            )
            for path in sorted(folder.iterdir())
            if path.suffix.lower() == ".png"
        ]
        sections.append(section)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = (files("bigbatch.experiments.pages") / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=f"bigbatch: {titles[0]}" if len(titles) == 1 else f"bigbatch: {len(titles)} runs",
        version=bigbatch.__version__,
        date=time.strftime("%Y-%m-%d"),
        overlay=_overlay(list(runs.values()), failed),
        sections=sections,
    )


def _experiment(section: Section, runs: Sequence[Run]) -> None:
    """A run, or several of one comparison, as the terminal shows them."""
    summaries = [run.summary for run in runs]
    several = len(runs) > 1
    section.kind = f"a comparison of {len(runs)} strategies" if several else f"a run over {summaries[0]['strategy']}"
    sentence = compared_verdict(summaries) if several else verdict(summaries[0])
    remarks = (f"{remark}." for run in runs for remark in run.remarks)
    section.sentences = [text for text in (sentence, setting(summaries[0]), *remarks) if text]
    heads, blocks = table_of(summaries)
    section.tables = [Grid(["", *heads], blocks, [False, *(True for _ in heads)])]
    section.environment = _facts(summaries[0].get("environment") or {})
    asked = [_facts(run.config()) for run in runs]
    shared = [fact for fact in asked[0] if all(fact in other for other in asked)]
    section.asked = [("What was asked", shared)] if shared else []
    for run, own in zip(runs, asked, strict=True):
        different = [fact for fact in own if fact not in shared]
        if different:
            section.asked.append((f"What was asked of {run.summary['strategy']} alone", different))


def _claim(section: Section, summary: dict[str, Any]) -> None:
    """A figure that was made to see whether a claim holds."""
    section.kind = "a figure"
    section.claim, section.source = str(summary.get("claim") or ""), str(summary.get("source") or "")
    found = (f"{summary[key]}" for key in ("verdict", "sentence") if summary.get(key))
    section.sentences = [": ".join(found)]
    for what, key in (("Run", "asked"), ("Decided by", "criterion")):
        section.sentences += [f"{what}: {summary[key]}"] if summary.get(key) else []
    folders = sorted({str(Path(run).parent) for run in summary.get("runs") or ()})
    section.sentences += [f"Made from {len(summary['runs'])} runs in {', '.join(folders)}."] if folders else []
    columns = [Column(one["key"], one["label"], one.get("decimals", 0)) for one in summary.get("columns") or ()]
    if summary.get("rows"):
        section.tables = [_grid(summary["rows"], columns)]


def _measurements(section: Section, summary: dict[str, Any]) -> None:
    """Whatever else has a summary: lists of rows are tables, other values stand by themselves."""
    rest = {}
    for name, value in summary.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            section.tables.append(_grid(value, (), f"{_words(name)}, in SI units"))
        elif name != "environment" and value not in ({}, []):
            rest[name] = value
    section.results = _facts(rest)


def _grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], caption: str = "") -> Grid:
    """Rows as a table with those columns, or else all keys there are; of more than `MOST_CELLS`, the first rows."""
    heads = {column.key: column.label for column in columns} or {key: _words(key) for row in rows for key in row}
    most = max(1, MOST_CELLS // max(1, len(heads)))
    if len(rows) > most:
        caption = f"{f'{caption}; ' if caption else ''}the first {most:,} of {len(rows):,} rows"
        rows = rows[:most]
    texts = {column.key: column.text for column in columns}
    numbers = [all(row.get(key) is None or _is_number(row[key]) for row in rows) for key in heads]
    cells = [[texts.get(key, _text)(row.get(key)) for key in heads] for row in rows]
    return Grid(list(heads.values()), [TableSection("", [(row[0], row[1:]) for row in cells])], numbers, caption)


def _facts(values: Mapping[str, Any]) -> Facts:
    return [(_words(name), _text(value)) for name, value in values.items() if name != "environment"]


def _words(key: str) -> str:
    return key.replace("_", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """Any value that JSON has, for a reader."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return f"{value:,.0f}" if isinstance(value, int) or 1e5 <= abs(value) < 1e12 else f"{value:,.5g}"
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    return str(value)


def _overlay(runs: Sequence[Run], failed: Callable[[str], object]) -> Picture | None:
    """The losses of all experiments in the page, drawn afresh; None if there are none, or they cannot be drawn."""
    if not runs:
        return None
    drawn = BytesIO()

    def draw() -> None:
        with own_look():
            from bigbatch.experiments.figures.overlay import draw_overlay

            draw_overlay(runs, drawn)

    results = Results(runs[0].folder)
    results.attempt("The losses of the runs cannot be drawn", draw)
    if results.failures:
        failed(results.failures[0])
        return None
    names = _listed(f"{run.folder.name} ends at {_ends(run)}" for run in runs)
    note = incomparable(runs)
    return _picture(
        drawn.getvalue(),
        f"Losses against tokens, updates and training time. Validation losses in nats per token: {names}.",
        " ".join(filter(None, ["The losses of all runs in this page.", note])),
    )


def _ends(run: Run) -> str:
    return _listed(f"{arm['name']} {_text(arm.get('validation_loss'))}" for arm in run.summary["arms"])


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _embedded(path: Path, alternative: str) -> Picture:
    content = read_bytes(path, f"The figure {path}")
    if not content.startswith(PNG) or len(content) < 24:
        raise ConfigurationError(f"The figure {path} is no PNG image, whatever its name says: move it away.")
    return _picture(content, alternative, path.name)


def _picture(content: bytes, alternative: str, caption: str) -> Picture:
    """A PNG; its size stands in bytes 16 to 24 (W3C, Portable Network Graphics, section 11.2.2)."""
    width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(source, width, height, alternative, caption)
