"""Servers on a network that is made up and does its worst."""

import copy
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import BATCH, EXAMPLES, UPDATES, Sequences, flat, new_model, optimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_network import FACTS, FOREVER, PHASES, Faults, Network, Worker, new_server
from torch import nn

from bigbatch.comm.errors import MismatchError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Asynchronous, BackupWorkers, BoundedStaleness, Synchronous
from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.messages import HEADER, MAGIC, NOTHING, PROTOCOL, Kind, Message, Stage
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import StaleGradients
from bigbatch.comm.strategies.remote import RemoteServers, facts_about
from bigbatch.comm.transports.alone import Alone
from bigbatch.training.batches import BatchPlan
from bigbatch.training.trainer import Trainer


@pytest.mark.parametrize(
    ("rule", "count", "parts"),
    [
        (Synchronous(), 1, 1),
        (Synchronous(), 3, 2),
        (Synchronous(), 5, 3),
        (BoundedStaleness(0), 3, 1),
        (BackupWorkers(0), 4, 2),
        (Asynchronous(), 1, 3),
        (BoundedStaleness(2), 1, 1),
    ],
)
@pytest.mark.parametrize("faults", [Faults(), Faults(seed=1, delay=3.0, drop=0.2, twice=0.2)])
def test_what_amounts_to_a_synchronous_server_equals_the_plain_loop(oracle, rule, count, parts, faults):
    """On a good network and a bad one. A share is an equal part of a batch, so that an update takes the same data."""
    accumulation = 2
    plan = BatchPlan(BATCH // count // accumulation, accumulation, workers=1)
    parameters = FlatParameters(new_model())
    bounds = np.arange(parts + 1) * len(parameters.values) // parts
    servers = []
    for first, stop in itertools.pairwise(bounds.tolist()):
        shard = Shard(
            parameters.values[first:stop].clone(), parameters.pieces(first, stop), optimizer, rule, StaleGradients()
        )
        facts, shares = facts_about(parameters), plan.updates(EXAMPLES)
        servers.append(
            NetworkServer(shard, shares, "{}", facts, FOREVER, expected=count, part=len(servers), parts=parts)
        )
    network = Network(servers[0], faults, servers[1:])

    def work(*shards: RemoteShard) -> None:
        model = new_model()
        nn.init.normal_(model.tokens.weight)  # start must replace these by the servers'
        own = FlatParameters(model)
        strategy = RemoteServers(Alone(), shards, ())
        strategy.start(own, optimizer)
        trainer = Trainer(model, Sequences(), strategy, own, plan, EXAMPLES, seed=7, overlap=False)
        assert all(update.applied for update in trainer.updates())
        for shard in shards:
            shard.leave()

    for _ in range(count):
        network.add(work)
    network.run()
    parameters.values.copy_(torch.cat([server.shard.values for server in servers]))
    module = new_model()
    FlatParameters(module).values.copy_(parameters.values)
    torch.testing.assert_close(flat(module), torch.load(oracle)[0], rtol=1e-12, atol=1e-14)
    assert {server.shard.version for server in servers} == {UPDATES}


FAULTS = st.builds(
    Faults,
    seed=st.integers(0, 2**32),
    delay=st.sampled_from([0.01, 1.0, 30.0]),
    drop=st.sampled_from([0.0, 0.1, 0.4]),
    twice=st.sampled_from([0.0, 0.3]),
)


@settings(max_examples=60, deadline=None)
@given(FAULTS, st.integers(1, 4), st.integers(0, 3))
def test_no_gradient_is_lost_or_counted_twice_whatever_the_network_does(faults, count, kind):
    rule = [Asynchronous(), Synchronous(), BoundedStaleness(2), BackupWorkers(min(1, count - 1))][kind]
    network = Network(new_server(rule), faults)
    workers = [Worker(network, pushes=6, size=10**n) for n in range(count)]
    for worker in workers:
        network.add(worker)
    network.run()
    shard = network.server.shard
    acknowledged = sum(worker.shard.acknowledged for worker in workers)
    assert acknowledged == shard.taken + shard.dropped == 6 * count
    if kind == 0:  # SGD with a rate of 1 has added up exactly what was acknowledged
        assert shard.values.tolist() == (-sum(worker.acknowledged for worker in workers)).tolist()
    assert network.server.lost == 0
    assert not network.server.present


@pytest.mark.parametrize("rule", [Synchronous(), BoundedStaleness(1), Asynchronous(), BackupWorkers(1)])
@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_is_killed_in_any_phase_holds_nobody_back(phase, rule):
    """What it was to compute, another computes: every share of the data is trained on."""
    network = Network(new_server(rule, shares=20, patience=3.0, expected=3))
    workers = [Worker(network), Worker(network), Worker(network, phase=phase)]
    for worker in workers:
        network.add(worker)
    network.run()
    server = network.server
    network.idle(10)
    assert server.counts["dropped workers"] == 1
    assert server.undone == 0
    assert not server.present
    assert server.stage is Stage.FINISHED
    if not server.shard.dropped:
        assert server.shard.tokens == 20
    assert server.shard.taken + server.shard.dropped == 20


@pytest.mark.parametrize("rule", [Synchronous(), Asynchronous()])
@pytest.mark.parametrize("phase", PHASES[1:-1])
def test_a_worker_that_is_paused_is_dropped_and_told_so_and_joins_again(phase, rule):
    network = Network(new_server(rule, shares=60, patience=3.0, expected=2))
    paused = Worker(network, phase=phase, silence=8.0)
    others = Worker(network)
    network.add(paused)
    network.add(others)
    network.run()
    server = network.server
    assert server.counts["dropped workers"] == 1
    (told,) = paused.told
    assert "heard nothing of this worker for 3." in told
    assert "has joined made-up again" in told
    assert paused.shard.life == 2
    assert paused.computed > 5  # it has gone on
    assert server.shard.taken == 60
    assert server.undone == server.lost == 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(FAULTS, st.integers(1, 3), st.floats(0.0, 6.0), st.floats(0.0, 6.0), st.booleans())
def test_a_server_that_was_killed_goes_on_from_its_snapshot(faults, count, kept_at, between, synchronous):
    """What was acknowledged is in the snapshot or reported as lost, and what is lost is computed again."""
    rule = Synchronous() if synchronous else Asynchronous()
    shares = 60 * count  # so many that every worker is still there, and can say what it has lost
    network = Network(new_server(rule, shares, expected=count), faults)
    workers = [Worker(network) for _ in range(count)]
    kept = []

    def keep() -> None:
        kept.append(copy.deepcopy(network.server.state_dict()))

    def restart() -> None:
        network.servers[0] = new_server(rule, shares, expected=count)
        network.server.load_state_dict(kept[-1])

    network.at(kept_at, keep)
    network.at(kept_at + between, restart)
    network.at(kept_at + between + 4, keep)
    network.at(kept_at + between + 6, restart)
    for worker in workers:
        network.add(worker)
    network.run()
    server, shard = network.server, network.server.shard
    assert shard.taken == shard.tokens == shares
    assert server.undone == 0
    assert sum(worker.shard.acknowledged for worker in workers) == shard.taken + server.lost
    again = sum("has joined made-up again" in sentence for worker in workers for sentence in worker.told)
    assert again <= 2 * count


def test_a_gradient_of_a_worker_that_has_gone_is_not_forgotten_by_a_snapshot():
    """It waits for the others' when the snapshot is made: its share must be computed again, and the loss reported."""
    network = Network(new_server(Synchronous(), shares=4, patience=3.0, expected=2))
    for worker in (Worker(network), Worker(network)):
        network.add(worker)
    server = network.server
    while not (server.sessions and any(session.pushes for session in server.sessions.values())):
        network.step()
    (session,) = [session for session in server.sessions.values() if session.pushes]
    server.members.remove(session, "it has gone", network.time)
    state = server.state_dict()
    assert state["shares"] == {"handed_out": 2, "in": []}  # its own is not in, nor what the other computes on
    again = new_server(Synchronous(), shares=4)
    again.load_state_dict(state)
    facts = json.dumps(FACTS).encode()
    again.receive(b"", Message(Kind.JOIN, session.number, 9, version=1, payload=(facts,)).frames(), 0.0)
    assert again.lost == 1
    assert again.undone == 4


def test_of_attempts_to_read_only_the_last_counts():
    """An older one that comes late must not be answered: its answer would have another version."""
    server = new_server(Asynchronous())
    facts = json.dumps(FACTS).encode()
    for session in (1, 2):
        server.receive(b"", Message(Kind.JOIN, session, 1, payload=(facts,)).frames(), 0.0)
        server.receive(b"", Message(Kind.READ, session, 1, attempt=1, version=NOTHING).frames(), 0.0)
    server.receive(
        b"", Message(Kind.PUSH, 2, 1, number=1, weight=1, flag=True, payload=(np.ones(3).data,)).frames(), 0.0
    )
    assert server.receive(b"", Message(Kind.READ, 1, 1, attempt=0, version=NOTHING).frames(), 0.0) == []
    assert server.shard.has(0) == 0
    assert server.shard.version == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([("parameter", "weight", "[1, 3] float32")], "the worker has 'parameter weight .1, 3. float32' where the"),
        ([("parameter", "bias", "[1, 3] float64")], "worker has 'parameter bias .*server has the parameter 'weight'"),
        ([], "the worker lacks the parameter 'weight'"),
        ([*FACTS, ("parameter", "bias", "[1] float64")], "the worker has .*bias.* besides, which the server lacks"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(facts, message):
    network = Network(new_server(Synchronous()))

    def work(shard: RemoteShard) -> None:
        with pytest.raises(MismatchError, match=message):
            shard.join(facts)

    network.add(work)
    network.run()
    assert network.server.counts["refused"] == 1
    assert not network.server.present


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payload": (np.ones(4).data,)}, "32 bytes where 3 .24 bytes. of float64 belong"),
        ({"payload": ()}, "without its buffer"),
        ({"payload": (np.ones(3).data, b"")}, "2 buffers instead of one"),
        ({"version": 7}, "computed on version 7, but the worker has read 0"),
        ({"weight": math.nan}, "weight nan does not follow"),
        ({"weight": -1.0}, "weight -1 does not follow"),
        ({"number": 3}, "push 3 with weight 1 does not follow 0"),
    ],
)
def test_a_push_that_does_not_fit_is_refused_and_changes_nothing(changes, message):
    server = new_server(Asynchronous())
    server.receive(b"", Message(Kind.JOIN, 1, 1, payload=(json.dumps(FACTS).encode(),)).frames(), 0.0)
    server.receive(b"", Message(Kind.READ, 1, 1, version=NOTHING).frames(), 0.0)
    push = Message(Kind.PUSH, 1, 1, number=1, weight=1.0, flag=True, payload=(np.ones(3).data,))
    ((_, frames),) = server.receive(b"", replace(push, **changes).frames(), 0.0)
    answer = Message.of(frames)
    assert answer.kind is Kind.REFUSED
    assert re.search(message, answer.text())
    assert server.shard.values.tolist() == [0.0] * 3
    server.receive(b"", push.frames(), 0.0)
    assert server.shard.values.tolist() == [-1.0] * 3


HEADERS = st.builds(
    HEADER.pack,
    st.sampled_from([MAGIC, b"bbpt"]),
    st.sampled_from([PROTOCOL, PROTOCOL, PROTOCOL, 1]),
    st.integers(0, 30),
    st.integers(0, 2),
    *[st.integers(0, 3)] * 2,
    st.integers(0, 2),
    *[st.integers(0, 3) | st.just(NOTHING)] * 3,
    *[st.floats()] * 2,
)
FRAMES = st.lists(st.binary(max_size=100) | HEADERS | st.just(np.ones(3).tobytes()), max_size=4)
TALK = st.tuples(
    HEADERS, st.lists(st.sampled_from([b"[]", b"[[[", json.dumps(FACTS).encode()]) | st.binary(max_size=30))
)


@settings(max_examples=250, deadline=None)
@given(st.lists(FRAMES | TALK.map(lambda talk: [talk[0], *talk[1]]), max_size=20))
def test_a_strangers_bytes_change_nothing(messages):
    """Whoever has not joined and read cannot push, whatever it says; and nothing that is said ends the server."""
    server = new_server(Asynchronous(), expected=100)
    for frames in messages:
        for _, answer in server.receive(b"stranger", frames, 0.0):
            assert Message.of(answer).kind not in (Kind.TAKEN, Kind.VALUES)
        server.tick(0.0)
    assert server.shard.values.tolist() == [0.0] * 3
    assert server.shard.version == 0
    assert server.counts["messages"] == len(messages)
    json.dumps(server.status(0.0))
    assert server.receive(b"", Message(Kind.HELLO).frames(), 0.0)
