"""Servers and workers as users start them: real processes, real sockets, real signals."""

import json
import os
import re
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import click
import pytest
import torch
import zmq
from jobs import PROGRAMS, SMALL, Job, Run, Start, until

from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.server.network.keys import Keys
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.network.sockets import Dialer
from bigbatch.experiments.commands.main import cli

TINY = [word for word in SMALL if word not in ("--deadline", "60")]
HELD = [sys.executable, str(PROGRAMS / "held_worker.py")]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Served:
    """A server at some port, and what can be asked about it."""

    def __init__(self, start: Start, *options: object, port: int = 0) -> None:
        self.port = port or free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.job = start("bigbatch-exp", "ps", "serve", "--bind", self.address, *TINY, *options)
        until(lambda: "Serving at" in self.job.err() or self.job.process.poll() is not None)

    def status(self, keys: Keys | None = None) -> dict:
        shard = RemoteShard(Dialer(self.address, keys), session=0, deadline=20)
        try:
            return shard.status()
        finally:
            shard.close()

    def goes_on(self) -> None:
        """Wait until there are more updates than now."""
        version = self.status()["versions"]
        until(lambda: self.status()["versions"] > version)


def test_workers_train_what_a_server_offers_and_the_run_is_like_the_others(start: Start, run: Run, tmp_path: Path):
    assert run("bigbatch-exp", "ps", "keys", "course.keys").status == 0
    for name in ("course.keys", "course.worker.keys"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert "server_secret" not in (tmp_path / "course.worker.keys").read_text()
    server = Served(
        start,
        "--keys",
        "course.keys",
        "--consistency",
        "ssp",
        "--staleness",
        "1",
        "-n",
        2,
        "--json",
        "--out",
        "out",
    )
    workers = [
        start("bigbatch-exp", "ps", "worker", "--server", server.address, "--keys", keys, "--deadline", 30)
        for keys in ("course.keys", "course.worker.keys")
    ]
    outcomes = [worker.wait(60) for worker in workers]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    outcome = server.job.wait(20)
    assert outcome.status == 0, outcome.err
    summary = json.loads(outcome.out)
    assert [arm["name"] for arm in summary["arms"]] == ["large", "accumulated", "small"]
    for arm in summary["arms"]:
        (counted,) = arm["servers"]
        assert counted["shares_undone"] == counted["gradients_lost"] == counted["counts"]["dropped workers"] == 0
        assert set(counted["staleness"]) <= {"0", "1"}
        assert counted["gradients_taken"] == sum(counted["staleness"].values()) == arm["worker_updates"]
        assert arm["tokens"] == summary["arms"][0]["tokens"] == 2000
        assert arm["tokens_per_second"] > 0
        assert arm["workers"] == summary["workers"] == 2
        assert arm["updates"] == counted["versions"]
        assert arm["validation_loss"] > 0
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "staleness.png").read_bytes().startswith(b"\x89PNG")
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {record["worker"] for record in metrics} == {0, 1}
    for arm in summary["arms"]:
        seconds = [r["total_seconds"] for r in metrics if r["kind"] == "update" and r["arm"] == arm["name"]]
        assert seconds == sorted(seconds)  # the axis of the figure
        assert arm["tokens"] / seconds[-1] == pytest.approx(arm["tokens_per_second"])
    assert "Worker 1 joins, of 2 now." in outcome.err
    assert "Worker 0 goes: it has left." in outcome.err


@pytest.mark.slow
def test_a_status_shows_versions_workers_clocks_staleness_and_rates(start: Start, run: Run):
    server = Served(start, "--tokens", "50M", "--arms", "small", "--consistency", "async")
    start("bigbatch-exp", "ps", "worker", "--server", server.address)
    until(lambda: server.status()["versions"] > 10)
    outcome = run("bigbatch-exp", "ps", "status", "--server", server.address)
    assert outcome.status == 0, outcome.err
    rates, worker = r"[1-9][\d.]* updates/s", r"0 +\d+ +\d+ +\d+ +0\.\d s ago"
    for part in (r"version +\d\d+", rates, "mean 0.00; 0: ", worker, "0 malformed"):
        assert re.search(part, outcome.out), (part, outcome.out)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_any_phase_holds_nobody_back(start: Start):
    server = Served(start, "--tokens", "50M", "--arms", "small", "--patience", 1)
    start("bigbatch-exp", "ps", "worker", "--server", server.address)
    until(lambda: server.status()["versions"])
    joined = ("joined", "reading", "computing", "pushing", "waiting")
    for number, phase in enumerate(("joining", *joined)):
        held = start(*HELD, phase, "--server", server.address)
        until(lambda held=held, phase=phase: f"holding: {phase}" in held.err())
        if phase in joined:
            assert len(server.status()["workers"]) == 2
        os.kill(held.process.pid, signal.SIGKILL)
        until(lambda: len(server.status()["workers"]) == 1)
        server.goes_on()
        dropped = server.status()["counts"]["dropped workers"]
        assert dropped == number
    server.job.process.send_signal(signal.SIGTERM)
    assert server.job.wait(10).status == 130


@pytest.mark.slow
def test_a_worker_that_is_paused_is_dropped_and_told_so_and_joins_again(start: Start, tmp_path: Path):
    server = Served(start, "--tokens", "50M", "--arms", "small", "--patience", 1)
    start("bigbatch-exp", "ps", "worker", "--server", server.address)
    until(lambda: server.status()["versions"])
    paused = start(*HELD, "computing", "--server", server.address)
    until(lambda: "holding" in paused.err())
    assert len(server.status()["workers"]) == 2
    paused.process.send_signal(signal.SIGSTOP)
    until(lambda: len(server.status()["workers"]) == 1)
    server.goes_on()
    (tmp_path / "go").touch()
    paused.process.send_signal(signal.SIGCONT)
    until(lambda: "has joined" in paused.err())
    assert re.search(
        r"The server heard nothing of this worker for 1\.\d s and went on without it, at version", paused.err()
    )
    state = until(lambda: [state for state in [server.status()] if len(state["workers"]) == 2])[0]
    assert state["counts"]["dropped workers"] == 1
    assert all(worker["clock"] > 0 for worker in state["workers"])
    server.goes_on()


@pytest.mark.slow
@pytest.mark.parametrize("consistency", ["sync"])
def test_a_server_that_is_killed_again_and_again_goes_on_from_its_snapshots(start: Start, consistency):
    options = ["--consistency", consistency, "--arms", "small", "--tokens", "100k", "--snapshot", "state", "--json"]
    options += ["--snapshot-seconds", "0.05", "--patience", "2", "--batch-size", "16", "--accumulate", "1", "-n", "2"]
    server = Served(start, *options)
    workers = [start("bigbatch-exp", "ps", "worker", "--server", server.address, "--deadline", 60) for _ in range(2)]
    for _ in range(2):
        server.goes_on()
        time.sleep(0.3)
        os.kill(server.job.process.pid, signal.SIGKILL)
        server.job.process.wait(10)
        server = Served(start, *options, port=server.port)
        assert "Went on with the arm small from version" in server.job.err()
    outcomes = [worker.wait(90) for worker in workers]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    outcome = server.job.wait(20)
    assert outcome.status == 0, outcome.err
    (arm,) = json.loads(outcome.out)["arms"]
    (counted,) = arm["servers"]
    assert arm["tokens"] == 100_000  # what was lost was computed again, and nothing counted twice
    assert counted["shares_undone"] == 0
    lost = [int(n) for o in outcomes for n in re.findall(r"had acknowledged, (\d+) are lost", o.err)]
    assert counted["gradients_lost"] == sum(lost)
    assert all("has joined" in outcome.err for outcome in outcomes)


@pytest.mark.slow
def test_of_two_servers_that_are_killed_each_takes_every_share_once(start: Start):
    """Kind K9: each goes on from a snapshot of another moment, and the workers bring them together."""
    options = ["--consistency", "sync", "--arms", "small", "--tokens", "60k", "--json", "-n", 2, "--patience", 2]
    options += ["--snapshot-seconds", "0.5", "--batch-size", "16", "--accumulate", "1"]
    own = [[*options, "--part", f"{part}/2", "--snapshot", f"state{part}", "--out", f"out{part}"] for part in (1, 2)]
    servers = [Served(start, *each) for each in own]
    addresses = [word for server in servers for word in ("--server", server.address)]
    workers = [start("bigbatch-exp", "ps", "worker", *addresses, "--deadline", 60) for _ in range(2)]
    for place in (1, 0):
        servers[place].goes_on()
        time.sleep(0.7)
        os.kill(servers[place].job.process.pid, signal.SIGKILL)
        servers[place].job.process.wait(10)
        servers[place] = Served(start, *own[place], port=servers[place].port)
        assert "Went on with the arm small from version" in servers[place].job.err()
    outcomes = [worker.wait(90) for worker in workers]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    for server in servers:
        outcome = server.job.wait(40)
        assert outcome.status == 0, outcome.err
        (arm,) = json.loads(outcome.out)["arms"]
        assert arm["tokens"] == 60_000
        assert arm["servers"][0]["shares_undone"] == 0
        assert arm["remarks"] == []


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_said_at_once_and_workers_that_wait_are_told(start: Start, tmp_path: Path):
    """Kind K9; https://github.com/pytorch/pytorch/issues/10577 is the same trouble with a checkpoint."""
    (tmp_path / "state").mkdir()
    port = free_port()
    worker = start("bigbatch-exp", "ps", "worker", "--server", f"tcp://127.0.0.1:{port}", "--deadline", 60)
    until(lambda: "Waiting for the server" in worker.err())
    limited = [sys.executable, str(PROGRAMS / "small_files.py"), "20000", "ps", "serve", "--snapshot", "state"]
    server = start(*limited, "--bind", f"tcp://127.0.0.1:{port}", *TINY)
    outcome = server.wait(60)
    assert outcome.status == 2, outcome.err
    sentence = outcome.err.strip().splitlines()[-1]
    assert "The snapshot state/snapshot.pt.next cannot be written: File too large. Make room" in sentence
    assert "Traceback" not in outcome.err
    told = worker.wait(20)
    assert told.status == 1
    assert "has ended: The snapshot state/snapshot.pt.next cannot be written" in told.err


@pytest.mark.slow
def test_a_worker_that_was_paused_hears_from_a_server_that_is_done(start: Start, tmp_path: Path):
    """Kind K9: it sleeps over the end of its server, which lingers for it."""
    server = Served(start, "--arms", "small", "--consistency", "async", "--patience", 1)
    addresses = ["--server", server.address, "--deadline", 60]
    paused = start(*HELD, "computing", *addresses)
    until(lambda: "holding" in paused.err())
    paused.process.send_signal(signal.SIGSTOP)
    assert start("bigbatch-exp", "ps", "worker", *addresses).wait(60).status == 0
    (tmp_path / "go").touch()
    paused.process.send_signal(signal.SIGCONT)
    assert paused.wait(20).status == 0, paused.err()
    outcome = server.job.wait(40)
    assert outcome.status == 0, outcome.err


@pytest.mark.slow
def test_strangers_are_refused_and_cost_nobody_anything(start: Start, run: Run, tmp_path: Path):
    mine, others = Keys.new(), Keys.new()
    mixed = Keys(mine.server_public, others.worker_public, others.worker_secret)
    for keys, name in ((mine, "course.keys"), (others, "other.keys"), (mixed, "mixed.keys")):
        keys.write(tmp_path / name)
    server = Served(start, "--keys", "course.keys", "--arms", "small", "--json")

    def as_worker(*keys: str):
        return run("bigbatch-exp", "ps", "worker", "--server", server.address, "--deadline", 20, *keys)

    without, with_others = as_worker(), as_worker("--keys", "other.keys")
    assert (without.status, with_others.status) == (1, 1)
    assert "it wants keys: say --keys FILE" in without.err
    assert "these keys are another server's" in with_others.err
    unknown = as_worker("--keys", "mixed.keys")
    assert unknown.status == 1
    assert "does not know these keys" in unknown.err
    with socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 10)
    state = server.status(mine)
    assert state["versions"] == 0
    assert state["workers"] == []
    assert state["counts"]["turned away"] >= 3
    assert as_worker("--keys", "course.keys").status == 0
    outcome = server.job.wait(20)
    assert outcome.status == 0, outcome.err


@pytest.mark.slow
def test_bytes_of_any_kind_are_counted_and_dropped(start: Start, run: Run):
    server = Served(start, "--arms", "small", "--json")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 500
        stranger.connect(server.address)
        for frames in (
            [b""],
            [b"bbps"],
            [b"x" * 56],
            [os.urandom(56), os.urandom(1000)],
            [b"bbps" + os.urandom(52)] * 5,
        ):
            stranger.send_multipart(frames)
        until(lambda: server.status()["counts"]["malformed"] == 5)
        stranger.send(b"x" * 10_000_000)  # ZeroMQ hangs up before there is room made for it
        time.sleep(0.5)
        state = server.status()
    assert (state["versions"], state["workers"]) == (0, [])
    worker = run("bigbatch-exp", "ps", "worker", "--server", server.address, "--deadline", 20)
    assert worker.status == 0, worker.err
    assert server.job.wait(20).status == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["serve", "--bind", "tcp://0.0.0.0:5555"], "listens only to its own machine"),
        (["serve", "--bind", "tcp://nonsense", "--keys", "course.keys"], "'tcp://nonsense' is no address"),
        (["serve", "--keys", "course.worker.keys"], "worker's keys; a server needs"),
        (["serve", "--keys", "open.keys"], "can be read by others"),
        (["serve", "--keys", "none.keys"], "Make some with: bigbatch-exp ps keys none.keys"),
        (["serve", "--keys", "text.keys"], "holds no keys"),
        (["serve", "--part", "3/2"], "is no part"),
        (["serve", "--snapshot", "text.keys"], "cannot be written"),
        (["serve", "--snapshot", "broken"], "is no snapshot of a server"),
        (["serve", "--vocabulary", "broken"], "Workers on a network would not have the tokenizer in the folder broken"),
        (["serve", "--consistency", "backup", "-n", "1"], "leaves nobody of 1 workers"),
        (["worker", "--server", "nonsense"], "'nonsense' is no address"),
        (["worker", "--server", "tcp://127.0.0.1:9", "--deadline", "2"], "has not answered for 2 s"),
        (["status", "--server", "tcp://127.0.0.1:9", "--deadline", "2"], "has not answered for 2 s"),
        (["keys", "course.keys"], "keys are never overwritten"),
        (["keys", "nowhere/course.keys"], "cannot be written"),
        (["keys", "."], "There is a file . already"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command, message):
    made = Keys.new()
    made.write(tmp_path / "course.keys")
    made.for_workers().write(tmp_path / "course.worker.keys")
    made.write(tmp_path / "open.keys")
    (tmp_path / "open.keys").chmod(0o644)
    (tmp_path / "text.keys").write_text("text")
    (tmp_path / "text.keys").chmod(0o600)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "snapshot.pt").write_text("broken")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((BigBatchError, click.UsageError)) as refused:
        cli(["ps", command[0], *(TINY if command[0] == "serve" else []), *command[1:]], standalone_mode=False)
    assert message in str(refused.value)


@pytest.mark.slow
def test_a_command_that_is_refused_says_so_in_one_line_and_a_status(run: Run):
    outcome = run("bigbatch-exp", "ps", "serve", "--bind", "tcp://0.0.0.0:5555")
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    outcome = run("bigbatch-exp", "ps", "worker", "--server", "tcp://127.0.0.1:9", "--deadline", "2")
    assert outcome.status == 1
    assert "Waiting for the server at tcp://127.0.0.1:9" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_a_snapshot_of_another_experiment_is_refused_by_name(start: Start, run: Run):
    server = Served(start, "--snapshot", "state")
    worker = start("bigbatch-exp", "ps", "worker", "--server", server.address)
    until(lambda: server.status()["versions"])
    server.job.process.send_signal(signal.SIGTERM)
    assert server.job.wait(20).status == 130
    worker.kill()
    outcome = run("bigbatch-exp", "ps", "serve", "--snapshot", "state", *TINY, "--learning-rate", "0.5")
    assert outcome.status == 2
    assert "another experiment: learning_rate was 0.001 and is 0.5 now" in outcome.err


def test_a_snapshot_is_never_unpickled(run: Run, tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    (tmp_path / "state").mkdir()
    torch.save({"when": 0, "asked": Evil()}, tmp_path / "state" / "snapshot.pt")
    outcome = run("bigbatch-exp", "ps", "serve", "--snapshot", "state", *TINY)
    assert outcome.status == 2
    assert "is no snapshot of a server" in outcome.err
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_parts_of_the_parameters_lie_on_several_servers(start: Start, run: Run):
    servers = [Served(start, "--part", f"{part}/2", "--arms", "small", "--json", "-n", 2) for part in (1, 2)]
    addresses = [word for server in servers[::-1] for word in ("--server", server.address)]
    missing = run("bigbatch-exp", "ps", "worker", *addresses[:2])
    assert missing.status == 1
    assert "hold the parts 2 of 2" in missing.err
    workers: list[Job] = [start("bigbatch-exp", "ps", "worker", *addresses, "--deadline", 30) for _ in range(2)]
    assert [worker.wait(60).status for worker in workers] == [0, 0]
    for server in servers:
        outcome = server.job.wait(20)
        assert outcome.status == 0, outcome.err
        (arm,) = json.loads(outcome.out)["arms"]
        assert arm["servers"][0]["gradients_taken"] == 2 * arm["updates"]
