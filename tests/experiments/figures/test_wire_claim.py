"""The claim about sums in half precision, against rounding by hand, closed formulas and published numbers."""

import math

import numpy as np
import pytest

from bigbatch.experiments.claims import wire
from bigbatch.experiments.laboratory.claim import Verdict


def rounded(values):
    """To bf16, half to even: IEEE 754's single precision without its last 16 bits."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


def gradients_of(workers, common, seed):
    shared, *own = np.random.default_rng([seed, workers]).standard_normal((1 + workers, wire.ELEMENTS))
    return [(common * shared + part).astype(np.float32) for part in own]


def off_by(total, gradients):
    exact = np.sum(gradients, axis=0, dtype=np.float64)
    return np.linalg.norm(total - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("common", wire.KINDS.values(), ids=wire.KINDS)
@pytest.mark.parametrize("workers", [3, 8])
def test_a_servers_sum_is_rounded_once_a_worker_and_once_more(workers, common):
    gradients = gradients_of(workers, common, seed=4)
    total = rounded(np.sum([rounded(one) for one in gradients], axis=0, dtype=np.float64))
    found = wire.error_of(wire.WAYS[wire.SERVER], common, "bf16", workers, seed=4)
    assert found == pytest.approx(off_by(total, gradients), rel=1e-3)


@pytest.mark.parametrize("workers", [2, 5])
def test_a_rings_sum_is_rounded_at_every_hop(workers):
    """A chunk goes once around, from the rank with its number; every rank sends what it has, rounded."""
    gradients = gradients_of(workers, 0.0, seed=1)
    bounds = [number * wire.ELEMENTS // workers for number in range(workers + 1)]
    total = np.empty(wire.ELEMENTS, np.float32)
    for chunk in range(workers):
        part = slice(bounds[chunk], bounds[chunk + 1])
        held = gradients[chunk][part]
        for hop in range(1, workers):
            held = rounded(held) + gradients[(chunk + hop) % workers][part]
        total[part] = rounded(held)
    found = wire.error_of(wire.WAYS[wire.RING], 0.0, "bf16", workers, seed=1)
    assert found == pytest.approx(off_by(total, gradients), rel=1e-2)  # whichever rank a chunk begins at


def test_errors_are_about_those_that_were_published():
    """Of 64 workers: 9.7e-3 where every hop of a ring rounds to bf16, 2.3e-3 where the sum is rounded once."""
    around, served = (wire.error_of(wire.WAYS[name], 0.0, "bf16", 64, 0) for name in (wire.RING, wire.SERVER))
    assert around == pytest.approx(9.7e-3, rel=0.05)
    assert served == pytest.approx(2.3e-3, rel=0.05)


@pytest.mark.parametrize("workers", [2, 4, 32])
def test_what_is_expected_has_closed_forms(workers):
    def times(name, common):
        return wire.expected(wire.WAYS[name], common, "fp16", workers) / wire.rounding_error("fp16")

    assert times(wire.RING, 0.0) == pytest.approx(math.sqrt((workers + 1) / 2))
    assert times(wire.RING, 1.0) == pytest.approx(math.sqrt((workers + 2) / 3))
    assert times("halving-doubling", 0.0) == pytest.approx(math.sqrt(1 + math.log2(workers) / 2))
    assert times(wire.SERVER, 0.0) == pytest.approx(math.sqrt(2))
    assert times(wire.SERVER, 1.0) == pytest.approx(math.sqrt(1 + 2 / (workers + 1)))
    assert wire.rounding_error("bf16") == pytest.approx(8 * wire.rounding_error("fp16"), rel=0.01)


def made_up(**changed):
    """Rows of 2 to 8 workers and three seeds, as the claim has them but for what is changed: way and workers."""
    errors = {
        f"{name}_{workers}": [base * (1 + seed / 100) for seed in range(3)]
        for name, bases in (("ring", (2.0, 4.0, 8.0)), ("ps", (2.5, 2.4, 2.3)))
        for workers, base in zip((2, 4, 8), bases, strict=True)
    } | changed
    names = {"ring": wire.RING, "ps": wire.SERVER}
    rows = []
    for key, own in errors.items():
        name, workers = key.split("_")
        rows.append({"precision": "bf16", "kind": "alike", "way": names[name], "workers": int(workers), "errors": own})
    return rows


def test_the_claim_is_judged_seed_by_seed():
    assert wire.judged(made_up())[0] is Verdict.HELD
    for changed, what in (
        ({"ps_8": [2.8, 2.9, 2.9]}, "a server's error stays, alike gradients in bf16"),
        ({"ring_4": [1.9, 1.9, 1.9]}, "a ring's grows"),
        ({"ring_8": [4.1, 3.9, 4.0], "ring_2": [2.1, 2.1, 2.1], "ring_4": [3.0, 3.0, 3.0]}, "a ring's doubles"),
    ):
        verdict, sentence = wire.judged(made_up(**changed))
        assert verdict is Verdict.FAILED
        assert f"Not so: {what}" in sentence
    verdict, sentence = wire.judged(made_up(ps_8=[2.3, 2.3, 2.9]))
    assert verdict is Verdict.UNTOLD
    assert "Seeds disagree: a server's error stays, alike gradients in bf16." in sentence
    verdict, sentence = wire.judged(made_up(ring_8=[4.5, 4.5, 4.5]))
    assert verdict is Verdict.FAILED
    assert "a ring's is twice a server's" in sentence
