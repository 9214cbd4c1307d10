"""One sentence from whoever knows, when a server or a worker meets what it cannot talk to (kind K7)."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from jobs import SMALL

import bigbatch
from bigbatch.comm.errors import BigBatchError, CommunicationError, ConfigurationError, MismatchError
from bigbatch.comm.server.network.facts import difference
from bigbatch.comm.server.network.heartbeat import Heartbeat
from bigbatch.comm.server.network.keys import Keys
from bigbatch.comm.server.network.messages import MAGIC, PROTOCOL, Kind, Message, Stage
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.network.wire import Wire
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.training.served import offer
from bigbatch.experiments.training.served.offer import Announcement

TINY = [word for word in SMALL if word not in ("--deadline", "60")]
ANNOUNCED = {
    "version": bigbatch.__version__,
    "settings": {},
    "arm": "small",
    "micro_batch": 1,
    "accumulation": 1,
    "examples": 10,
    "part": 0,
    "parts": 1,
}


@contextlib.contextmanager
def answering(frames: list[bytes]) -> Iterator[str]:
    """The address of a program that answers every message in this way."""
    ended = threading.Event()
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def answer() -> None:
        while not ended.is_set():
            if router.poll(50):
                sender, asked, *_ = router.recv_multipart()
                head = frames[0]
                if len(head) == len(asked):  # an answer names the session that asked
                    head = head[:8] + asked[8:12] + head[12:16] + asked[16:24] + head[24:]
                router.send_multipart([sender, head, *frames[1:]])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        ended.set()
        thread.join()
        router.close()
        context.term()


def welcome(announced: object, stage: int = Stage.OPEN, missing: bytes = b"[]") -> list[bytes]:
    payload = (json.dumps(announced).encode(), missing)
    return [bytes(frame) for frame in Message(Kind.WELCOME, number=stage, payload=payload).frames()]


def state(entries: object) -> list[bytes]:
    return [bytes(frame) for frame in Message(Kind.STATE, payload=(json.dumps(entries).encode(),)).frames()]


def refused(*words: str) -> str:
    """What a command says when it is refused: one sentence."""
    with pytest.raises(BigBatchError) as error:
        cli(["ps", *words], standalone_mode=False)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    return str(error.value)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            welcome({**ANNOUNCED, "version": "9.9"}),
            "does not understand (it has version 9.9). Install the same version",
        ),
        (welcome({"version": "9.9", "new": 1}), "(it has version 9.9)"),
        (welcome([]), "does not understand"),
        (welcome(3), "does not understand"),
        (welcome({**ANNOUNCED, "examples": "many"}), "'many' is none of its numbers"),
        (welcome({**ANNOUNCED, "micro_batch": 0}), "0 is none of its numbers"),
        (welcome({**ANNOUNCED, "part": "0"}), "'0' is none of its numbers"),
        (welcome({**ANNOUNCED, "settings": 3}), "its settings are none"),
        (welcome({**ANNOUNCED, "settings": {"colour": 3}}), "are not those of this bigbatch (Settings has no"),
        (welcome(ANNOUNCED, stage=99), "stage 99, which stands for nothing"),
        (welcome(ANNOUNCED, missing=b"[[3, 1]]"), "does not say what it misses"),
        (welcome(ANNOUNCED)[:2], "does not say what it misses"),
        ([MAGIC + bytes([PROTOCOL + 1]) + bytes(100)], f"protocol {PROTOCOL + 1} arrived, but this program speaks"),
        ([b"HTTP/1.1 200 OK"], "is not understood: What arrived has no header"),
        (
            [bytes(frame) for frame in Message(Kind.ENDED, payload=(b"The disk is full.",)).frames()],
            "has ended: The disk",
        ),
    ],
)
def test_a_worker_says_what_is_wrong_with_its_server(monkeypatch, frames, message):
    monkeypatch.setattr("bigbatch.experiments.training.served.worker.FAREWELL_SECONDS", 0.1)  # to which nobody answers
    with answering(frames) as address:
        said = refused("worker", "--server", address, "--deadline", "20", "--quiet")
    assert message in said
    assert address in said


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (state([]), "is damaged"),
        (state({"versions": 3}), "is damaged"),
        (state({"shares": 3, "counts": []}), "is damaged"),
        ([MAGIC + bytes([PROTOCOL + 1])], "use the same version of bigbatch on both sides"),
    ],
)
def test_a_status_of_another_bigbatch_is_said(frames, message):
    with answering(frames) as address:
        for more in ([], ["--json"]):
            said = refused("status", "--server", address, "--deadline", "20", *more)
            assert message in said
            assert address in said


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_said(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Keys.new().write(tmp_path / "course.keys")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen at {address}: Address already in use" in refused("serve", "--bind", address, *TINY)
    foreign = ["--bind", "tcp://192.0.2.1:5555", "--keys", "course.keys"]  # an address for documentation, RFC 5737
    said = refused("serve", *foreign, *TINY)
    assert "cannot listen at tcp://192.0.2.1:5555" in said


def test_a_server_answers_a_worker_of_another_version_with_its_own():
    from made_up_network import new_server

    from bigbatch.comm.server.consistency import Asynchronous

    server = new_server(Asynchronous())
    ((_, frames),) = server.receive(b"", [MAGIC + bytes([PROTOCOL + 1, 1]) + bytes(200)], 0.0)
    answer = Message.of(frames)
    assert answer.kind is Kind.REFUSED
    assert "use the same version of bigbatch on both sides" in answer.text()


class Broken(Wire):
    name = "broken"

    def send(self, frames) -> None:
        pass

    def receive(self, seconds):  # noqa: ARG002
        raise CommunicationError("These keys are another server's.")

    def now(self) -> float:
        return 0.0


def test_a_heartbeat_that_hears_that_nothing_can_be_heard_ends_without_a_traceback(capfd):
    shard = RemoteShard(Broken(), session=1, deadline=1.0)
    heartbeat = Heartbeat([shard], lambda _: Broken())
    heartbeat.start()
    heartbeat.join(5)
    assert not heartbeat.is_alive()
    assert shard.hurry
    assert "Traceback" not in capfd.readouterr().err


def test_an_announcement_is_read_as_it_was_written():
    assert Announcement.of(ANNOUNCED, "here").plan.updates(10) == 10
    with pytest.raises(MismatchError, match="'version'"):
        Announcement.of({}, "here")


def test_the_arms_of_a_snapshot_are_those_of_the_experiment(tmp_path: Path, monkeypatch):
    from bigbatch.comm.server.network.snapshots import Snapshots

    monkeypatch.chdir(tmp_path)
    snapshots = Snapshots(tmp_path / "state")
    for kept in ({}, {"when": 0, "asked": 1, "results": "[]"}, {"when": 0, "asked": "[", "results": "[]"}):
        snapshots.save(kept)
        with pytest.raises(ConfigurationError, match="is no snapshot of a server: it does not say what was asked for"):
            cli(["ps", "serve", "--snapshot", "state", *TINY], standalone_mode=False)


def test_a_worker_of_servers_that_never_come_together_ends_by_its_deadline():
    one = welcome({**ANNOUNCED, "parts": 2, "arm": "small"}, Stage.CLOSING)
    other = welcome({**ANNOUNCED, "parts": 2, "part": 1, "arm": "large"})
    with answering(one) as first, answering(other) as second:
        said = refused("worker", "--server", first, "--server", second, "--deadline", "2", "--quiet")
    assert f"The servers {first}, {second} have trained different arms for 2 s" in said


def test_what_an_experiment_is_must_be_alike_whenever_a_worker_joins(monkeypatch):
    """At the address of a server that was killed, one of another experiment was started, with the same shapes."""
    monkeypatch.setattr(offer, "facts_about_task", lambda _: {"tokens": 5})

    def facts(**settings: object) -> list[list[str]]:
        return [list(fact) for fact in offer.facts_of(None, {"seed": 0, "width": 16, "threads": 1, **settings})]

    assert facts(threads=2) == facts(), "a server may go on from its snapshot with other threads"
    assert difference(facts(), facts(seed=7)) == (
        "the worker has 'option seed 0' where the server has the option 'seed', 7"
    )
