"""Replay against closed formulas and against the cluster, and the networks that it is replayed on."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_networks import ALPHA, BETA, GAMMA, LEAVES, LOCAL, NODES, ONE_SWITCH, SHARED_NICS, TWO_LEVELS

from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.collectives.broadcast import broadcast
from bigbatch.comm.collectives.chain import chain
from bigbatch.comm.collectives.hierarchical import hierarchical
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.schedule import moved
from bigbatch.comm.simulation import replay as replaying
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.network_file import as_entries, network_from, read_network
from bigbatch.comm.simulation.phases import Phase
from bigbatch.comm.simulation.replay import port_bytes, replay, replay_phases
from bigbatch.comm.simulation.round_by_round import Overtaking
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.transport import consecutive_nodes


def follow(monkeypatch):
    """Have every message followed on its own, instead of all of a round at once."""

    def overtake(*_, **__):
        raise Overtaking

    monkeypatch.setattr(replaying, "round_by_round", overtake)


def hops(ranks, n):
    return math.log2(ranks), (ranks - 1) / ranks * n


def chain_rounds(size, *, half):
    rounds = list(chain(size, 6))
    middle = len(rounds) // 2
    yield from rounds[:middle] if half == 0 else rounds[middle:]


def formulas():
    """(name, network, rounds, ranks, bytes, seconds), as the port model has them."""
    n, p = 960_000, 8
    lg, most = hops(p, n)
    yield "ring", ONE_SWITCH, ring, p, n, 2 * (p - 1) * ALPHA + 2 * most * BETA + most * GAMMA
    doubling = ALGORITHMS.load("recursive-doubling")
    yield "recursive doubling", ONE_SWITCH, doubling, p, n, lg * (ALPHA + n * BETA + n * GAMMA)
    halving = ALGORITHMS.load("halving-doubling")
    yield "halving-doubling", ONE_SWITCH, halving, p, n, 2 * lg * ALPHA + 2 * most * BETA + most * GAMMA
    yield "tree", ONE_SWITCH, ALGORITHMS.load("tree"), p, n, 2 * lg * (ALPHA + n * BETA) + lg * n * GAMMA
    yield "broadcast", ONE_SWITCH, broadcast, p, n, lg * (ALPHA + n * BETA)
    m, k = n / 6, 6
    for gamma in (GAMMA, 3 * BETA):
        network = Network("n", wire(ALPHA, 1 / BETA), gamma)
        seconds = (p - 1) * (ALPHA + m * BETA + m * gamma) + (k - 1) * m * max(BETA, gamma)
        yield f"chain reduce, γ {gamma}", network, partial(chain_rounds, half=0), p, n, seconds
    down = (p - 1) * (ALPHA + m * BETA) + (k - 1) * m * BETA
    yield "chain broadcast", ONE_SWITCH, partial(chain_rounds, half=1), p, n, down
    yield "naive", ONE_SWITCH, ALGORITHMS.load("naive"), p, n, 2 * ALPHA + 2 * (p - 1) * n * BETA + n * GAMMA
    yield "direct", ONE_SWITCH, ALGORITHMS.load("direct"), p, n, 2 * ALPHA + 2 * most * BETA + n / p * GAMMA
    for workers, servers in ((6, 1), (6, 3), (4, 4), (6, 2)):
        seconds = 2 * ALPHA + 2 * n * BETA * max(1, workers / servers) + n / servers * GAMMA
        rounds = partial(synchronous_server, servers=servers)
        yield f"{servers} servers for {workers}", ONE_SWITCH, rounds, workers + servers, n, seconds
    inside, across = hops(LOCAL, n)[1], hops(NODES, n / LOCAL)[1]
    seconds = 2 * (LOCAL - 1) * 1e-6 + 2 * inside / 1e11 + inside * GAMMA
    seconds += 2 * (NODES - 1) * ALPHA + 2 * across * BETA + across * GAMMA
    nodes = consecutive_nodes(LOCAL * NODES, LOCAL)
    yield "hierarchical", TWO_LEVELS, partial(hierarchical, nodes=nodes), LOCAL * NODES, n, seconds


CASES = list(formulas())


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_replay_equals_every_formula(case, one_by_one, monkeypatch):
    _, network, rounds, ranks, n, seconds = case
    if one_by_one:
        follow(monkeypatch)
    assert replay(rounds, network, ranks, n, itemsize=1).max() == pytest.approx(seconds, rel=1e-9)


def test_the_ring_of_the_specification():
    network = Network("n", wire(5e-6, 12.5e9))
    assert replay(ring, network, 256, 100_000_000, itemsize=1).max() == pytest.approx(0.0184875, rel=1e-9)


def executed(rounds, elements, starts):
    def work(transport):
        transport.spend(starts[transport.rank])
        values = np.full(elements, transport.rank + 1.0, dtype=np.float32)
        execute(rounds, transport, values)
        assert (values == transport.size * (transport.size + 1) / 2).all()
        return transport.now()

    return work


@pytest.mark.parametrize("network", [ONE_SWITCH, SHARED_NICS, LEAVES], ids=lambda network: network.name)
@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_replay_and_cluster_agree(name, network):
    generator = np.random.default_rng(1)
    for ranks, elements, late in (
        (3, 1003, 1e-4),
        (8, 700_000, 1e-3),
        (13, 1003, 0.0),
        (24, 5000, 1e-5),
        (64, 100, 1e-4),
    ):
        rounds = bind(ALGORITHMS.load(name), 4 * elements, consecutive_nodes(ranks, network.node_size))
        starts = generator.exponential(late, ranks) if late else np.zeros(ranks)
        there = Cluster(ranks, network=network).run(executed(rounds, elements, starts))
        np.testing.assert_allclose(replay(rounds, network, ranks, elements, starts=starts), there, rtol=1e-9)


def test_one_who_is_early_uses_a_port_while_it_is_idle():
    def rounds(_):
        yield moved(1, 0, chunk=0, reduce=False)
        yield moved(2, 0, chunk=0, reduce=False)

    idle = replay_phases([Phase(rounds, 1000, [0, 1e-3, 0], 1)], ONE_SWITCH, 3)
    assert idle[0].tolist() == [1e-3 + ALPHA + 1000 * BETA, 1e-3 + 1000 * BETA, 1000 * BETA]


def test_speeds_and_starts_of_single_ranks_count():
    slow = replay(ring, ONE_SWITCH, 4, 4000, speeds=[1, 1, 1, 0.5]).max()
    late = replay(ring, ONE_SWITCH, 4, 4000, starts=[0, 0, 0, 1.0]).max()
    even = replay(ring, ONE_SWITCH, 4, 4000).max()
    assert late == pytest.approx(1.0 + even)
    assert even < slow < even + 3 * 4000 * GAMMA + 1e-12
    with pytest.raises(ConfigurationError, match="speed must be a number above 0"):
        replay(ring, ONE_SWITCH, 4, 4000, speeds=0)


NAMES = [name for name in ALGORITHMS.names() if name != "hierarchical"]


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.integers(2, 20),
    alpha=st.floats(1e-7, 1e-3),
    bandwidth=st.floats(1e6, 1e11),
    elements=st.integers(1, 10**6),
    worse=st.floats(1.01, 100),
)
def test_what_is_worse_takes_a_ring_longer(ranks, alpha, bandwidth, elements, worse):
    """In a ring no two messages want a port at once; where they do, first come first served has its anomalies."""
    rounds = bind(ring, 4 * elements)

    def seconds(network, times=1.0):
        return replay(rounds, network, ranks, int(elements * times)).max()

    base = Network("base", wire(alpha, bandwidth), 1e-11)
    usual = seconds(base) * (1 - 1e-9)
    assert seconds(Network("later", wire(alpha * worse, bandwidth), 1e-11)) >= usual
    assert seconds(Network("narrower", wire(alpha, bandwidth / worse), 1e-11)) >= usual
    assert seconds(Network("slower", wire(alpha, bandwidth), 1e-11 * worse)) >= usual
    assert seconds(base, worse) >= usual
    assert seconds(Network("shared", wire(alpha, bandwidth), 1e-11, node_size=2)) >= usual
    assert seconds(Network("thin", wire(alpha, bandwidth), 1e-11, leaf_size=2, oversubscription=worse)) >= usual


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    ranks=st.integers(2, 20),
    alpha=st.floats(1e-7, 1e-3),
    bandwidth=st.floats(1e6, 1e11),
    elements=st.integers(1, 10**5),
    power=st.integers(1, 12),
)
def test_what_is_slower_throughout_takes_as_many_times_as_long(name, ranks, alpha, bandwidth, elements, power):
    rounds, times = bind(ALGORITHMS.load(name), 4 * elements), 2.0**power  # which rounds nothing
    first, later = (
        replay(rounds, Network("n", wire(alpha * slower, bandwidth / slower), 1e-11 * slower), ranks, elements)
        for slower in (1.0, times)
    )
    np.testing.assert_array_equal(later, times * first)


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(3, 20),
    node_size=st.integers(1, 4),
    thinner=st.floats(1.01, 50),
    elements=st.integers(20, 10**6),
)
def test_a_thinner_spine_slows_a_ring(ranks, node_size, thinner, elements):
    """Of a ring one message at a time leaves a leaf; where several do, first come first served has its anomalies."""

    def seconds(oversubscription):
        network = Network(
            "n",
            wire(1e-6, 1e9),
            1e-11,
            node_size,
            inside=wire(1e-7, 1e10),
            leaf_size=2,
            oversubscription=oversubscription,
        )
        return replay(ring, network, ranks, elements // ranks * ranks).max()

    assert seconds(thinner) >= seconds(1.0) * (1 - 1e-9)


def test_the_busiest_port_of_a_ring_passes_what_the_bound_says_and_a_shared_one_no_more():
    assert port_bytes(ring, ONE_SWITCH, 8, 8000, 4).max() == 2 * 7 * 4000
    assert port_bytes(ring, SHARED_NICS, 8, 8000, 4).max() == 2 * 7 * 4000
    naive = ALGORITHMS.load("naive")
    assert port_bytes(naive, ONE_SWITCH, 8, 8000, 4).max() == 7 * 32_000


def test_messages_by_size_pay_what_their_piece_says():
    entries = {"alpha": 1e-6, "bandwidth": 1e9, "larger": [{"bytes": 1000, "alpha": 1e-5, "bandwidth": 1e10}]}
    network = network_from(entries, "pieces")

    def once(_):
        yield moved(0, 1, chunk=0, reduce=False)

    assert replay(once, network, 2, 999, itemsize=1)[1] == pytest.approx(1e-6 + 999e-9)
    assert replay(once, network, 2, 1000, itemsize=1)[1] == pytest.approx(1e-5 + 1e-7)
    assert network_from(as_entries(network), "again") == network
    assert network_from(as_entries(LEAVES), "again") == LEAVES


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("alpha = 1e-6\nbandwidth = -5", "bandwidth cannot be -5: that is out of range; it must be at least 1e-06"),
        ("alpha = 1e-6", "bandwidth is missing"),
        ("alpha = -1\nbandwidth = 1", "alpha cannot be -1: that is out of range; it must be at least 0"),
        ("alpha = 1\nbandwidth = 1\nbeta = 2", "unknown key 'beta'. Known: alpha, bandwidth"),
        (
            "alpha = 1\nbandwidth = 1\nnode_size = 0",
            "node_size cannot be 0: that is out of range; it must be at least 1",
        ),
        ("alpha = 1\nbandwidth = 1\nnics = 2", "Give nics at most node_size"),
        ("alpha = 1\nbandwidth = 1\noversubscription = 0.5", "oversubscription cannot be 0.5"),
        ("alpha = 1\nbandwidth = 1\noversubscription = 4", "all its nodes share one switch"),
        ("alpha = 1\nbandwidth = 1\ninside = 3", "inside must be a table"),
        ("alpha = 1\nbandwidth = 1\ngamma = 'x'", "gamma cannot be 'x': that is no finite number"),
        ("alpha = ", "is not TOML"),
    ],
)
def test_bad_networks_are_refused_in_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence.replace("(", r"\(")):
        read_network(file)


def test_there_is_no_cluster_without_ranks_and_no_network_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="it must be at least 1"):
        Cluster(0, network=ONE_SWITCH)
    with pytest.raises(ConfigurationError, match="needs at least one"):
        replay(ring, ONE_SWITCH, 0, 10)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_network(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="Rank 5 is to fail, but the ranks are 0 to 1"):
        Cluster(2, failures={5: 1.0})
