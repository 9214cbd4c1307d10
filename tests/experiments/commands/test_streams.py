"""Standard output and error that are not in UTF-8, narrow, closed, full, or read by nobody."""

import ast
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from jobs import SMALL, quick
from rich.console import Console

from bigbatch.comm.errors import INCOMPLETE
from bigbatch.experiments.commands import COMMANDS
from bigbatch.experiments.commands.main import cli, run_program
from bigbatch.experiments.commands.output import console, new_table, print_fitting
from bigbatch.experiments.commands.simulate import print_rows
from bigbatch.experiments.commands.streams import PIPE_CLOSED, PLAIN, TWINS, Stream, standard_streams

TRAINED = ["ring", "--simulate", "2", *SMALL, "--arms", "small", "--out", "here"]
PROGRAM = [sys.executable, "-m", "bigbatch.experiments"]


def shell(redirection: str, arguments: list[str], folder: Path, cache: Path, **variables: str) -> Any:
    """Runs the program in a shell, whose pipeline ends with the program's own status."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", *PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "BIGBATCH_CACHE": str(cache), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        timeout=120,
        check=False,
    )


def is_complete(folder: Path) -> bool:
    """Whether a run's folder has everything, whatever became of what was printed."""
    names = {path.name for path in folder.iterdir() if not path.match("model-*.pt")}
    return {"config.json", "metrics.jsonl", "summary.json", "comparison.png"} == names and bool(
        json.loads((folder / "summary.json").read_text())["arms"]
    )


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        pytest.param(
            "> /dev/full", INCOMPLETE, "Standard output cannot be written: No space left on device", id="full"
        ),
        pytest.param(">&-", INCOMPLETE, "Standard output cannot be written: it is closed", id="closed"),
        pytest.param("2>&-", 0, "", id="error closed", marks=pytest.mark.slow),
        pytest.param("2> /dev/full", 0, "", id="error full", marks=pytest.mark.slow),
        pytest.param("> /dev/full 2>&-", INCOMPLETE, "", id="both", marks=pytest.mark.slow),
        pytest.param("2>&1 | true", PIPE_CLOSED, "", id="nobody reads", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_whatever_becomes_of_the_streams(tmp_path, cache, redirection, status, said):
    """Rust's and coreutils' rules for closed output: rust-lang/rust 46016, and `info coreutils 'Exit status'`."""
    outcome = shell(redirection, TRAINED, tmp_path, cache)
    assert outcome.returncode == status, outcome.stderr
    assert is_complete(tmp_path / "here")
    error = outcome.stderr.decode()
    assert error.count("bigbatch-exp: ") == bool(said)
    assert said in error
    assert "Traceback" not in error
    assert "Exception ignored" not in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "status"), [("> /dev/full", INCOMPLETE), (">&-", INCOMPLETE), ("| head -1", 141)]
)
def test_processes_of_a_launcher_go_on_as_well(tmp_path, cache, redirection, status):
    """mpirun itself ends all its processes when it cannot write what they print."""
    outcome = shell(redirection, ["ring", "-n", "2", *TRAINED[3:]], tmp_path, cache)
    assert is_complete(tmp_path / "here"), outcome.stderr
    assert outcome.returncode in (status, 0 if status == 141 else status), outcome.stderr
    assert "Traceback" not in outcome.stderr.decode()
    assert outcome.stderr.decode().count("Standard output cannot be written") == (status == INCOMPLETE)


@pytest.mark.parametrize("encoding", quick(["ascii", "latin-1"], lambda encoding: encoding == "ascii"))
def test_what_the_encoding_lacks_is_printed_plainly(tmp_path, cache, encoding):
    """Textualize/rich 826: a table's lines end the program where standard output is not in UTF-8."""
    outcome = shell("", TRAINED, tmp_path, cache, PYTHONIOENCODING=encoding)
    assert outcome.returncode == 0, outcome.stderr
    printed = outcome.stdout.decode(encoding)
    assert "throughput, tokens/s" in printed
    assert ("2 x 1 x 8" if encoding == "ascii" else "2 × 1 × 8") in printed or re.search(r"\d [x×] \d", printed)
    assert "?" not in printed
    assert "\\u" not in printed
    assert outcome.stderr.decode(encoding)


def all_help_texts() -> list[str]:
    return ["--help", *(f"{name} --help" for name in ("ring", "ps", *COMMANDS.names())), "figures", "show ring"]


def test_every_help_text_can_be_read_in_ascii(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for line in all_help_texts():
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        monkeypatch.setattr(sys, "argv", ["bigbatch-exp", *line.split()])
        assert run_program() == 0, line
        text = raw.getvalue().decode("ascii")
        assert len(text) > 100, line
        assert "\\x" not in text, line
        assert "\\u" not in text, line


def source_characters() -> set[str]:
    """The characters beyond ASCII in the texts of our own source that may be printed: all but its documentation."""
    root = Path(__file__).parents[3]
    figures = root / "experiments" / "figures"  # what is drawn is not printed
    files = [*root.glob("comm/**/*.py"), *root.glob("experiments/**/*.py"), *root.glob("bigbatch/t*/*.py")]
    found: set[str] = set()
    for file in files:
        if figures in file.parents and file.name != "shown.py":
            continue
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in documentation]
        found |= {letter for text in texts if isinstance(text.value, str) for letter in text.value if ord(letter) > 127}
    return found


def test_every_character_of_ours_has_a_plain_twin():
    assert {letter for letter in source_characters() if ord(letter) not in TWINS} == set()


def test_a_character_of_the_users_own_keeps_its_number():
    assert "Läufe 中 \udce4".encode("ascii", PLAIN) == rb"L\xe4ufe \u4e2d \udce4"
    assert "\udce4".encode("utf-8", PLAIN) == rb"\udce4"  # a file's name that is not UTF-8


class Failing(io.RawIOBase):
    """A file that can be written until it is full."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        taken = bytes(content)[: self.room]
        if not taken:
            raise OSError(28, "No space left on device")
        self.room -= len(taken)
        self.written += taken
        return len(taken)


def test_a_stream_that_becomes_full_is_told_of_once_and_never_raises(monkeypatch):
    full = Failing(20)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(full, 8), encoding="utf-8"))
    with standard_streams() as streams:
        for number in range(100):
            print(f"line {number}", flush=True)
        click.echo("more")
        Console().print("and more")
        assert isinstance(sys.stdout, Stream)
        assert streams.failure() == (
            INCOMPLETE,
            "Standard output cannot be written: No space left on device. What belongs into files is there.",
        )
    assert full.written == b"line 0\nline 1\nline 2"[:20]


def test_a_stream_that_somebody_else_has_closed_is_lost():
    """A user's file may close sys.__stdout__; and the interpreter flushes what is left when it ends (python -X dev)."""
    below = io.TextIOWrapper(io.BytesIO())
    stream = Stream(below)
    below.close()
    assert (stream.isatty(), stream.write("x")) == (False, 1)
    stream.flush()
    assert (str(stream.lost), stream.dropped) == ("it is closed", True)


def test_a_reader_that_is_slow_is_waited_for(monkeypatch):
    """python/cpython 57715: a pipe that was made non-blocking by whoever reads it breaks off long output."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "x" * 2**20
    pieces: list[bytes] = []

    def read() -> None:
        time.sleep(0.2)
        while piece := os.read(reading, 4096):
            pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(writing, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with standard_streams() as streams:
            print(text, flush=True)
            assert streams.failure() == (0, "")
    reader.join()
    os.close(reading)
    assert b"".join(pieces).decode() == text + "\n"


def test_what_is_held_is_sent_in_one_piece(monkeypatch):
    pieces: list[str] = []

    class Pieces(io.TextIOWrapper):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Pieces(io.BytesIO(), encoding="utf-8"))
    with standard_streams() as streams:
        assert streams.out is not None
        with streams.out.held():
            for number in range(5):
                print(number, flush=True)
        assert pieces == ["0\n1\n2\n3\n4\n"]


@pytest.mark.parametrize("columns", [30, 40, 57, 60, 80, 100, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_number_is_cut_off_however_narrow_the_terminal(columns, encoding):
    row = {
        "strategy": "halving-doubling", "workers": 4096, "exact": False, "step_seconds": 2.957, "efficiency": 0.019,
        "compute_seconds": 0.0567, "communication_seconds": 2900.1, "waiting_seconds": 12.0, "tokens_per_second": 1e9,
        "busiest_port_bytes": 995e6,
    }  # fmt: skip
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=PLAIN)
    print_rows(Console(file=stream, width=columns), [SimpleNamespace(**row)])
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    for number in ("4,096", "2,957.0", "56.7", "2,900,100.0", "12,000.0", "1,000,000", "1.9%", "995"):
        assert re.search(rf"(?<![\d,.]){re.escape(number)}(?![\d,.])", text), (number, text)
    assert max(map(len, text.splitlines())) <= columns


def test_a_dumb_terminal_is_as_wide_as_it_is(monkeypatch):
    """patonlab/GoodVibes 107: rich takes every dumb terminal to have 80 columns, and cuts wider tables."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr("bigbatch.experiments.commands.output.terminal_columns", lambda _: 120)
    made = console()
    assert made.is_dumb_terminal
    assert made.size.width == made.options.max_width == 120


def test_a_name_that_is_wider_than_the_terminal_is_folded():
    table = new_table("", "one", "two")
    table.add_row("a label of several words that is long", "1,234,567", "89")
    stream = io.StringIO()
    print_fitting(Console(file=stream, width=40), table)
    assert all(number in stream.getvalue() for number in ("1,234,567", "89"))


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_without_colour_there_are_no_escapes_in_a_table(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = CliRunner().invoke(cli, ["figures"])
    assert outcome.exit_code == 0
    assert "\x1b[3" not in outcome.output
