"""Verdicts on claims: what each is decided by."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laboratories import Pretend, run_with

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.claims import (
    accumulation,
    critical_batch,
    learning_rate,
    noise_scale,
    precision,
    time_to_target,
)
from bigbatch.experiments.laboratory.claim import Column, Verdict
from bigbatch.experiments.laboratory.study import LANGUAGE_MODELLING, STUDIES, Study
from bigbatch.experiments.laboratory.sweep import Tuned
from bigbatch.experiments.planning.plan import Candidate
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.runs.run import Run


def tuned_of(batches: tuple[int, ...], updates: Callable[[int], float]) -> list[Tuned]:
    rng = np.random.default_rng(0)
    found = []
    for batch in batches:
        scores = tuple(float(updates(batch) * math.exp(0.02 * rng.standard_normal())) for _ in range(2))
        square = {"gradient_square": 2.0, "gradient_variance": 60.0}
        runs = tuple(run_with(updates_to_target=score, **square) for score in scores)
        found.append(Tuned(batch, 1e-3, {5e-4: math.inf, 1e-3: scores[0], 2e-3: math.inf}, scores, runs, (), 32))
    return found


BATCHES = (4, 8, 16, 32, 64, 128, 256)


def judge_critical(tuned: list[Tuned]) -> tuple[Verdict, str]:
    rows = [critical_batch.row_of(own) for own in tuned]
    fitted = critical_batch.fit_of(tuned)
    for row in rows:
        row["fitted"] = fitted.tradeoff.updates(row["batch_tokens"]) if fitted is not None else None
    return critical_batch.judged(rows, fitted)


def test_the_critical_batch_is_found_again():
    truth = Tradeoff(150.0, 960.0)
    tuned = tuned_of(BATCHES, lambda batch: truth.updates(32 * batch))
    verdict, sentence = judge_critical(tuned)
    assert verdict is Verdict.HELD, sentence
    fitted = critical_batch.fit_of(tuned)
    assert fitted is not None
    assert fitted.tradeoff.critical_batch == pytest.approx(960, rel=0.15)
    assert fitted.critical_batch[0] < 960 < fitted.critical_batch[1]
    assert [critical_batch.regime(32.0 * batch, truth) for batch in (4, 64, 128)] == list(critical_batch.REGIMES)
    assert critical_batch.noise_of(tuned) == 32 * 60 / 2


def test_a_curve_of_another_shape_fails():
    assert judge_critical(tuned_of(BATCHES, lambda batch: 4000 / batch + 60 + batch))[0] is Verdict.FAILED


def test_a_critical_batch_beyond_all_batches_cannot_be_told():
    verdict, sentence = judge_critical(tuned_of((4, 8, 16, 32), lambda batch: Tradeoff(9.0, 1e5).updates(32 * batch)))
    assert verdict is Verdict.UNTOLD
    assert "above all batches" in sentence
    assert judge_critical(tuned_of(BATCHES, lambda _: math.inf))[0] is Verdict.UNTOLD


def test_regimes_that_no_batch_is_in_cannot_be_told_nor_batches_that_reach_nothing():
    truth = Tradeoff(150.0, 6000.0)
    verdict, sentence = judge_critical(tuned_of(BATCHES, lambda batch: truth.updates(32 * batch)))
    assert verdict is Verdict.UNTOLD
    assert "plateau" in sentence
    tuned = tuned_of(BATCHES, lambda batch: Tradeoff(150.0, 960.0).updates(32 * batch) if batch < 128 else math.inf)
    verdict, sentence = judge_critical(tuned)
    assert verdict is Verdict.UNTOLD
    assert "4,096 or 8,192 tokens" in sentence


def noise_row(loss: float, critical: float | None, noise: float, spread: float = 1.1) -> dict[str, Any]:
    ratio = None if critical is None else noise / critical
    by_batch = {"4": noise / spread, "8": noise, "16": noise * spread}
    return {"loss": loss, "critical": critical, "noise": noise, "ratio": ratio, "by_batch": by_batch}


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([noise_row(3.0, 300, 150), noise_row(2.5, 900, 1200)], Verdict.HELD),
        ([noise_row(3.0, 300, 150), noise_row(2.5, 900, 3000)], Verdict.FAILED),
        ([noise_row(3.0, 300, 400), noise_row(2.5, 900, 350)], Verdict.FAILED),
        ([noise_row(3.0, None, 400), noise_row(2.5, 900, 800)], Verdict.UNTOLD),
        ([noise_row(3.0, 300, 400), noise_row(2.5, 900, 500, spread=1.6)], Verdict.UNTOLD),
    ],
)
def test_the_noise_scale_is_held_against_the_critical_batch(rows: list[dict[str, Any]], verdict: Verdict):
    assert noise_scale.judged(rows)[0] is verdict


def test_estimates_are_taken_where_a_run_passed_the_loss():
    metrics: list[dict[str, Any]] = []
    for update in range(1, 201):
        square = {"gradient_square": 1000.0 / update, "gradient_variance": 6.0 * update}
        metrics += [{"arm": "accumulated", "kind": "update", "number": update, **square}]
        metrics += [{"arm": "accumulated", "kind": "validation", "update": update, "loss": 5.0 - 0.015 * update}]
    run = Run(Path("nowhere"), {"arms": [{"name": "accumulated"}]}, metrics)
    assert noise_scale.updates_to(run, 3.125) == pytest.approx(125.0)
    assert noise_scale.estimates_at(run, 3.125) == (8.0, 750.0)
    assert noise_scale.noise_at([run, run], 3.125, 12.5) == 12.5 * 750 / 8
    assert noise_scale.estimates_at(run, 1.0) is None, "it was never that low"
    assert noise_scale.estimates_at(run, 4.0) is None, "the average had not seen enough updates"
    assert noise_scale.updates_to(run, 4.0) == pytest.approx(66.67, rel=0.01)


def test_growth_has_the_interval_of_a_t_test_of_logarithms():
    middle, low, high = noise_scale.growth({"4": 1.0, "8": 2.0, "16": 3.0, "32": 9.0}, {"4": 2.0, "8": 8.0, "16": 9.0})
    logs = np.log([2.0, 4.0, 3.0])
    half = 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)  # Student's t for two degrees of freedom
    assert (middle, low, high) == pytest.approx(tuple(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])))
    assert noise_scale.growth({"4": 1.0}, {"4": 2.0})[1:] == (0.0, math.inf)


def test_the_best_rate_is_that_of_a_parabola():
    losses = {rate: 2.0 + 0.1 * (math.log2(rate) + 9.7) ** 2 for rate in (2**-11, 2**-10, 2**-9)}
    own = Tuned(4, 2**-10, losses, (losses[2**-10],), (), (), 32)
    assert learning_rate.refined(own) == pytest.approx(2**-9.7, rel=1e-9)
    assert learning_rate.refined(Tuned(4, 2**-10, {2**-10: 2.0, 2**-9: math.inf}, (2.0,), (), (), 32)) == 2**-10


def rates(name: str, exponent: float, wobble: float) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    rows = [
        {"batch": batch, "rates": [0.01 * batch**exponent * math.exp(wobble * rng.standard_normal()) for _ in range(3)]}
        for batch in (1, 2, 4, 8, 64)
    ]
    rows[-1]["rates"] = [1.0]  # beyond what the rule is about
    return {name: learning_rate.exponent_of(rows)}


@pytest.mark.parametrize(
    ("sgd", "adam", "wobble", "verdict"),
    [
        (1.0, 0.5, 0.05, Verdict.HELD),
        (0.5, 0.5, 0.05, Verdict.FAILED),
        (1.0, 1.0, 0.05, Verdict.FAILED),
        (1.0, 0.5, 2.0, Verdict.UNTOLD),
    ],
)
def test_exponents_of_learning_rates(sgd: float, adam: float, wobble: float, verdict: Verdict):
    exponents = {**rates("sgd", sgd, wobble), **rates("adam", adam, wobble)}
    assert learning_rate.judged(exponents)[0] is verdict
    if wobble < 1:
        assert exponents["sgd"]["exponent"] == pytest.approx(sgd, abs=0.1)
        assert exponents["sgd"]["low"] < sgd < exponents["sgd"]["high"]


def way(name: str, error: float, apart: float, memory: float, *, wrong: bool = False) -> dict[str, Any]:
    fixed = {"tokens_per_second": 1e4, "loss": 3.0, "loss_spread": 0.1, "differences": [apart, -apart]}
    return {"name": name, "wrong": wrong, "gradient_error": error, "apart": apart, "memory": memory, **fixed}


@pytest.mark.parametrize(
    ("error", "apart", "memory", "mistake", "verdict"),
    [
        (1e-16, 1e-6, 400.0, 0.3, Verdict.HELD),
        (1e-9, 1e-6, 400.0, 0.3, Verdict.FAILED),
        (1e-16, 0.02, 400.0, 0.3, Verdict.FAILED),
        (1e-16, 1e-6, 490.0, 0.3, Verdict.FAILED),
        (1e-16, 1e-6, 400.0, 0.001, Verdict.FAILED),
        (1e-16, math.nan, 400.0, 0.3, Verdict.UNTOLD),
    ],
)
def test_what_accumulation_is_judged_by(error: float, apart: float, memory: float, mistake: float, verdict: Verdict):
    rows = [way("at once", 0.0, 0.0, 500.0), way("in 4", error, apart, memory)]
    rows.append(way("mean", mistake, 0.1, 450.0, wrong=True))
    assert accumulation.judged(rows)[0] is verdict


def test_a_mistake_that_makes_no_difference_is_none():
    rows = [way("at once", 0.0, 0.0, 500.0), way("in 4", 1e-16, 1e-6, 400.0), way("mean", 0.3, 1e-4, 450.0, wrong=True)]
    assert accumulation.judged(rows)[0] is Verdict.FAILED


@pytest.mark.parametrize(
    ("study", "name", "line", "told"),
    [
        (
            LANGUAGE_MODELLING,
            "text.txt",
            "This is paragraph {} of some.\n\n",
            "55 documents to train on.* takes 64",
        ),
        (STUDIES["translation"], "pairs.tsv", "{} apples\t{} Äpfel\n", "54 pairs to train on.* takes .* more pairs"),
    ],
)
def test_a_text_of_too_few_examples_is_refused_before_anything_is_trained(
    study: Study, name: str, line: str, told: str, tmp_path: Path
):
    text = tmp_path / name
    text.write_text("".join(line.format(number, number) for number in range(60)))
    laboratory = Pretend(lambda _: run_with(), replace(study, chosen={"text": text}))
    with pytest.raises(ConfigurationError, match=told):
        accumulation.Figure(laboratory, quick=True).examine()
    assert not laboratory.asked


@pytest.mark.parametrize(
    ("ratio", "uncertainty", "verdict"),
    [(1.2, 3.0, Verdict.HELD), (1.5, 1.1, Verdict.FAILED), (0.6, 1.1, Verdict.FAILED), (1.5, 1.4, Verdict.UNTOLD)],
)
def test_a_prediction_fails_only_if_chance_does_not_explain_it(ratio: float, uncertainty: float, verdict: Verdict):
    best = Candidate("ring", 4, 0, 1, 1, 128, 100.0, 0.01, 0.5, 1.0, 0.001, simulated=True)
    fixed = {"predicted": 1.0, "cost": 1.0}
    rows = [{"ratio": 1.0, "uncertainty": 1.1, **fixed}, {"ratio": ratio, "uncertainty": uncertainty, **fixed}]
    assert time_to_target.judged(rows, best)[0] is verdict
    assert time_to_target.judged([*rows, {"ratio": None, "uncertainty": 1.0, **fixed}], best)[0] is Verdict.UNTOLD
    half = 3.182446305284263 * np.log([1.0, 2.0, 4.0, 8.0]).std(ddof=1) / 2  # Student's t for three degrees of freedom
    assert time_to_target.factor_of([1.0, 2.0, 4.0, 8.0]) == pytest.approx(math.exp(half))


def test_cells_of_a_table():
    assert Column("a", "a", 2).text(1234.567) == "1,234.57"
    assert Column("a", "a", None).text(0.00123456) == "0.00123"
    assert Column("a", "a").text(None) == "-"


@pytest.mark.parametrize(
    ("bf16", "fp16", "unscaled", "weights", "verdict"),
    [
        ([0.001, -0.004], [0.005, 0.0], [0.01, 0.3], [0.2, 0.01], Verdict.HELD),
        ([0.001, -0.006], [0.005, 0.0], [0.01, 0.3], [0.2, 0.01], Verdict.FAILED),
        ([0.001, 0.0], [0.006, 0.0], [0.01, 0.3], [0.2, 0.01], Verdict.FAILED),
        ([0.001, 0.0], [0.0, 0.0], [0.009, 0.3], [0.2, 0.01], Verdict.FAILED),
        ([0.001, 0.0], [0.0, 0.0], [0.01, 0.3], [0.2, -0.2], Verdict.FAILED),
        ([math.nan, 0.0], [0.0, 0.0], [0.01, 0.3], [0.2, 0.2], Verdict.UNTOLD),
    ],
)
def test_what_precision_is_judged_by(bf16, fp16, unscaled, weights, verdict):
    cases = {
        ("small gradients", "bf16"): bf16,
        ("small gradients", "fp16"): fp16,
        ("small gradients", "fp16-unscaled"): unscaled,
        ("small steps", "bf16"): [0.0],
        ("small steps", "bf16-weights"): weights,
    }
    rows = [
        {"case": case, "precision": name, "differences": differences, "vanished": 51.0}
        for (case, name), differences in cases.items()
    ]
    weights_left = {"fp32": 0.0, "bf16-weights": 1.0}
    assert precision.judged(rows, weights_left)[0] is verdict
    few = [{**row, "vanished": 50.0} for row in rows]
    assert precision.judged(few, weights_left)[0] is (Verdict.UNTOLD if verdict is Verdict.UNTOLD else Verdict.FAILED)


def test_gradients_vanish_below_half_of_the_smallest_number_of_fp16():
    """That is 2⁻²⁴; half of it rounds to even, which is 0. What is 0 already is not lost."""
    gradients = torch.tensor([2.0**-25, -(2.0**-26), 2.0**-24, 1.0, 0.0, 1e-30, 1.5 * 2.0**-25, 2.0**-20])
    assert precision.lost_in_fp16(gradients, 1.0) == 100 * 3 / 8
    assert precision.lost_in_fp16(gradients, 2.0**16) == 100 / 8


def test_a_weight_of_1_in_bf16_never_gets_smaller():
    """1 - 0.001 rounds to 1: neighbours below 1 are 2⁻⁸ apart."""
    assert precision.weight_after("bf16-weights") == 1.0
    assert precision.weight_after("fp32") == pytest.approx(0.0, abs=1e-4)


def test_a_training_that_ends_with_no_number_is_told_as_such():
    """A summary has null for it, since JSON has no NaN."""

    def ended(loss):
        arm = {"name": "accumulated", "validation_loss": loss, "skipped_updates": 3}
        update = {"kind": "update", "total_tokens": 10, "loss": loss}
        return Run(Path("somewhere"), {"arms": [arm]}, [update])

    row = precision.row_of("small gradients", "fp16", [ended(None), ended(2.5)], [ended(2.0), ended(2.25)])
    assert math.isnan(row["differences"][0])
    assert row["differences"][1] == 0.25
    assert row["skipped"] == 6
    assert row["curve"] == [(10, None)]
