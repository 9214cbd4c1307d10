"""Pages about runs that are there already: what they show, and that a page needs nothing but itself."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import Page, check_alone, done

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.figures.overlay import incomparable
from bigbatch.experiments.runs.run import Run, runs_in
from bigbatch.experiments.runs.table import compared_verdict, verdict

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_losses_that_cannot_be_compared_are_said_to_be_so(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "ring", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocabulary": 299}))
    result = CliRunner().invoke(cli, ["plot", str(runs), str(other), "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 0
    assert (
        result.stderr == "Note: These runs have different vocabularies: how high their losses are cannot be compared.\n"
    )
    assert not incomparable(runs_in(runs))
    page = tmp_path / "a.html"
    done(["report", runs, other, "--out", page])
    assert "different vocabularies" in Page.read(page).text


def test_a_page_has_the_tables_figures_and_settings_of_its_runs(runs, tmp_path):
    target = tmp_path / "meine Läufe.html"
    assert done(["report", runs, runs / "naive", "--out", target]) == f"{target}\n"
    page = Page.read(target)
    check_alone(page)
    # The overlay, the comparison's own, and the run's own; the comparison made no figure here.
    assert len(page.images) == 3
    assert page.tags.count("nav") == 1
    assert page.tags.count("h2") == 2
    both, naive = runs_in(runs), Run.read(runs / "naive").summary
    summaries = [run.summary for run in both]
    assert compared_verdict(summaries) in page.text
    assert verdict(naive) in page.text
    assert "größer.png" in page.text
    for label, (key, decimals) in {
        "throughput, tokens/s": ("tokens_per_second", 0),
        "validation loss, nats/token": ("validation_loss", 3),
    }.items():
        by_arm = [[summary["arms"][number][key] for summary in summaries] for number in range(3)]
        expected = [*by_arm, [arm[key] for arm in naive["arms"]]]
        assert [[float(cell.replace(",", "")) for cell in row] for row in page.cells[label]] == [
            [round(value, decimals) for value in row] for row in expected
        ]
    for fact in ("vocabulary: 300", "tokens: 2,000", "overlap: yes", f"torch: {naive['environment']['torch']}"):
        name, _, value = fact.partition(": ")
        assert f"{name} {value}" in page.text


def figure_folder(folder: Path, png: Path, **other: object) -> Path:
    """A folder with a figure that was made to see whether a claim holds."""
    folder.mkdir()
    shutil.copy(png, folder / "figure <1> & ä.png")
    summary = {
        "figure": "critical-batch",
        "claim": 'Beyond <b>it</b>, & not before, examples buy "little" {{ 1 + 1 }}',
        "source": "https://example.org/paper?a=1&b=2",
        "verdict": "held",
        "sentence": "Twice the batch, 1.9 × the updates.",
        "columns": [
            {"key": "batch", "label": "batch, <tokens>"},
            {"key": "loss", "label": "loss, nats", "decimals": 2},
        ],
        "rows": [{"batch": 4096, "loss": 3.25}, {"batch": 1234567, "loss": None}],
        "runs": ["x/<script>alert(1)</script>/run"],
        "environment": {"python": "3.<i>11</i>"},
        **other,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_values_from_files_are_text(runs, tmp_path):
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(runs / "ring", evil)
    summary = json.loads((evil / "summary.json").read_text())
    (evil / "summary.json").write_text(json.dumps({**summary, "strategy": "<script>alert('$x^')</script>"}))
    folder = figure_folder(tmp_path / "figure", runs / "ring" / "comparison.png")
    target = tmp_path / "page.html"
    done(["report", evil, folder, "--out", target])
    page = Page.read(target)
    check_alone(page)
    for text in (
        "<script>alert('$x^')</script>",
        "<img src=x onerror=alert(1)>",
        'Beyond <b>it</b>, & not before, examples buy "little" {{ 1 + 1 }}',
        "https://example.org/paper?a=1&b=2",
        "held: Twice the batch, 1.9 × the updates.",
        "3.<i>11</i>",
        "Made from 1 runs in x/<script>alert(1)</script>.",
        "figure <1> & ä.png",
    ):
        assert text in page.text
    assert page.cells["batch, <tokens>"] == [["loss, nats"]]
    assert page.cells["4,096"] == [["3.25"]]
    assert page.cells["1,234,567"] == [["-"]]


def test_anything_that_was_measured_has_its_rows_in_the_page(tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()
    rows = [{"name": "ring", "bytes": 4096, "seconds": 2.5e-05, "exact": True, "cases": {"one_case": 2.0}}]
    more = [{"bytes": 8, "network": None}]
    content = {"rows": rows, "more_rows": more, "flops": 1.25e9, "environment": {"python": "3"}, "nothing": []}
    (folder / "summary.json").write_text(json.dumps(content))
    target = tmp_path / "page.HTML"
    done(["report", folder, "--out", target])
    page = Page.read(target)
    assert page.cells["name"] == [["bytes", "seconds", "exact", "cases"]]
    assert page.cells["ring"] == [["4,096", "2.5e-05", "yes", "one case 2"]]
    assert page.cells["8"] == [["none"]]
    assert "flops 1,250,000,000" in page.text
    assert "nav" not in page.tags
    assert "img" not in page.tags


@pytest.mark.parametrize("command", ["plot", "report"])
def test_what_is_no_finished_run_is_refused_in_a_sentence(runs, tmp_path, command):
    unfinished, other, damaged, list_, above = (
        tmp_path / name for name in ("unfinished", "other", "damaged", "list", "above")
    )
    for folder in (unfinished, other, damaged, list_, above / "inner"):
        folder.mkdir(parents=True)
    (unfinished / "metrics.jsonl").write_text("")
    (damaged / "summary.json").write_text('{"strategy": ')
    (list_ / "summary.json").write_text("[1]")
    (above / "inner" / "summary.json").write_text("{}")
    words = {
        tmp_path / "nowhere": "There is no folder",
        runs / "summary.json": "There is no folder",
        unfinished: "has not finished",
        other: "is no run",
        damaged: "is damaged",
        list_: "is damaged",
        above: f"name one of {above / 'inner'}",
    }
    for folder, expected in words.items():
        with pytest.raises(ConfigurationError, match=re.escape(expected)) as caught:
            done([command, folder, "--out", tmp_path / ("a.png" if command == "plot" else "a.html")])
        assert str(folder) in str(caught.value)
    assert not list(tmp_path.glob("a.*"))
    with pytest.raises(ConfigurationError, match="ends in"):
        done([command, runs, "--out", tmp_path / "a.pdf"])
    with pytest.raises(ConfigurationError, match="cannot be written"):
        done(
            [
                command,
                runs,
                "--out",
                tmp_path / "unfinished" / "metrics.jsonl" / ("a.png", "a.html")[command == "report"],
            ]
        )


def test_what_has_no_losses_is_not_drawn_and_a_figure_that_is_none_not_embedded(runs, tmp_path):
    folder = figure_folder(tmp_path / "figure", runs / "summary.json")
    with pytest.raises(ConfigurationError, match="no run of an experiment"):
        done(["plot", folder, "--out", tmp_path / "a.png"])
    with pytest.raises(ConfigurationError, match="is no PNG image"):
        done(["report", folder, "--out", tmp_path / "a.html"])


WITNESS = """<script>addEventListener("load", () => {
  const images = [...document.images].map(image => [image.complete, image.naturalWidth, image.clientWidth]);
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  const seen = {images, fetched, wide: document.documentElement.scrollWidth > innerWidth};
  document.body.setAttribute("data-seen", JSON.stringify(seen));
});</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH to open a page in")
def test_a_browser_shows_the_page_without_a_network(runs, tmp_path):
    folder = figure_folder(tmp_path / "figure", runs / "ring" / "comparison.png")
    path = tmp_path / "ein Bericht.html"
    done(["report", runs, runs / "ring", folder, "--out", path])
    dom, console = browse(path, tmp_path)
    assert "<h1>bigbatch: 3 runs</h1>" in dom
    assert console == []

    # Nothing is asked for even where the page would allow it.
    text = path.read_text(encoding="utf-8")
    policy = text[text.index("<meta http-equiv") : text.index("<meta name")]
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace(policy, "").replace("</body>", WITNESS), encoding="utf-8")
    dom, console = browse(copy, tmp_path)
    seen = json.loads(Seen.read(dom))
    assert len(seen["images"]) == 4
    assert all(complete and natural > 100 and shown > 100 for complete, natural, shown in seen["images"])
    assert [name for name in seen["fetched"] if not name.startswith("data:")] == []
    assert not seen["wide"]
    assert console == []

    # The witness would have seen it.
    other = '<img src="http://nowhere.invalid/a.png"><script>console.error("heard")</script></main>'
    copy.write_text(copy.read_text(encoding="utf-8").replace("</main>", other), encoding="utf-8")
    dom, console = browse(copy, tmp_path)
    assert "http://nowhere.invalid/a.png" in json.loads(Seen.read(dom))["fetched"]
    assert any("heard" in line for line in console)


class Seen(HTMLParser):
    """Finds what the witness wrote."""

    found = ""

    @classmethod
    def read(cls, dom: str) -> str:
        parser = cls()
        parser.feed(dom)
        return parser.found

    def handle_starttag(self, tag, attrs):  # noqa: ARG002 - the parser's own signature
        self.found = dict(attrs).get("data-seen") or self.found


def browse(path: Path, folder: Path) -> tuple[str, list[str]]:
    """The page as the browser has it once it is loaded, and what it wrote to its console."""
    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions", "--enable-logging=stderr"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    options += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    result = subprocess.run(
        [str(CHROMIUM), *options, "--window-size=1200,900", "--dump-dom", path.as_uri()],
        timeout=60,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]
