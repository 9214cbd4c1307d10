"""What `simulate` says of a strategy, against the same strategy trained on a cluster, with messages counted here."""

import math
from pathlib import Path

import numpy as np
import own_strategies
import pytest
import torch
from jobs import quick
from torch import nn

from bigbatch.comm.collectives import ALGORITHMS
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.simulation.computing import Computing, Stragglers
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.presets import network_named
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.description import describes_itself
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.experiments.planning.plan import composed
from bigbatch.experiments.planning.simulate import bare_row, described, simulate_row, updates_enough
from bigbatch.experiments.planning.timing import on_cluster, replayed
from bigbatch.experiments.planning.updates import settled, whole_periods
from bigbatch.experiments.planning.workload import Workload
from bigbatch.models.sizes import model_of

ALPHA, BANDWIDTH, GAMMA = 5e-6, 1e9, 1e-10
PLAIN = Network("plain", wire(ALPHA, BANDWIDTH), GAMMA)
SHARED = Network("shared NICs", wire(ALPHA, 1e9), 1e-10, node_size=4, inside=wire(1e-6, 8e9))
LEAVES = Network(
    "leaves", wire(ALPHA, 1e9), 3e-10, node_size=2, nics=2, inside=wire(1e-6, 8e9), leaf_size=2, oversubscription=4
)
LOAD = Workload(model_of(600_011, 6.0, layers=5), 1000, Computing(4e-6), bucket_bytes=1 << 19, overlap=True)
OWN = Path(own_strategies.__file__)


def own(name):
    return f"{OWN}:{name}"


class Phantom(nn.Module):
    """The workload's parts, the last of the model first."""

    def __init__(self, parts):
        super().__init__()
        for number, elements in enumerate(parts[::-1]):
            self.register_parameter(f"part{number}", nn.Parameter(torch.empty(elements, device="meta")))


def trained(strategy, workers, load, updates):
    """(when every worker ended each update, bytes that each rank sent, bytes for each rank) of a training on PLAIN."""
    ranks = strategy.ranks_for(workers)
    cluster = Cluster(ranks, network=PLAIN)
    sent, received = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    shares = np.diff(load.ready(), prepend=0.0)

    def count(end, target, nbytes):
        if target != end.rank:
            sent[end.rank] += nbytes
            received[target] += nbytes

    def body(transport):
        parameters = FlatParameters(Phantom(load.size.parts))
        one = strategy(transport)
        one.start(
            parameters,
            lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
            bucket_bytes=load.bucket_bytes,
        )
        transport.spend(1.0 - transport.now())
        cluster.fabric.meter = count

        def work():
            ends = [transport.now()]
            for _ in range(updates):
                for bucket, share in zip(one.buckets, shares, strict=True):
                    transport.spend(load.compute * share)
                    one.push(bucket)
                one.step(load.tokens, 0.0)
                one.pull()
                ends.append(transport.now())
            return ends

        return one.run(work)

    return np.array(cluster.run(body)[:workers]), sent, received


def oracle(name, workers, load, later):
    """(seconds, bytes through the busiest port) of an update: the mean of so many after the first.

    What is sent by a training with more updates, less by one that stops after the first, is what those send.
    """
    strategy = STRATEGIES.load(name)
    ends, sent, received = trained(strategy, workers, load, 1 + later)
    _, sent_first, received_first = trained(strategy, workers, load, 1)
    through = max((sent - sent_first).max(), (received - received_first).max())
    return ((ends[:, -1] - ends[:, 1]) / later).mean(), through / later


def agrees(name, workers, load, later, updates=None):
    row = simulate_row(name, PLAIN, workers, load, Stragglers(), updates=updates)
    seconds, through = oracle(name, workers, load, later)
    assert row.step_seconds == pytest.approx(seconds, rel=1e-9)
    assert row.busiest_port_bytes == round(through)
    for part in (row.communication_seconds, row.waiting_seconds):
        assert part >= 0
        assert math.copysign(1, part) == 1
    assert 0 < row.efficiency <= 1
    assert row.tokens_per_second == pytest.approx(row.efficiency * workers * load.tokens / load.compute, rel=1e-12)
    return row


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("name", [*ALGORITHMS.names(), "ps", "ps:async", "ps:ssp:1", "no-exchange"])
def test_a_registered_strategy_takes_and_sends_what_it_does_trained(name, workers):
    assert agrees(name, workers, LOAD, 3, updates=3).exact


@pytest.mark.parametrize("workers", [3, 8])
@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("LocalAveraging", 4),
        ("EveryFifth", 5),
        ("EveryFifthTold", 5),
        ("OwnMessages", 1),
        ("Lazy", 1),
        ("Counting", 1),
        ("OwnServers", 1),
        ("Alone", 1),
    ],
)
def test_a_strategy_of_ones_own_takes_and_sends_what_it_does_trained(name, period, workers):
    """Nobody is told the period: an average over whole periods is the same for any number of them."""
    assert agrees(own(name), workers, LOAD, 2 * period).exact


def test_averaging_every_fourth_update_moves_a_quarter_of_a_ring():
    workers, parameters = 8, 800_000
    load = Workload(model_of(parameters, 6.0, layers=4), 1000, Computing(4e-6), bucket_bytes=1 << 30, overlap=True)
    network = network_named("ethernet-1g")
    (piece,) = network.wires.pieces
    nbytes = 4 * parameters / workers
    around = (workers - 1) * (2 * (piece.alpha + nbytes / piece.bandwidth) + nbytes * network.gamma)
    row = simulate_row(own("LocalAveraging"), network, workers, load, Stragglers())
    assert row.communication_seconds == pytest.approx(around / 4, rel=1e-9)
    assert row.efficiency == pytest.approx(load.compute / (load.compute + around / 4), rel=1e-9)
    assert row.busiest_port_bytes == 2 * (workers - 1) * nbytes / 4
    assert row.exact


def test_who_exchanges_nothing_is_as_efficient_as_can_be():
    row = simulate_row(own("Alone"), PLAIN, 7, LOAD, Stragglers())
    assert 1 - 1e-12 < row.efficiency <= 1
    assert row.communication_seconds == pytest.approx(0, abs=1e-15)
    assert (row.waiting_seconds, row.busiest_port_bytes) == (0, 0)
    assert math.copysign(1, row.communication_seconds) == 1


def test_a_ring_that_pushes_nothing_is_not_taken_for_a_ring():
    ring, counting, lazy = (
        simulate_row(name, PLAIN, 8, LOAD, Stragglers()) for name in ("ring", *map(own, ("Counting", "Lazy")))
    )
    assert counting.step_seconds == ring.step_seconds
    assert lazy.step_seconds < ring.step_seconds
    assert lazy.busiest_port_bytes == 3 * 24  # three rounds of three numbers


def test_what_never_repeats_itself_is_averaged_and_marked():
    row = simulate_row(own("Quarrelling"), PLAIN, 4, LOAD, Stragglers())
    assert not row.exact
    assert row.busiest_port_bytes == pytest.approx(2 * 3 / 4 * 8000 * np.mean(range(2, 34)), rel=1e-12)


@pytest.mark.parametrize("network", quick([SHARED, LEAVES], lambda network: network is LEAVES), ids=lambda n: n.name)
@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_replayed_updates_share_ports_as_on_a_cluster(name, network):
    """Who is early begins the next update while others still send for this one."""
    strategy = STRATEGIES.load(name)
    for workers, stragglers in ((13, Stragglers()), (8, Stragglers(exponential=0.2)), (8, Stragglers(slow={1: 1.5}))):
        says = described(strategy, LOAD.gradients, network, workers)
        both = (
            replayed(says.phases, 1, network, workers, LOAD, stragglers, 4, seed=1),
            on_cluster(strategy, network, workers, LOAD, stragglers, 4, seed=1, period=1),
        )
        there, here = (made.row(name, workers, network, LOAD, made.busiest) for made in both)
        assert there.step_seconds == pytest.approx(here.step_seconds, rel=1e-9)
        assert there.tokens_per_second == pytest.approx(here.tokens_per_second, rel=1e-9)
        assert there.busiest_port_bytes == here.busiest_port_bytes


@pytest.mark.parametrize("name", ["ring", "ps", "ps:async", "ps:backup:2", own("LocalAveraging")])
def test_slow_and_random_workers_are_timed_too(name):
    slow = simulate_row(name, PLAIN, 4, LOAD, Stragglers(slow={2: 3.0}))
    assert 0 < slow.efficiency < 1
    random = simulate_row(name, PLAIN, 4, LOAD, Stragglers(exponential=0.3), seed=5)
    assert 0 < random.efficiency < 1


def test_gradients_that_are_dropped_do_not_count():
    row = simulate_row("ps:backup:2", Network("fast", wire(1e-9, 1e15)), 4, LOAD, Stragglers())
    assert row.efficiency == pytest.approx(0.5, rel=0.02)
    row = simulate_row("ps:backup:3", Network("fast", wire(1e-9, 1e15)), 4, LOAD, Stragglers())
    assert row.efficiency == pytest.approx(0.25, rel=0.02)  # every update is of one gradient


def test_servers_reach_whoever_has_an_option_for_them():
    rows = [simulate_row(name, PLAIN, 6, LOAD, Stragglers(), servers=3) for name in ("ps", own("OwnServers"))]
    assert rows[0].busiest_port_bytes == rows[1].busiest_port_bytes < 6 * 4 * 600_011 / 2
    assert rows[0].step_seconds == pytest.approx(rows[1].step_seconds, rel=1e-3)  # of one period, and of many updates
    assert simulate_row("ring", PLAIN, 6, LOAD, Stragglers(), servers=3) == simulate_row(
        "ring", PLAIN, 6, LOAD, Stragglers()
    )


def test_a_bare_sum_is_asked_of_the_strategy():
    sums = {
        name: bare_row(name, PLAIN, 4, 1_000_003)["communication_seconds"]
        for name in ("ring", "direct", own("Counting"))
    }
    assert (
        sums["ring"] == sums[own("Counting")] == replay(ALGORITHMS.load("ring"), PLAIN, 4, 1_000_003, itemsize=1).max()
    )
    for name in ("LocalAveraging", "Lazy", "OwnMessages"):
        with pytest.raises(ConfigurationError, match="more than one sum"):
            bare_row(own(name), PLAIN, 4, 1000)


OF_LIBRARIES = ["shared", "mpi", "allreduce", "auto"]


@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_what_only_the_libraries_do_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"{name} sends no messages of ours") as refused:
        simulate_row(name, PLAIN, 4, LOAD, Stragglers())
    (known,) = [part for part in str(refused.value).split(". ") if part.startswith("Simulate one of: ")]
    listed = known.removeprefix("Simulate one of: ").split(", ")
    assert set(listed) == set(STRATEGIES.names()) - set(OF_LIBRARIES)


def test_a_strategy_that_needs_more_workers_says_so_itself():
    with pytest.raises(ConfigurationError, match="leaves nobody of 3 workers"):
        simulate_row("ps:backup:3", PLAIN, 3, LOAD, Stragglers())


def test_a_description_counts_until_something_that_may_send_is_overridden():
    ring = STRATEGIES.load("ring")
    assert describes_itself(ring)
    assert describes_itself(own_strategies.Counting)
    assert describes_itself(own_strategies.EveryFifthTold)
    assert describes_itself(STRATEGIES.load("ps:ssp:2").configured({"servers": 2}))
    assert not describes_itself(own_strategies.Lazy)
    assert not describes_itself(type("Mixed", (own_strategies.Lazy, ring), {}))
    for name in ("step", "pull", "place", "collective", "run", "start", "total", "__init__"):
        assert not describes_itself(type("Changed", (ring,), {name: lambda *_: None}))


def test_plans_compose_any_strategy():
    loads = [LOAD, Workload(LOAD.size, 3000, LOAD.computing, LOAD.bucket_bytes, overlap=True, accumulation=3)]
    for name in ("EveryFifthTold", "LocalAveraging"):
        for load, seconds in zip(loads, composed(own(name), PLAIN, 4, loads), strict=True):
            assert seconds == pytest.approx(
                simulate_row(own(name), PLAIN, 4, load, Stragglers()).step_seconds, rel=1e-6
            )


def test_periods_are_found_by_what_repeats_itself():
    column = np.array([[1.0], [2.0], [1.5], [2.5], [1.5], [2.5]])
    assert settled(column, 2) == 4
    assert settled(column, 1) == 0
    column[-1] += 1e-12
    assert settled(column, 2) == 0
    assert settled(column, 2, 1e-9) == 4
    ports = np.array([[7, 0], [0, 0], [0, 9]])
    steps, passed = np.tile([[1.0], [2.0], [1.0]], (5, 2)), np.tile(ports, (5, 1))
    drifting = steps + np.arange(15)[:, None]
    assert whole_periods(steps, passed, None, random=False) == (range(3, 15), True)
    assert whole_periods(drifting, passed, None, random=False) == (range(3, 15), False)
    assert whole_periods(drifting, passed, None, random=True) == (range(3, 15), True)
    assert whole_periods(steps, np.cumsum(passed, axis=0), None, random=False) == (range(1, 15), False)
    assert whole_periods(steps[:1], passed[:1], 3, random=False) == (range(1), True)
    assert whole_periods(steps, passed, 4, random=False) == (range(3, 15), True)
    passed[2] += 5  # they agreed on something once
    steps[5] += 0.5
    assert whole_periods(steps, passed, None, random=False) == (range(6, 15), True)
    rare = np.zeros((33, 1), np.int64)
    rare[16] = 9
    assert whole_periods(np.ones((33, 2)), rare, None, random=False) == (range(1, 33), False)


def test_more_updates_are_run_of_who_does_not_say_its_period():
    assert updates_enough(None, 8, random=False) == updates_enough(None, 64, random=True) == 32
    assert updates_enough(None, 128, random=False) == 16
    assert updates_enough(None, 4096, random=False) == 8
    assert updates_enough(5, 8, random=False) == 5
    assert updates_enough(7, 8, random=True) == 21
