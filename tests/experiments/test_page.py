"""Figures and pages about runs that are there already: what they show, and that a page needs nothing but itself."""

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from jobs import SMALL
from matplotlib.image import imread
from matplotlib.text import Annotation

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.figures.labels import spread
from bigbatch.experiments.figures.overlay import curves_of, incomparable, overlaid
from bigbatch.experiments.runs.run import Run, names_of, runs_in
from bigbatch.experiments.runs.table import compared_verdict, verdict

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "link", "br", "hr", "input"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Two runs in a folder as `compare` leaves it; its name has an umlaut and a space."""
    folder = tmp_path_factory.mktemp("runs") / "Läufe von heute"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGBATCH_CACHE", str(cache))
        for name in ("ring", "naive"):
            done([name, "--simulate", "2", *SMALL, "--quiet", "--out", folder / name])
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in ("ring", "naive")]
    (folder / "summary.json").write_text(json.dumps({"runs": summaries}))
    shutil.copy(folder / "ring" / "comparison.png", folder / "ein Bild, größer.png")
    return folder


def done(arguments: list[object]) -> str:
    """What a command prints that must go well."""
    result = CliRunner().invoke(cli, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@dataclass
class Page(HTMLParser):
    """What a page is made of."""

    links: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    cells: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""
    tags: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._row: list[str] = []

    @classmethod
    def read(cls, path: Path) -> "Page":
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        assert not page._open, f"never closed: {page._open}"
        return page

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.links += [value for name, value in attrs if name == "style"]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self._row = []
        if tag in ("th", "td"):
            self._row.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "tr":
            self.cells.setdefault(self._row[0].strip(), []).append(self._row[1:])

    def handle_data(self, data):
        if "style" in self._open:
            self.links.append(data)
        elif self._open:
            self.text += data
            if self._open[-1] in ("th", "td"):
                self._row[-1] += data


def check_alone(page: Page) -> None:
    """Nothing in it comes from elsewhere, and every image is a PNG with words for it."""
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    for link in page.links:
        assert link.startswith(("data:image/png;base64,", "#")) or not any(
            word in link for word in ("://", "url(", "@import", "//")
        ), link[:200]
    assert page.images
    for image in page.images:
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        pixels = imread(BytesIO(base64.b64decode(content, validate=True)), format="png")
        assert pixels.shape[:2] == (int(image["height"]), int(image["width"]))
        assert len(image["alt"]) > 20


def curve(folder: Path, arm: str, kind: str, x: str) -> list[tuple[float, float]]:
    """A line of a figure, from the file alone."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record[x], record["loss"]) for record in records if (record["arm"], record["kind"]) == (arm, kind)]


@pytest.mark.parametrize("options", [[], ["--by", "seconds"]])
def test_plot_draws_every_arm_of_every_run(runs, tmp_path, options):
    target = tmp_path / "neue Ordner" / "größer.png"
    assert done(["plot", runs, runs / "ring", *options, "--out", target]) == f"{target}\n"
    pixels = (imread(target)[..., :3] * 255).astype(int).reshape(-1, 3)
    colours = set(map(tuple, np.unique(pixels, axis=0)))
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)} <= colours


def test_lines_are_what_the_runs_wrote_and_end_at_labels_that_do_not_overlap(runs):
    found = runs_in(runs)
    figure = overlaid(found)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    names = [f"{run}, {arm}" for run in ("ring", "naive") for arm in ("large", "accumulated", "small")]
    for axis, x in zip(figure.axes, ("tokens", "update", "seconds"), strict=True):
        drawn = [[(px, py) for px, py in zip(*line.get_data(), strict=True)] for line in axis.get_lines()]
        for run in ("ring", "naive"):
            for arm in ("large", "accumulated", "small"):
                assert curve(runs / run, arm, "validation", x) in drawn
        labels = [child for child in axis.get_children() if isinstance(child, Annotation)]
        assert sorted(label.get_text() for label in labels) == sorted(names)
        boxes = [super(Annotation, label).get_window_extent() for label in labels]
        assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)
        assert all(box.x1 <= figure.bbox.x1 and box.x0 >= axis.get_window_extent().x1 for box in boxes)
        assert axis.get_xlabel()
        assert "nats per token" in axis.get_ylabel()
    looks = {(one.colour, str(one.line)) for one in curves_of(found)}
    assert len(looks) == len(names)


def test_many_lines_have_a_legend_and_looks_of_their_own(runs):
    (one, other), arms = runs_in(runs), [{"name": f"_{number} $x"} for number in range(36)]
    metrics = [{**record, "arm": arm["name"]} for arm in arms for record in other.metrics if record["arm"] == "small"]
    many = Run(one.folder, {**one.summary, "arms": arms}, metrics)
    assert len({(curve.colour, str(curve.line)) for curve in curves_of([many])}) == 36
    figure = overlaid([many], "tokens")
    assert [text.get_text() for text in figure.legends[0].get_texts()][:36] == [arm["name"] for arm in arms]
    assert not [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]


def losing(folder: str, updates: int, training: float | None, first: float | None = None) -> Run:
    """A run with a training loss that is always that, or no number, and a validation loss before the first update."""
    metrics = [{"kind": "validation", "arm": "a", "update": 0, "tokens": 0, "seconds": 0.0, "loss": first}]
    for number in range(1, updates + 1):
        x = {"number": number, "total_tokens": 8 * number, "total_seconds": 0.5 * number}
        metrics.append({"kind": "update", "arm": "a", "loss": training, **x})
        metrics.append({**metrics[0], "update": number, "tokens": 8 * number, "seconds": 0.5 * number, "loss": None})
    return Run(Path(folder), {"strategy": folder, "arms": [{"name": "a"}]}, metrics)


@pytest.mark.parametrize("first", [None, 3.0])
@pytest.mark.parametrize(
    ("training", "scale"), [((None, None, None), "linear"), ((2.0, None, None), "linear"), ((2.0, 1.0, None), "log")]
)
def test_losses_that_are_no_numbers_are_drawn_without_a_warning(training, scale, first):
    """Short and long lines, of which one is a number before the first update at most."""
    lengths = (3, 90, 40)
    runs = [losing(f"run {n}", n, loss, first) for n, loss in zip(lengths, training, strict=True)]
    figure = overlaid(runs)
    figure.savefig(BytesIO(), format="png")
    assert [axis.get_xscale() for axis in figure.axes] == [scale] * 3
    labels = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    assert len(labels) == (3 if first is not None and scale == "linear" else 0)


def test_a_measured_noise_scale_has_a_panel(runs):
    one, other = runs_in(runs)
    metrics = [
        {**record, "noise_scale": None if number % 5 == 0 else 100.0 + number}
        for number, record in enumerate(one.metrics)
    ]
    *_, panel = overlaid([Run(one.folder, one.summary, metrics), other], "updates").axes
    assert "noise scale" in panel.get_ylabel()
    small = [record for record in metrics if record["arm"] == "small" and record["kind"] == "update"]
    expected = [(record["number"], record["noise_scale"]) for record in small if record["noise_scale"]]
    assert expected in [[(x, y) for x, y in zip(*line.get_data(), strict=True)] for line in panel.get_lines()]


@pytest.mark.parametrize("heights", [[0.5], [0.1, 0.1, 0.1], [0.2, 0.9, 0.95, 1.0, 1.0], [0.0, 0.01, 0.5, 0.505]])
def test_labels_move_apart_and_stay_below_the_top(heights):
    places = spread(heights, 0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-12)
    assert places[-1] <= 1
    far = np.diff([-1, *heights, 2]) > 0.5
    for number, place in enumerate(places):
        if far[number] and far[number + 1]:
            assert place == heights[number]


def test_runs_are_called_by_their_folders_where_strategies_repeat(tmp_path):
    assert names_of([Path("a/ring"), Path("b/ring"), Path("c")]) == ["a/ring", "b/ring", "c"]
    arms = {"arms": [{"name": "large"}]}
    both = [Run(tmp_path / name, {"strategy": "ring", **arms}, []) for name in ("one", "two")]
    assert [curve.label for curve in curves_of(both)] == ["one", "two"]
    third = Run(tmp_path / "three", {"strategy": "ps", **arms}, [])
    assert [curve.label for curve in curves_of([both[0], third])] == ["ring", "ps"]


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
