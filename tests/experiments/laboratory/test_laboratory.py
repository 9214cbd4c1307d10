"""The laboratory: what it does about folders that lie there already, disks that are full and processes that end."""

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import TINY, Start, until
from laboratories import quiet

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.wires.processes import namespace
from bigbatch.experiments.laboratory import laboratory as module
from bigbatch.experiments.laboratory.laboratory import identity, read, train
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.runs.run import Run, make_folder, write_json

pytestmark = pytest.mark.usefixtures("own_cache")


LONG = {**TINY, "tokens": 10**7}
"""It is ended by whoever waits for it."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGBATCH_CACHE", str(cache))
        train(Point(TINY), folder)
    return folder


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.part-*"))


def gone_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# Folders.


def test_only_what_the_dead_have_left_is_removed(tmp_path: Path):
    node, dead, mine = platform.node(), gone_process(), os.getpid()
    here = f"{node}-{namespace()}"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        kept = [f"a.part-{here}-{living.pid}", f"a.part-{here}-{mine}", f"a.part-other.{here}-{dead}", "a.part-b"]
        kept.append(f"a.part-{node}-1234-{dead}")  # of a container, in which that number is another process
        for name in (*kept, f"a.part-{here}-{dead}", f"b.part-{here}-{dead}", "a"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "metrics.jsonl").write_text("{}")
        with quiet(tmp_path) as laboratory:
            laboratory._started()
            assert parts(tmp_path) == sorted(kept)
            (tmp_path / f"b.part-{here}-{dead}").mkdir()
        assert parts(tmp_path) == sorted(kept)
        assert (tmp_path / "a").is_dir()
        living.communicate(b"\n")


def cut_summary(folder: Path) -> None:
    (folder / "summary.json").write_text((folder / "summary.json").read_text()[:100])


def cut_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-20])


def cut_lines(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: len(lines) // 2]))


def empty_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("")


def no_summary(folder: Path) -> None:
    (folder / "summary.json").unlink()


DAMAGES = [cut_summary, cut_metrics, cut_lines, empty_metrics, no_summary]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_none(damage: Any, trained: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    whole = read(folder)
    assert whole is not None
    assert whole.metrics[-1]["loss"] == whole.summary["arms"][0]["validation_loss"]
    damage(folder)
    assert read(folder) is None


@pytest.mark.slow
def test_damaged_runs_are_trained_anew(trained: Path, tmp_path: Path):
    points = [Point({**TINY, "seed": seed}) for seed in range(len(DAMAGES))]
    folders = [tmp_path / identity(point) for point in points]
    for folder, damage in zip(folders, DAMAGES, strict=True):
        shutil.copytree(trained, folder)
        damage(folder)
    with quiet(tmp_path, 2) as laboratory:
        runs = laboratory.runs(points)
        assert (laboratory.made, laboratory.found) == (len(points), 0)
    assert [run.config()["seed"] for run in runs] == list(range(len(points)))
    assert sorted(tmp_path.iterdir()) == sorted(folders)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("ring", {"target": 100.0}),
        ("ring", {"learning_rate": 1e6, "optimizer": "sgd"}),
        ("ring", {"simulate": 3}),
        ("ps", {"simulate": 3, "consistency": "async", "straggler": "exponential:2"}),
    ],
    ids=["to a target", "no number", "simulated", "asynchronous"],
)
def test_every_finished_run_is_read_again(strategy: str, options: dict[str, Any], tmp_path: Path):
    train(Point({**TINY, "batch_size": 6, "micro_batch": 1, **options}, strategy), tmp_path / "run")
    assert read(tmp_path / "run") is not None


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_may_appear_while_its_point_trains(
    whole: bool, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    original = module.conduct_alone

    def slowly(words: list[str], part: Path) -> Run:
        made = original(words, part)
        shutil.copytree(trained, folder)
        (folder / "theirs").write_text("")
        if not whole:
            no_summary(folder)
        return made

    monkeypatch.setattr(module, "conduct_alone", slowly)
    train(Point(TINY), folder)
    assert read(folder) is not None
    assert (folder / "theirs").exists() == whole, "what is whole is kept, what is damaged is replaced"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_may_appear_at_the_last_moment(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, looked = tmp_path / "run", []

    def late(place: Path) -> Run | None:
        looked.append(place)
        if len(looked) > 1:
            return read(place)
        shutil.copytree(trained, folder)
        (folder / "theirs").write_text("")
        return None

    monkeypatch.setattr(module, "read", late)
    train(Point(TINY), folder)
    assert (folder / "theirs").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# Disks.


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(_words: list[str], _part: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "conduct_alone", fails)
    sentence = (
        rf"{tmp_path} cannot be written: No space left on device\. Make room there, or name another with --runs\."
    )
    with pytest.raises(ConfigurationError, match=sentence):
        train(Point(TINY), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_files_error_is_not_taken_for_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(_words: list[str], _part: Path) -> None:
        Path("nowhere/at all").read_text()

    monkeypatch.setattr(module, "conduct_alone", fails)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(Point(TINY), tmp_path / "run")


def test_folders_that_cannot_be_written_are_told_by_their_option(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"with --runs\."), quiet(tmp_path / "file" / "points") as laboratory:
        laboratory.runs([Point(TINY)])
    with pytest.raises(ConfigurationError, match=r"with --out\."):
        make_folder(tmp_path / "file" / "figures")


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})

    def half(self: Path, content: str, **_: Any) -> None:
        with self.open("w") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


# Processes that end.


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[list[int]]:
    """Kills the first process that trains below tmp_path; holds its number then."""
    killed: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            training = [name for name in parts(tmp_path) if (tmp_path / name / "metrics.jsonl").exists()]
            if training:
                killed.append(int(training[0].rpartition("-")[2]))
                os.kill(killed[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield killed
    over.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_process_that_was_killed_is_told_once_and_leaves_nothing(tmp_path: Path, killer: list[int]):
    points = [Point({**LONG, "seed": seed}) for seed in range(4)]
    laboratory = quiet(tmp_path, 2)
    with pytest.raises(BigBatchError, match="ended from outside") as first, laboratory:
        laboratory.runs(points)
    assert len(killer) == 1
    assert "while 2 runs were under way. The same command goes on" in str(first.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BigBatchError) as again:
        laboratory.runs([Point(LONG, "halving-doubling")])
    assert str(again.value) == str(first.value), "also for what is asked when the processes are already gone"


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_ctrl_c_says_how_to_go_on(training: bool, start: Start, tmp_path: Path):
    job = start("bigbatch-exp", "figure", "accumulation", "--quick", "--runs", "points", "--processes", "1")
    # Three processes are the program, the one that trains, and that of multiprocessing which looks after semaphores.
    until(lambda: parts(tmp_path / "points") if training else len(job.alive()) == 3)
    os.killpg(job.process.pid, signal.SIGINT)
    outcome = job.wait(30)
    assert outcome.status == 130
    assert outcome.err.strip().splitlines()[-1] == "Interrupted; the same command goes on with what is missing."
    assert "Traceback" not in outcome.err
    assert job.gone()
    assert not parts(tmp_path / "points")
