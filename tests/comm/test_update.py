"""One update: what it divides, what it refuses, and how that is said."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bodies import new_model, optimizer

from bigbatch.comm.errors import ConfigurationError, MalformedError
from bigbatch.comm.gradients import GradientViews
from bigbatch.comm.kinds import Whole
from bigbatch.comm.options import Options, option
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.report import Report
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.replicated import Replicated
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.update import BLOCK_ELEMENTS, Outcome, make_update
from bigbatch.comm.values import ValueViews


def parameter(elements):
    one = torch.nn.Parameter(torch.arange(elements, dtype=torch.float64))
    named = [("one", one)]
    views = GradientViews(named, torch.zeros(elements, dtype=torch.float64), [0])
    return one, views, ValueViews(named, torch.empty(elements, dtype=torch.float64), [0])


@pytest.mark.parametrize("elements", [1, 1003, 2 * BLOCK_ELEMENTS + 7])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_a_sum_is_divided_once_and_the_rate_is_for_this_update_alone(elements, rate):
    one, views, values = parameter(elements)
    sgd = torch.optim.SGD([one], lr=0.5)
    parts = [torch.arange(elements, dtype=torch.float64) * factor for factor in (1, 10, 100)]
    expected = torch.arange(elements) - 0.5 * rate * sum(parts) / 8
    outcome = make_update(sgd, views, parts[0].clone(), 8.0, values=values, rest=parts[1:], rate=rate)
    assert outcome is Outcome.APPLIED
    torch.testing.assert_close(one.detach(), expected, rtol=1e-15, atol=0)
    assert sgd.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("weight", "finite", "bad", "outcome"),
    [
        (0.0, True, 1.0, Outcome.NO_DATA),
        (0.0, False, math.nan, Outcome.NO_DATA),
        (1.0, False, 1.0, Outcome.NOT_FINITE),
        (1.0, True, math.nan, Outcome.NOT_FINITE),
        (1.0, True, -math.inf, Outcome.NOT_FINITE),
    ],
)
@pytest.mark.parametrize("place", [0, BLOCK_ELEMENTS + 3])
def test_what_cannot_be_an_update_leaves_the_parameters(weight, finite, bad, outcome, place):
    one, views, values = parameter(BLOCK_ELEMENTS + 5)
    adam = torch.optim.Adam([one], lr=1.0)
    one.grad[place] = bad
    assert make_update(adam, views, one.grad, weight, values=values, finite=finite) is outcome
    assert torch.equal(one.detach(), torch.arange(len(one), dtype=torch.float64))
    assert not adam.state


def test_who_has_no_parameters_makes_updates_too():
    nothing = torch.empty(0)
    views, values = GradientViews([], nothing, []), ValueViews([], nothing, [])
    assert make_update(None, views, nothing, 1.0, values=values) is Outcome.APPLIED


def test_an_outcome_travels_as_a_number_and_is_written_as_a_word():
    assert [Outcome.of(outcome.code) for outcome in Outcome] == list(Outcome)
    assert json.dumps(list(Outcome)) == '["applied", "no data", "not finite", "dropped"]'
    for wrong in (4.0, -1.0, 0.5, math.nan):
        with pytest.raises(MalformedError, match="stands for nothing"):
            Outcome.of(wrong)
    for outcome in Outcome:
        report = Report(1.0, 7.0, outcome, 40.0, 5.5, 1.0, 120.0, 3.0, 0.25)
        assert Report.of(report.row()) == report
        assert report.applied == (outcome is Outcome.APPLIED)
        assert report.row().dtype == np.float64


@dataclass(frozen=True)
class Chosen(Options):
    times: int = option(2, Whole(most=9), "How often something is done.")


class OfOnesOwn(Replicated):
    """Has an option."""

    options = Chosen()


def test_options_of_a_strategy_of_ones_own_need_no_more_than_their_field():
    chosen = OfOnesOwn.configured({"times": "3"})
    assert (chosen.options.times, OfOnesOwn.options.times) == (3, 2)
    assert chosen.configured({}).options.times == 3
    assert issubclass(chosen, OfOnesOwn)
    assert (chosen.__name__, chosen.__doc__) == ("OfOnesOwn", "Has an option.")
    assert chosen(Alone()).options.times == 3
    with pytest.raises(ConfigurationError, match="has no option 'time'"):
        OfOnesOwn.configured({"time": 3})
    with pytest.raises(ConfigurationError, match="--times cannot be 10"):
        OfOnesOwn.configured({"times": 10})
    with pytest.raises(ConfigurationError, match="no option 'servers'"):
        STRATEGIES.load("ring").configured({"servers": 2})


class OnlyHalf(STRATEGIES.load("ring")):
    """Replaces how one bucket is summed, and what is made of the sum, each by itself."""

    def reduce(self, bucket):
        bucket.gradients.mul_(0.5)
        super().reduce(bucket)

    def update(self, weight):
        return super().update(weight / 2)


def test_a_bucket_and_an_update_are_replaced_alone():
    """Half of every gradient, divided by half of the weight: the parameters of the ring, to the last bit."""

    def work(transport, strategy):
        parameters = FlatParameters(new_model())
        own = strategy(transport)
        own.start(parameters, optimizer, bucket_bytes=1000)
        assert len(own.buckets) > 3
        for step in range(3):
            values = torch.arange(len(parameters.values), dtype=torch.float64)
            parameters.gradients.copy_(torch.sin(values * (transport.rank + 2) + step))
            for bucket in own.buckets:
                own.push(bucket)
            report = own.step(4.0 + transport.rank, 0.0)
            assert (report.outcome, report.weight, report.next_update) == (Outcome.APPLIED, 15.0, step + 1)
        return parameters.values.clone()

    for ours, expected in zip(
        Cluster(3).run(lambda transport: work(transport, OnlyHalf)),
        Cluster(3).run(lambda transport: work(transport, STRATEGIES.load("ring"))),
        strict=True,
    ):
        assert torch.equal(ours, expected)
