"""Files by somebody else, or damaged ones: whatever they hold, a reader gets on with it or says one sentence.

Kinds of damage that others reported: a string for a number (pandas-dev/pandas 22951), NaN in JSON (python/cpython
80626), numbers of thousands of digits (CVE-2020-10735), deep nesting (python/cpython 75706), devices and pipes in the
place of files (git 2.38's refusal of non-regular files), a last line that was cut off (wandb 1526).
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.files import LARGEST, opened
from bigbatch.comm.tracing.perfetto import read_trace
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.figures.comparison import comparison
from bigbatch.experiments.figures.overlay import overlaid
from bigbatch.experiments.figures.timeline import draw_timeline, range_of_updates
from bigbatch.experiments.pages.page import make_page
from bigbatch.experiments.planning.needs import Measured
from bigbatch.experiments.runs.run import Run, read_summary, runs_in
from bigbatch.experiments.runs.table import compared_verdict, counted, incomparable, setting, table_of, verdict

OTHERS: tuple[Any, ...] = (None, True, "text", "", -1, 0, 2.5, 1e300, 10**30, [], {}, [[]], [{}], {"a": None})
"""A value of each type that JSON has, and numbers that are hard to compute with."""

TEXTS = {
    "empty": "",
    "blank": " \n",
    "cut": '{"strategy": "ring", "arms": [{"na',
    "NaN": '{"strategy": "ring", "workers": NaN, "parameters": 1, "arms": [{}]}',
    "infinity": '{"strategy": "ring", "workers": 1e999, "parameters": 1, "arms": [{}]}',
    "5,000 digits": '{"strategy": "ring", "workers": ' + "9" * 5000 + ', "parameters": 1, "arms": [{}]}',
    "nested 10,000 deep": "[" * 10_000,
    "nested 10,000 deep, closed": '{"arms": ' + "[" * 10_000 + "]" * 10_000 + "}",
    "nested 500 deep": '{"a": ' * 500 + "1" + "}" * 500,
    "a list": "[1, 2]",
    "rows that are no objects": '{"rows": [1, "a", null], "memory": 3}',
    "an environment that is a list": '{"rows": [{"a": 1}], "environment": ["Linux"]}',
    "a format in a column": '{"figure": "x", "columns": [{"key": "a", "label": "a", "decimals": 3}],'
    ' "rows": [{"a": "{:>9999999999}"}]}',
    "a format for decimals": '{"figure": "x", "columns": [{"key": "a", "label": "a", "decimals": "9d"}], "rows": []}',
    "a name that is there twice": '{"strategy": "ring", "workers": 2, "workers": 3, "parameters": 1, "arms": [{}]}',
    "no UTF-8": "\udcff\udcfe{}",
    "NUL": "\0" * 100,
    "a name of 10,000 letters": '{"runs": [{"strategy": "' + "x" * 10_000 + '", "arms": []}]}',
    "a name with NUL": '{"runs": [{"strategy": "a\\u0000b", "arms": []}]}',
}


def mutations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every way to drop one entry of a JSON value, or to put another value in its place: (place, the value to set).

    Of a list only the first and the last entry are looked at. `...` stands for dropping.
    """
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    last = len(value) - 1 if isinstance(value, list) else None
    for key, entry in entries:
        if last is None or key in (0, last):
            for other in (..., *OTHERS):
                yield (*path, key), other
            yield from mutations(entry, (*path, key))


def mutated(content: Any, path: tuple[Any, ...], other: Any) -> Any:
    changed = inner = copy.deepcopy(content)
    for key in path[:-1]:
        inner = inner[key]
    if other is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = other
    return changed


def told(sentence: str) -> None:
    """It is one sentence, and names no Python."""
    assert sentence.endswith("."), sentence
    assert "\n" not in sentence
    assert len(sentence) < 1000
    assert not any(word in sentence for word in ("Traceback", "TypeError", "KeyError", "object is not")), sentence


def read_and_show(folder: Path) -> None:
    """What every reader of runs does before it draws."""
    runs = runs_in(folder)
    summaries = [run.summary for run in runs]
    table_of(summaries)
    compared_verdict(summaries)
    incomparable(runs)
    for run in runs:
        verdict(run.summary)
        setting(run.summary)
        for arm in run.summary["arms"]:
            counted(arm.get("servers", ()))
            run.curve(arm["name"], "update")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run with all that a summary can have: servers, the noise scale, a trace."""
    from jobs import SMALL
    from pages import done

    folder = tmp_path_factory.mktemp("served") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGBATCH_CACHE", str(cache))
        done(["ps:async", "--simulate", "2", *SMALL, "--noise-scale", "--trace", "--quiet", "--out", folder])
    return folder


@pytest.fixture
def damaged(served: Path, tmp_path: Path) -> Path:
    shutil.copytree(served, tmp_path / "run")
    return tmp_path / "run"


def each_mutation(folder: Path, name: str, content: Any, use: Any, write: Any = json.dumps) -> int:
    """Calls `use` with every mutation in place; returns how many were refused."""
    refused = 0
    for path, other in mutations(content):
        (folder / name).write_text(write(mutated(content, path, other)))
        try:
            use(folder)
        except BigBatchError as error:
            refused += 1
            told(str(error))
        except Exception as error:
            raise AssertionError(f"{path} = {other!r} of {name}") from error
    (folder / name).write_text(write(content))
    use(folder)
    return refused


def test_whatever_is_wrong_in_a_summary_is_told_in_one_sentence(damaged):
    content = json.loads((damaged / "summary.json").read_text())
    content["arms"] = content["arms"][:2]
    assert each_mutation(damaged, "summary.json", content, read_and_show) > 300


def test_whatever_is_wrong_in_the_summary_of_a_comparison_is_told_in_one_sentence(runs, tmp_path):
    folder = tmp_path / "compared"
    shutil.copytree(runs, folder)
    content = json.loads((folder / "summary.json").read_text())
    for run in content["runs"]:
        run["arms"] = run["arms"][:1]
        (folder / run["strategy"] / "summary.json").write_text(json.dumps(run))
    assert each_mutation(folder, "summary.json", content, read_and_show) > 300


def test_a_comparison_of_which_one_run_was_made_anew_is_told_of(runs, tmp_path):
    """Its table and its curves would be of different runs."""
    folder = tmp_path / "compared"
    shutil.copytree(runs, folder)
    first, other, *_ = (run["strategy"] for run in read_summary(folder)["runs"])
    shutil.rmtree(folder / other)
    (folder / other).symlink_to(first)
    with pytest.raises(ConfigurationError, match=rf"{other} holds another run than the one in the c"):
        runs_in(folder)


def test_whatever_is_wrong_in_the_metrics_is_told_in_one_sentence(damaged):
    lines = [json.loads(line) for line in (damaged / "metrics.jsonl").read_text().splitlines()]
    first = [next(line for line in lines if line["kind"] == kind) for kind in ("update", "validation")]

    def write(content: Any) -> str:
        return "".join(json.dumps(line) + "\n" for line in content)

    assert each_mutation(damaged, "metrics.jsonl", first, read_and_show, write) > 100


def test_whatever_is_wrong_in_a_trace_is_told_in_one_sentence(damaged):
    content = json.loads((damaged / "trace.json").read_text())
    complete = [event for event in content["traceEvents"] if event["ph"] == "X"]
    kinds = {event["cat"]: event for event in complete}
    content["traceEvents"] = [content["traceEvents"][0], *kinds.values(), complete[-1]]

    def use(folder: Path) -> None:
        range_of_updates(read_trace(folder / "trace.json"), None, (1, 100))

    assert each_mutation(damaged, "trace.json", content, use) > 100


def test_whatever_is_wrong_in_a_fit_is_told_in_one_sentence(tmp_path):
    model = {"vocabulary": 257, "context": 32, "layers": 2, "width": 64}
    content = {"fit": {"least_updates": 90.5, "critical_batch": 2000.0, "target": 2.6, "untold": None, "model": model}}
    assert each_mutation(tmp_path, "summary.json", content, Measured.read) > 50


def drawn(folder: Path) -> None:
    """Everything that draws, and the page."""
    runs = runs_in(folder)
    overlaid(runs)
    comparison(runs)
    failures: list[str] = []
    make_page([folder], failures.append)
    assert failures == []
    ranks = read_trace(folder / "trace.json")
    draw_timeline(ranks, folder / "timeline.png", "title", *range_of_updates(ranks))


@pytest.mark.slow
def test_what_the_schemas_let_through_can_be_drawn(damaged):
    """A sample, for drawing takes a second."""
    chosen = random.Random(7)
    for name in ("summary.json", "config.json", "metrics.jsonl", "trace.json"):
        whole = (damaged / name).read_text()
        lines = whole.splitlines() if name.endswith("jsonl") else [whole]
        kept = 0
        for _ in range(400):
            content = [json.loads(line) for line in lines]
            changes = list(mutations(content[0]))
            content[0] = mutated(content[0], *chosen.choice(changes))
            (damaged / name).write_text("".join(json.dumps(line) + "\n" for line in content))
            try:
                drawn(damaged)
                kept += 1
            except BigBatchError as error:
                told(str(error))
            if kept == 6:
                break
        (damaged / name).write_text(whole)


COMMANDS = {"report": "summary.json", "plot": "summary.json", "timeline": "trace.json", "plan": "summary.json"}


def command(name: str, folder: Path) -> list[str]:
    if name == "plan":
        return ["plan", "--fit", str(folder), "--out", str(folder / "plan")]
    out = folder / ("page.html" if name == "report" else "figure.png")
    return [name, str(folder), "--out", str(out)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_file_gets_one_sentence_from_each_command(damaged, name):
    for text in TEXTS.values():
        (damaged / COMMANDS[name]).write_bytes(text.encode("utf-8", "surrogateescape"))
        outcome = CliRunner().invoke(cli, command(name, damaged))
        if outcome.exception is not None:
            assert isinstance(outcome.exception, BigBatchError), (text[:60], outcome.exception)
            told(str(outcome.exception))


@pytest.mark.parametrize("file", ["summary.json", "metrics.jsonl", "config.json", "figure.png", "trace.json"])
@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "device", "link to a device", "many GB", "link to nowhere", "link to itself"]
)
def test_what_is_no_ordinary_file_is_refused_and_never_waited_for(damaged, file, kind):
    path = damaged / file
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "link to a device"):
        path.symlink_to("/dev/zero")
    elif kind == "link to nowhere":
        path.symlink_to(damaged / "nowhere")
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        with path.open("wb") as sparse:
            sparse.truncate(50 * LARGEST)
    page = ["report", str(damaged), "--out", str(damaged.parent / "page.html")]
    outcome = CliRunner().invoke(cli, ["timeline", str(damaged)] if file == "trace.json" else page)
    assert isinstance(outcome.exception, ConfigurationError), outcome.exception
    told(str(outcome.exception))


def test_a_mark_of_the_byte_order_and_other_ends_of_lines_are_read(damaged):
    """hukkin/tomli 304, of JSON: an editor of another system has saved the files."""
    before = Run.read(damaged)
    contents = {path: path.read_bytes() for path in (damaged / "summary.json", damaged / "metrics.jsonl")}
    for end in (b"\r\n", b"\r"):
        for path, content in contents.items():
            path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", end))
        assert Run.read(damaged) == before


@pytest.mark.parametrize("appended", ["the same run", "an earlier line"])
def test_the_lines_of_two_runs_in_one_file_are_told_of(damaged, appended):
    """wandb/wandb 1040: after a run was resumed, its curve goes back and comes a second time."""
    path = damaged / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"kind": "update"' in line)
    path.write_bytes(b"".join([*lines, *(lines if appended == "the same run" else [lines[first]])]))
    with pytest.raises(
        ConfigurationError, match=r"line \d+, is damaged: it is about update 1 of an arm that has come to"
    ):
        Run.read(damaged)


def test_a_name_that_is_there_twice_is_told_of(damaged):
    path = damaged / "summary.json"
    path.write_text(path.read_text().replace('"workers":', '"workers": 8, "workers":', 1))
    with pytest.raises(ConfigurationError, match=r"the name 'workers' is there twice"):
        Run.read(damaged)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["small", "small"], r"two arms have the name small"),
        ([f"arm {number}" for number in range(50_000)], r"arms has 50,000 entries, of which at most 100 are read"),
    ],
)
def test_arms_that_no_figure_can_tell_apart_are_refused(damaged, names, sentence):
    path = damaged / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "arms": [{**summary["arms"][0], "name": name} for name in names]}))
    with pytest.raises(ConfigurationError, match=sentence):
        Run.read(damaged)


def test_metrics_of_other_arms_are_told_of(damaged):
    path = damaged / "metrics.jsonl"
    path.write_text(path.read_text().replace('"small"', '"smaller"'))
    remarks = " ".join(Run.read(damaged).remarks)
    assert remarks == f"{path} says nothing about the arm small, whose losses are left out"


def test_a_table_that_no_browser_could_show_is_cut_and_says_so(tmp_path):
    rows = [{f"key {number}": number} for number in range(2000)]
    (tmp_path / "summary.json").write_text(json.dumps({"rows": rows}))
    page = make_page([tmp_path])
    assert "the first 50 of 2,000 rows" in page
    assert page.count("<tr>") < 100


def test_what_was_looked_at_is_what_is_read(damaged):
    """CWE-367: another file takes the name between the look at a file and its reading."""
    path = damaged / "summary.json"
    text = path.read_text()
    with opened(path, "The file") as file:
        path.unlink()
        os.mkfifo(path)
        assert file.read().decode() == text


def test_a_trace_with_a_huge_process_number_is_refused(damaged):
    path = damaged / "trace.json"
    content = json.loads(path.read_text())
    next(event for event in content["traceEvents"] if event["ph"] == "X")["pid"] = 10**12
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"traceEvents\[\d+\]\.pid is 1e\+12, which is too large"):
        read_trace(path)


def test_the_sentence_names_the_file_and_the_place(damaged):
    summary = json.loads((damaged / "summary.json").read_text())
    for change, sentence in (
        (lambda arm: arm.pop("name"), "arms[0].name is missing"),
        (lambda arm: arm.update(updates="2"), "arms[0].updates is the text '2', and should be a whole number"),
        (
            lambda arm: arm["servers"][0].update(staleness=[]),
            "arms[0].servers[0].staleness is a list, and should be an",
        ),
    ):
        other = copy.deepcopy(summary)
        change(other["arms"][0])
        (damaged / "summary.json").write_text(json.dumps(other))
        with pytest.raises(ConfigurationError) as refused:
            Run.read(damaged)
        assert str(refused.value).startswith(f"The summary of {damaged} is damaged: {sentence}")


def test_a_last_line_that_was_cut_off_is_left_out_and_told_of(damaged):
    whole = (damaged / "metrics.jsonl").read_bytes()
    records = Run.read(damaged).metrics
    for cut in (1, 10, len(whole.splitlines()[-1])):
        (damaged / "metrics.jsonl").write_bytes(whole[:-cut])
        run = Run.read(damaged)
        assert run.metrics == records[:-1]
        assert run.remarks == (
            f"The last line of {damaged / 'metrics.jsonl'} was cut off while it was written, and is left out",
        )
    shown = CliRunner().invoke(cli, ["plot", str(damaged), "--out", str(damaged / "figure.png")])
    assert shown.exit_code == 0, shown.output
    assert "was cut off while it was written" in shown.stderr
    assert "was cut off while it was written" in make_page([damaged])
