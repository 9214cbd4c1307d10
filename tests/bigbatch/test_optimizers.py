"""Optimisers against loops over scalars and against torch's, the clipping of gradients, and states that go on."""

import io
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.optimizers.changed import clipped, scaled, scheduled
from bigbatch.optimizers.layerwise import LAMB, LARS
from bigbatch.optimizers.rates import cosine, sqrt_scaling
from bigbatch.optimizers.standard import optimizer_named

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


LEAN = """
import sys
import torch
from bigbatch.optimizers.standard import optimizer_named

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


def test_a_factory_that_makes_no_optimiser_is_refused_instead_of_training_nothing(tmp_path):
    (tmp_path / "own.py").write_text(
        "def nothing(rate):\n    return lambda named: None\n\n\n"
        "def raises(rate):\n    def build(named):\n        raise ValueError('bad\\nthing')\n    return build\n"
    )
    for name, said in (
        ("nothing", "is made as an object of the type NoneType"),
        ("raises", r"ValueError: bad thing \("),
    ):
        with pytest.raises(ConfigurationError, match=said):
            optimizer_named(f"{tmp_path}/own.py:{name}", 0.1)([("weight", nn.Parameter(torch.zeros(1, 1)))])


def test_a_class_that_cannot_step_on_dense_gradients_is_refused_before_training():
    with pytest.raises(ConfigurationError, match="The optimiser SparseAdam cannot make a step: RuntimeError: "):
        optimizer_named("torch.optim:SparseAdam", 0.1)
