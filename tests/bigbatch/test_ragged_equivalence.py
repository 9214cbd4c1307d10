"""Pairs of different lengths, smoothed: every division of a batch trains like a plain loop in one process."""

import math

import numpy as np
import pytest
import torch
from bodies import flat, strategy_named
from jobs import quick
from pairs_of_ours import TRAINING, made_up_pairs, made_up_task, new_model, vocabulary

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.training.batches import BatchPlan
from bigbatch.training.order import DataOrder
from bigbatch.training.trainer import Trainer

SMOOTHING = 0.1
BATCH = 60  # more than there are examples: what 1 to 5 workers with 1, 2, 3 and 4 micro-batches can share
UPDATES = 4
EXAMPLES = (UPDATES - 1) * BATCH + 2
"""The last batch has two examples: most workers have nothing, and most micro-batches are left over."""

ON_A_CLUSTER = [name for name in STRATEGIES.names() if name not in ("no-exchange", "allreduce", "mpi", "auto")]
SYNCHRONOUS = [*ON_A_CLUSTER, "ps+colocated", "ps+servers=2", "ps:ssp:0", "ps:backup:0"]
ADAM, ADAMW = torch.optim.Adam, torch.optim.AdamW


def optimizer(kind):
    return lambda parameters: kind(parameters, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)


def spelled(text):
    """The token numbers of a text with the end token, found without the task."""
    return [*vocabulary().encode_each([text])[0], vocabulary().end]


def smoothed(logits, targets, smoothing):
    """Szegedy et al. 2016, section 7: (1 - ε) of the weight for the target, ε spread over all tokens; summed."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits.log_softmax(-1), targets, strict=True):
        total = total - (1 - smoothing) * row[target] - smoothing * row.sum() / len(row)
    return total


def alone(model, pair, smoothing):
    """The loss of one pair, without padding or a mask, and its tokens."""
    source, target = map(spelled, pair)
    shifted = [vocabulary().end, *target[:-1]]
    return smoothed(model(torch.tensor([source]), torch.tensor([shifted]))[0], target, smoothing), len(target)


@pytest.fixture(scope="module")
def oracle():
    """The parameters after all updates, by optimiser, the loss of each update, and the validation loss."""
    found = {}
    pairs = made_up_pairs()
    for kind in (ADAM, ADAMW):
        model = new_model(made_up_task()).double()
        step, order, losses = optimizer(kind)(model.parameters()), DataOrder(TRAINING, seed=7), []
        for update in range(UPDATES):
            step.zero_grad()
            total, tokens = 0.0, 0
            for example in order.at(range(update * BATCH, min((update + 1) * BATCH, EXAMPLES))).tolist():
                loss, counted = alone(model, pairs.training[example], SMOOTHING)
                loss.backward()
                total, tokens = total + loss.item(), tokens + counted
            for parameter in model.parameters():
                parameter.grad /= tokens
            step.step()
            losses.append(total / tokens)
        with torch.no_grad():
            held_out = [alone(model, pair, 0.0) for pair in pairs.validation]
        validation = sum(float(loss) for loss, _ in held_out) / sum(counted for _, counted in held_out)
        found[kind] = flat(model), losses, validation
    return found


def train(transport, name, accumulation, kind):
    task = made_up_task(label_smoothing=SMOOTHING)
    model = new_model(task).double()
    parameters, strategy = FlatParameters(model), strategy_named(name)(transport)
    strategy.start(parameters, optimizer(kind), bucket_bytes=2000)
    plan = BatchPlan(BATCH // (accumulation * strategy.workers), accumulation, strategy.workers)

    def work():
        trainer = Trainer(model, task, strategy, parameters, plan, EXAMPLES, seed=7)
        empty = not trainer.batches.micro_batches(UPDATES - 1, trainer.worker)
        updates = list(trainer.updates())
        return flat(model).clone(), updates, trainer.validate(), empty

    result = strategy.run(work)
    strategy.close()
    return result


def trains_like_the_oracle(name, workers, accumulation, kind, oracle):
    cluster = Cluster(strategy_named(name).ranks_for(workers))
    results = cluster.run(lambda transport: train(transport, name, accumulation, kind))
    expected, losses, validation = oracle[kind]
    trained = [result for result in results if result is not None]
    assert len(trained) == workers
    for parameters, updates, loss, _ in trained:
        torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(parameters, trained[0][0])
        assert loss == pytest.approx(validation, abs=1e-12)
        if updates[0].workers == workers:  # the loss is everybody's
            assert [update.loss for update in updates] == pytest.approx(losses, abs=1e-12)
        assert all(0 < update.padding < 0.6 for update in updates[:-1])
    assert sum(empty for *_, empty in trained) == max(0, workers - 2)


COMBINATIONS = [
    (name, workers, accumulation, ADAM if (workers + accumulation) % 2 else ADAMW)
    for name in SYNCHRONOUS
    for workers in (1, 2, 3, 5)
    for accumulation in (1, 4)
]


def belongs_to_every_run(case):
    name, workers, accumulation, _ = case
    if name in ("ring", "ps"):
        return accumulation == 1 or workers == 3
    return name in ("hierarchical", "ps+servers=2", "ps:ssp:0") and (workers, accumulation) == (3, 4)


@pytest.mark.parametrize(("name", "workers", "accumulation", "kind"), quick(COMBINATIONS, belongs_to_every_run))
def test_accumulated_and_large_are_a_plain_loop(oracle, name, workers, accumulation, kind):
    if BATCH % (workers * accumulation):
        accumulation -= 1  # two workers cannot share the batch in fours
    trains_like_the_oracle(name, workers, accumulation, kind, oracle)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_mean_of_the_micro_batches_means_would_be_another_model(oracle, accumulation):
    """The lengths are so different that the commonest fault shows (huggingface/transformers 24725, 34191)."""
    task = made_up_task(label_smoothing=SMOOTHING)
    model = new_model(task).double()
    order, step = DataOrder(TRAINING, seed=7), optimizer(ADAM)(model.parameters())
    for update in range(UPDATES):
        step.zero_grad()
        numbers = order.at(range(update * BATCH, min((update + 1) * BATCH, EXAMPLES)))
        for part in np.array_split(numbers, min(accumulation * 4, len(numbers))):
            loss, tokens = task.loss(model, task.batch("training", part))
            (loss / tokens).backward()
        step.step()
    assert float((flat(model) - oracle[ADAM][0]).abs().max()) > 1e-4


def test_the_loss_of_a_smoothed_model_is_above_that_of_a_plain_one_and_validation_is_plain(oracle):
    _, losses, validation = oracle[ADAM]
    assert math.isfinite(validation)
    trained = Cluster(1).run(lambda transport: train(transport, "ring", 1, ADAM))[0]
    task = made_up_task(label_smoothing=SMOOTHING)
    model = new_model(task).double().train()
    batch = task.batch("validation", np.arange(task.sizes["validation"]))
    smooth, tokens = task.loss(model, batch)
    plain, _ = task.loss(model.eval(), batch)
    assert smooth != plain
    assert tokens == sum(len(spelled(target)) for _, target in made_up_pairs().validation)
    assert trained[2] == pytest.approx(validation, abs=1e-12)
    assert losses[0] > 0
