"""How a batch is divided, and which examples are in it."""

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.training.batches import BatchPlan, arms_of, derive_plan
from bigbatch.training.order import DataOrder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (16, 4, 1)),
        ({"workers": 4}, (4, 4, 4)),
        ({"workers": 3}, (5, 4, 3)),
        ({"workers": 4, "batch_size": 64}, (4, 4, 4)),
        ({"workers": 4, "batch_size": 64, "micro_batch": 8}, (8, 2, 4)),
        ({"workers": 4, "batch_size": 64, "accumulation": 8}, (2, 8, 4)),
        ({"workers": 2, "micro_batch": 3, "accumulation": 5}, (3, 5, 2)),
        ({"batch_size": 64, "micro_batch": 4, "accumulation": 4}, (4, 4, 4)),
        ({"workers": 40}, (1, 4, 40)),
        ({"workers": 2, "batch_size": 24, "micro_batch": 3, "accumulation": 4}, (3, 4, 2)),
    ],
)
def test_what_is_left_out_is_derived(given, expected):
    assert derive_plan(**given) == BatchPlan(*expected)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"workers": 3, "batch_size": 64}, "60 and 72"),
        ({"workers": 4, "batch_size": 6}, "16"),
        ({"workers": 4, "batch_size": 64, "micro_batch": 5}, "60 and 80"),
        ({"batch_size": 64, "micro_batch": 5, "accumulation": 2}, "60 and 70"),
        ({"workers": 4, "batch_size": 64, "micro_batch": 4, "accumulation": 5}, "--batch-size 80"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_what_cannot_divide_is_refused_with_the_nearest_that_can(given, nearest):
    with pytest.raises(ConfigurationError, match=nearest):
        derive_plan(**given)


def test_arms_are_those_of_the_issue():
    arms = {name: (arm.plan.global_batch, arm.plan.micro_batch, arm.plan.accumulation) for name, arm in
            arms_of(derive_plan(workers=4, batch_size=64)).items()}  # fmt: skip
    assert arms == {"large": (64, 16, 1), "accumulated": (64, 4, 4), "small": (16, 4, 1)}


@pytest.mark.parametrize("examples", [1, 16, 37, 64, 100])
def test_every_example_is_seen_once_whatever_the_division(examples):
    for plan in (BatchPlan(4, 2, 2), BatchPlan(16, 1, 1), BatchPlan(1, 4, 4)):
        for update in range(plan.updates(examples)):
            seen = [p for w in range(plan.workers) for batch in plan.micro_batches(update, w, examples) for p in batch]
            assert seen == list(range(update * 16, min((update + 1) * 16, examples)))


def test_the_order_is_a_permutation_per_epoch_and_the_seeds():
    order = DataOrder(10, seed=1)
    first, second = order.at(range(10)).tolist(), order.at(range(10, 20)).tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert DataOrder(10, seed=1).at(range(5, 15)).tolist() == (first + second)[5:15]
    assert DataOrder(10, seed=2).at(range(10)).tolist() != first


def test_a_micro_batch_of_tokens_is_at_least_one_of_the_longest_examples():
    assert BatchPlan(96, 4, 2).examples_at_once(64) == 96
    assert [BatchPlan(tokens, 4, 2, "tokens").examples_at_once(64) for tokens in (63, 64, 1000)] == [1, 1, 15]


def test_expected_tokens_are_those_that_are_predicted():
    examples = BatchPlan(micro_batch=8, accumulation=3, workers=4)
    assert examples.micro_batch_tokens(predicted=10.0, read=30.0) == 80.0
    assert examples.expected_tokens(predicted=10.0, read=30.0) == 960.0
    tokens = BatchPlan(micro_batch=800, accumulation=3, workers=4, unit="tokens")
    assert tokens.micro_batch_tokens(predicted=10.0, read=30.0) == 200.0
    assert tokens.expected_tokens(predicted=10.0, read=30.0) == 2400.0
