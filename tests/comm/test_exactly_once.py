"""Every share of the data goes into every part of the parameters exactly once, whoever is killed or paused meanwhile.

Kind K9, from parameter servers of which one is killed: https://github.com/dmlc/parameter_server/issues/32 (the others
hang), https://github.com/alibaba/x-deeplearning/issues/53 (is the restored one far behind the others?) and
https://github.com/tensorflow/tensorflow/issues/7767 (what each of the workers does).
"""

import json

import numpy as np
import pytest
from jobs import quick
from made_up_network import FACTS, FOREVER, Faults, Network, Worker, new_server
from made_up_trials import RULES, Trial

from bigbatch.comm.errors import MalformedError, MismatchError
from bigbatch.comm.server.consistency import Asynchronous, Synchronous
from bigbatch.comm.server.network.ending import ALONE_SECONDS, ALONE_SECONDS_IN_PARTS
from bigbatch.comm.server.network.messages import NOTHING, Kind, Message, Stage
from bigbatch.comm.server.network.remote_shard import EndedError, RemoteShard
from bigbatch.comm.server.network.shares import Shares, in_words

SEEDS = [*(range(seed, seed + 1) for seed in range(24)), *(range(first, first + 61) for first in range(24, 1000, 61))]
"""24 seeds one by one, and then the others below 1000."""


@pytest.mark.parametrize("seeds", quick(SEEDS, lambda seeds: len(seeds) == 1))
def test_every_share_goes_into_every_part_once_and_every_trial_ends(seeds):
    """Servers and workers are killed and paused, messages lost and doubled; every rule with 1, 2 and 3 servers."""
    for one in seeds:
        arms = 1 + one // 12 % 2
        trial = Trial(one, rule=list(RULES)[one % 4], parts=1 + one // 4 % 3, shares=40 // arms, arms=arms)
        trial.run()
        trial.check()


@pytest.mark.parametrize("rule", RULES)
def test_what_one_server_has_lost_the_others_let_pass(rule):
    """The second of two servers goes on from before everything; the first trains no share twice."""
    trial = Trial(0, rule, parts=2, kills=False)
    first, second = trial.places
    trial.at(6.0, lambda: trial.kill(second))
    trial.at(6.0, lambda: setattr(second, "disk", None))
    trial.run()
    trial.check()
    assert second.killed == 1
    assert first.server.counts["passed"] >= 3
    assert first.server.shard.version <= 40
    assert not first.server.ending.given_up
    assert not second.server.ending.given_up


def test_a_server_that_was_killed_is_brought_to_the_others_version_before_new_shares():
    trial = Trial(0, "async", parts=2, kills=False)
    first, second = trial.places
    trial.at(6.0, lambda: trial.kill(second))
    while first.server.shares.left:
        trial.step()
    assert second.killed == 1
    assert first.server.counts["passed"] > 0
    lost = [share for begin, stop in second.server.shares.missing() for share in range(begin, stop)]
    assert min(lost) >= 40 - 2 * trial.workers  # those in work and on the way
    trial.run()
    trial.check()


def silent_server(parts: int = 1, shares: int = 2):
    """A server that has handed out everything, and whose worker has gone."""
    told: list[str] = []
    server = new_server(Asynchronous(), shares=shares, patience=3.0, tell=told.append, parts=parts)
    network = Network(server)
    worker = Worker(network, phase="computing")
    network.add(worker)
    network.run()
    network.idle(5)
    return server, network, told


def test_a_share_that_nobody_comes_back_for_is_waited_for_and_named():
    server, network, told = silent_server(shares=3)
    assert server.stage is Stage.OPEN
    assert "Of 3 shares of the data, from 0, 1 are not trained: 2, and no worker is there; waiting 60 s" in told[-1]
    network.idle(ALONE_SECONDS - 10)
    assert server.stage is Stage.OPEN
    network.idle(12)
    assert server.stage is Stage.FINISHED
    assert server.ending.missing_in_words == "Of 3 shares of the data, from 0, 1 are not trained: 2"


def test_a_worker_that_comes_in_time_trains_what_another_left():
    server, network, _ = silent_server(shares=3)
    network.idle(ALONE_SECONDS / 2)
    network.add(Worker(network))
    network.run()
    assert server.stage is Stage.FINISHED
    assert server.undone == 0
    assert server.shard.tokens == 3


def test_a_server_that_was_started_again_waits_for_its_workers():
    """Near the end everything is handed out; the server must not end with what its workers had in work."""
    server = new_server(Asynchronous(), shares=3)
    network = Network(server)
    network.add(Worker(network))
    while server.shares.left:
        network.step()
    again = new_server(Asynchronous(), shares=3, patience=3.0)
    again.load_state_dict(server.state_dict())
    again.tick(1000.0)
    assert again.stage is Stage.OPEN
    again.tick(1000.0 + ALONE_SECONDS / 2)
    assert again.stage is Stage.OPEN
    assert again.ending.lingers(1030.0, 1040.0)  # its worker is somewhere


@pytest.mark.parametrize(("now", "expected"), [(100.0, [98.0, 99.5, 100.0]), (600.0, [500.0, 501.5, 502.0])])
def test_what_was_noted_before_a_clock_was_set_back_is_not_ahead_of_what_comes(now, expected):
    """Time trained is counted from the notes; it stood still until the clock was where it had been before."""
    server = new_server(Asynchronous(), shares=3)
    joined(server, session=1)
    joined(server, session=2)
    for session, number, when in ((1, 0, 500.0), (2, 0, 501.5), (1, 1, 502.0)):
        note = Message(Kind.NOTE, session, life=1, number=number, payload=(np.zeros(3).tobytes(),))
        server.receive(b"", note.frames(), when)
    again = new_server(Asynchronous(), shares=3)
    again.load_state_dict(server.state_dict())
    again.members.date_back(now)
    assert sorted(when for one in again.sessions.values() for when, _ in one.notes.values()) == expected


def test_a_complete_part_waits_for_the_word_that_the_others_are_and_not_for_ever():
    server = new_server(Asynchronous(), shares=0, patience=3.0, parts=2)
    server.tick(0.0)
    assert server.stage is Stage.CLOSING  # what is not kept can be lost
    server.ending.kept = True
    assert server.stage is Stage.COMPLETE
    hello = Message(Kind.HELLO, version=7).frames()
    ((_, frames),) = server.receive(b"", hello, 1.0)
    welcome = Message.of(frames)
    assert (welcome.number, welcome.entries(1)) == (Stage.COMPLETE, [])
    server.receive(b"", Message(Kind.RELEASE, payload=(b'"another arm"',)).frames(), 2.0)
    assert server.stage is Stage.COMPLETE
    server.tick(ALONE_SECONDS_IN_PARTS - 1)
    assert server.stage is Stage.COMPLETE
    server.receive(b"", Message(Kind.RELEASE, payload=(b'"announcement"',)).frames(), 2.0)
    assert server.stage is Stage.FINISHED
    alone = new_server(Asynchronous(), shares=0, patience=3.0, parts=2)
    alone.ending.kept = True
    alone.tick(0.0)
    alone.tick(ALONE_SECONDS_IN_PARTS)
    assert alone.stage is Stage.FINISHED
    assert alone.ending.given_up


def test_a_part_that_misses_a_share_is_not_released():
    server = new_server(Asynchronous(), shares=1, parts=2)
    server.receive(b"", Message(Kind.RELEASE, payload=(b'"announcement"',)).frames(), 2.0)
    assert not server.ending.released


def test_a_server_lingers_until_its_workers_have_heard_that_all_is_done():
    server = new_server(Asynchronous(), shares=0)
    server.receive(b"", Message(Kind.HELLO, version=7).frames(), 0.0)
    assert server.ending.lingers(0.0, 2.9)
    assert not server.ending.lingers(0.0, 3.1)
    waiting = new_server(Asynchronous(), shares=0)
    waiting.members.asked(7, 0.0, finished=False)
    assert waiting.ending.lingers(0.0, 29.0)
    assert not waiting.ending.lingers(0.0, 31.0)
    waiting.receive(b"", Message(Kind.HELLO, version=7).frames(), 10.0)
    assert waiting.ending.lingers(0.0, 12.0)
    assert not waiting.ending.lingers(0.0, 14.0)


def test_a_server_does_not_linger_for_a_worker_that_was_refused_or_failed():
    server = new_server(Asynchronous(), shares=3)
    network = Network(server)

    def refused(shard: RemoteShard) -> None:
        shard.hello()
        with pytest.raises(MismatchError):
            shard.join([*FACTS, ("optimizer", "name", "its own")])
        shard.end(2.0)

    def failed(shard: RemoteShard) -> None:
        shard.hello()
        shard.join(FACTS)
        shard.note(np.zeros(3))
        shard.end(2.0)

    def hung(shard: RemoteShard) -> None:
        shard.hello()
        shard.join(FACTS)

    for work in (refused, failed):
        network.add(work)
    network.run()
    assert not server.present
    assert not server.ending.lingers(network.time, network.time + 3.1)
    assert [len(session.notes) for session in server.sessions.values()] == [1]
    network.add(hung)
    network.run()
    assert server.ending.lingers(network.time, network.time + 3.1)


def joined(server, session: int = 1) -> None:
    server.receive(b"1", Message(Kind.JOIN, session, 1, payload=(json.dumps(FACTS).encode(),)).frames(), 0.0)
    server.receive(b"1", Message(Kind.READ, session, 1, version=NOTHING).frames(), 0.0)


def push(server, session: int = 1, number: int = 1, **changes):
    version = server.shard.has(server.sessions[session].worker)
    message = Message(
        Kind.PUSH, session, 1, number, version=version, weight=1.0, flag=True, payload=(np.ones(3).data,), **changes
    )
    return Message.of(server.receive(b"1", message.frames(), 0.0)[0][1])


@pytest.mark.parametrize(("part", "share"), [(0, 1), (0, 4), (1, 4), (1, NOTHING), (1, NOTHING - 1)])
def test_a_gradient_of_a_share_that_the_worker_was_not_given_is_refused(part, share):
    server = new_server(Asynchronous(), shares=4, part=part, parts=2)
    joined(server)
    answer = push(server, share=share)
    assert answer.kind is Kind.REFUSED
    assert "is not what this worker was given" in answer.text()
    assert server.shard.values.tolist() == [0.0] * 3


def test_the_same_share_from_two_workers_counts_once_and_holds_nobody_back():
    server = new_server(Synchronous(), shares=4, part=1, parts=2)
    joined(server, 1)
    joined(server, 2)
    push(server, 1, share=3)
    push(server, 2, share=3)
    assert (server.shard.taken, server.counts["passed"], server.shard.version) == (1, 1, 1)
    assert server.shard.values.tolist() == [-1.0] * 3
    assert server.shares.missing() == [(0, 3)]


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ({}, "stands where shares belong"),
        ([3], "stands where shares from one to another belong"),
        ([[3, 3]], "stands where"),
        ([[-1, 3]], "stands where"),
        ([[True, 3]], "stands where"),
        ([[0, 2**70]], "there are 10"),
        ([[0, 5], [4, 6]], "the share 4 twice"),
    ],
)
def test_a_stranger_cannot_have_shares_handed_out_that_there_are_not(entries, what):
    server = new_server(Asynchronous(), shares=10)
    message = Message(Kind.MISSING, payload=(json.dumps(entries).encode(),))
    ((_, frames),) = server.receive(b"", message.frames(), 0.0)
    answer = Message.of(frames)
    assert answer.kind is Kind.REFUSED
    assert what in answer.text()
    assert not server.shares.returned


def test_shares_that_are_missing_elsewhere_are_handed_out_once_more_each():
    shares = Shares(10)
    for share in range(6):
        assert shares.take() == share
        if share != 4:
            shares.put(share)
    for _ in range(3):
        shares.return_all([(1, 3), (4, 9)], in_work={4, None})
    assert [shares.take() for _ in range(5)] == [1, 2, 5, 6, 7]
    assert shares.missing() == [(4, 5), (6, 10)]
    assert in_words(shares.missing()) == "4, 6 to 9"
    with pytest.raises(MalformedError):
        shares.load_state_dict({"handed_out": 3, "in": [[0, 4]]})


def test_a_server_that_cannot_go_on_tells_its_workers_why():
    network = Network(new_server(Synchronous(), shares=100, patience=FOREVER), Faults())
    heard = []

    def work(shard: RemoteShard) -> None:
        worker = Worker(network)
        with pytest.raises(EndedError) as ended:
            worker.work(shard)
        heard.append(str(ended.value))

    for _ in range(2):
        network.add(work)
    network.at(5.0, lambda: network.deliver(network.server.end("The disk is full.")))
    network.run()
    assert heard == ["The server at made-up has ended: The disk is full."] * 2
