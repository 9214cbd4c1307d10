"""Optimisers, schedules and clipping in whole trainings, and in which strategies they may be."""

import math

import pytest
import torch
from bodies import UPDATES, new_model, plain_loop, strategy_named, train

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters, WholeFactory
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.optimizers.changed import clipped, scaled, scheduled
from bigbatch.optimizers.rates import cosine, linear_scaling
from bigbatch.optimizers.standard import optimizer_named

MOST, RATE, WARM_UP = 0.14, 0.02, 5
WHOLE = clipped(scheduled(optimizer_named("lamb", RATE), cosine, UPDATES, WARM_UP), MOST)


@pytest.fixture(scope="module")
def whole_oracle():
    """A plain loop in one process, with the rates and the clipping by hand; some gradients are clipped, not all."""
    made, clips = [], []

    def make(named):
        made.append(optimizer_named("lamb", RATE)(named))
        return made[0]

    def touch(gradients):
        step = len(clips) + 1
        falling = (1 + math.cos(math.pi * (step - WARM_UP) / (UPDATES + 1 - WARM_UP))) / 2
        made[0].param_groups[0]["lr"] = RATE * (step / WARM_UP if step < WARM_UP else falling)
        length = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        clips.append(length > MOST)
        for gradient in gradients:
            gradient.mul_(min(1.0, MOST / length))

    values, _ = plain_loop(make, touch)
    assert 0 < sum(clips) < UPDATES
    return values


@pytest.mark.parametrize(("name", "workers"), [("ring", 2), ("shared", 3), ("ps", 2), ("ps:ssp:0", 3)])
def test_trainings_equal_a_plain_loop_with_everything_by_hand(whole_oracle, name, workers):
    """Tokens are unequal, so that the division must come before the clipping."""
    strategy = strategy_named(name)
    results = Cluster(strategy.ranks_for(workers)).run(
        lambda transport: train(transport, strategy, 1, 2000, make=WHOLE)
    )
    trained = [values for values, _ in filter(None, results)]
    assert len(trained) == workers
    for values in trained:
        torch.testing.assert_close(values, whole_oracle, rtol=1e-11, atol=1e-13)
        assert torch.equal(values, trained[0])


@pytest.mark.parametrize("choices", [{"servers": 2}, {"colocated": True}])
@pytest.mark.parametrize("what", ["lars", "lamb", "--clip", "torch.optim:Adafactor"])
def test_servers_of_parts_refuse_what_must_see_the_whole_on_every_rank(choices, what):
    make = clipped(optimizer_named("sgd", 0.1), 1.0) if what == "--clip" else optimizer_named(what, 0.1)
    strategy = STRATEGIES.load("ps").configured(choices)

    def work(transport):
        with pytest.raises(ConfigurationError, match=f"{what} looks at the whole .* each of 2 servers .*--servers 1"):
            strategy(transport).start(FlatParameters(new_model()), make)
        return True

    assert all(Cluster(strategy.ranks_for(2)).run(work))
    one = STRATEGIES.load("ps")
    parameters = Cluster(2).run(lambda transport: one(transport).start(FlatParameters(new_model()), make))
    assert parameters == [None, None]


def test_what_is_done_to_a_factory_leaves_it_whole_or_not():
    whole, plain = optimizer_named("lamb", 0.1), optimizer_named("sgd", 0.1)
    for change in (lambda m: scheduled(m, cosine, 3, 0), lambda m: scaled(m, linear_scaling, 2, 1)):
        assert isinstance(change(whole), WholeFactory)
        assert not isinstance(change(plain), WholeFactory)
    assert isinstance(clipped(plain, 1.0), WholeFactory)


@pytest.mark.parametrize(
    ("name", "steps"), [("ring", 1), ("ps", 1), ("ps:ssp:2", 1), ("ps:backup", 1), ("ps:async", 3), ("shared", 1)]
)
def test_only_an_asynchronous_server_makes_a_step_for_every_gradient(name, steps):
    assert STRATEGIES.load(name).steps_per_update(3) == steps


@pytest.mark.parametrize(
    ("name", "gradients", "in_step"),
    [
        *(("ring", 3, True), ("shared", 3, True), ("ps", 3, True), ("ps:sync", 3, True), ("ps:ssp:2", 3, False)),
        *(("ps:async", 1, False), ("ps:backup:1", 2, False), ("ps:backup:2", 1, False)),
    ],
)
def test_a_strategy_says_what_is_behind_its_updates(name, gradients, in_step):
    strategy = STRATEGIES.load(name)
    assert (strategy.gradients_per_step(3), strategy.in_step()) == (gradients, in_step)
