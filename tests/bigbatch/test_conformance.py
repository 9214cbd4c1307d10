"""The kits for tasks, models, optimisers, schedules and strategies: each wrong one is found by the check it breaks."""

# ruff: noqa: ARG001, ARG002, ARG003, ARG005 - those that are wrong on purpose ignore what they are given
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring import conformance
from bigbatch.comm.measuring.conformance import examined
from bigbatch.comm.parameters import WholeFactory
from bigbatch.models import MODELS
from bigbatch.models.decoder import Decoder
from bigbatch.models.settings import ModelSettings
from bigbatch.optimizers import OPTIMIZERS, SCHEDULES
from bigbatch.optimizers.changed import scheduled
from bigbatch.optimizers.conformance import conform_optimizer, conform_schedule
from bigbatch.optimizers.standard import factory_of, optimizer_named
from bigbatch.tasks.documents import Documents
from bigbatch.tasks.language_modelling import LanguageModelling
from bigbatch.training.conformance import checks_of_model, conform_task
from bigbatch.training.strategy_conformance import conform_strategy

TEXT = np.random.default_rng(0).integers(1, 30, 600).astype(np.int32)
TEXT[::7] = 0  # ends of documents
SIZES = ModelSettings(layers=1, width=16, heads=2)


def tokens():
    return {"training": TEXT[:500], "validation": TEXT[500:]}


def task_of(kind):
    if issubclass(kind, Documents):
        return kind(tokens(), 0, 8, 30, "digest")
    return kind(tokens(), 8, 30, "digest")


def found(kind, model=None):
    task = task_of(kind)
    return conform_task(task, MODELS.load("decoder").build(task, SIZES, 0) if model is None else model)


@pytest.mark.parametrize("kind", [LanguageModelling, Documents])
def test_tasks_of_ours_conform(kind):
    assert found(kind) == {}


def test_dropout_does_not_show_in_evaluation_mode_and_the_model_is_left_as_it_was():
    task = task_of(LanguageModelling)
    model = nn.Sequential(nn.Embedding(30, 8), nn.Dropout(0.5), nn.Linear(8, 30)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert conform_task(task, model) == {}
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Mean(LanguageModelling):
    """FAULTS: trains at 1/tokens of the rate."""

    def loss(self, model, batch):
        loss, count = super().loss(model, batch)
        return loss / count, count


class MeanOverExamples(LanguageModelling):
    def loss(self, model, batch):
        loss, count = super().loss(model, batch)
        return loss / len(batch.tokens), count


class CountsPadding(Documents):
    def loss(self, model, batch):
        return super().loss(model, batch)[0], batch.targets.numel()


class CountsExamples(LanguageModelling):
    def loss(self, model, batch):
        return super().loss(model, batch)[0], len(batch.tokens)


class CountsInTensors(LanguageModelling):
    def loss(self, model, batch):
        loss, count = super().loss(model, batch)
        return loss, torch.tensor(count)


class CountsNothing(LanguageModelling):
    def loss(self, model, batch):
        return super().loss(model, batch)[0], 0


class LossOnly(LanguageModelling):
    def loss(self, model, batch):
        return super().loss(model, batch)[0]


class Detached(LanguageModelling):
    def loss(self, model, batch):
        loss, count = super().loss(model, batch)
        return loss.detach(), count


class OneLossAToken(LanguageModelling):
    def loss(self, model, batch):
        loss, count = super().loss(model, batch)
        return loss.expand(2), count


class ZeroesGradients(LanguageModelling):
    """fairscale 354, pytorch 96439."""

    def loss(self, model, batch):
        model.zero_grad()
        return super().loss(model, batch)


class ZeroesGradientsInPlace(LanguageModelling):
    def loss(self, model, batch):
        model.zero_grad(set_to_none=False)
        return super().loss(model, batch)


class SwitchesMode(LanguageModelling):
    """Lightning 2551."""

    def loss(self, model, batch):
        model.train()
        return super().loss(model, batch)


class ClipsParameters(LanguageModelling):
    def loss(self, model, batch):
        with torch.no_grad():
            next(model.parameters()).clamp_(-0.01, 0.01)
        return super().loss(model, batch)


class Freezes(LanguageModelling):
    def loss(self, model, batch):
        result = super().loss(model, batch)
        next(model.parameters()).requires_grad_(False)
        return result


class RandomLoss(LanguageModelling):
    def loss(self, model, batch):
        loss, count = super().loss(model, batch)
        return loss * (1 + torch.rand(())), count


class RandomWindows(LanguageModelling):
    def _windows(self, split, examples):
        return super()._windows(split, examples + np.random.randint(0, 5))  # noqa: NPY002 - the mistake


class Counts(LanguageModelling):
    """It has a state of its own."""

    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        loss, count = super().loss(model, batch)
        return loss * self.calls, count


class IgnoresTheNumbers(LanguageModelling):
    def batch(self, split, examples):
        return super().batch(split, np.arange(len(examples)))


class SortsTheNumbers(LanguageModelling):
    def batch(self, split, examples):
        return super().batch(split, np.unique(examples))


class IgnoresTheSplit(LanguageModelling):
    def batch(self, split, examples):
        return super().batch("training", examples)


class WeighsThePosition(LanguageModelling):
    """The loss depends on the place of an example in its batch."""

    def loss(self, model, batch):
        each = [super(WeighsThePosition, self).loss(model, replace(batch, tokens=t[None], targets=y[None]))
                for t, y in zip(batch.tokens, batch.targets, strict=True)]  # fmt: skip
        return sum(loss * (1 + place) for place, (loss, _) in enumerate(each)), sum(count for _, count in each)


class WrongSizes(LanguageModelling):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sizes = {"training": 3.5, "validation": 4}


class MeasuresBatches(LanguageModelling):
    def measure(self, model, batch):
        return super().measure(model, batch)[:1]


class MeasuresTensors(LanguageModelling):
    def measure(self, model, batch):
        return [torch.tensor(entry) for entry in super().measure(model, batch)]


class MeasuresTheBatch(LanguageModelling):
    """What it measures of an example depends on those beside it."""

    def measure(self, model, batch):
        return [(len(batch.tokens), *rest) for _, *rest in super().measure(model, batch)]


class MeasuresInTrainingMode(LanguageModelling):
    def measure(self, model, batch):
        return super().measure(model.train(), batch)


class NotANumber(LanguageModelling):
    def metrics(self, measured):
        return {"nothing": float("nan")}


class NoNames(LanguageModelling):
    def metrics(self, measured):
        return 0.5


class NoScore(LanguageModelling):
    score = "chrF"


class Raises(LanguageModelling):
    def loss(self, model, batch):
        raise KeyError("oops")


MUTANTS = {
    Mean: ("sum", "it is a mean, and must be a sum"),
    MeanOverExamples: ("sum", "they do not add up|it is a mean"),
    CountsPadding: ("loss", "tokens are said to be in a batch that has"),
    CountsExamples: ("loss", "are said to be in a batch that has"),
    CountsInTensors: ("loss", "must be a Python int"),
    CountsNothing: ("loss", "are said to have 0 tokens"),
    LossOnly: ("loss", "must return the summed loss and its number of tokens"),
    Detached: ("loss", "has no gradient"),
    OneLossAToken: ("loss", r"no tensor of a single number: a tensor of shape \(2,\)"),
    ZeroesGradients: ("model alone", "changes the gradient of tokens.weight, as zero_grad does"),
    ZeroesGradientsInPlace: ("model alone", "changes the gradient of tokens.weight, as zero_grad does"),
    SwitchesMode: ("model alone", "puts the model into training mode"),
    ClipsParameters: ("model alone", "changes the parameter tokens.weight: only the optimiser may"),
    Freezes: ("model alone", "changes whether tokens.weight needs a gradient"),
    RandomLoss: ("repeatable", "depends on random numbers outside the task"),
    RandomWindows: ("repeatable", "depends on random numbers outside the task"),
    Counts: ("repeatable", "The same examples have the loss"),
    IgnoresTheNumbers: ("places", "has not the sum of their losses"),
    SortsTheNumbers: ("places", "has not the sum of their losses"),
    IgnoresTheSplit: ("splits", "validation examples are training examples too"),
    WeighsThePosition: ("places", "depends on the order of the examples"),
    WrongSizes: ("sizes", r"sizes\['training'\] is 3.5"),
    MeasuresBatches: ("metrics", "must return a list with an entry for each example"),
    MeasuresTensors: ("metrics", "what JSON cannot write"),
    MeasuresTheBatch: ("metrics", "'accuracy' is another one if the examples are measured one by one"),
    MeasuresInTrainingMode: ("metrics", "measure changes the model"),
    NoNames: ("metrics", "metrics returns a float, but must return numbers by name"),
    NoScore: ("metrics", "The score of the task is 'chrF', which metrics does not return: it has accuracy"),
    NotANumber: ("metrics", "The metric 'nothing' is nan"),
    Raises: ("loss", "KeyError: 'oops'"),
}


@pytest.mark.parametrize("kind", MUTANTS)
def test_wrong_tasks_are_found_by_the_check_they_break(kind):
    check, sentence = MUTANTS[kind]
    findings = found(kind)
    assert check in findings, findings
    assert re.search(sentence, findings[check]), findings[check]
    assert all("\n" not in finding and finding.endswith(".") for finding in findings.values())


class Unseeded(Decoder):
    @classmethod
    def build(cls, task, settings, seed):
        module = super().build(task, settings, seed)
        nn.init.normal_(module.norm.weight)
        return module


class SeedIgnored(Decoder):
    @classmethod
    def build(cls, task, settings, seed):
        return super().build(task, settings, 0)


class WrongSize(Decoder):
    @classmethod
    def size(cls, task, settings):
        return replace(super().size(task, settings), parameters=7)


class MixesExamples(Decoder):
    @classmethod
    def build(cls, task, settings, seed):
        module = super().build(task, settings, seed)
        module.register_forward_hook(lambda _, __, out: out + out.mean(0, keepdim=True))
        return module


@pytest.mark.parametrize(
    ("kind", "check"),
    [(Unseeded, "built alike"), (SeedIgnored, "built alike"), (WrongSize, "size"), (MixesExamples, "sum")],
)
def test_wrong_models_are_found(kind, check):
    checks = checks_of_model(kind, task_of(LanguageModelling), SIZES)
    assert check in {name for name, finding in examined(checks) if finding}


@pytest.mark.parametrize("name", [*OPTIMIZERS.names(), "torch.optim:RMSprop", "torch.optim:Adafactor"])
def test_optimisers_of_ours_and_of_torch_conform(name):
    assert conform_optimizer(optimizer_named(name, 1e-2)) == {}


class Own(torch.optim.SGD):
    """A base for mistakes."""

    def every(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]


class Replaces(Own):
    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.every():
            if parameter.grad is not None:
                parameter.data = parameter.data - self.param_groups[0]["lr"] * parameter.grad


class ZeroesAfter(Own):
    def step(self, closure=None):
        super().step(closure)
        self.zero_grad()


class Decays(Own):
    """Moves what has no gradient, too."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.every():
            parameter.mul_(1 - self.param_groups[0]["lr"])
        super().step(closure)


class KeepsItsRate(Own):
    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.every():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)


class FirstIsSpecial(Own):
    @torch.no_grad()
    def step(self, closure=None):
        for place, parameter in enumerate(self.every()):
            if parameter.grad is not None:
                parameter.sub_(self.param_groups[0]["lr"] * parameter.grad * (1 + place))


class Normalises(Own):
    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.every():
            if parameter.grad is not None:
                parameter.sub_(self.param_groups[0]["lr"] * parameter.grad / parameter.grad.norm())


class Noisy(Own):
    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for parameter in self.every():
            if parameter.grad is not None:
                parameter.add_(self.param_groups[0]["lr"] * torch.randn_like(parameter))


class Forgets(Own):
    """Counts its steps outside of its state."""

    steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for parameter in self.every():
            if parameter.grad is not None:
                parameter.sub_(self.param_groups[0]["lr"] / self.steps * parameter.grad)


def drops_biases(named):
    return torch.optim.SGD([(name, p) for name, p in named if p.dim() > 1], lr=0.1)


WRONG_OPTIMIZERS = {
    "replaces": (factory_of(Replaces, lr=0.1), "in place"),
    "zeroes after": (factory_of(ZeroesAfter, lr=0.1), "in place"),
    "decays": (factory_of(Decays, lr=0.1), "no gradient"),
    "keeps its rate": (factory_of(KeepsItsRate, lr=0.1), "rate"),
    "first is special": (factory_of(FirstIsSpecial, lr=0.1), "order"),
    "normalises": (factory_of(Normalises, lr=0.1), "elements"),
    "noisy": (factory_of(Noisy, lr=0.1), "repeatable"),
    "forgets": (factory_of(Forgets, lr=0.1), "state"),
    "drops biases": (drops_biases, "parameters"),
    "needs a closure": (partial(torch.optim.LBFGS, lr=0.1), "in place"),
    "is none": (lambda _: 5, "parameters"),
}


@pytest.mark.parametrize("name", WRONG_OPTIMIZERS)
def test_wrong_optimisers_are_found(name):
    make, check = WRONG_OPTIMIZERS[name]
    assert check in conform_optimizer(make)


def test_an_optimiser_that_says_it_looks_at_the_whole_conforms():
    assert conform_optimizer(WholeFactory("mine", factory_of(Normalises, lr=0.1))) == {}


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedules_of_ours_conform(name):
    assert conform_schedule(SCHEDULES.load(name)) == {}


calls = []


def counts(step, steps, warm_up):
    calls.append(step)
    return len(calls) / 10**6


WRONG_SCHEDULES = {
    "nan": (lambda step, *_: float("nan") if step == 7 else 1.0, "factors", "At step 7 of 10, .* factor is nan"),
    "negative": (lambda step, steps, _: 1 - 2 * step / steps, "factors", "is -1"),
    "infinite": (lambda step, *_: float("inf") if step > 3 else 1.0, "factors", "is inf"),
    "a tensor": (lambda *_: torch.ones(()), "factors", "which is no number"),
    "nothing": (lambda *_: None, "factors", "None, which is no number"),
    "true": (lambda *_: True, "factors", "True, which is no number"),
    "zero": (lambda *_: 0.0, "moves", "nothing moves"),
    "counts": (counts, "function", "it must depend on the step alone"),
    "divides by the warm-up": (lambda step, steps, warm_up: step / warm_up, "factors", "ZeroDivisionError"),
    "two arguments": (lambda step, steps: 1.0, "factors", "takes 2 positional arguments but 3 were given"),
}


@pytest.mark.parametrize("name", WRONG_SCHEDULES)
def test_wrong_schedules_are_found(name):
    schedule, check, sentence = WRONG_SCHEDULES[name]
    findings = conform_schedule(schedule)
    assert re.search(sentence, findings[check]), findings


@pytest.mark.parametrize(("factor", "said"), [(float("nan"), "nan"), (-1, "-1"), (None, "None"), ("1", "'1'")])
def test_a_schedule_that_returns_no_rate_is_refused_before_training_naming_the_step(factor, said):
    def mine(step, steps, warm_up):
        return factor if step == 6 else 1.0

    with pytest.raises(ConfigurationError, match=f"The schedule mine says at step 6 of 10 .* is {said}") as raised:
        scheduled(optimizer_named("sgd", 0.1), mine, 10, 0)
    assert raised.value.everywhere


def test_a_schedule_that_raises_is_refused_before_training():
    def mine(step, steps, warm_up):
        return 1 / (step - 3) ** 2

    with pytest.raises(ConfigurationError, match="mine cannot give a factor for step 3 of 10: ZeroDivisionError"):
        scheduled(optimizer_named("sgd", 0.1), mine, 10, 0)


STRATEGIES = Path(__file__).parents[2] / "docs" / "extending"


@pytest.mark.parametrize(
    "name", ["ring", "ps", "ps:async", "ps:ssp:1", "no-exchange", f"{STRATEGIES}/top_k.py:TopK",
             f"{STRATEGIES}/local_averaging.py:LocalAveraging"],
)  # fmt: skip
def test_strategies_of_ours_conform(name):
    assert conform_strategy(name) == {}


WRONG_STRATEGIES = '''
import torch
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.strategy import StepReport
from bigbatch.comm.reducers.collective import Scheduled
from bigbatch.comm.update import Outcome

class Twice(AllReduce):
    """Divides by the workers once more."""
    @classmethod
    def collective(cls, transport):
        class Halved(Scheduled):
            def _sum(self, tensor):
                super()._sum(tensor)
                tensor.div_(transport.size)
        from bigbatch.comm.collectives.ring import ring
        return Halved(ring, transport)

class Apart(AllReduce):
    """Every worker makes an update of its own."""
    def reduce(self, bucket):
        pass

class Idle(AllReduce):
    def update(self, weight):
        return Outcome.APPLIED

class TakesAnything(AllReduce):
    def update(self, weight):
        self.parameters.gradients.div_(max(weight, 1))
        self.optimizer.step()
        return Outcome.APPLIED

class Stalls(AllReduce):
    """Worker 0 does not come."""
    def reduce(self, bucket):
        if self.worker or self.workers == 1:
            super().reduce(bucket)
'''


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        ("Twice", {"plain loop"}),
        ("Apart", {"alike", "plain loop"}),
        ("Idle", {"trains"}),
        ("TakesAnything", {"not finite", "no data"}),
        ("Stalls", {"trains", "alike", "plain loop", "no data", "not finite"}),
    ],
)
def test_wrong_strategies_are_found(tmp_path, name, checks):
    (tmp_path / "wrong.py").write_text(WRONG_STRATEGIES)
    assert checks <= set(conform_strategy(f"{tmp_path}/wrong.py:{name}"))


def test_a_strategy_that_runs_on_its_own_wires_alone_is_refused():
    with pytest.raises(ConfigurationError, match="MPI_Allreduce needs processes that mpirun has started"):
        conform_strategy("mpi")


def test_a_check_that_stalls_ends_the_examination():
    def forever():
        while True:
            pass

    def fine():
        yield from ()

    found_here = list(conformance.examined({"fine": fine, "stalls": forever, "after": fine}, seconds=0.3))
    assert [name for name, _ in found_here] == ["fine", "stalls"]
    assert "still ran after 0.3 s" in found_here[1][1]


def test_the_kit_is_public():
    assert bigbatch.conform_task is conform_task
