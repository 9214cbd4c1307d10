"""Stopped after any update and gone on with elsewhere, a training ends with the parameters of the uninterrupted one.

And looking at the validation loss changes nothing about it.
"""

import copy
import io
from pathlib import Path

import pytest
import torch
from bodies import ALIKE, ALL_STRATEGIES, RELATED, Sequences, flat, new_model, optimizer, strategy_named
from jobs import PROGRAMS, Run, launcher, quick

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.simulation.computing import Computing, stragglers_named
from bigbatch.comm.simulation.network import FREE, Network, wire
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.training.batches import BatchPlan
from bigbatch.training.compute_model import SimulatedComputeModel
from bigbatch.training.trainer import Trainer

WORKERS, BATCH, UPDATES = 3, 24, 10
EXAMPLES = (UPDATES - 1) * BATCH + 5  # the last batch leaves one worker little, and the others nothing
SLOW = Network("slow", wire(1e-3, 1e6), 1e-9)
"""On which the parameters take about as long as an update's computing."""


UPDATE_SECONDS, OFFSET_SECONDS = 1.0, 0.01
"""Between two updates of a worker, and from one worker to the next: so they always come in the order of their ranks."""


def training(transport, strategy):
    """A trainer about to begin, and the strategy."""
    model = new_model()
    if transport.rank:
        torch.nn.init.normal_(model.tokens.weight)
    parameters = FlatParameters(model)
    own = strategy(transport)
    own.start(parameters, optimizer, bucket_bytes=1000, with_squares=True)
    if own.worker is None:
        return None, own
    plan = BatchPlan(BATCH // own.workers // 2, 2, own.workers)
    trainer = Trainer(model, Sequences(), own, parameters, plan, EXAMPLES, seed=7, measure_noise=True)
    return trainer, own


def go_on(trainer, updates, until):
    """Make updates until one; returns the parameters, and the noise if there was any update."""
    transport, last = trainer.strategy.transport, None
    transport.spend(transport.rank * OFFSET_SECONDS)
    while trainer.position < until and not trainer.ended:
        last = next(updates)
        transport.spend(UPDATE_SECONDS)
    return flat(trainer.model).clone(), None if last is None else last.gradient_square


def part(transport, strategy, until, state=None):
    """Go on from a state, if there is one, until an update; then what `go_on` returns and the state, as bytes."""
    trainer, own = training(transport, strategy)
    if state is not None:
        read = torch.load(io.BytesIO(state), weights_only=False)
        own.load_state_dict(read) if trainer is None else trainer.load_state_dict(read)
    result = own.run(lambda: go_on(trainer, trainer.updates(), until))
    kept = io.BytesIO()
    torch.save(own.state_dict() if trainer is None else trainer.state_dict(), kept)
    return result, kept.getvalue()


def ran(strategy, until, states=None):
    ranks = strategy.ranks_for(WORKERS)
    states = states or [None] * ranks
    results = Cluster(ranks).run(lambda transport: part(transport, strategy, until, states[transport.rank]))
    return [result for result, _ in results if result is not None], [state for _, state in results]


@pytest.mark.parametrize(
    "name", quick(ALL_STRATEGIES, lambda name: name not in (*ALIKE, *RELATED)), ids=lambda name: name.rpartition("/")[2]
)
def test_stopped_after_any_update_and_gone_on_with_elsewhere(name):
    strategy = strategy_named(name)
    whole, _ = ran(strategy, UPDATES)
    for stops in ((0, 1), (4,), (UPDATES - 1,), (2, 3, 7), (UPDATES,)):
        states = None
        for stop in stops:
            _, states = ran(strategy, stop, states)
        ended, _ = ran(strategy, UPDATES, states)
        for (parameters, noise), (expected, square) in zip(ended, whole, strict=True):
            assert torch.equal(parameters, expected), stops
            assert noise == square or stops == (UPDATES,)


@pytest.mark.parametrize("name", ["ps:ssp:2", "ps:ssp:3+servers=2", "ps:async+stale=compensated", "ps:async+colocated"])
@pytest.mark.parametrize("stops", [(5, 3, 4), (3, 5, 5), (6, 4, 6)])
def test_workers_that_stop_at_different_updates_leave_gradients_that_wait(name, stops):
    """Two runs with the same stops: one goes on in the same processes, the other elsewhere."""
    strategy = strategy_named(name)
    ranks = strategy.ranks_for(WORKERS)

    def stopped(transport):
        return part(transport, strategy, stops[transport.rank] if transport.rank < WORKERS else 0)

    states = [state for _, state in Cluster(ranks).run(stopped)]
    if "ssp" in name:
        server = torch.load(io.BytesIO(states[-1]), weights_only=False)
        assert server["shard"]["gatherings"].keys() == set(range(min(stops), max(stops)))
    elsewhere, _ = ran(strategy, UPDATES, states)

    def in_one_go(transport):
        trainer, own = training(transport, strategy)
        updates = None if trainer is None else trainer.updates()
        own.run(lambda: go_on(trainer, updates, stops[transport.rank]))
        transport.barrier()
        return own.run(lambda: go_on(trainer, updates, UPDATES))

    here = Cluster(ranks).run(in_one_go)[:WORKERS]
    for (parameters, _), (expected, _) in zip(elsewhere, here, strict=True):
        assert torch.equal(parameters, expected)


def test_a_state_is_a_copy():
    def work(transport):
        trainer, _ = training(transport, STRATEGIES.load("ring"))
        updates = trainer.updates()
        next(updates)
        state = trainer.state_dict()
        before = copy.deepcopy(state)
        list(updates)
        return repr(before) == repr(state)

    assert all(Cluster(2).run(work))


@pytest.mark.slow
def test_under_mpirun(run: Run, tmp_path: Path):
    """In other processes, over real wires; sums are made in the order of ranks, so the bytes are the same."""
    names = "ring,hierarchical,ps,ps+colocated,ps:ssp:0,no-exchange"
    for phase in ("whole", "stopped", "resumed"):
        outcome = run(*launcher("mpirun", 3), PROGRAMS / "on_wires.py", phase, names, tmp_path, deadline=100)
        assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


# Looking.


def looked_at(transport, strategy, every):
    model = new_model()
    parameters = FlatParameters(model)
    own = strategy(transport)
    own.start(parameters, optimizer, bucket_bytes=1000)

    def work():
        stragglers = stragglers_named("exponential:0.3")
        compute_model = SimulatedComputeModel(Computing(1e-4), stragglers.factors(transport.rank, seed=3))
        plan = BatchPlan(BATCH // own.workers, 1, own.workers)
        trainer = Trainer(model, Sequences(), own, parameters, plan, EXAMPLES, 7, compute_model=compute_model)
        losses = []
        for number, _ in enumerate(trainer.updates()):
            if every and number % every == 0 and not trainer.ended:
                before = parameters.values.clone()
                losses.append(trainer.validate())
                assert torch.equal(parameters.values, before)
        ended = transport.now()
        before = flat(model).clone()
        losses.append(trainer.validate())  # together, once all have ended
        assert torch.equal(flat(model), before)
        return before, ended, losses

    result, statistics = own.run(work), own.statistics()
    return result, statistics


@pytest.mark.parametrize("network", [FREE, SLOW], ids=lambda network: network.name)
@pytest.mark.parametrize(
    "name", quick(ALL_STRATEGIES, lambda name: name not in (*ALIKE, *RELATED)), ids=lambda name: name.rpartition("/")[2]
)
def test_looking_changes_neither_parameters_nor_clocks(name, network):
    strategy = strategy_named(name)
    if not network.free and name.startswith(("shared",)):
        pytest.skip("memory that ranks share takes no simulated time")
    outcomes = []
    for every in (0, 1, 3):
        results = Cluster(strategy.ranks_for(WORKERS), network=network).run(
            lambda transport, every=every: looked_at(transport, strategy, every)
        )
        outcomes.append(results)
    for results in outcomes[1:]:
        for (own, statistics), (expected, counted) in zip(results, outcomes[0], strict=True):
            assert statistics == counted
            if expected is not None:
                assert torch.equal(own[0], expected[0])
                assert own[1] == expected[1], "clocks"
                assert own[2][-1] == expected[2][-1], "the last look"
    workers = [result for result, _ in outcomes[1] if result is not None]
    assert len({losses[-1] for *_, losses in workers}) == 1 or name == "no-exchange"
    alone = not strategy.in_step()
    assert all(loss is not None for loss in workers[0][2])
    assert all(loss is None for loss in workers[1][2][:-1]) == alone


@pytest.mark.parametrize(
    "name", ["ps:async", "ps:ssp:2", "ps:backup:1", "ps:async+servers=2", "ps:async+colocated", "ps:async+stale=scaled"]
)
def test_looking_by_messages_changes_nothing_either(name):
    """As between processes. On a free network messages take no time, so that the order of all else stays."""
    strategy = strategy_named(name)

    def work(transport, every):
        transport.board = None
        return looked_at(transport, strategy, every)

    never, always = (
        Cluster(strategy.ranks_for(WORKERS)).run(lambda transport, every=every: work(transport, every))
        for every in (0, 1)
    )
    for (own, statistics), (expected, counted) in zip(always, never, strict=True):
        assert statistics == counted
        if expected is not None:
            assert torch.equal(own[0], expected[0])
            assert own[2][-1] == expected[2][-1]
    by_board = Cluster(strategy.ranks_for(WORKERS)).run(lambda transport: looked_at(transport, strategy, 1))
    assert always[0][0][2] == by_board[0][0][2], "the losses that worker 0 has seen"


def test_worker_0_sees_what_the_servers_have_and_not_what_it_has_read():
    """Worker 1 makes an update while worker 0 computes; the look shows it, and is counted as no reading."""
    strategy = strategy_named("ps:async")

    def work(transport):
        parameters = FlatParameters(torch.nn.Linear(1, 1, bias=False).double())
        parameters.values.fill_(1.0)
        own = strategy(transport)
        own.start(parameters, lambda named: torch.optim.SGD([p for _, p in named], lr=1.0))

        def train():
            if transport.rank == 0:
                transport.spend(2.0)
                with own.newest(together=False):
                    seen = parameters.values.item()
                kept = parameters.values.item()
            parameters.gradients.fill_(0.25)
            for bucket in own.buckets:
                own.push(bucket)
            own.step(1.0, 0.0)
            own.pull()
            return (seen, kept) if transport.rank == 0 else None

        return own.run(train), own.statistics()

    for network in (FREE, SLOW):
        (looked, _), _, (_, counted) = Cluster(3, network=network).run(work)
        assert looked == (0.75, 1.0)
        assert counted["staleness"] == {"0": 1, "1": 1}


@pytest.mark.parametrize("name", ["ps:async", "ps:async+servers=2"])
def test_a_look_before_the_servers_have_begun_and_in_a_second_training(name):
    """On a slow network worker 0 is ready before them; what it sees is of this training, not of one before."""
    strategy = strategy_named(name)

    def work(transport):
        seen = []
        for value in (1.0, 5.0):
            parameters = FlatParameters(torch.nn.Linear(3, 1, bias=False).double())
            parameters.values.fill_(value)
            own = strategy(transport)
            own.start(parameters, lambda named: torch.optim.SGD([p for _, p in named], lr=1.0))

            def train(own=own, parameters=parameters):
                if transport.rank == 0:
                    with own.newest(together=False):
                        seen.append(parameters.values.tolist())
                parameters.gradients.fill_(0.25)
                for bucket in own.buckets:
                    own.push(bucket)
                own.step(1.0, 0.0)
                own.pull()

            own.run(train)
        return seen

    for network in (FREE, SLOW):
        seen = Cluster(strategy.ranks_for(2), network=network).run(work)[0]
        assert seen == [[1.0] * 3, [5.0] * 3]
