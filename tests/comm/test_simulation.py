"""Strategies in simulated time, against themselves on real clocks, closed formulas, and what luck must bring."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from bodies import BATCH, EXAMPLES, Sequences, flat, new_model, optimizer, train
from jobs import SMALL, Run
from simulated_networks import ALPHA, BETA, GAMMA, ONE_SWITCH

from bigbatch.comm.collectives import bind
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.simulation.computing import (
    Computing,
    Stragglers,
    expected_backup,
    expected_synchronous,
    stragglers_named,
)
from bigbatch.comm.simulation.network import FREE, Network, wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.experiments.planning.simulate import bare_row, simulate_row
from bigbatch.experiments.planning.timing import on_cluster
from bigbatch.experiments.planning.workload import Workload
from bigbatch.models.sizes import model_of
from bigbatch.training.batches import BatchPlan
from bigbatch.training.compute_model import SimulatedComputeModel
from bigbatch.training.trainer import Trainer


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        "wire": "fp32",
        "communication_seconds": pytest.approx(0.0184875),
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ring", "--network", "ethernet-10g"), "--network says what is simulated: add --simulate WORKERS"),
        (("ring", "--simulate", "4", "-n", "3"), "-n asks for 3 workers, --simulate for 4"),
        (("ring", "--simulate", "4", "--network", "ethernet-10"), "did you mean 'ethernet-10g'?"),
        (("simulate", "allreduce"), "allreduce sends no messages of ours"),
        (("simulate", "ring", "--workers", "8..4"), "'8..4', which is no number of workers"),
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
