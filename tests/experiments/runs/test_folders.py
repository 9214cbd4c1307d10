"""A run's folder is claimed by making it, so that nobody else can have it."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from jobs import TINY

import bigbatch
from bigbatch.comm.cache import write_whole
from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.files import claimed
from bigbatch.experiments.api import compared
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.runs import run as runs
from bigbatch.experiments.runs.run import check_folders, chosen_folder
from bigbatch.experiments.runs.writer import RunWriter
from bigbatch.experiments.training.settings import Request

SECOND = "20261127-190000"


@pytest.fixture(autouse=True)
def one_second(monkeypatch, tmp_path):
    """Everything here happens in the same second, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda _: SECOND)


def test_who_comes_in_the_same_second_gets_another_name():
    """Hydra 2925: both found that the name was free, and then both wrote there."""
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: chosen_folder(None, "ring-2"), range(64)))
    assert len(set(folders)) == 64
    assert all(folder.is_dir() for folder in folders)
    assert {folder.name for folder in folders} == {
        f"ring-2-{SECOND}" + (f"-{number}" if number > 1 else "") for number in range(1, 65)
    }


def test_a_folder_that_the_user_chose_is_taken_as_it_is(tmp_path):
    (tmp_path / "mine").mkdir()
    assert chosen_folder(tmp_path / "mine", "ring") == tmp_path / "mine"
    assert chosen_folder(tmp_path / "new" / "er", "ring").is_dir()


def test_where_no_folder_can_be_made_it_is_said(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigurationError, match="The folder runs cannot be written"):
        chosen_folder(None, "ring")


def test_two_runs_of_one_second_have_a_folder_each():
    first, second = (bigbatch.run("ring", workers=1, quiet=True, arms=("small",), seed=seed, **ONE) for seed in (1, 2))
    assert first.folder != second.folder
    for finished, seed in ((first, 1), (second, 2)):
        assert json.loads((finished.folder / "config.json").read_text())["seed"] == seed
        assert len(finished.updates) == finished.summary["arms"][0]["updates"]


ONE = {name: value for name, value in TINY.items() if name not in ("batch_size", "micro_batch")}


def test_a_command_that_is_no_training_makes_its_own_folder_too(monkeypatch, tmp_path):
    monkeypatch.setattr("bigbatch.experiments.commands.simulate.draw_all", lambda *_: None)
    words = ["simulate", "ring", "--workers", "2", "--model", "gpt2-small", "--json"]
    for _ in range(2):
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    made = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert made == [f"simulate-{SECOND}", f"simulate-{SECOND}-2"]


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(BigBatchError):
        bigbatch.run("ring", workers=1, text=str(tmp_path / "none.txt"), quiet=True)
    with pytest.raises(BigBatchError):
        bigbatch.run("ring", simulate=2, text=str(tmp_path / "none.txt"), quiet=True)
    assert not Path("runs").exists()


def test_processes_that_cannot_be_started_leave_no_folder(monkeypatch):
    def fails(_: list[str]) -> None:
        assert len(list(Path("runs").iterdir())) == 1
        raise BigBatchError("The processes ended with exit status 1.")

    monkeypatch.setattr("bigbatch.experiments.training.launcher.start", fails)
    with pytest.raises(BigBatchError, match="exit status 1"):
        bigbatch.run("ring", workers=2, quiet=True, **ONE)
    assert list(Path("runs").iterdir()) == []


def test_writers_of_one_file_at_the_same_time_do_not_write_into_each_other(tmp_path):
    contents = [f"{number}\n" * 50_000 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda content: write_whole(tmp_path / "network.toml", content), contents))
    assert (tmp_path / "network.toml").read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["network.toml"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "network.toml").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "network.toml", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["network.toml"]


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    """The user starts the same command with the same --out twice, or two servers with the same --snapshot."""
    with RunWriter(tmp_path) as first:
        first.metric({"kind": "update"})
        with pytest.raises(ConfigurationError, match=f"folder {tmp_path} is being written to by another .* --out"):
            RunWriter(tmp_path)
        first.metric({"kind": "update"})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"kind": "update"}\n' * 2
    with RunWriter(tmp_path):
        assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_whose_folder_was_moved_writes_nothing_into_the_next_one_of_that_name(tmp_path):
    with RunWriter(tmp_path / "run") as first:
        (tmp_path / "run").rename(tmp_path / "old")
        with RunWriter(tmp_path / "run") as second:
            second.summary({"who": "second"})
            first.summary({"who": "first"})
            first.metric({"update": 1})
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"who": "second"}
    assert not (tmp_path / "run/metrics.jsonl").read_text()
    assert json.loads((tmp_path / "old/metrics.jsonl").read_text()) == {"update": 1}
    assert first.failures == [
        f"The file {tmp_path / 'run/summary.json'} cannot be written: the run's folder was moved, and another one has "
        "its name now"
    ]
    assert second.failures == []


def test_a_name_that_no_folder_can_have_is_refused_in_a_sentence():
    with pytest.raises(ConfigurationError, match=r"cannot be written: embedded null byte. Name another with --out\."):
        RunWriter(Path("a\0b"))


def test_a_comparison_keeps_the_folders_of_its_runs_until_it_ends(tmp_path):
    """A second one would write over the first run of the first while that is at its second."""
    asked = [Request.of(name, {"workers": 1, "arms": ("small",), **ONE}) for name in ("ring", "ps")]
    first = compared(asked, tmp_path, quiet=True, tell=lambda _: None)
    ring = next(first)
    metrics = (ring.folder / "metrics.jsonl").read_text()
    with pytest.raises(ConfigurationError, match=f"folder {tmp_path} is being written to by another"):
        next(compared(asked, tmp_path, quiet=True, tell=lambda _: None))
    assert (ring.folder / "metrics.jsonl").read_text() == metrics
    first.close()
    with claimed(tmp_path):
        pass


def test_a_claim_ends_though_a_copy_of_its_process_goes_on(tmp_path):
    """Such as a worker of torch's DataLoader, which is forked."""
    with claimed(tmp_path):
        copy = os.fork()
        if copy == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with claimed(tmp_path):
            pass
    finally:
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)


@pytest.mark.parametrize("names", [("a/b.py:X", "a-b.py:X"), ("Ring.py:X", "ring.py:X"), ("ps", "ring", "a:b", "a-b")])
def test_strategies_of_one_comparison_have_a_folder_each(names):
    """The second run would silently replace the first one's files."""
    with pytest.raises(ConfigurationError, match=f"The strategies .* and {names[-1]} would have the same folder"):
        check_folders(names)
    check_folders(("ps", "ps:bounded", "ring", "a/b.py:X"))
