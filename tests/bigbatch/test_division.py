"""How the examples of a global batch are divided: each once, little padding, and no worker much slower than others."""

import itertools

import numpy as np
import pytest

from bigbatch.training.batches import TOKENS, BatchPlan, arms_of, token_plan
from bigbatch.training.division import Batches, divide
from bigbatch.training.order import DataOrder

WORKERS = (1, 2, 3, 4, 5)


def natural(examples, seed=0, agreement=0.8):
    """Lengths of sources and targets as of sentences, log-normal (Sichel 1974), and as alike as translations are."""
    covariance = [[1, agreement], [agreement, 1]]
    normal = np.random.default_rng(seed).multivariate_normal([0, 0], covariance, examples)
    return 1 + np.exp(2.8 + 0.6 * normal).astype(np.int64)


def padded(lengths, micro_batches):
    """Tokens that are computed for micro-batches, padding included."""
    widths = [sum(max(column) for column in zip(*lengths[each].tolist(), strict=True)) for each in micro_batches]
    return sum(len(each) * width for each, width in zip(micro_batches, widths, strict=True))


CASES = {
    "natural": natural(40),
    "one": natural(1),
    "none": natural(0),
    "fewer than pieces": natural(7),
    "equal": np.full((40, 2), 9),
    "one huge": np.concatenate([natural(39), [[500, 700]]]),
    "one side alone is long": np.array([[50, 1], [1, 50]] * 10),
    "one sequence": natural(40)[:, :1],
    "three sequences": np.concatenate([natural(40), natural(40, 1)[:, :1]], axis=1),
}


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("case", CASES)
def test_every_example_is_computed_once_and_no_worker_has_too_many_micro_batches(case, workers, accumulation):
    lengths = CASES[case]
    numbers = np.random.default_rng(3).permutation(1000)[: len(lengths)]  # they are no places in the batch
    division = divide(numbers, lengths, workers, accumulation)
    assert len(division.micro_batches) == len(division.padded) == workers
    assert all(len(each) <= accumulation for each in division.micro_batches)
    assert all(len(micro_batch) for each in division.micro_batches for micro_batch in each)
    everything = [number for each in division.micro_batches for micro_batch in each for number in micro_batch.tolist()]
    assert sorted(everything) == sorted(numbers.tolist())
    of_number = np.zeros((1000, lengths.shape[1]), dtype=np.int64)
    of_number[numbers] = lengths
    assert division.tokens == lengths.sum()
    assert division.padded.tolist() == [padded(of_number, each) for each in division.micro_batches]
    total = int(division.padded.sum())
    if len(lengths):
        assert division.padding == pytest.approx((total - lengths.sum()) / total)
        assert division.imbalance == pytest.approx(max(division.padded) * workers / total)
    else:
        assert np.isnan([division.padding, division.imbalance]).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_global_batch_is_the_same_for_every_arm_and_number_of_workers_and_its_order_does_not_matter(seed):
    lengths = natural(97)
    order = DataOrder(97, seed)
    examples = 2 * 97 + 31  # the last batch is short
    expected = [sorted(order.at(range(first, min(first + 60, examples))).tolist()) for first in range(0, examples, 60)]
    for workers, accumulation in ((1, 1), (1, 4), (2, 3), (3, 1), (3, 4), (5, 2), (4, 5)):
        plan = BatchPlan(60 // (workers * accumulation), accumulation, workers)
        for arm in (plan, arms_of(plan)["large"].plan):
            batches = Batches(arm, order, examples, lengths)
            assert batches.updates == len(expected)
            for update, numbers in enumerate(expected):
                found = [batches.micro_batches(update, worker) for worker in range(workers)]
                assert sorted(np.concatenate([each for own in found for each in own]).tolist()) == numbers
    numbers = np.arange(30)
    shuffled = np.random.default_rng(seed).permutation(30)
    for one, other in zip(
        divide(numbers, lengths[:30], 3, 2).micro_batches,
        divide(shuffled, lengths[shuffled], 3, 2).micro_batches,
        strict=True,
    ):
        assert [each.tolist() for each in one] == [each.tolist() for each in other]  # a function of the set alone


@pytest.mark.parametrize(("workers", "accumulation"), [(4, 4), (2, 4), (5, 2), (4, 1)])
def test_little_is_padded_and_workers_compute_as_much_as_each_other(workers, accumulation):
    """Log-normal lengths, 64 examples or so: against the same micro-batches cut in the order in which they are seen."""
    size = 64 // (workers * accumulation) * workers * accumulation
    found, in_order = [], []
    for seed in range(20):
        lengths = natural(size, seed)
        division = divide(np.arange(size), lengths, workers, accumulation)
        found.append((division.padding, division.imbalance))
        shares = [np.split(share, accumulation) for share in np.split(np.arange(size), workers)]
        costs = [padded(lengths, share) for share in shares]
        in_order.append((1 - lengths.sum() / sum(costs), max(costs) * workers / sum(costs)))
    (padding, imbalance), (before, uneven) = np.mean(found, axis=0), np.mean(in_order, axis=0)
    if accumulation > 1:
        assert padding < 0.5 * before
        assert imbalance < 1.05
        assert imbalance - 1 < 0.5 * (uneven - 1)
    else:  # a worker's micro-batch is a quarter of the batch, and cannot be made of alike examples only
        assert padding < 0.75 * before
        assert imbalance < 1.1 < uneven


def smallest_largest(lengths, pieces):
    """By enumeration: the cost of the largest piece, if examples in this order are cut as well as can be."""
    count = len(lengths)
    best = None
    for cuts in itertools.combinations(range(1, count), min(pieces, count) - 1):
        borders = (0, *cuts, count)
        costs = [(b - a) * int(lengths[a:b].max(axis=0).sum()) for a, b in itertools.pairwise(borders)]
        best = max(costs) if best is None else min(best, max(costs))
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_the_largest_micro_batch_is_as_small_as_can_be(seed, pieces):
    """Exactly so if examples have one length; if two, the first of a piece need not have the longest of both."""
    lengths = natural(10, seed)
    order = np.lexsort((np.arange(10), *lengths.T, lengths.sum(axis=1)))[::-1]
    for given, slack in ((lengths[:, :1], 1.0), (lengths, 1.25)):
        rows = given[np.argsort(-given[:, 0], kind="stable")] if slack == 1 else given[order]
        division = divide(np.arange(10), given, pieces, 1)
        largest = int(division.padded.max())
        assert smallest_largest(rows, pieces) <= largest <= slack * smallest_largest(rows, pieces)


def test_a_huge_example_is_computed_alone_and_the_rest_is_still_even():
    lengths = np.concatenate([np.full((60, 2), 10), [[2000, 2000]]])
    division = divide(np.arange(61), lengths, 4, 4)
    alone = next(each for own in division.micro_batches for each in own if 60 in each)
    assert alone.tolist() == [60]
    others = sorted(division.padded.tolist())[:-1]
    assert max(others) <= 1.4 * min(others)


@pytest.mark.parametrize("most", [40, 97, 400])
def test_a_batch_counted_in_tokens_holds_its_padding_too(most):
    """pytorch/data 788: a limit of tokens that does not count padding is none."""
    lengths = np.random.default_rng(3).integers(1, 20, (50, 2))
    order, examples = DataOrder(50, seed=4), 120  # more than two epochs
    seen = []
    for workers, accumulation in ((1, 1), (2, 2), (3, 4)):
        plan = BatchPlan(most // (workers * accumulation), accumulation, workers, TOKENS)
        batches = Batches(plan, order, examples, lengths)
        assert plan.global_batch <= most
        numbers = [order.at(batches.places(update)).tolist() for update in range(batches.updates)]
        seen.append([number for batch in numbers for number in batch])
        for batch in numbers:
            padded = len(batch) * max(lengths[number].sum() for number in batch)
            assert padded <= plan.global_batch or len(batch) == 1
        for update, (batch, after) in enumerate(itertools.pairwise(numbers)):  # and no shorter than it need be
            longer = [*batch, after[0]]
            assert len(longer) * max(lengths[number].sum() for number in longer) > plan.global_batch
            assert sorted(
                n for worker in batches.division(update).micro_batches for each in worker for n in each.tolist()
            ) == sorted(batch)
    assert seen[0] == seen[1] == seen[2] == order.at(range(examples)).tolist()


def test_the_batches_of_large_and_accumulated_are_the_same_sets_counted_in_tokens():
    lengths = np.random.default_rng(5).integers(1, 20, (50, 2))
    arms = arms_of(token_plan(240, workers=2, accumulation=4))
    assert [arm.plan.global_batch for arm in arms.values()] == [240, 240, 60]
    large, accumulated, small = (Batches(arm.plan, DataOrder(50, seed=4), 120, lengths) for arm in arms.values())
    assert [large.places(u) for u in range(large.updates)] == [accumulated.places(u) for u in range(large.updates)]
    assert small.updates > large.updates == accumulated.updates
