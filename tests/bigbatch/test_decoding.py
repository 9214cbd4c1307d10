"""Decoding: against enumeration of all texts, a plain beam search in Python, and itself without a cache."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch

from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.decoding import Recomputed, beam, greedy

START, END = 9, 0
WORDS = 4
"""Tokens that a made-up model knows, the end among them. The start token is not one of them."""

PENALTIES = (0.0, 0.6, 2.0)


@cache
def logits(example, *prefix):
    """A made-up model whose next token depends on all tokens before it."""
    return np.random.default_rng([example, *prefix]).normal(size=WORDS) * 2


def generator(examples, predict=logits, dtype=torch.float64):
    """A generator for these examples, which knows what is likely as a function of the example and its tokens."""

    def rows(tokens, numbers):
        pairs = zip(numbers.tolist(), tokens.tolist(), strict=True)
        made = np.array(
            [[predict(examples[number], *row[1 : n + 1]) for n in range(len(row))] for number, row in pairs]
        )
        return torch.from_numpy(made).to(dtype)

    return Recomputed(rows, len(examples))


def starts(rows):
    return torch.full((rows,), START)


def table(**likely):
    """A model from a table: the probabilities of 0, 1, 2 … after each prefix, written as a word; the end elsewhere."""

    def predict(_, *prefix):
        given = likely.get("after" + "".join(map(str, prefix)), [1.0, 0.0, 0.0])
        return np.log(np.array(given) + 1e-30)

    return predict


def log_probability(example, text, predict=logits):
    """The log-probability of a text, whose end token, if it has one, is part of it."""
    total = 0.0
    for number, token in enumerate(text):
        after = predict(example, *text[:number])
        total += after[token] - math.log(sum(math.exp(one) for one in after))
    return total


def score(example, text, penalty):
    return log_probability(example, text) / ((5 + len(text)) / 6) ** penalty


def all_texts(longest):
    """Every text: those that end within so many tokens, and those that are cut there."""
    words = [word for word in range(WORDS) if word != END]
    for length in range(longest):
        yield from ((*text, END) for text in itertools.product(words, repeat=length))
    yield from itertools.product(words, repeat=longest)


def plain_beam(example, longest, beams, penalty):
    """The definition for one example, which never stops early: places are freed only by what is finished."""
    hypotheses, finished = [(0.0, ())], []
    for length in range(1, longest + 1):
        continued = [
            (log_probability(example, (*text, token)), (*text, token))
            for _, text in hypotheses
            for token in range(WORDS)
        ]
        best = sorted(continued, reverse=True)[: beams - len(finished)]
        finished += [text for _, text in best if text[-1] == END or length == longest]
        hypotheses = [(likely, text) for likely, text in best if text[-1] != END]
    return bare(max(finished, key=lambda text: score(example, text, penalty)))


def bare(text):
    return [token for token in text if token != END]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_beam_is_greedy_decoding(penalty, dtype):
    examples = range(40)
    taken = greedy(generator(examples, dtype=dtype), starts(40), END, 6)
    assert beam(generator(examples, dtype=dtype), starts(40), END, 6, 1, penalty) == taken
    assert len({len(text) for text in taken}) > 3


def test_greedy_takes_the_likeliest_token_at_every_step():
    for example, text in enumerate(greedy(generator(range(20)), starts(20), END, 5)):
        for number, token in enumerate([*text, END][:5]):
            assert token == int(logits(example, *text[:number]).argmax())


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("longest", [1, 2, 4])
def test_a_beam_that_holds_every_text_finds_the_best_of_all(penalty, longest):
    found = beam(generator(range(15)), starts(15), END, longest, WORDS**longest, penalty)
    for example, text in enumerate(found):
        assert text == bare(max(all_texts(longest), key=lambda text: score(example, text, penalty)))


@pytest.mark.parametrize("penalty", [*PENALTIES, -1.0])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_a_narrow_beam_is_the_plain_one_and_what_stops_early_loses_nothing(beams, penalty):
    found = beam(generator(range(25)), starts(25), END, 5, beams, penalty)
    assert found == [plain_beam(example, 5, beams, penalty) for example in range(25)]


def test_a_beam_finds_what_greedy_decoding_misses():
    likely = table(after=[0.0, 0.6, 0.4], after1=[0.4, 0.3, 0.3], after2=[1.0, 0.0, 0.0])
    assert greedy(generator([0], likely), starts(1), END, 3) == [[1]]  # 0.6 × 0.4
    assert beam(generator([0], likely), starts(1), END, 3, 2, 0.0) == [[2]]  # 0.4 × 1


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6])
def test_the_first_hypothesis_that_is_finished_need_not_be_the_best(penalty):
    """joeynmt 149: a search that stops when a hypothesis ends misses a longer, better one."""
    likely = table(after=[0.3, 0.7, 0.0], after1=[0.9, 0.0, 0.1])
    assert beam(generator([0], likely), starts(1), END, 20, 2, penalty) == [[1]]  # 0.7 × 0.9, after 0.3 has ended


def test_a_longer_text_wins_by_the_penalty_although_a_likelier_one_has_ended():
    """joeynmt 149: with a penalty the score of a text can rise, so that the likeliest that has ended need not win."""
    likely = table(
        after=[0.5, 0.5, 0.0], after1=[0.0, 0.98, 0.02], after11=[0.0, 0.98, 0.02], after111=[0.98, 0.0, 0.02]
    )
    assert beam(generator([0], likely), starts(1), END, 9, 2, 0.0) == [[]]
    assert beam(generator([0], likely), starts(1), END, 9, 2, 0.6) == [[1, 1, 1]]


@pytest.mark.parametrize(("ratio", "best"), [(1.18, []), (1.15, [1])])
def test_the_length_counts_the_end_token_and_not_the_start_token(ratio, best):
    """sockeye 483: lengths off by one. With the exponent 1, the two texts are equal at a ratio of 7/6 of their logs.

    It would be 6/5 if the end did not count, and 8/7 if the start counted too.
    """
    short = 0.4
    long = short**ratio
    likely = table(after=[short, 0.5, 0.1], after1=[long / 0.5, 0.0, 1 - long / 0.5])
    assert beam(generator([0], likely), starts(1), END, 2, 3, 1.0) == [best]


class Counting:
    """A generator that notes how many rows each step computes."""

    def __init__(self, wrapped):
        self.wrapped, self.computed = wrapped, []

    def advance(self, tokens):
        self.computed.append(len(tokens))
        return self.wrapped.advance(tokens)

    def keep(self, rows):
        self.wrapped.keep(rows)


@pytest.mark.parametrize("beams", [0, 1, 3])
def test_a_text_that_never_ends_is_cut_at_its_own_longest_length(beams):
    endless = generator(range(5), lambda *prefix: np.where(np.arange(WORDS) == END, -np.inf, logits(*prefix)))
    counting = Counting(endless)
    longest = torch.tensor([3, 0, 5, 1, 3])
    texts = beam(counting, starts(5), END, longest, beams, 0.6) if beams else greedy(counting, starts(5), END, longest)
    assert [len(text) for text in texts] == longest.tolist()
    hypotheses = max(1, beams)
    assert counting.computed == [4, *(hypotheses * rows for rows in (3, 3, 1, 1))]


@pytest.mark.parametrize(("beams", "computed"), [(0, [3, 2, 1]), (1, [3, 2, 1]), (3, [3, 2 * 3, 2])])
def test_a_text_may_end_at_once_and_what_has_ended_is_computed_no_further(beams, computed):
    """Example n ends after n tokens, almost for certain; in a beam of three, the unlikely hypothesis [] ends, too."""

    def predict(example, *prefix):
        return np.array([0.0, -50.0, -60.0]) if len(prefix) == example else np.array([-60.0, 0.0, -50.0])

    counting = Counting(generator([2, 0, 1], predict))
    texts = beam(counting, starts(3), END, 9, beams, 0.6) if beams else greedy(counting, starts(3), END, 9)
    assert texts == [[1, 1], [], [1]]
    assert counting.computed == computed


@pytest.mark.parametrize("beams", [0, 1, 2, 4])
def test_many_rows_are_written_as_each_is_alone(beams):
    longest = torch.tensor([1 + example % 6 for example in range(30)])

    def write(examples):
        limits = longest[torch.tensor(list(examples))]
        made = generator(list(examples))
        if beams:
            return beam(made, starts(len(examples)), END, limits, beams, 0.6)
        return greedy(made, starts(len(examples)), END, limits)

    assert write(range(30)) == [text for example in range(30) for text in write([example])]


class Recurrent:
    """A recurrent network: what it remembers of a row is its state, which no list of tokens could put right."""

    def __init__(self, examples, words=6, width=8):
        chosen = torch.Generator().manual_seed(0)
        self.recur, self.embed, self.predict = (
            torch.randn(shape, generator=chosen, dtype=torch.float64)
            for shape in ((width, width), (START + 1, width), (width, words))
        )
        self.first = torch.randn((examples, width), generator=chosen, dtype=torch.float64)
        self.state = self.first

    def advance(self, tokens):
        self.state = torch.tanh(self.state @ self.recur + self.embed[tokens])
        return 3 * self.state @ self.predict

    def keep(self, rows):
        self.state = self.state[rows]

    def from_the_start(self, tokens, examples):
        self.state = self.first[examples]
        return torch.stack([self.advance(column) for column in tokens.T], 1)


@pytest.mark.parametrize("beams", [0, 1, 2, 5])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_with_a_cache_is_as_without(beams, penalty):
    longest = torch.tensor([2, 12, 7, 12, 9, 1, 12])

    def write(made):
        if beams:
            return beam(made, starts(7), END, longest, beams, penalty)
        return greedy(made, starts(7), END, longest)

    without = write(Recomputed(Recurrent(7).from_the_start, 7))
    assert write(Recurrent(7)) == without
    assert len(set(map(tuple, without))) > 4


def test_rows_go_on_in_the_order_that_is_asked_for():
    mixed = generator([5, 6, 7])
    mixed.advance(torch.tensor([START, START, START]))
    mixed.advance(torch.tensor([1, 2, 3]))
    mixed.keep(torch.tensor([2, 0, 2]))
    wanted = [logits(7, 3, 1), logits(5, 1, 2), logits(7, 3, 3)]
    assert mixed.advance(torch.tensor([1, 2, 3])).tolist() == np.array(wanted).tolist()


def test_the_start_token_may_be_the_end_token():
    """As in fairseq, and wherever a vocabulary has one special token only."""
    end = torch.full((20,), END)
    for write in (lambda *them: greedy(*them, 5), lambda *them: beam(*them, 5, 1, 0.6)):
        texts = write(generator(range(20)), end, END)
        assert texts == greedy(generator(range(20)), starts(20), END, 5)
        assert any(texts)


def test_of_equals_the_lowest_token_and_the_likelier_hypothesis_come_first():
    flat = generator(range(3), lambda *_: np.zeros(WORDS))
    assert greedy(flat, starts(3), WORDS - 1, 3) == [[0, 0, 0]] * 3
    flat = generator(range(3), lambda *_: np.zeros(WORDS))
    assert beam(flat, starts(3), WORDS - 1, 3, 3, 0.0) == [[0, 0, 0]] * 3
    likely = table(after=[0.2, 0.4, 0.4], after1=[0.0, 0.5, 0.5], after2=[0.0, 0.5, 0.5])  # then they end
    assert beam(generator([0], likely), starts(1), END, 3, 2, 0.0) == [[1, 1]]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_model_that_has_diverged_writes_nothing_sensible_and_does_no_harm(value):
    def predict(example, *prefix):
        return np.full(WORDS, value) if example == 1 else logits(example, *prefix)

    sound = beam(generator([0, 2]), starts(2), END, 4, 3, 0.6)
    assert beam(generator(range(3), predict), starts(3), END, 4, 3, 0.6) == [sound[0], [], sound[1]]
    greedily = greedy(generator(range(3), predict), starts(3), END, 4)
    assert greedily[::2] == greedy(generator([0, 2]), starts(2), END, 4)


def test_no_rows_and_no_beams():
    assert greedy(generator([]), starts(0), END, 4) == []
    assert beam(generator([]), starts(0), END, 4, 2, 0.6) == []
    with pytest.raises(ConfigurationError, match=r"^0 beams cannot hold a hypothesis: take at least 1\.$"):
        beam(generator([0]), starts(1), END, 4, 0, 0.6)
