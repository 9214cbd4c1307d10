"""Rounds that make no sense are refused in one sentence; rounds that are no all-reduce are refuted, for any number."""

import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring.mutants import wrong_on_many_ranks
from bigbatch.comm.schedules.prove import prove, refuse_unproven, wrong_sum
from bigbatch.comm.schedules.schedule import Round, moved, rounds_of, spanned
from bigbatch.comm.strategies.all_reduce import all_reduce_by
from bigbatch.experiments.figures.shown import Shown

GOOD = {"source": [0, 1], "target": [1, 0], "first": [0, 0], "stop": [1, 1], "reduce": [True, True]}


def one_round(_size: int, **columns: object):
    yield Round(**{name: np.array(values) for name, values in GOOD.items()} | columns)


WRONG = {
    "lists": ({"source": [0, 1]}, "a list as its source"),
    "a number": ({"target": 1}, "a int as its target"),
    "nothing": ({"first": None}, "a NoneType as its first"),
    "floats": (
        {"stop": np.array([1.0, 2.0])},
        "type float64 as its stop, which must be a flat array of whole",
    ),
    "objects": ({"source": np.array([0, None])}, "type object as its source"),
    "texts": ({"source": np.array(["0", "1"])}, "as its source"),
    "truth for a rank": ({"source": np.array([False, True])}, "type bool as its source"),
    "numbers for truth": (
        {"reduce": np.array([1, 1])},
        "type int64 as its reduce, which must be a flat array",
    ),
    "a table": ({"source": np.array([[0, 1]])}, r"an array of shape \(1, 2\)"),
    "a scalar": ({"source": np.array(0)}, r"an array of shape \(\)"),
    "lengths": ({"source": np.array([0])}, "different lengths: 1 of source, 2 of target"),
    "a rank too high": ({"source": np.array([0, 2])}, "names rank 2, but the ranks are 0 to 1"),
    "a rank below 0": ({"source": np.array([0, -1])}, "names rank -1, but the ranks are 0 to 1"),
    "a huge rank": ({"source": np.array([0, 2**63], dtype=np.uint64)}, "names rank"),
    "itself": ({"source": np.array([0, 0])}, "has rank 0 send to itself"),
    "a chunk below 0": ({"first": np.array([0, -1])}, "moves chunks from below 0"),
    "no chunks": ({"stop": np.array([1, 0])}, "or none at all"),
    "a chunk of 10⁹": ({"stop": np.array([1, 10**9])}, "names chunk 999,999,999, but a buffer is cut into at most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rounds_that_make_no_sense_are_one_sentence(name):
    columns, sentence = WRONG[name]
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        prove(partial(one_round, **columns), 2)
    assert str(raised.value).startswith("Round 1 of one_round for 2 ranks ")


def test_other_integers_and_empty_rounds_are_taken():
    small = {name: np.array(values, dtype=np.uint8) for name, values in GOOD.items() if name != "reduce"}
    (made,) = rounds_of(partial(one_round, **small), 2)
    assert made.source.dtype == np.int64
    empty = {name: np.array([]) for name in GOOD}
    assert len(rounds_of(partial(one_round, **empty), 2)[0]) == 0


def test_what_would_take_too_much_memory_is_refused_beforehand():
    def wide(_size):
        yield moved(0, 1, chunk=999_999, reduce=True)

    with pytest.raises(ConfigurationError, match="1,000,000 chunks over 100 ranks takes 75 GiB of memory"):
        prove(wide, 100)
    with pytest.raises(ConfigurationError, match="of memory, and at most 4 GiB are taken"):
        Shown("ring", ring, 1000)


@pytest.mark.parametrize("name", ALGORITHMS.names())
@pytest.mark.parametrize("size", [2, 7, 65, 96, 129])
def test_random_sums_find_nothing_in_what_is_right(name, size):
    assert wrong_sum(bind(ALGORITHMS.load(name), 0), size) == ""


def somehow(seed: int, size: int):
    """Random rounds, some of which are an all-reduce that was changed in one place."""
    draw = np.random.default_rng(seed)
    rounds = list(ring(size)) if seed % 2 else []
    for _ in range(draw.integers(0, 4)):
        source = draw.integers(0, size, 3)
        target = (source + draw.integers(1, size, 3)) % size
        first = draw.integers(0, size, 3)
        stop = np.minimum(first + draw.integers(1, 3, 3), size)
        made = spanned(source, target, first=first, stop=stop, reduce=draw.random(3) < 0.5)
        rounds.insert(draw.integers(0, len(rounds) + 1), made)
    return rounds


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 7))
def test_random_sums_and_proofs_agree_on_any_rounds(seed, size):
    schedule = partial(somehow, seed)
    assert (wrong_sum(schedule, size) == "") == prove(schedule, size).holds


def test_rounds_that_are_wrong_on_many_ranks_only_are_refuted_there():
    refuse_unproven(wrong_on_many_ranks, 65)
    with pytest.raises(ConfigurationError, match="wrong_on_many_ranks over 66 ranks is no all-reduce: refuted: rank 0"):
        refuse_unproven(wrong_on_many_ranks, 66)


def test_rounds_are_proven_before_they_are_simulated():
    all_reduce_by(wrong_on_many_ranks).check_rounds(65)
    with pytest.raises(ConfigurationError, match="over 256 ranks is no all-reduce"):
        all_reduce_by(wrong_on_many_ranks).check_rounds(1024)


@pytest.mark.parametrize(("name", "ranks"), [("ring", 50_000), ("halving-doubling", 65_536), ("chain", 100_000)])
def test_rounds_for_too_many_ranks_are_refused_before_they_are_all_made(name, ranks):
    """The rounds of a ring over 20,000 ranks alone took more memory than machines have, before anybody looked."""
    started = time.process_time()
    with pytest.raises(ConfigurationError, match=rf"over {ranks:,} ranks takes .* GiB of memory, and at most 4 GiB"):
        Shown(name, ALGORITHMS.load(name), ranks)
    assert time.process_time() - started < 10
