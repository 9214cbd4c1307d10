"""Optimisers against loops over scalars, schedules and scaling rules against closed values, and all in trainings."""

import io
import json
import math
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from bodies import UPDATES, new_model, plain_loop, strategy_named, train
from jobs import SMALL
from torch import nn

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.parameters import FlatParameters, WholeFactory
from bigbatch.comm.server.consistency import Asynchronous
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import Scaled, StaleGradients
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.experiments.commands.main import cli, parsed, run_quietly, settings_of
from bigbatch.optimizers import SCALING_RULES, SCHEDULES
from bigbatch.optimizers.changed import clipped, scaled, scheduled
from bigbatch.optimizers.layerwise import LAMB, LARS
from bigbatch.optimizers.rates import cosine, linear_scaling, sqrt_scaling, warm_up_start
from bigbatch.optimizers.standard import optimizer_named
from bigbatch.training.batches import BatchPlan

SHAPES = ((3, 5), (7,), (2, 3, 4), (1, 1), (4, 2), (3,), (17, 31))
STEPS = 6


def norm(values):
    return math.sqrt(sum(value * value for value in values))


class PlainLAMB:
    """One tensor; Algorithm 2 of the paper, number by number."""

    def __init__(self, values, layered):
        self.values, self.layered, self.steps = values, layered, 0
        self.first, self.second = [0.0] * len(values), [0.0] * len(values)

    def step(self, gradient, rate=0.01, decay=0.1):
        self.steps += 1
        self.first = [0.9 * m + 0.1 * g for m, g in zip(self.first, gradient, strict=True)]
        self.second = [0.95 * v + 0.05 * g * g for v, g in zip(self.second, gradient, strict=True)]
        means = [m / (1 - 0.9**self.steps) for m in self.first]
        squares = [v / (1 - 0.95**self.steps) for v in self.second]
        update = [m / (math.sqrt(v) + 1e-6) for m, v in zip(means, squares, strict=True)]
        ratio = 1.0
        if self.layered:
            update = [u + decay * x for u, x in zip(update, self.values, strict=True)]
            if norm(self.values) and norm(update):
                ratio = norm(self.values) / norm(update)
        self.values = [x - rate * ratio * u for x, u in zip(self.values, update, strict=True)]


class PlainLARS:
    """One tensor; Algorithm 1 of the paper, number by number."""

    def __init__(self, values, layered):
        self.values, self.layered = values, layered
        self.momentum = [0.0] * len(values)

    def step(self, gradient, rate=0.01, decay=5e-4):
        ratio = 1.0
        if not self.layered:
            decay = 0.0
        elif norm(self.values) and norm(gradient):
            ratio = 1e-3 * norm(self.values) / (norm(gradient) + decay * norm(self.values))
        force = [g + decay * w for g, w in zip(gradient, self.values, strict=True)]
        self.momentum = [0.9 * v + rate * ratio * f for v, f in zip(self.momentum, force, strict=True)]
        self.values = [w - v for w, v in zip(self.values, self.momentum, strict=True)]


def new_parameters(dtype=torch.float64):
    """Of many shapes, one of them all zeros."""
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    values[4].zero_()
    return [(f"p{number}", nn.Parameter(value)) for number, value in enumerate(values)]


def give_gradients(parameters, step):
    """Other ones for every step and element; of the first tensor none but zeros at first, of the last none at all."""
    generator = torch.Generator().manual_seed(step)
    for number, (_, parameter) in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if number == 0 and step < 3:
            parameter.grad.zero_()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda named: LAMB(named, lr=0.01), PlainLAMB),
        (lambda named: LAMB(named, lr=0.01, fused=False), PlainLAMB),
        (lambda named: LARS(named, lr=0.01), PlainLARS),
        (optimizer_named("lamb", 0.01), PlainLAMB),
        (optimizer_named("lars", 0.01), PlainLARS),
    ],
)
def test_a_layerwise_optimiser_follows_its_paper_number_by_number(make, plain, dtype, close):
    parameters = new_parameters(dtype)
    plains = [plain(p.flatten().tolist(), p.dim() >= 2) for _, p in parameters]
    optimizer = make(parameters)
    for step in range(STEPS):
        give_gradients(parameters, step)
        optimizer.step()
        for (name, parameter), expected in zip(parameters, plains, strict=True):
            expected.step(parameter.grad.flatten().tolist())
            assert parameter.flatten().tolist() == pytest.approx(expected.values, rel=close, abs=close), (name, step)


def test_without_decay_a_tensor_without_a_gradient_stays_where_it_is():
    """‖u‖ and ‖g‖ are 0: the ratio is 1, and 0/0 nowhere."""
    for make in (
        lambda p: LAMB([p], lr=0.1, weight_decay=0.0),
        lambda p: LAMB([p], lr=0.1, weight_decay=0.0, fused=False),
        lambda p: LARS([p], lr=0.1, weight_decay=0.0),
    ):
        parameter = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
        parameter.grad = torch.zeros_like(parameter)
        make(parameter).step()
        assert parameter.tolist() == [[1.0, -2.0, 3.0]]


def test_tensors_that_are_not_contiguous_or_have_no_gradient_are_no_exception():
    turned, plain = nn.Parameter(torch.arange(1.0, 7.0).view(2, 3).T), nn.Parameter(torch.arange(1.0, 7.0).view(2, 3))
    turned.grad, plain.grad = torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(2, 3)
    LAMB([turned, nn.Parameter(torch.ones(2, 2))], lr=0.1).step()
    LAMB([plain], lr=0.1).step(lambda: None)
    torch.testing.assert_close(turned.T, plain)


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.95))),
        (
            "adamw",
            lambda p: torch.optim.AdamW(
                [
                    {"params": [q for q in p if q.dim() >= 2], "weight_decay": 0.1},
                    {"params": [q for q in p if q.dim() < 2], "weight_decay": 0.0},
                ],
                lr=0.01,
                betas=(0.9, 0.95),
            ),
        ),
    ],
)
def test_the_others_are_torchs(name, torchs):
    ours, theirs = new_parameters(), new_parameters()
    first, second = optimizer_named(name, 0.01)(ours), torchs([parameter for _, parameter in theirs])
    for step in range(STEPS):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        first.step()
        second.step()
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


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


@pytest.mark.parametrize(("most", "factor"), [(2.6, 0.2), (13.0, 1), (14.0, 1)])
def test_a_gradient_is_clipped_by_its_norm_over_all_parameters(most, factor):
    """(3, 4) and (12,): 13 long."""
    one, other = nn.Parameter(torch.zeros(1, 2).double()), nn.Parameter(torch.zeros(1).double())
    one.grad, other.grad = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([12.0]).double()
    clipped(lambda named: torch.optim.SGD(named, lr=1.0), most)([("a", one), ("b", other)]).step()
    assert [*one.flatten().tolist(), *other.tolist()] == pytest.approx([-3 * factor, -4 * factor, -12 * factor])


def test_a_gradient_of_zeros_is_not_clipped_to_nothing_that_is_a_number():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.zeros(2)
    clipped(lambda named: torch.optim.SGD(named, lr=1.0), 1.0)([("a", parameter)]).step()
    assert parameter.tolist() == [1.0, 1.0]


RECIPES = {
    "lamb": optimizer_named("lamb", 0.05),
    "lars": optimizer_named("lars", 5.0),
    "scheduled": scheduled(optimizer_named("adamw", 0.1), cosine, 9, 3),
    "all": clipped(scheduled(scaled(optimizer_named("lamb", 0.1), sqrt_scaling, 16, 8), cosine, 9, 3), 2.0),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_state_goes_on_exactly_even_from_disk(name):
    one = new_parameters()
    optimizer = RECIPES[name](one)
    for step in range(4):
        give_gradients(one, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "values": [p.detach() for _, p in one]}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    other = [(name, nn.Parameter(value)) for (name, _), value in zip(one, kept["values"], strict=True)]
    goes_on = RECIPES[name](other)
    goes_on.load_state_dict(kept["optimizer"])
    for step in range(4, 8):
        for parameters, which in ((one, optimizer), (other, goes_on)):
            give_gradients(parameters, step)
            which.step()
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert torch.equal(a, b)


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


def rates_in(make, steps):
    """The rate of every step, as gradients of ones move a weight by it."""
    parameter = nn.Parameter(torch.zeros(1).double())
    parameter.grad = torch.ones(1).double()
    optimizer, places = make([("a", parameter)]), [0.0]
    for _ in range(steps):
        optimizer.step()
        places.append(-parameter.item())
    return [after - before for before, after in pairwise(places)]


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


@pytest.mark.parametrize(("scaling", "start"), [("linear", 0.005), ("sqrt", 0.0), ("none", 0.0)])
def test_an_experiments_warm_up_starts_as_its_rule_has_it(scaling, start):
    """A rate of 0.005 for 16 examples; every one of 32 steps of warm-up is as much more than the one before."""
    words = ["--scaling", scaling, *(["--base-batch", "16"] if scaling != "none" else [])]
    options = parsed(["ring", "--optimizer", "torch.optim:SGD", "--learning-rate", "0.005", "--warmup", "32", *words])
    make = settings_of(options).optimizer_for(BatchPlan(8, 2, workers=4), 40, STRATEGIES.load("ring"))
    rates = rates_in(make, 33)
    peak = 0.005 * {"linear": 4, "sqrt": 2, "none": 1}[scaling]
    expected = [start + (peak - start) * min(step, 32) / 32 for step in range(1, 34)]
    assert rates == pytest.approx(expected, rel=1e-9)


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


# Whole trainings.

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


# The command line, in this process.


@pytest.fixture
def arms_of(tmp_path, cache, monkeypatch):
    """Simulates two workers, and returns the arms of the summary."""
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    monkeypatch.setattr("bigbatch.experiments.commands.main.present", lambda *_: None)  # it draws
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(str(number**2) for number in range(20_000)))

    def run(*words):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        strategy, *options = words
        small = [*SMALL, "--text", "text.txt", "--simulate", "2", "--quiet", "--out", str(out)]
        cli([strategy, *small, *options], standalone_mode=False)
        return json.loads((out / "summary.json").read_text())["arms"]

    return run


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("ring --schedule constant --warmup 0 --scaling none", True),
        ("ring --schedule linear --warmup 2", False),
        ("ring --schedule wsd", False),
        ("ring --scaling linear", False),
        ("ring --scaling sqrt --base-batch 16", True),
        ("ps --optimizer lamb --schedule noam --warmup 2 --clip 0.5", False),
        ("ring --optimizer lars --learning-rate 5 --clip 10", False),
    ],
)
def test_every_option_trains(arms_of, words, same):
    """The small arm of two workers has 16 examples for an update."""
    (without,) = arms_of("ring", "--arms", "small")
    (arm,) = arms_of(*words.split(), "--arms", "small")
    assert arm["global_batch"] == 16
    assert (arm["validation_loss"] == without["validation_loss"]) == same
    assert arm["validation_loss"] < 6


OWN = """
def own(step, steps, warm_up):
    with open("steps.txt", "a") as file:
        print(step, steps, warm_up, file=file)
    return 1 / step
"""


def test_a_schedule_of_ones_own_hears_of_every_step_of_an_asynchronous_server(arms_of, tmp_path):
    """Two workers make two steps for each of an arm's updates, and warm up over two."""
    (tmp_path / "own.py").write_text(OWN)
    words = ("ps:async", "--schedule", "own.py:own", "--warmup", "1", "--arms", "small,large")
    arms = arms_of(*words)
    steps = [2 * arm["updates"] for arm in arms]
    lines = [tuple(map(int, line.split())) for line in (tmp_path / "steps.txt").read_text().splitlines()]
    made = [arm["servers"][0]["versions"] for arm in arms]
    expected = [(step, total, 2) for total, count in zip(steps, made, strict=True) for step in range(1, count + 1)]
    assert lines == expected
    # Of the last, short batch a worker may have had nothing.
    assert all(total - 1 <= count <= total for total, count in zip(steps, made, strict=True))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("ring --simulate 2 --schedule cosin", "Unknown schedule 'cosin' (did you mean 'cosine'?)"),
        ("ring --simulate 2 --scaling cubic", "Unknown scaling rule 'cubic'"),
        ("ring --simulate 2 --base-batch 32", "--base-batch 32 says from which batch to scale"),
        ("ring --simulate 2 --scaling sqrt --base-batch 6", "k = 64 / 6 = 10.6667 with β = 0.9"),
        ("ps serve --scaling sqrt --base-batch 6", "The largest batch for an update is 59 examples"),
        ("ring --simulate 2 --warmup 3", "A warm-up of 3 steps of the optimiser is longer than an arm, which has 2"),
        ("ps --simulate 2 --servers 2 --optimizer lamb", "lamb looks at the whole"),
        ("ps --simulate 2 --colocated --clip 1", "--clip looks at the whole"),
        ("ps serve --part 1/2 --clip 1", "--clip looks at the whole"),
        ("ps:async --simulate 2 --target 3", "--target 3 asks how long all workers take, but those of ps:async are"),
        ("ps --consistency ssp -n 2 --target 3", "those of ps are not in step"),
        ("compare ring ps:backup -n 2 --target 3", "those of ps:backup are not in step"),
        ("compare ps:async ring -n 4 --batch-size 640 --scaling sqrt", "k = 640 / 64 = 10"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(tmp_path, monkeypatch, cache, words, sentence):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(str(number**2) for number in range(20_000)))
    monkeypatch.setattr("bigbatch.experiments.commands.main.become", None)  # no process is started
    monkeypatch.setattr("bigbatch.experiments.commands.main.run_strategies", None)
    own = [*(SMALL[:-2] if "serve" in words else SMALL), "--text", "text.txt"]
    with pytest.raises(BigBatchError) as refused:
        cli([*words.split(), *own], standalone_mode=False)
    assert sentence in str(refused.value)
    assert not list(tmp_path.glob("**/summary.json"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("ring --base-batch 32", "--base-batch 32 says from which batch to scale"),
        ("ring --arms large --noise-scale", "every arm of large has only one"),
        ("ps:async --target 3", "those of ps:async are not in step"),
    ],
)
@pytest.mark.parametrize("simulated", [(), ("--simulate", "1")])
def test_a_point_is_refused_where_its_command_is(tmp_path, monkeypatch, cache, words, sentence, simulated):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    with pytest.raises(ConfigurationError) as refused:
        run_quietly([*words.split(), *SMALL, *simulated], tmp_path / "run")
    assert sentence in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_comparison_checks_each_strategy_by_its_own_steps(tmp_path, monkeypatch):
    """A quarter of 640 examples is behind an asynchronous step: k = 2.5, of less than 10."""
    monkeypatch.chdir(tmp_path)

    def reached(names, *_, **__):
        raise BigBatchError(f"would run {names}")

    monkeypatch.setattr("bigbatch.experiments.commands.main.run_strategies", reached)
    for names in (("ps:async",), ("ps:async", "ps:backup:3")):
        with pytest.raises(BigBatchError) as reached_it:
            cli(["compare", *names, "-n", "4", "--batch-size", "640", "--scaling", "sqrt"], standalone_mode=False)
        assert str(reached_it.value) == f"would run {names}"


@pytest.mark.parametrize("name", ["ps:async", "ps:backup:1"])
def test_a_step_is_scaled_by_the_gradients_behind_it(arms_of, name):
    """Of the 16 examples of the small arm each of two workers has 8, and one's gradient makes a step."""
    losses = []
    for words in ("", "--scaling sqrt --base-batch 8", "--scaling sqrt --base-batch 16"):
        (arm,) = arms_of(name, *words.split(), "--arms", "small")
        losses.append(arm["validation_loss"])
    assert losses[0] == losses[1] != losses[2]


LEAN = """
import sys
import torch
from bigbatch.optimizers import optimizer_named

for name in ("sgd", "adam", "adamw", "lars", "lamb"):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2)
    made = optimizer_named(name, 0.1)([("weight", weight)])
    made.register_step_post_hook(lambda *_: print("hooked"))
    made.step()
    assert isinstance(made, torch.optim.Optimizer)
    assert not torch.equal(weight, torch.ones(3, 2))
assert "torch._dynamo" not in sys.modules, "nothing here is compiled"
"""


def test_no_optimizer_of_ours_imports_torchs_compiler():
    outcome = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split() == ["hooked"] * 5
