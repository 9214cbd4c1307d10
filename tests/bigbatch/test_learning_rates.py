"""Learning rates: schedules, scaling rules and warm-ups against closed values, alone and in a server."""

from fractions import Fraction

import pytest
import torch
from rates import rates_in
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Asynchronous
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import Scaled, StaleGradients
from bigbatch.optimizers import SCALING_RULES, SCHEDULES
from bigbatch.optimizers.changed import scaled, scheduled
from bigbatch.optimizers.rates import cosine, linear_scaling, sqrt_scaling, warm_up_start
from bigbatch.optimizers.standard import optimizer_named

# Closed values: (schedule, steps, warm-up) -> step -> factor.
FACTORS = {
    ("constant", 10, 0): {1: 1, 10: 1},
    ("constant", 10, 4): {1: Fraction(1, 4), 3: Fraction(3, 4), 4: 1, 5: 1, 10: 1},
    ("linear", 9, 0): {1: 1, 2: Fraction(8, 9), 5: Fraction(5, 9), 9: Fraction(1, 9)},
    ("linear", 9, 5): {1: Fraction(1, 5), 5: 1, 6: Fraction(4, 5), 9: Fraction(1, 5)},
    ("linear", 5, 5): {4: Fraction(4, 5), 5: 1},
    ("linear", 1, 0): {1: 1},
    ("cosine", 6, 0): {1: 1, 3: Fraction(3, 4), 4: Fraction(1, 2), 5: Fraction(1, 4)},
    ("cosine", 9, 4): {2: Fraction(1, 2), 4: 1, 6: Fraction(3, 4), 7: Fraction(1, 2), 8: Fraction(1, 4)},
    ("noam", 1000, 4): {1: Fraction(1, 4), 2: Fraction(1, 2), 4: 1, 16: Fraction(1, 2), 400: Fraction(1, 10)},
    ("noam", 1000, 0): {1: 1, 4: Fraction(1, 2), 100: Fraction(1, 10)},
    ("wsd", 10, 2): {1: Fraction(1, 2), 2: 1, 8: 1, 9: Fraction(2, 3), 10: Fraction(1, 3)},
    ("wsd", 11, 0): {1: 1, 8: 1, 9: Fraction(3, 4), 11: Fraction(1, 4)},
    ("wsd", 1, 0): {1: Fraction(1, 2)},
}


@pytest.mark.parametrize("case", FACTORS)
def test_schedules_have_their_closed_values(case):
    name, steps, warm_up = case
    schedule = SCHEDULES.load(name)
    for step, factor in FACTORS[case].items():
        assert schedule(step, steps, warm_up) == pytest.approx(float(factor), abs=1e-15)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_no_schedule_wastes_a_step_or_exceeds_its_peak(name):
    schedule = SCHEDULES.load(name)
    for steps in (1, 2, 7, 100):
        for warm_up in (0, 1, steps // 2, steps):
            factors = [schedule(step, steps, warm_up) for step in range(1, steps + 1)]
            assert all(0 < factor <= 1 for factor in factors)
            if name != "wsd":
                assert factors[max(1, warm_up) - 1] == 1


def rates_of(make):
    optimizer = make([("weight", nn.Parameter(torch.zeros(3, 2))), ("bias", nn.Parameter(torch.zeros(2)))])
    return [{key: group.get(key) for key in ("lr", "betas", "eps")} for group in optimizer.param_groups]


def test_scaling_rules_have_their_closed_values():
    """k = 4: SGD by both rules, then AdamW's β = 0.9, 0.95 -> 1 - 4·0.1, 1 - 4·0.05 and ε = 10⁻⁸/2, in both groups."""
    sgd, adamw = optimizer_named("sgd", 0.5), optimizer_named("adamw", 0.5)
    assert rates_of(scaled(sgd, linear_scaling, 64, 16))[0]["lr"] == 2
    assert rates_of(scaled(sgd, sqrt_scaling, 64, 16))[0]["lr"] == 1
    assert rates_of(scaled(adamw, linear_scaling, 64, 16)) == [{"lr": 2, "betas": (0.9, 0.95), "eps": 1e-8}] * 2
    for group in rates_of(scaled(adamw, sqrt_scaling, 64, 16)):
        assert (group["lr"], group["eps"]) == (1, 5e-9)
        assert group["betas"] == pytest.approx((0.6, 0.8), abs=1e-15)
    for group in rates_of(scaled(adamw, sqrt_scaling, 16, 64)):
        assert (group["lr"], group["eps"]) == (0.25, 2e-8)
        assert group["betas"] == pytest.approx((0.975, 0.9875), abs=1e-15)
    for rule in SCALING_RULES.names():  # k = 1 changes nothing, to the last bit
        assert rates_of(scaled(adamw, SCALING_RULES.load(rule), 64, 64)) == rates_of(adamw)


def test_the_square_root_rule_is_rmsprops_too():
    """k = 4: α = 0.9 -> 1 - 4·0.1, and ε = 10⁻⁶/2; α = 0.99 by default allows less than a hundred times the base."""
    named = [("weight", nn.Parameter(torch.zeros(3, 2)))]

    def rmsprop(named):
        return torch.optim.RMSprop(named, lr=0.5, alpha=0.9, eps=1e-6, momentum=0.3)

    (group,) = scaled(rmsprop, sqrt_scaling, 64, 16)(named).param_groups
    assert (group["lr"], group["eps"], group["momentum"], "betas" in group) == (1, 5e-7, 0.3, False)
    assert group["alpha"] == pytest.approx(0.6, abs=1e-15)
    by_name = optimizer_named("torch.optim:RMSprop", 0.5)
    (group,) = scaled(by_name, sqrt_scaling, 99, 1)(named).param_groups
    assert group["alpha"] == pytest.approx(0.01, abs=1e-12)
    with pytest.raises(ConfigurationError, match=r"k = 100 / 1 = 100 with β = 0.99.* is 99 examples"):
        scaled(by_name, sqrt_scaling, 100, 1)(named)
    (group,) = scaled(lambda named: torch.optim.ASGD(named, lr=0.5), sqrt_scaling, 64, 16)(named).param_groups
    assert (group["lr"], group["alpha"]) == (1, 0.75), "what it calls alpha is no moment's"


class Signed(torch.optim.Optimizer):
    """Has moments and no ε."""

    def __init__(self, named, lr):
        super().__init__(named, {"lr": lr, "betas": (0.9, 0.99)})


def test_an_optimiser_with_moments_and_no_epsilon_is_scaled():
    (group,) = rates_of(scaled(lambda named: Signed(named, lr=0.5), sqrt_scaling, 64, 16))
    assert (group["lr"], group["eps"]) == (1, None)
    assert group["betas"] == pytest.approx((0.6, 0.96), abs=1e-15)


@pytest.mark.parametrize(("base", "largest"), [(64, 639), (7, 69), (1, 9)])
def test_the_square_root_rule_says_how_far_it_goes(base, largest):
    """β = 0.9 allows less than ten times the base."""
    make = optimizer_named("adam", 0.1)
    (group,) = rates_of(scaled(make, sqrt_scaling, largest, base))
    assert 0 < group["betas"][0] < 0.1 + 1e-9
    with pytest.raises(ConfigurationError) as refused:
        rates_of(scaled(make, sqrt_scaling, largest + 1, base))
    assert f"k = {largest + 1} / {base} = 10 with β = 0.9" in str(refused.value)
    assert f"largest batch for an update is {largest} examples" in str(refused.value)


def new_shard(make, stale):
    module = nn.Linear(3, 1, bias=False).double()
    shard = Shard(torch.ones(3, dtype=torch.float64), FlatParameters(module).pieces(0, 3), make, Asynchronous(), stale)
    for worker in range(3):
        shard.join(worker)
        shard.read(worker)
    return shard


def push(shard, worker, value):
    landing = shard.landing()
    landing.fill_(value)
    shard.push(worker, landing, 1.0, loss=0.0, finite=True)


HALVING = scheduled(lambda named: torch.optim.SGD(named, lr=0.5), lambda step, *_: 0.5**step, 10, 0)


def test_a_schedule_and_stale_gradients_both_lower_the_rate():
    """Of 1/2: at step t to the (1/2)^t-th part, and for staleness 0, 1, 2 to 1, 1, 1/2."""
    shard = new_shard(HALVING, Scaled())
    for worker in range(3):
        push(shard, worker, 1.0)
    assert shard.values.tolist() == [1 - 0.5 * (1 / 2 + 1 / 4 + 1 / 8 / 2)] * 3


def test_a_server_goes_on_at_the_step_of_the_schedule_where_it_was():
    """A step that is skipped is none."""
    shard = new_shard(HALVING, StaleGradients())
    push(shard, 0, 1.0)
    push(shard, 1, float("nan"))
    other = new_shard(HALVING, StaleGradients())
    other.load_state_dict(shard.state_dict())
    for worker in range(3):
        other.read(worker)
    push(other, 0, 1.0)
    assert other.values.tolist() == [1 - 0.5 * (1 / 2 + 1 / 4)] * 3


def descent(named):
    return torch.optim.SGD(named, lr=1.0)


def test_a_warm_up_rises_from_its_start_and_nothing_else_changes():
    """From a quarter by quarters of the rest, then down a cosine: 3/4, 1/2, 1/4 of the peak, as from 0."""
    rates = rates_in(scheduled(descent, cosine, 9, 4, start=0.25), 9)
    assert rates[:4] == pytest.approx([7 / 16, 10 / 16, 13 / 16, 1], rel=1e-12)
    assert rates[5:8] == pytest.approx([3 / 4, 1 / 2, 1 / 4], rel=1e-12)
    assert rates[4:] == pytest.approx(rates_in(scheduled(descent, cosine, 9, 4), 9)[4:], rel=1e-12)
    assert rates_in(scheduled(descent, cosine, 5, 0, start=0.25), 1) == [1], "without a warm-up nothing rises"


def test_the_linear_rule_warms_up_from_the_base_rate():
    """Of 0.1 for 16 examples: 64 get 0.4, in three steps by 0.1 each; fewer than 16, or another rule, rise from 0."""

    def rising(rule, batch):
        make = scaled(lambda named: torch.optim.SGD(named, lr=0.1), rule, batch, 16)
        return rates_in(scheduled(make, SCHEDULES.load("constant"), 5, 3, warm_up_start(rule, batch, 16)), 5)

    assert rising(linear_scaling, 64) == pytest.approx([0.2, 0.3, 0.4, 0.4, 0.4], rel=1e-12)
    assert rising(linear_scaling, 8) == pytest.approx([0.05 / 3, 0.1 / 3, 0.05, 0.05, 0.05], rel=1e-12)
    assert rising(sqrt_scaling, 64) == pytest.approx([0.2 / 3, 0.4 / 3, 0.2, 0.2, 0.2], rel=1e-12)


def test_steps_beyond_the_last_are_made_at_its_rate():
    parameter = nn.Parameter(torch.zeros(1).double())
    parameter.grad = torch.ones(1).double()
    optimizer = scheduled(lambda named: torch.optim.SGD(named, lr=1.0), SCHEDULES.load("linear"), 2, 0)(
        [("a", parameter)]
    )
    for _ in range(4):
        optimizer.step()
    assert parameter.item() == -(1 + 3 * 0.5)
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, "0,1", None])
def test_what_a_scaling_rule_sets_must_be_a_rate(rate):
    def broken(optimizer: torch.optim.Optimizer, _: int, __: int) -> None:
        optimizer.param_groups[0]["lr"] = rate

    with pytest.raises(ConfigurationError, match="The learning rate that the scaling rule broken sets cannot be "):
        rates_of(scaled(optimizer_named("sgd", 0.1), broken, 64, 16))
