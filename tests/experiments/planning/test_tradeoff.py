"""The trade of updates against tokens: fitted to made-up numbers, and against the paper's formula."""

import math

import numpy as np
import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.planning.tradeoff import Tradeoff, fit, kaplan
from bigbatch.models.sizes import model_named, model_of

LEAST, CRITICAL = 740.0, 9_100.0
BATCHES = [1_024 * 2**power for power in range(8)]


def made_up(batches, scatter, seed):
    """S(B) as the paper has it, times e to the power of a normal number."""
    luck = np.random.default_rng(seed).normal(0.0, scatter, len(batches))
    return [LEAST * (batch + CRITICAL) / batch * math.exp(off) for batch, off in zip(batches, luck, strict=True)]


def test_updates_and_tokens_lie_on_the_hyperbola():
    tradeoff = Tradeoff(LEAST, CRITICAL)
    for batch in BATCHES:
        updates, tokens = tradeoff.updates(batch), tradeoff.tokens(batch)
        assert tokens == pytest.approx(batch * updates)
        assert (updates / LEAST - 1) * (tokens / (LEAST * CRITICAL) - 1) == pytest.approx(1)
    assert tradeoff.updates(CRITICAL) == 2 * LEAST
    assert tradeoff.tokens(CRITICAL) == 2 * LEAST * CRITICAL


def test_a_fit_without_noise_is_exact():
    fitted = fit(BATCHES, made_up(BATCHES, 0.0, 0))
    assert fitted.untold is None
    assert fitted.tradeoff.least_updates == pytest.approx(LEAST, rel=1e-6)
    assert fitted.tradeoff.critical_batch == pytest.approx(CRITICAL, rel=1e-6)
    assert fitted.critical_batch == pytest.approx((CRITICAL, CRITICAL), rel=1e-5)
    assert fitted.scatter < 1e-6


def test_intervals_hold_the_truth_as_often_as_they_say():
    batches = [batch for batch in BATCHES for _ in range(2)]
    held = np.zeros(3)
    for seed in range(200):
        fitted = fit(batches, made_up(batches, 0.1, seed))
        low, high = fitted.band([5_000.0])
        ends = (fitted.least_updates, fitted.critical_batch, (low[0], high[0]))
        truths = (LEAST, CRITICAL, LEAST * (1 + CRITICAL / 5_000.0))
        held += [low <= truth <= high for (low, high), truth in zip(ends, truths, strict=True)]
        assert fitted.untold is None
    assert ((held >= 0.88 * 200) & (held <= 0.995 * 200)).all(), held


def test_a_fit_says_how_far_measurements_lie_from_it():
    batches = BATCHES * 200
    assert fit(batches, made_up(batches, 0.07, 1)).scatter == pytest.approx(0.07, rel=0.05)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([batch / 1e3 for batch in BATCHES], "above all batches measured, the largest of which is 131 tokens"),
        ([batch * 1e3 for batch in BATCHES], "below all batches measured, the smallest of which is 1,024,000 tokens"),
        (BATCHES[2:5] * 4, "from 3 batch size"),
        (BATCHES[3:4], "from 1 batch size"),
    ],
)
def test_a_fit_says_what_it_cannot_tell(batches, words):
    fitted = fit(batches, made_up(batches, 0.02, 3))
    assert words in fitted.untold
    assert fitted.tradeoff.critical_batch > 0
    low, high = fitted.band(BATCHES)
    assert (low <= high).all()


def test_noise_alone_tells_nothing():
    told = 0
    for seed in range(100):
        updates = np.exp(np.random.default_rng(seed).normal(8.0, 1.0, len(BATCHES))).tolist()
        told += fit(BATCHES, updates).untold is None
    assert told <= 5
    noisy = fit(BATCHES, made_up(BATCHES, 0.5, 2))
    assert "more than a factor of 10" in noisy.untold


@pytest.mark.parametrize(
    ("batches", "updates", "words"),
    [([], [], "at least one"), ([8.0], [1.0, 2.0], "1 batch sizes and 2"), ([8.0, 0.0], [1.0, 2.0], "0.0 cannot")],
)
def test_a_fit_refuses_what_it_cannot_use(batches, updates, words):
    with pytest.raises(ConfigurationError, match=words):
        fit(batches, updates)


def test_what_is_known_of_a_language_model():
    blocks = 12 * 12 * 768**2
    floor = math.exp(0.077 * math.log(6.5e13 / blocks))
    known = kaplan(model_named("gpt2-small"), 3.3)
    assert known.critical_batch == pytest.approx(math.exp(math.log(2.1e8) - math.log(3.3) / 0.21))
    loss = floor + (2.1e3 / known.least_updates) ** 0.76
    assert loss == pytest.approx(3.3)
    assert model_of(1_000_000).beside_embeddings == 1_000_000


def test_a_loss_below_a_models_floor_names_it():
    with pytest.raises(ConfigurationError, match=r"gpt2-small does not get to a loss of 2\.8 .* floor is 2\.838"):
        kaplan(model_named("gpt2-small"), 2.8)
    with pytest.raises(ConfigurationError, match="a loss must be a number above 0"):
        kaplan(model_named("gpt2-small"), 0.0)
    with pytest.raises(ConfigurationError, match="critical batch is 0; it must be a number above 0"):
        Tradeoff(3, 0)
