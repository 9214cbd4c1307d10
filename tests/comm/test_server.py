"""Parameter servers: the shard by itself under any order of events, and trainings against plain loops."""

import copy
import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from bodies import new_model, strategy_named, train
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import SMALL, Run
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Asynchronous, BackupWorkers, BoundedStaleness, Synchronous
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import Compensated, Scaled, StaleGradients
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.update import Outcome
from bigbatch.experiments.figures.staleness import staleness_shares
from bigbatch.optimizers.standard import optimizer_named

SGD = partial(torch.optim.SGD, lr=0.5)
ADAM = partial(torch.optim.Adam, lr=0.5)


def new_shard(consistency, workers, stale=None, optimizer=SGD, elements=3):
    """A shard whose parameters are all 1, and whose workers have read them."""
    module = nn.Linear(elements, 1, bias=False).double()
    pieces = FlatParameters(module).pieces(0, elements)
    shard = Shard(torch.ones(elements, dtype=torch.float64), pieces, optimizer, consistency, stale or StaleGradients())
    for worker in range(workers):
        shard.join(worker)
        shard.read(worker)
    return shard


def push(shard, worker, value, weight=1.0, *, finite=True):
    gradient = shard.landing()
    gradient.copy_(torch.as_tensor(value))
    return shard.push(worker, gradient, weight, loss=0.0, finite=finite)


def test_asynchronous_updates_come_one_by_one_and_know_their_staleness():
    shard = new_shard(Asynchronous(), workers=2)
    push(shard, 0, 2.0, weight=4.0)  # 1 - 0.5 · 2/4
    assert shard.values.tolist() == [0.75] * 3
    push(shard, 1, 1.0)  # computed on version 0, applied to version 1
    assert shard.values.tolist() == [0.25] * 3
    assert (shard.version, dict(shard.staleness)) == (2, {0: 1, 1: 1})


def test_stale_gradients_are_taken_at_a_lower_rate():
    """η/max(1, τ), Zhang et al. 2015: τ is 0, 1 and 2."""
    shard = new_shard(Asynchronous(), workers=3, stale=Scaled())
    for worker in range(3):
        push(shard, worker, 1.0)
    assert shard.values.tolist() == [1 - 0.5 - 0.5 - 0.25] * 3
    assert shard.staleness == {0: 1, 1: 1, 2: 1}


def test_stale_gradients_are_moved_to_where_the_parameters_are():
    """g + λ·g·g·(w - w_read), Zheng et al. 2017, with g the mean."""
    shard = new_shard(Asynchronous(), workers=2, stale=Compensated(0.1))
    push(shard, 0, 2.0)
    assert shard.values.tolist() == [0.0] * 3
    push(shard, 1, 12.0, weight=4.0)
    assert shard.values[0].item() == pytest.approx(0 - 0.5 * (3 + 0.1 * 3 * 3 * (0 - 1)))


def test_backup_takes_the_first_and_drops_the_rest():
    shard = new_shard(BackupWorkers(1), workers=3)
    assert push(shard, 2, 1.0) is Outcome.APPLIED
    assert not shard.readable(2)
    assert push(shard, 0, 3.0) is Outcome.APPLIED
    assert shard.values.tolist() == [1 - 0.5 * 2] * 3
    assert shard.readable(0)
    assert push(shard, 1, 100.0) is Outcome.DROPPED
    assert (shard.version, shard.dropped, shard.taken) == (1, 1, 2)
    assert shard.readable(1)
    shard.read(1)
    assert push(shard, 1, 1.0) is Outcome.APPLIED


def test_a_worker_that_leaves_holds_nobody_back():
    shard = new_shard(Synchronous(), workers=3)
    push(shard, 0, 1.0)
    push(shard, 2, 3.0)
    assert shard.version == 0
    shard.leave(1)
    assert shard.version == 1
    assert shard.values.tolist() == [1 - 0.5 * 2] * 3
    shard.join(1)
    shard.read(1)
    push(shard, 0, 1.0)
    push(shard, 2, 1.0)
    assert shard.version == 1
    push(shard, 1, 4.0)
    assert shard.values.tolist() == [0 - 0.5 * 2] * 3


@pytest.mark.parametrize("bad", [{"finite": False}, {"value": float("inf")}, {"weight": 0.0}])
def test_what_must_not_be_applied_is_skipped_and_the_clock_goes_on(bad):
    shard = new_shard(Synchronous(), workers=2)
    push(shard, 0, **{"value": 1.0, "weight": 0.0, **bad})
    push(shard, 1, 1.0, weight=0.0 if "weight" in bad else 1.0)
    assert (shard.version, shard.skipped, shard.clocks.done) == (0, 1, 1)
    assert shard.last.outcome is (Outcome.NO_DATA if "weight" in bad else Outcome.NOT_FINITE)
    assert shard.values.tolist() == [1.0] * 3
    assert all(shard.readable(worker) for worker in range(2))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_blocks_are_added_divided_and_looked_at_one_by_one(monkeypatch, order):
    """11 elements in blocks of 4, whether the gradients come in the order of their sum or not."""
    monkeypatch.setattr("bigbatch.comm.update.BLOCK_ELEMENTS", 4)
    shard = new_shard(Synchronous(), workers=3, elements=11)
    values = torch.arange(11, dtype=torch.float64)
    for worker in order:
        push(shard, worker, (worker + 1) * values, weight=2.0)
    assert shard.values.tolist() == (1 - 0.5 * values).tolist()
    for worker in order:
        shard.read(worker)
        push(shard, worker, torch.where(values == 5, torch.nan, values) if worker == 1 else values)
    assert (shard.version, shard.skipped) == (1, 1)
    assert shard.values.tolist() == (1 - 0.5 * values).tolist()


def test_a_shard_goes_on_from_what_it_had():
    def push_twice(shard, first):
        for value in (first, first + 1):
            push(shard, 0, float(value))
            shard.read(0)
        return shard.values.tolist()

    one = new_shard(Asynchronous(), 1, optimizer=ADAM)
    push_twice(one, 1)
    saved = copy.deepcopy(one.state_dict())
    other = new_shard(Asynchronous(), 1, optimizer=ADAM)
    other.load_state_dict(saved)
    assert other.version == 2
    other.read(0)
    assert push_twice(other, 3) == push_twice(one, 3)
    assert other.values.tolist() != new_shard(Asynchronous(), 1).values.tolist()


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD"])
def test_any_optimiser_of_torch_runs_on_servers_with_its_state_split(name):
    """Two servers, the border inside a parameter, against the optimiser by itself."""
    make = optimizer_named(f"torch.optim:{name}", 0.1)
    torch.manual_seed(0)
    alone, split = nn.Linear(3, 5).double(), nn.Linear(3, 5).double()
    split.load_state_dict(alone.state_dict())
    parameters = FlatParameters(split)
    bounds = [0, 9, 20]
    shards = [
        Shard(parameters.values[a:b].clone(), parameters.pieces(a, b), make, Synchronous(), StaleGradients())
        for a, b in itertools.pairwise(bounds)
    ]
    optimizer = make(list(alone.named_parameters()))
    for shard in shards:
        shard.join(0)
        shard.read(0)
    for _ in range(4):
        for parameter in alone.parameters():
            parameter.grad = torch.randn_like(parameter)
        for parameter, own in zip(split.parameters(), alone.parameters(), strict=True):
            parameter.grad.copy_(own.grad)
        optimizer.step()
        for shard, (a, b) in zip(shards, itertools.pairwise(bounds), strict=True):
            landing = shard.landing()
            landing.copy_(2 * parameters.gradients[a:b])
            shard.push(0, landing, weight=2.0, loss=0.0, finite=True)
            shard.read(0)
    parameters.values.copy_(torch.cat([shard.values for shard in shards]))
    for mine, expected in zip(split.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-14)


class Workers:
    """Workers that do what a schedule of numbers says: each in turn pushes if it can, or reads if it may."""

    def __init__(self, shard: Shard, count: int) -> None:
        self.shard = shard
        self.computing = dict.fromkeys(range(count), True)

    def turn(self, worker: int) -> None:
        if self.computing[worker]:
            push(self.shard, worker, 1.0)
            self.computing[worker] = False
        elif self.shard.readable(worker):
            self.shard.read(worker)
            self.computing[worker] = True


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=120))
def test_the_bound_on_staleness_holds_in_every_trace(count, bound, schedule):
    shard = new_shard(BoundedStaleness(bound), count)
    workers = Workers(shard, count)
    for number in schedule:
        workers.turn(number % count)
        clocks = shard.clocks.pushed
        started = [clocks[worker] + workers.computing[worker] for worker in range(count)]
        # Whoever begins clock c has seen every gradient of clock c - s - 1: nobody is more than s + 1 gradients ahead.
        assert max(started) - 1 - min(clocks.values()) <= bound
        assert shard.version == min(clocks.values())
        assert all(tau <= bound for tau in shard.staleness)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_a_slow_worker_makes_the_bound_bind(bound):
    shard = new_shard(BoundedStaleness(bound), 3)
    workers = Workers(shard, 3)
    for _ in range(20):
        workers.turn(0)
        workers.turn(1)
    assert shard.clocks.pushed == {0: bound + 1, 1: bound + 1, 2: 0}
    assert not shard.readable(0)
    workers.turn(2)
    assert shard.readable(0)
    for _ in range(40):
        for worker in range(3):
            workers.turn(worker)
    assert max(shard.staleness) == bound


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=120))
def test_every_gradient_is_applied_or_counted_as_dropped(count, spares, schedule):
    for rule in (Asynchronous(), BackupWorkers(min(spares, count - 1)), BoundedStaleness(spares)):
        shard = new_shard(rule, count)
        workers = Workers(shard, count)
        pushed = 0
        for number in schedule:
            pushed += workers.computing[number % count]
            workers.turn(number % count)
        pending = sum(len(gathering.gradients) for gathering in shard._gatherings.values())
        assert pushed == shard.taken + shard.dropped + pending
        assert sum(shard.staleness.values()) == shard.taken


def test_asynchronous_workers_that_are_alike_are_workers_minus_one_behind():
    """The mean staleness of W workers that take turns is W - 1."""
    shard = new_shard(Asynchronous(), 4)
    workers = Workers(shard, 4)
    for _ in range(400):
        for worker in range(4):
            workers.turn(worker)  # pushes
            workers.turn(worker)  # reads
    mean = sum(tau * count for tau, count in shard.staleness.items()) / shard.taken
    assert mean == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("servers", [1, 2, 3, 7])
def test_pieces_cover_every_parameter_once(servers):
    parameters = FlatParameters(new_model())
    total = len(parameters.values)
    bounds = np.arange(servers + 1) * total // servers
    covered: dict[str, int] = {}
    for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        pieces = parameters.pieces(first, stop)
        assert sum(piece.stop - piece.first for piece in pieces) == stop - first
        for piece in pieces:
            covered[piece.name] = covered.get(piece.name, 0) + piece.stop - piece.first
            assert len(piece.shape) == dict(new_model().named_parameters())[piece.name].dim()
            assert int(np.prod(piece.shape)) == piece.stop - piece.first
    assert covered == {name: p.numel() for name, p in new_model().named_parameters()}


@pytest.mark.parametrize(
    ("name", "workers", "servers"),
    [("ps:sync", 3, 3), ("ps:ssp:0", 3, 2), ("ps:backup:0", 3, 3), ("ps:backup:0", 2, 1), ("ps:async", 1, 3),
     ("ps:ssp:2", 1, 1)],
)  # fmt: skip
def test_what_amounts_to_a_synchronous_server_equals_the_plain_loop(oracle, name, workers, servers):
    strategy = STRATEGIES.load(name).configured({"servers": servers})
    expected, validation = torch.load(oracle)
    results = Cluster(strategy.ranks_for(workers)).run(lambda t: train(t, strategy, accumulation=2, bucket_bytes=1000))
    for parameters, loss in [result for result in results if result is not None]:
        torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-14)
        assert loss == pytest.approx(validation, abs=1e-12)


@pytest.mark.parametrize("choices", [{"servers": 2}, {"colocated": True}])
@pytest.mark.parametrize("name", ["ps:async", "ps:ssp:2", "ps:backup:1"])
def test_the_others_train_too_and_end_alike_on_every_worker(oracle, name, choices):
    strategy = STRATEGIES.load(name).configured(choices)
    _, synchronous = torch.load(oracle)
    results = Cluster(strategy.ranks_for(3)).run(lambda t: train(t, strategy, accumulation=1, bucket_bytes=1000))
    parameters, losses = zip(*[result for result in results if result is not None], strict=True)
    assert len(set(losses)) == 1
    assert losses[0] == pytest.approx(synchronous, abs=0.3)
    assert np.isfinite(losses[0])
    assert len(parameters) == 3


def test_a_server_beside_every_worker_goes_on_from_its_own_part():
    strategy_class = STRATEGIES.load("ps").configured({"colocated": True})

    def work(transport):
        parameters = FlatParameters(new_model())
        strategy = strategy_class(transport)
        strategy.start(parameters, SGD)
        state = strategy.state_dict()
        shard = {**state["shard"], "values": state["shard"]["values"] + transport.rank}
        strategy.load_state_dict({**state, "shard": shard})
        return parameters.values, state["shard"]["values"], strategy.state_dict()["shard"]["values"]

    whole, saved, loaded = zip(*Cluster(3).run(work), strict=True)
    assert torch.equal(torch.cat(saved), whole[0])
    assert all(torch.equal(loaded[rank], saved[rank] + rank) for rank in range(3))


@pytest.mark.parametrize(
    ("name", "versions"),
    [("ps", 6), ("ps+servers=2", 6), ("ps+colocated", 6), ("ps:ssp:1", 6), ("ps:async", 12), ("ps:backup:1", None)],
)
def test_a_worker_whose_work_has_ended_holds_nobody_back(name, versions):
    """The workers make 2, 4 and 6 steps; the server goes on without those who rest."""
    strategy = strategy_named(name)

    def work(transport):
        parameters = FlatParameters(new_model())
        own = strategy(transport)
        own.start(parameters, SGD)

        def train():
            reports = []
            for _ in range(2 * (own.worker + 1)):
                parameters.gradients.fill_(1e-3)
                for bucket in own.buckets:
                    own.push(bucket)
                reports.append(own.step(1.0, 0.0))
                own.pull()
            return reports

        return own.run(train), own.statistics()

    results = Cluster(strategy.ranks_for(3)).run(work)
    assert [len(reports) for reports, _ in results[:3]] == [2, 4, 6]
    counted = [statistics for _, statistics in results if statistics]
    assert len({statistics["versions"] for statistics in counted}) == 1
    assert versions is None or counted[0]["versions"] == versions


def test_shares_of_staleness_are_of_all_gradients_of_all_servers():
    servers = [
        {"staleness": {"0": 3, "2": 1}, "gradients_dropped": 2},
        {"staleness": {"2": 2}, "gradients_dropped": 0},
    ]
    assert staleness_shares(servers) == ({0: 3 / 8, 1: 0, 2: 3 / 8}, 2 / 8)


def test_names_and_options_say_what_kind_of_server():
    assert STRATEGIES.load("ps:ssp:3").options.staleness == 3
    assert STRATEGIES.load("ps:backup:2").options.spares == 2
    assert STRATEGIES.load("ps:async").configured({"servers": 4, "stale": "scaled"}).ranks_for(5) == 9
    colocated = STRATEGIES.load("ps:async").configured({"colocated": True, "servers": 1})
    assert (colocated.ranks_for(4), colocated.workers_among(4)) == (4, 4)
    for name, message in (
        ("ps:sspp", "--consistency cannot be 'sspp': that is not known .did you mean 'ssp'"),
        ("ps:ssp:x", "Write sync, async, ssp:S"),
        ("ring:3", "comes in no variants"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            STRATEGIES.load(name)
    with pytest.raises(ConfigurationError, match="--stale cannot be 'old'"):
        STRATEGIES.load("ps").configured({"stale": "old"})
    strategy = STRATEGIES.load("ps:backup:3")
    with pytest.raises(ConfigurationError, match="leaves nobody of 3 workers to wait for"):
        Cluster(4).run(lambda t: train(t, strategy, accumulation=1, bucket_bytes=1000))


@pytest.mark.slow
def test_the_command_counts_staleness_and_what_was_dropped(run: Run, tmp_path):
    server = ["--servers", "2", "--consistency", "ssp", "--staleness", "2"]
    rest = ["--arms", "small", "--out", "here", "--json", *SMALL]
    outcome = run("mpirun", "-n", "5", "bigbatch-exp", "ps", *server, *rest)
    assert outcome.status == 0, outcome.err
    summary = json.loads(outcome.out)
    (arm,) = summary["arms"]
    assert summary["workers"] == 3
    for server in arm["servers"]:
        assert server["gradients_taken"] == 3 * arm["updates"]
        assert all(int(tau) <= 2 for tau in server["staleness"])
        assert server["gradients_dropped"] == 0
    config = json.loads((tmp_path / "here" / "config.json").read_text())
    assert (config["servers"], config["consistency"], config["staleness"]) == (2, "ssp", 2)
    assert (tmp_path / "here" / "staleness.png").read_bytes().startswith(b"\x89PNG")
    outcome = run("bigbatch-exp", "ps:backup:1", "-n", "3", "--arms", "small", "--json", *SMALL)
    assert outcome.status == 0, outcome.err
    (arm,) = json.loads(outcome.out)["arms"]
    (server,) = arm["servers"]
    assert server["gradients_taken"] == 2 * server["versions"]


@pytest.mark.slow
def test_a_server_beside_every_worker_counts_every_gradient(run: Run):
    # 10 updates of 12 examples of 16 tokens, so that nobody's last gradient is empty.
    full = ["--batch-size", "48", "--accumulate", "4", "--tokens", "1920"]
    options = ["--colocated", "--consistency", "async", "--arms", "small", "--json", *SMALL, *full]
    for command, workers in ((["mpirun", "-n", "3", "bigbatch-exp", "ps"], 3), (["bigbatch-exp", "ps", "-n", "1"], 1)):
        outcome = run(*command, *options)
        assert outcome.status == 0, outcome.err
        summary = json.loads(outcome.out)
        (arm,) = summary["arms"]
        assert (summary["workers"], len(arm["servers"])) == (workers, workers)
        for server in arm["servers"]:
            assert (server["consistency"], server["versions"]) == ("async", workers * 10)
            assert (server["gradients_taken"], server["gradients_dropped"]) == (workers * 10, 0)
        assert "server_peak_memory_bytes" not in arm


@pytest.mark.slow
def test_a_server_that_fails_beside_a_worker_ends_the_job(run: Run, tmp_path):
    (tmp_path / "broken.py").write_text(
        "import os, torch\n"
        "class Broken(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        if os.environ['PMI_RANK'] == '1': raise ValueError('no such step')\n"
        "def broken(learning_rate):\n"
        "    return lambda named: Broken(named, lr=learning_rate)\n"
    )
    outcome = run("mpirun", "-n", "3", "bigbatch-exp", "ps", "--colocated", "--optimizer", "broken.py:broken", *SMALL)
    assert outcome.status != 0
    assert "Broken cannot make its step: ValueError: no such step (broken.py, line 4, in step)." in outcome.err
    assert outcome.seconds < 20
