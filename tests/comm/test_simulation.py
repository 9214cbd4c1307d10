"""Simulated time against closed formulas, against itself by two ways, and against what luck must bring."""

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from bodies import BATCH, EXAMPLES, Sequences, flat, new_model, optimizer, train
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import SMALL, Run

from bigbatch.comm.buffers import phantom
from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.collectives.broadcast import broadcast
from bigbatch.comm.collectives.chain import chain
from bigbatch.comm.collectives.hierarchical import hierarchical
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlineError, DeadlockError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.schedule import moved
from bigbatch.comm.simulation import replay as replaying
from bigbatch.comm.simulation.computing import (
    Computing,
    Stragglers,
    expected_backup,
    expected_synchronous,
    stragglers_named,
)
from bigbatch.comm.simulation.network import FREE, Network, wire
from bigbatch.comm.simulation.network_file import as_entries, network_from, read_network
from bigbatch.comm.simulation.replay import Overtaking, Phase, port_bytes, replay, replay_phases
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.request import ANY
from bigbatch.comm.wires.transport import consecutive_nodes
from bigbatch.experiments.planning.simulate import bare_row, simulate_row
from bigbatch.experiments.planning.timing import on_cluster
from bigbatch.experiments.planning.workload import Workload
from bigbatch.models.sizes import model_of
from bigbatch.training.batches import BatchPlan
from bigbatch.training.compute_model import SimulatedComputeModel
from bigbatch.training.trainer import Trainer

ALPHA, BETA, GAMMA = 5e-6, 1 / 12.5e9, 1 / 40e9
ONE_SWITCH = Network("one switch", wire(ALPHA, 1 / BETA), GAMMA)
SHARED_NICS = Network("shared NICs", wire(ALPHA, 1e9), 1e-10, node_size=4, inside=wire(1e-6, 8e9))
LEAVES = Network(
    "leaves", wire(ALPHA, 1e9), 3e-10, node_size=2, nics=2, inside=wire(1e-6, 8e9), leaf_size=2, oversubscription=4
)
LOCAL, NODES = 4, 3
TWO_LEVELS = Network("two levels", wire(ALPHA, 1 / BETA), GAMMA, node_size=LOCAL, nics=LOCAL, inside=wire(1e-6, 1e11))


def follow(monkeypatch):
    """Have every message followed on its own, instead of all of a round at once."""

    def overtake(*_, **__):
        raise Overtaking

    monkeypatch.setattr(replaying, "_round_by_round", overtake)


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


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    ranks=st.integers(2, 20),
    alpha=st.floats(1e-7, 1e-3),
    bandwidth=st.floats(1e6, 1e11),
    elements=st.integers(1, 10**6),
    worse=st.floats(1.01, 100),
)
def test_what_is_worse_takes_longer(name, ranks, alpha, bandwidth, elements, worse):
    rounds = bind(ALGORITHMS.load(name), 4 * elements)

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
        ("alpha = 1e-6\nbandwidth = -5", "bandwidth is -5; it must be a number above 0"),
        ("alpha = 1e-6", "bandwidth is missing"),
        ("alpha = -1\nbandwidth = 1", "alpha is -1; it must be a number of 0 or more"),
        ("alpha = 1\nbandwidth = 1\nbeta = 2", "unknown key 'beta'. Known: alpha, bandwidth"),
        ("alpha = 1\nbandwidth = 1\nnode_size = 0", "node_size is 0; it must be a whole number of 1 or more"),
        ("alpha = 1\nbandwidth = 1\nnics = 2", "Give nics at most node_size"),
        ("alpha = 1\nbandwidth = 1\noversubscription = 0.5", "oversubscription is 0.5"),
        ("alpha = 1\nbandwidth = 1\ninside = 3", "inside must be a table"),
        ("alpha = 1\nbandwidth = 1\ngamma = 'x'", "gamma is 'x'"),
        ("alpha = ", "is not TOML"),
    ],
)
def test_bad_networks_are_refused_in_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "net.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence.replace("(", r"\(")):
        read_network(file)


def test_there_is_no_cluster_without_ranks_and_no_network_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="needs at least one"):
        Cluster(0, network=ONE_SWITCH)
    with pytest.raises(ConfigurationError, match="needs at least one"):
        replay(ring, ONE_SWITCH, 0, 10)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_network(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="Rank 5 is to fail, but the ranks are 0 to 1"):
        Cluster(2, failures={5: 1.0})


# The cluster.


def test_a_message_takes_alpha_and_beta_and_sends_do_not_block():
    def work(transport):
        buffer = np.zeros(1000, dtype=np.uint8)
        if transport.rank == 0:
            sent = transport.isend(buffer, 1)
            posted = transport.now()
            sent.wait()
            return posted, transport.now()
        transport.irecv(buffer, 0).wait()
        return transport.now()

    assert Cluster(2, network=ONE_SWITCH).run(work) == [(0.0, 1000 * BETA), ALPHA + 1000 * BETA]


def test_a_receive_from_any_takes_who_comes_first_in_simulated_time():
    def work(transport):
        if transport.rank:
            transport.spend((4 - transport.rank) * 1.0)
            transport.isend(np.array([transport.rank]), 0).wait()
            return None
        number, heard = np.zeros(1, dtype=np.int64), []
        transport.spend(2.5)
        for _ in range(3):
            transport.irecv(number, ANY).wait()
            heard.append((int(number[0]), round(transport.now(), 3)))
        return heard

    assert Cluster(4, network=ONE_SWITCH).run(work)[0] == [(3, 2.5), (2, 2.5), (1, 3.0)]


def test_what_is_sent_may_change_once_it_has_left():
    def work(transport):
        if transport.rank == 0:
            value = np.array([7.0])
            transport.isend(value, 1).wait()
            value[0] = 8.0
            return None
        transport.spend(1.0)
        value = np.zeros(1)
        transport.irecv(value, 0).wait()
        return value[0]

    assert Cluster(2, network=ONE_SWITCH).run(work)[1] == 7.0


def test_a_deadlock_says_what_each_did_last():
    def work(transport):
        buffer = np.zeros(1)
        if transport.rank == 0:
            transport.isend(buffer, 1, tag=5).wait()
        else:
            transport.irecv(buffer, 0, tag=5).wait()
        transport.irecv(buffer, 1 - transport.rank).wait()

    message = r"rank 1 waits to receive from rank 0 \(tag 0, 8 bytes\) \(the last thing .* receive from rank 0 \(tag 5"
    with pytest.raises(DeadlockError, match=message):
        Cluster(2, network=ONE_SWITCH).run(work)


def test_a_rank_that_fails_is_waited_for_in_vain_as_on_real_wires():
    def work(transport):
        for _ in range(10):
            transport.spend(1.0)
            execute(ring, transport, np.zeros(10))

    cluster = Cluster(3, network=ONE_SWITCH, failures={2: 4.5}, deadline=20.0)
    with pytest.raises(DeadlineError, match=r"Rank 0 waited 20 s to receive from rank 2 .*; rank 2 failed after 4.5 s"):
        cluster.run(work)
    assert 24 < cluster.now < 27
    with pytest.raises(CommunicationError, match="Rank 1 failed after 1 s of simulated time, at work"):
        Cluster(2, failures={1: 1.0}).run(lambda transport: transport.spend(3.0))


def test_phantoms_are_moved_and_take_no_memory():
    def work(transport):
        execute(ring, transport, phantom(10**10, np.float32))
        return transport.now()

    network = Network("n", wire(1e-6, 1e12), 1e-13)
    times = Cluster(2, network=network).run(work)
    assert times[0] == replay(ring, network, 2, 10**10).max()
    assert times[0] > 0.04


def test_memory_cannot_be_shared_round_a_network():
    with pytest.raises(ConfigurationError, match="Memory that ranks share has no messages"):
        Cluster(2, network=ONE_SWITCH).run(lambda transport: transport.windows(8))


# Strategies, unchanged.


@pytest.mark.parametrize("name", ["ring", "hierarchical", "ps", "ps:ssp:0", "direct"])
def test_a_slow_network_changes_no_parameter(name, oracle):
    strategy = STRATEGIES.load(name)
    network = Network("n", wire(1e-3, 1e7), 1e-9, node_size=2)
    results = Cluster(strategy.ranks_for(4), network=network).run(
        lambda transport: train(transport, strategy, accumulation=2, bucket_bytes=1000)
    )
    expected, loss = torch.load(oracle)
    for parameters, validation in results[:4]:
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)
        assert validation == pytest.approx(loss, abs=1e-12)


def trained(workers, strategy, straggler, network):
    """Every worker's parameters after a training in simulated time, and when each was through."""
    stragglers = stragglers_named(straggler)

    def body(transport):
        model = new_model()
        parameters = FlatParameters(model)
        own = strategy(transport)
        own.start(parameters, optimizer)

        def work():
            compute_model = SimulatedComputeModel(Computing(1e-3), stragglers.factors(transport.rank, seed=3))
            plan = BatchPlan(BATCH // workers, 1, workers)
            list(
                Trainer(
                    model, Sequences(), own, parameters, plan, EXAMPLES, seed=7, compute_model=compute_model
                ).updates()
            )
            return copy.deepcopy(flat(model)).numpy().tobytes(), transport.now()

        return own.run(work), own.statistics()

    return Cluster(strategy.ranks_for(workers), network=network).run(body)


def test_an_asynchronous_training_with_stragglers_repeats_itself_to_the_byte():
    strategy = STRATEGIES.load("ps:async")
    first, again = (trained(16, strategy, "exponential:0.3", ONE_SWITCH) for _ in range(2))
    assert first == again
    other = trained(16, strategy, "exponential:0.5", ONE_SWITCH)
    assert [result for result, _ in other[:16]] != [result for result, _ in first[:16]]


WORKLOAD = Workload(model_of(1000, 1.0, layers=4), 10, Computing(0.1), bucket_bytes=1 << 20, overlap=True)
"""Δ = 1 s."""


def test_a_synchronous_step_waits_for_the_slowest_as_long_as_the_harmonic_number_says():
    workers, mu, updates = 8, 0.5, 600
    row = simulate_row("ring", FREE, workers, WORKLOAD, Stragglers(exponential=mu), seed=1, updates=updates)
    spread = mu * math.sqrt(sum(1 / k**2 for k in range(1, workers + 1)) / updates)
    assert abs(row.step_seconds - expected_synchronous(1.0, mu, workers)) < 4 * spread
    assert row.communication_seconds == pytest.approx(0, abs=1e-9)
    assert abs(row.compute_seconds - (1 + mu)) < 4 * mu / math.sqrt(updates * workers)


def test_backup_workers_wait_for_the_first_of_them():
    workers, spares, mu, trials = 5, 2, 0.5, 150
    strategy = STRATEGIES.load(f"ps:backup:{spares}")
    network = Network("nearly free", wire(1e-12, 1e18))
    first = [
        on_cluster(strategy, network, workers, WORKLOAD, Stragglers(exponential=mu), 1, seed).shortest
        for seed in range(trials)
    ]
    spread = mu * math.sqrt(sum(1 / k**2 for k in range(spares + 1, workers + 1)) / trials)
    assert abs(np.mean(first) - expected_backup(1.0, mu, workers, spares)) < 4 * spread


def test_identical_asynchronous_workers_are_as_stale_as_there_are_others():
    workers = 6
    *_, (_, counted) = trained(workers, STRATEGIES.load("ps:async"), "none", Network("n", wire(1e-7, 1e12)))
    staleness = {int(tau): count for tau, count in counted["staleness"].items()}
    later = sum(staleness.values()) - workers  # the first of each were computed on what all began with
    mean = (sum(tau * count for tau, count in staleness.items()) - sum(range(workers))) / later
    assert mean == pytest.approx(workers - 1, abs=1 / workers)  # near the end there are fewer others


def test_replayed_updates_are_those_of_the_strategy_on_a_cluster():
    load = Workload(model_of(3_000_000, 6.0, layers=6), 1000, Computing(1e-5), bucket_bytes=1 << 20, overlap=True)
    for name in ("ring", "halving-doubling", "direct"):
        replayed = simulate_row(name, ONE_SWITCH, 6, load, Stragglers())
        made = on_cluster(STRATEGIES.load(name), ONE_SWITCH, 6, load, Stragglers(), 2, 0)
        there = made.row(name, 6, ONE_SWITCH, load, 0)
        assert there.step_seconds == pytest.approx(replayed.step_seconds, rel=1e-6)
        assert replayed.communication_seconds < 0.2 * replay(bind(ring, 0), ONE_SWITCH, 6, 3_000_000).max() + 1e-3


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_only_the_last_micro_batchs_backward_hides_what_is_sent(accumulation, overlap):
    """Four buckets, each ready half as long after the one before as it takes to send, in the last micro-batch."""
    workers, tokens, bucket, second = 4, 120, 400_000, 1e9
    network, size = Network("no latency", wire(0.0, second)), model_of(bucket, 6.0, layers=4)

    def longest(update, sending):
        micro_batch = 3 * sending  # two thirds are backward, of which a quarter is half of what a bucket takes
        computing = Computing(accumulation * micro_batch / tokens)
        load = Workload(size, tokens, computing, bucket, overlap, accumulation)
        assert len(load.buckets()) == 4
        hidden = 1.5 * sending if overlap else 0.0
        return update(load), accumulation * micro_batch + 4 * sending - hidden

    around = 2 * (workers - 1) / workers * bucket / second
    took, expected = longest(
        lambda load: simulate_row("ring", network, workers, load, Stragglers(), updates=0).step_seconds, around
    )
    assert took == pytest.approx(expected, rel=1e-3)
    for name, sending, pulled in (
        ("ring", around, 0.0),
        ("ps", workers * bucket / second, 4 * workers * bucket / second),
    ):
        strategy = STRATEGIES.load(name)
        took, expected = longest(
            lambda load, strategy=strategy: on_cluster(strategy, network, workers, load, Stragglers(), 1, 0).longest,
            sending,
        )
        assert took == pytest.approx(expected + pulled, rel=1e-3)


def test_micro_batches_have_a_token_each():
    with pytest.raises(ConfigurationError, match="3 tokens of an update cannot be computed in 4 micro-batches"):
        Workload(model_of(1000), 3, Computing(1.0), 1 << 20, overlap=True, accumulation=4)


def test_a_server_takes_what_its_formula_says_and_a_few_small_messages():
    load = Workload(model_of(600_000, 0.0, layers=1), 1, Computing(0.0), bucket_bytes=1 << 30, overlap=False)
    n, workers = 2_400_000, 6
    for servers in (1, 2, 3):
        strategy = STRATEGIES.load("ps").configured({"servers": servers})
        made = on_cluster(strategy, ONE_SWITCH, workers, load, Stragglers(), 1, 0)
        bare = bare_row("ps", ONE_SWITCH, workers, n, servers=servers)["communication_seconds"]
        assert bare <= made.longest <= bare + n / servers * (GAMMA * workers + 2 * BETA) + 4 * ALPHA


# The commands.


def test_an_experiment_in_simulated_time(run: Run, tmp_path):
    command = ("bigbatch-exp", "ps", "--consistency", "async", "--simulate", 5, "--network", "ethernet-10g", *SMALL)
    slowed = ("--straggler", "exponential:0.3", "--arms", "small", "--trace")
    first = run(*command, *slowed, "--out", "one")
    assert first.status == 0, first.err
    assert "Simulated: 5 workers, each computing on core, slowed by exponential:0.3, over ethernet-10g" in first.out
    run(*command, *slowed, "--out", "two")
    for name in ("metrics.jsonl", "trace.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["simulated"]["network"] == "ethernet-10g"
    assert summary["arms"][0]["peak_memory_bytes"] is None


def test_simulate_writes_rows_and_figures(run: Run, tmp_path):
    command = ("bigbatch-exp", "simulate", "ring", "ps", "ps:async", "--workers", "2..4", "--parameters", "4e6")
    outcome = run(*command, "--out", "here", "--json", "--straggler", "lognormal:0.2")
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)
    assert [(row["strategy"], row["workers"]) for row in rows] == [
        (name, count) for name in ("ring", "ps", "ps:async") for count in (2, 4)
    ]
    for row in rows:
        parts = row["compute_seconds"] + row["communication_seconds"] + row["waiting_seconds"]
        assert parts == pytest.approx(row["step_seconds"])
        assert 0 < row["efficiency"] <= 1.2
    written = {file.name for file in (tmp_path / "here").iterdir()}
    assert written == {"summary.json", "scaling.png", "crossover.png", "timeline.png", "trace.json"}


def test_one_bare_collective(run: Run, tmp_path):
    (tmp_path / "net.toml").write_text("alpha = 5e-6\nbandwidth = 12.5e9\n")
    command = ("bigbatch-exp", "simulate", "ring", "--workers", 256, "--bytes", 100_000_000, "--network", "net.toml")
    outcome = run(*command, "--json")
    (row,) = json.loads(outcome.out)
    assert row == {
        "strategy": "ring",
        "workers": 256,
        "bytes": 100_000_000,
        "communication_seconds": pytest.approx(0.0184875),
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ring", "--network", "ethernet-10g"), "--network says what is simulated: add --simulate WORKERS"),
        (("ring", "--simulate", "4", "-n", "3"), "-n asks for 3 workers, --simulate for 4"),
        (("ring", "--simulate", "4", "--network", "ethernet-10"), "did you mean 'ethernet-10g'?"),
        (("simulate", "allreduce"), "allreduce sends no messages of ours"),
        (("simulate", "ring", "--workers", "8..4"), "'8..4' is no number of workers"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_sentence(run: Run, arguments, sentence):
    outcome = run("bigbatch-exp", *arguments)
    assert outcome.status == 2
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err


def test_updates_of_one_busy_server_follow_each_other_as_fast_as_its_port_lets_them():
    """W gradients in and W answers out at once, nβ each: so long as each port is never idle, an update takes Wnβ."""
    load = Workload(model_of(3_000_000, 6.0, layers=1), 1, Computing(1e-9), bucket_bytes=1 << 30, overlap=False)
    network = Network("port", wire(alpha=1e-6, bandwidth=1e9))
    for workers in (4, 9):
        one, many = (simulate_row("ps", network, workers, load, Stragglers(), updates=updates) for updates in (1, 5))
        assert one.step_seconds == pytest.approx(many.step_seconds, rel=1e-9), "the first, which differs, is left out"
        assert many.step_seconds == pytest.approx(workers * 12e6 / 1e9, rel=0.35)
        assert many.tokens_per_second == pytest.approx(workers / many.step_seconds, rel=1e-9)
        first = on_cluster(STRATEGIES.load("ps"), network, workers, load, Stragglers(), 1, 0)
        assert first.longest == pytest.approx(2 * workers * 12e6 / 1e9, rel=0.05), "all in, and then all out"
