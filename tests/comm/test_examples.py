"""The worked examples of docs/extending: what they compute, in simulated time, and as commands."""

import ast
import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import BATCH, EXAMPLES, UPDATES, Sequences, flat, new_model, optimizer
from jobs import SMALL, Run

import bigbatch
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.update import Outcome
from bigbatch.training.batches import BatchPlan
from bigbatch.training.order import DataOrder
from bigbatch.training.trainer import Trainer

FOLDER = Path(__file__).parents[2] / "docs" / "extending"
AVERAGING, TOP_K = f"{FOLDER / 'local_averaging.py'}:LocalAveraging", f"{FOLDER / 'top_k.py'}:TopK"
SLOW = Network("slow", wire(1e-3, 1e7), 1e-9, node_size=2)
WORKERS = 3
BUCKET = 1000


def trained(strategy, network, workers=WORKERS):
    def work(transport):
        model = new_model()
        parameters = FlatParameters(model)
        own = strategy(transport)
        own.start(parameters, optimizer, bucket_bytes=BUCKET)
        plan = BatchPlan(BATCH // workers, 1, workers)
        trainer = Trainer(model, Sequences(), own, parameters, plan, EXAMPLES, seed=7)
        list(trainer.updates())
        return copy.deepcopy(flat(model)), trainer.validate(), own.communication_seconds

    return Cluster(workers, network=network).run(work)


class Plain:
    """Workers of one process, each with a model of its own; gradients by autograd, nothing of ours but the order."""

    def __init__(self):
        self.task, self.order = Sequences(), DataOrder(90, seed=7)
        self.models = [new_model() for _ in range(WORKERS)]
        self.optimizers = [optimizer(list(model.named_parameters())) for model in self.models]

    def gradients(self, update, worker):
        """A worker's summed gradients by parameter, and the tokens behind them."""
        share = BATCH // WORKERS
        first = update * BATCH + worker * share
        places = range(first, min(first + share, EXAMPLES))
        model = self.models[worker]
        model.zero_grad()
        if not places:
            return [torch.zeros_like(parameter) for parameter in model.parameters()], 0
        loss, tokens = self.task.loss(model, self.task.batch("training", self.order.at(places)))
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()], tokens

    def step(self, worker, gradients, tokens):
        if tokens:
            for parameter, gradient in zip(self.models[worker].parameters(), gradients, strict=True):
                parameter.grad = gradient / tokens
            self.optimizers[worker].step()


def plain_averaging(period):
    plain = Plain()
    for update in range(UPDATES):
        for worker in range(WORKERS):
            plain.step(worker, *plain.gradients(update, worker))
        if (update + 1) % period == 0:
            with torch.no_grad():
                for parameters in zip(*(model.parameters() for model in plain.models), strict=True):
                    mean = torch.stack([parameter.detach() for parameter in parameters]).mean(0)
                    for parameter in parameters:
                        parameter.copy_(mean)
    return [flat(model) for model in plain.models]


def plain_top_k(ratio):
    """The buckets are those that a bucket's size makes, in the reverse order of the parameters."""
    plain = Plain()
    sizes = [parameter.numel() for parameter in plain.models[0].parameters()]
    reverse = torch.cat([torch.arange(n) + start for n, start in
                         reversed(list(zip(sizes, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True)))])  # fmt: skip
    buckets, held = [], 0
    for number, size in enumerate(reversed(sizes)):
        held += size
        if held * 8 >= BUCKET or number == len(sizes) - 1:
            start = sum(map(len, buckets))
            buckets.append(reverse[start : start + held])
            held = 0
    unsent = torch.zeros(WORKERS, sum(sizes), dtype=torch.float64)
    for update in range(UPDATES):
        total, tokens = torch.zeros(sum(sizes), dtype=torch.float64), 0
        for worker in range(WORKERS):
            gradients, counted = plain.gradients(update, worker)
            tokens += counted
            unsent[worker] += torch.cat([gradient.reshape(-1) for gradient in gradients])
            for bucket in buckets:
                size = unsent[worker, bucket].abs()
                sent = bucket[size.argsort(descending=True, stable=True)[: max(1, round(ratio * len(bucket)))]]
                total[sent] += unsent[worker, sent]
                unsent[worker, sent] = 0
        pieces = [piece.view(parameter.shape) for piece, parameter in
                  zip(total.split(sizes), plain.models[0].parameters(), strict=True)]  # fmt: skip
        for worker in range(WORKERS):
            plain.step(worker, [piece.clone() for piece in pieces], tokens)
    return [flat(model) for model in plain.models]


@pytest.mark.parametrize("network", [None, SLOW])
@pytest.mark.parametrize("period", [1, 3, 4])
def test_local_averaging_is_a_plain_loop_of_several_models(period, network):
    strategy = STRATEGIES.load(AVERAGING).configured({"period": period})
    results = trained(strategy, network or Network("free", wire(0, np.inf)))
    for (parameters, _, _), expected in zip(results, plain_averaging(period), strict=True):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)
    assert len({loss for _, loss, _ in results}) == 1, "all look at the mean"


def test_without_exchange_every_worker_learns_from_its_own_share_alone():
    for (parameters, _, seconds), expected in zip(
        trained(STRATEGIES.load("no-exchange"), SLOW), plain_averaging(UPDATES + 1), strict=True
    ):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)
        assert seconds == 0


@pytest.mark.parametrize("network", [None, SLOW])
@pytest.mark.parametrize("ratio", [0.02, 0.3, 1.0])
def test_top_k_is_a_plain_loop_with_what_was_not_sent(ratio, network):
    strategy = STRATEGIES.load(TOP_K).configured({"ratio": ratio})
    results = trained(strategy, network or Network("free", wire(0, np.inf)))
    for (parameters, _, _), expected in zip(results, plain_top_k(ratio), strict=True):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)


def test_top_k_of_everything_is_an_all_reduce(oracle):
    expected, validation = torch.load(oracle)
    for parameters, loss, _ in trained(STRATEGIES.load(TOP_K).configured({"ratio": 1}), SLOW):
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-12)
        assert loss == pytest.approx(validation, abs=1e-12)


def test_what_is_sent_less_often_or_in_part_takes_less_time():
    """20, 5 and 1 averages, each a ring all-reduce; before the first, the workers agree on what they average."""
    seconds = {
        period: max(s for *_, s in trained(STRATEGIES.load(AVERAGING).configured({"period": period}), SLOW))
        for period in (1, 4, 20)
    }
    average = (seconds[1] - seconds[4]) / 15
    assert (seconds[4] - seconds[20]) / 4 == pytest.approx(average, rel=0.02)  # who is last varies
    elements = sum(parameter.numel() for parameter in new_model().parameters())
    assert average == pytest.approx(replay(ring, SLOW, WORKERS, elements, itemsize=8).max(), rel=0.2)
    little, much = (
        max(s for *_, s in trained(STRATEGIES.load(TOP_K).configured({"ratio": r}), SLOW)) for r in (0.01, 1)
    )
    assert little < much


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path):
    """At most 25 lines besides docstrings, comments, imports and blank lines."""
    source = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    lines = [line for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in skipped]
    assert len(lines) <= 25, len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(AVERAGING, "--period", "3"), (TOP_K, "--ratio", "0.1")])
def test_an_example_is_a_command_with_its_own_options(run: Run, tmp_path, words):
    rest = ["--arms", "small", "--out", "here", "--json", *SMALL]
    outcome = run("bigbatch-exp", *words, "--simulate", "3", *rest)
    assert outcome.status == 0, outcome.err
    config = json.loads((tmp_path / "here" / "config.json").read_text())
    name = words[1].removeprefix("--")
    assert config[name] == float(words[2])
    arm = json.loads(outcome.out)["arms"][0]
    assert np.isfinite(arm["validation_loss"])
    lines = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").read_text().splitlines()]
    assert {line["outcome"] for line in lines if line["kind"] == "update"} <= {"applied", "no data"}
    assert all(line["applied"] == (line["outcome"] == "applied") for line in lines if line["kind"] == "update")
    every = json.loads(run("bigbatch-exp", "ring", "--simulate", "3", "--arms", "small", "--json", *SMALL).out)
    assert arm["tokens"] == every["arms"][0]["tokens"]
    wrong = run("bigbatch-exp", words[0], words[1], "0", "--simulate", "3", *SMALL)
    assert wrong.status != 0
    assert words[1] in wrong.err


def test_top_k_goes_on_after_a_gradient_that_is_not_finite():
    def work(_):
        torch.manual_seed(0)
        module = torch.nn.Linear(50, 2)
        session = bigbatch.attach(module, torch.optim.SGD, lr=0.1, strategy=TOP_K, options={"ratio": 0.02})
        losses = (module(torch.full((1, 50), number)).sum() for number in (1.0, math.nan, 2.0, 3.0))
        return [session.backward(loss, 1).outcome for loss in losses]

    expected = [Outcome.APPLIED, Outcome.NOT_FINITE, Outcome.APPLIED, Outcome.APPLIED]
    assert bigbatch.Cluster(2).run(work) == [expected, expected]
