"""Results outlive what comes after them: a figure, a table or a file that fails names itself and leaves the others.

Reported elsewhere: a disk that becomes full ends the training (Lightning-AI/pytorch-lightning 4910), a figure that
cannot be drawn hides the table, Matplotlib without a folder for its cache (matplotlib/matplotlib 7411).
"""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jobs import SMALL, quick

import bigbatch
from bigbatch.comm.cache import keep, kept_json
from bigbatch.comm.errors import INCOMPLETE, BigBatchError, ConfigurationError, IncompleteError
from bigbatch.comm.files import replacing
from bigbatch.experiments.commands.main import cli, run_program
from bigbatch.experiments.figures.style import panels
from bigbatch.experiments.runs.results import Results
from bigbatch.experiments.runs.run import Run, read_summary
from bigbatch.experiments.runs.writer import RunWriter

ONE_ARM = [*SMALL, "--arms", "small"]


def broken(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("division by\nzero")


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_each_step_fails_by_itself_and_the_error_names_all(tmp_path):
    shown: list[str] = []
    results = Results(tmp_path)
    results.keep({"rows": [math.nan]})
    results.show(broken)
    results.draw("one.png", full)
    results.draw("two.png", lambda path: path.write_bytes(b"drawn"))
    results.attempt("The file x cannot be made", lambda: shown.append("last"))
    with pytest.raises(IncompleteError) as failed:
        results.close()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"rows": [None]}
    assert (tmp_path / "two.png").read_bytes() == b"drawn"
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "two.png"}
    assert shown == ["last"]
    assert str(failed.value) == (
        f"The results cannot be printed: ZeroDivisionError: division by zero; The file {tmp_path / 'one.png'} cannot "
        "be written: No space left on device. Make room there, or name another folder with --out."
    )


def test_characters_that_the_font_lacks_are_told_of_once(tmp_path, capsys):
    """An algorithm may be called by a Chinese name; Matplotlib warns of each character (matplotlib 15062)."""

    def draws(path: Path) -> None:
        figure, _ = panels(1, 1)
        figure.suptitle("环形 ring")
        figure.savefig(path)

    results = Results(tmp_path)
    for name in ("one.png", "two.png"):
        results.draw(name, draws)
    results.close()
    assert capsys.readouterr().err == (
        f"The figure {tmp_path / 'one.png'} has boxes in place of characters that Matplotlib's font lacks: 环 形.\n"
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("before")

    def fails() -> None:
        with replacing(path) as part:
            part.write_text("half")
            broken()

    with pytest.raises(ZeroDivisionError):
        fails()
    assert path.read_text() == "before"
    with replacing(path) as part:
        assert part.suffix == ".png"
        part.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


COMMANDS = {
    "ring": (
        ["ring", "--simulate", "2", *ONE_ARM],
        {"comparison.png": "bigbatch.experiments.figures.comparison.draw_comparison"},
        "throughput, tokens/s",
    ),
    "ps:async": (
        ["ps:async", "--simulate", "2", *ONE_ARM],
        {"staleness.png": "bigbatch.experiments.figures.staleness.draw_staleness"},
        "mean staleness",
    ),
    "compare": (
        ["compare", "ring", "naive", "--simulate", "2", *ONE_ARM],
        {"comparison.png": "bigbatch.experiments.figures.comparison.draw_comparison"},
        "throughput, tokens/s",
    ),
    "simulate": (
        ["simulate", "ring", "--workers", "4", "--parameters", "1M"],
        {
            "scaling.png": "bigbatch.experiments.figures.simulation.draw_scaling",
            "crossover.png": "bigbatch.experiments.figures.simulation.draw_crossover",
            "timeline.png": "bigbatch.experiments.figures.timeline.draw_timeline",
        },
        "efficiency",
    ),
    "plan": (
        [
            "plan",
            "--target",
            "3.5",
            "--workers",
            "8",
            "--micro-batch",
            "1",
            "--accumulate",
            "1",
            "--strategies",
            "ring",
        ],
        {"front.png": "bigbatch.experiments.figures.front.draw_front"},
        "GPU-h",
    ),
    "show": (["show", "ring"], {"rounds.png": "bigbatch.experiments.figures.rounds.draw_rounds"}, "ring over 4 ranks"),
}


FAILURES = [(name, failure) for name in COMMANDS for failure in (broken, full)]


@pytest.mark.parametrize(("name", "failure"), quick(FAILURES, lambda case: case[0] in ("ring", "plan")))
@pytest.mark.usefixtures("own_cache")
def test_figures_that_fail_cost_nothing_else(monkeypatch, tmp_path, name, failure):
    arguments, figures, words = COMMANDS[name]
    for function in figures.values():
        monkeypatch.setattr(function, failure)
    outcome = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "here")])
    assert isinstance(outcome.exception, IncompleteError), outcome.output
    assert words in outcome.stdout
    for figure in figures:
        assert str(outcome.exception).count(f"here/{figure} cannot be") == 1, outcome.exception
        assert not (tmp_path / "here" / figure).exists()
    if name != "show":
        assert read_summary(tmp_path / "here")
    assert list((tmp_path / "here").glob("*part*")) == []


def test_the_exit_status_says_that_the_results_are_there(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("bigbatch.experiments.figures.rounds.draw_rounds", broken)
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", "show", "ring", "--out", str(tmp_path)])
    assert run_program() == INCOMPLETE
    said = capsys.readouterr()
    assert said.err == (
        f"bigbatch-exp: The figure {tmp_path / 'rounds.png'} cannot be drawn: ZeroDivisionError: division by zero.\n"
    )
    assert "ring over 4 ranks" in said.out


@pytest.mark.usefixtures("own_cache")
def test_the_python_calls_return_the_run_though_its_figure_failed(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("bigbatch.experiments.figures.comparison.draw_comparison", broken)
    choices = dict(zip((word[2:].replace("-", "_") for word in ONE_ARM[::2]), ONE_ARM[1::2], strict=True))
    with caplog.at_level(logging.ERROR, "bigbatch"):
        run = bigbatch.run("ring", simulate=2, out=tmp_path / "here", quiet=True, **choices)
    assert run is not None
    assert run.summary == Run.read(tmp_path / "here").summary
    assert ["comparison.png cannot be drawn" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.usefixtures("own_cache")
def test_a_comparison_shows_what_was_done_before_a_strategy_failed(monkeypatch, tmp_path):
    from bigbatch.experiments import api

    real = api.conduct

    def fails_for_naive(request: Any, *arguments: Any, **options: Any) -> Any:
        if request.strategy == "naive":
            raise BigBatchError("Rank 1 is gone.")
        return real(request, *arguments, **options)

    monkeypatch.setattr(api, "conduct", fails_for_naive)
    arguments = ["compare", "ring", "naive", "--simulate", "2", *ONE_ARM, "--out", str(tmp_path / "here")]
    outcome = CliRunner().invoke(cli, arguments)
    assert isinstance(outcome.exception, IncompleteError)
    assert str(outcome.exception) == "The strategy naive: Rank 1 is gone."
    assert "throughput, tokens/s" in outcome.stdout
    assert [run["strategy"] for run in read_summary(tmp_path / "here")["runs"]] == ["ring"]


def test_a_bench_keeps_the_rows_that_came_before_a_size_that_failed(monkeypatch, tmp_path):
    """pmodels/mpich 4631: SIGBUS at the larger size; here an error of that size takes its place."""
    from bigbatch.comm.transports.alone import Alone
    from bigbatch.comm.transports.families import Launcher
    from bigbatch.comm.transports.launch import Launch
    from bigbatch.experiments.commands import bench
    from bigbatch.experiments.measuring import bench as measuring

    class Fails:
        skipped: dict[str, str] = {}  # noqa: RUF012 - nobody adds to it

        def __init__(self, *_: Any) -> None:
            pass

        def run(self, nbytes: int, _: float) -> measuring.SizeResults:
            if nbytes > 5000:
                raise ConfigurationError("There are 63 MB free.", everywhere=True)
            times = [[1e-3] * 4] * 2
            import numpy as np

            row = measuring.Measurement("ring", 2, nbytes, np.max(times, axis=0), True)
            return measuring.SizeResults([row], {}, row, None)

    import contextlib

    @contextlib.contextmanager
    def alone(*_: Any) -> Iterator[Any]:
        yield Alone(), Launch(Launcher.NONE)

    monkeypatch.setattr(measuring, "Bench", Fails)
    monkeypatch.setattr(bench, "ranks_of", alone)
    outcome = CliRunner().invoke(cli, ["bench", "--bytes", "4KB,32MB", "--out", str(tmp_path / "here")])
    assert isinstance(outcome.exception, ConfigurationError)
    assert "1.000" in outcome.stdout
    assert [row["bytes"] for row in read_summary(tmp_path / "here")["rows"]] == [4096]


def test_figures_look_alike_whatever_the_user_has_set_up_for_others(tmp_path):
    """matplotlib/matplotlib 17683: `text.usetex` in a matplotlibrc, on a machine without LaTeX."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    def draw(path: Path) -> None:
        figure = Figure(figsize=(1, 1))
        figure.subplots().set_title("losses")
        figure.savefig(path)

    with (
        mpl.rc_context({"text.usetex": True, "savefig.dpi": 10**7, "axes.titlesize": 40}),
        Results(tmp_path) as results,
    ):
        results.draw("here.png", draw)
        assert mpl.rcParams["text.usetex"]
    with Results(tmp_path) as results:
        results.draw("plain.png", draw)
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


@pytest.mark.slow
def test_a_backend_that_is_not_here_costs_no_figure(tmp_path):
    """bmaltais/kohya_ss 2521, deeptools/deepTools 1416: a notebook's MPLBACKEND, where its backend is not."""
    command = [sys.executable, "-m", "bigbatch.experiments", "show", "ring", "--out", str(tmp_path)]
    environment = {**os.environ, "MPLBACKEND": "Qt4Agg"}
    subprocess.run(command, check=True, env=environment, timeout=60, capture_output=True)
    assert (tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")


# Folders that somebody else removes or changes.


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (shutil.rmtree, ("metrics.jsonl", "summary.json")),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), ("metrics.jsonl", "summary.json")),
        (lambda folder: (folder / "metrics.jsonl").write_text("of another run\n"), ("metrics.jsonl",)),
        (lambda folder: (folder / "metrics.jsonl").replace(folder / "moved"), ("metrics.jsonl",)),
    ],
)
def test_a_folder_that_somebody_else_changes_costs_no_result(tmp_path, change, lost):
    """LlamaFactory 9819, tensorpack 273: the folder of a run is removed or replaced while it trains."""
    records = [{"kind": "update", "arm": "small", "number": number} for number in range(5)]
    with RunWriter(tmp_path / "run") as writer:
        for record in records[:2]:
            writer.metric(record)
        change(tmp_path / "run")
        for record in records[2:]:
            writer.metric(record)
        writer.summary({"arms": []})
        run = writer.run({"arms": []})
    assert run.metrics == records
    assert run.summary == {"arms": []}
    assert sorted(name for name in ("metrics.jsonl", "summary.json") if name in str(run.remarks)) == list(lost)


# Disks that are full.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Fills a disk to the last byte."""
    with (disk / "filler").open("ab", buffering=0) as filler:
        size = 4096
        while size:
            try:
                if filler.write(b"x" * size) < size:
                    raise OSError
            except OSError:
                size //= 2


def test_lines_that_find_no_room_are_kept_and_written_later(small_disk):
    told: list[str] = []
    folder = small_disk / "run"
    with RunWriter(folder, told.append) as writer:
        writer.config({"a": 1})
        for number in range(20):
            writer.metric({"kind": "update", "arm": "small", "number": number, "loss": math.nan})
        fill(small_disk)
        for number in range(20, 60):
            writer.metric({"kind": "update", "arm": "small", "number": number, "loss": 2.0, "filled": "x" * 200})
        lines = (folder / "metrics.jsonl").read_text()
        assert lines.endswith("}\n")
        assert 20 <= len(lines.splitlines()) < 60
        (small_disk / "filler").unlink()
    assert [json.loads(line)["number"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
        range(60)
    )
    assert told == [
        f"The file {folder / 'metrics.jsonl'} cannot be written: No space left on device; training goes on, and tries "
        "again"
    ]


@pytest.mark.usefixtures("own_cache")
def test_a_disk_that_becomes_full_costs_no_result(small_disk):
    """Lightning-AI/pytorch-lightning 4910: hours of training are lost to a full disk at the end."""
    (small_disk / "filler").write_bytes(b"x" * (44 * 1024))
    arguments = ["ring", "--simulate", "2", *SMALL, "--out", str(small_disk / "run")]
    outcome = CliRunner().invoke(cli, arguments)
    assert isinstance(outcome.exception, IncompleteError), outcome.output
    assert "throughput, tokens/s" in outcome.stdout
    sentence = str(outcome.exception)
    assert "No space left on device" in sentence
    assert "/run/" in sentence
    assert "\n" not in sentence
    left = (small_disk / "run" / "metrics.jsonl").read_bytes()
    assert left == b"" or left.endswith(b"}\n")


@pytest.mark.usefixtures("own_cache")
def test_a_disk_that_is_full_from_the_start_is_refused_before_training(small_disk):
    fill(small_disk)
    outcome = CliRunner().invoke(cli, ["ring", "--simulate", "2", *SMALL, "--out", str(small_disk / "a" / "b" / "run")])
    assert outcome.exception is not None
    assert isinstance(outcome.exception, BigBatchError), outcome.exception
    assert "No space left on device" in str(outcome.exception)


def test_a_cache_that_cannot_be_written_or_read_costs_only_time(small_disk, tmp_path):
    fill(small_disk)
    with pytest.warns(UserWarning, match="Nothing was kept in"):
        assert not keep(small_disk / "cache" / "x.json", "[1]" * 10_000)
    assert [path.name for path in small_disk.rglob("*.part*")] == []
    damaged = tmp_path / "x.json"
    for content in ('{"a', "[1]", "[" * 10_000, '"text"'):
        damaged.write_text(content)
        with pytest.warns(UserWarning, match="is damaged.*It is made anew"):
            assert kept_json(damaged, list[str]) is None
    assert kept_json(tmp_path / "none.json", list[str]) is None


@pytest.mark.slow
def test_no_home_and_no_room_for_temporary_files_cost_no_result(tmp_path, small_disk):
    """matplotlib/matplotlib 7411: no folder for its cache can be written, and no temporary one."""
    fill(small_disk)
    nowhere = str(tmp_path / "file" / "home")
    (tmp_path / "file").write_text("")
    variables = {**os.environ, "HOME": nowhere, "XDG_CONFIG_HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    variables |= {"TMPDIR": str(small_disk), "MPLCONFIGDIR": nowhere, "OMP_NUM_THREADS": "1"}
    variables.pop("BIGBATCH_CACHE", None)
    words = [sys.executable, "-m", "bigbatch.experiments", "ring", "--simulate", "2", *ONE_ARM, "--out", "here"]
    outcome = subprocess.run(
        words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200, check=False
    )
    assert outcome.returncode in (0, INCOMPLETE), outcome.stderr
    assert "throughput, tokens/s" in outcome.stdout
    assert "Traceback" not in outcome.stderr
    assert (tmp_path / "here" / "summary.json").exists()
