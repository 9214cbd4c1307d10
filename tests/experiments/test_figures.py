"""Figures about claims: how points are trained and kept, how rates are tuned, what the verdicts are decided by."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import TINY, EveryFigure, made, stamps
from jobs import Run as Command
from matplotlib.image import imread

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.claims import accumulation, critical_batch, learning_rate, noise_scale, time_to_target
from bigbatch.experiments.laboratory.claim import CLAIMS, Column, Verdict
from bigbatch.experiments.laboratory.laboratory import Inquiry, Laboratory, identity
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.sweep import Sweep, Tuned, divided, run_all, updates_to_target
from bigbatch.experiments.planning.plan import Candidate
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.runs.run import Run

# Points.


def test_a_point_is_a_command_line():
    point = Point({"batch_size": 8, "learning_rate": 0.0015, "noise_scale": True, "text": None})
    words = "--workers 1 --arms accumulated --device cpu --batch-size 8 --learning-rate 0.0015 --noise-scale"
    assert point.command() == f"bigbatch-exp ring {words}"
    assert Point({"simulate": 4}, "ps").command() == "bigbatch-exp ps --arms accumulated --device cpu --simulate 4"


def test_points_are_told_apart_by_all_that_they_ask(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("one two three")
    first = identity(Point({**TINY, "text": text}))
    assert identity(Point({**TINY, "text": text, "learning_rate": 1e-3})) == first, "the default is 0.001"
    others = [{**TINY, "text": text, "seed": 1}, {**TINY, "text": text, "learning_rate": 1.1e-3}, TINY]
    names = {identity(Point(options)) for options in others}
    text.write_text("one two four!")
    assert len({first, identity(Point({**TINY, "text": text})), *names}) == 5
    assert identity(Point(TINY, "halving-doubling")) != identity(Point(TINY))


def test_points_are_trained_once_and_found_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    points = [Point({**TINY, "seed": seed}) for seed in (0, 1)]
    simulated = Point({**TINY, "micro_batch": 1, "simulate": 2})
    with Laboratory(tmp_path, 2, lambda _: None) as laboratory:
        runs = laboratory.runs([*points, points[0], simulated])
        assert (laboratory.made, laboratory.found) == (3, 0)
    assert runs[0].folder == runs[2].folder
    assert runs[0].summary["arms"][0]["validation_loss"] != runs[1].summary["arms"][0]["validation_loss"]
    assert runs[3].summary["workers"] == 2
    assert runs[3].summary["simulated"]["workers"] == 2
    assert len(made(tmp_path)) == 3
    assert not list(tmp_path.glob("*.part-*"))
    with Laboratory(tmp_path, 1, lambda _: None) as again:
        assert again.runs(points)[1].summary == runs[1].summary
        assert (again.made, again.found) == (0, 2)


def test_what_a_point_cannot_be_is_told_as_anywhere(tmp_path: Path):
    with Laboratory(tmp_path, 1, lambda _: None) as laboratory, pytest.raises(ConfigurationError, match="divided by"):
        laboratory.runs([Point({**TINY, "width": 17})])
    assert not list(tmp_path.iterdir())


# Tuning.


def run_with(**arm: Any) -> Run:
    return Run(Path("nowhere"), {"arms": [arm]}, [])


class Pretend(Laboratory):
    """Answers points from a function instead of training them."""

    def __init__(self, answer: Callable[[Mapping[str, Any]], Run]) -> None:
        super().__init__(Path("nowhere"), 1, lambda _: None)
        self.asked: list[Mapping[str, Any]] = []
        self._answer = answer

    def inquire(self, inquiries: Any) -> list[Any]:
        return [self._carry_on(inquiry) for inquiry in inquiries]

    def _carry_on(self, inquiry: Inquiry[Any]) -> Any:
        try:
            points = next(inquiry)
            while True:
                self.asked += [point.options for point in points]
                points = inquiry.send([self._answer(point.options) for point in points])
        except StopIteration as end:
            return end.value


def bowl(best: float) -> Callable[[Mapping[str, Any]], Run]:
    """Updates to the target: least at a rate, and never within the tokens if they do not suffice."""

    def answer(options: Mapping[str, Any]) -> Run:
        needed = 100 * (1 + math.log2(options["learning_rate"] / best) ** 2)
        enough = options["tokens"] >= needed * options["batch_size"] * 16
        return run_with(updates_to_target=needed if enough else None)

    return answer


def sweep_from(rate: float, seeds: tuple[int, ...] = (0, 1)) -> Sweep:
    return Sweep(
        {"context": 16, "width": 32}, (4, 8), lambda _: rate, lambda _: 10**6, updates_to_target, seeds, races=True
    )


@pytest.mark.parametrize(("start", "best"), [(1e-3, 1e-3), (1e-3, 8e-3), (1e-3, 0.25e-3), (2e-3, 3.2e-2)])
def test_a_grid_is_widened_until_its_optimum_is_inside(start: float, best: float):
    laboratory = Pretend(bowl(best))
    tuned = sweep_from(start).run(laboratory)
    assert [own.batch for own in tuned] == [4, 8]
    for own in tuned:
        assert own.rate == pytest.approx(best)
        assert not own.at_edge
        assert own.scores == (100.0,), "of the seed that had no part in the choice"
        assert set(own.tried) >= {own.rate / 2, own.rate, 2 * own.rate}
    steps = [math.log2(options["learning_rate"] / start) for options in laboratory.asked]
    assert all(step == round(step) for step in steps), "the grid is one of factors of two from where it began"
    assert {options["seed"] for options in laboratory.asked} == {0, 1}


def test_a_rate_is_given_up_when_it_cannot_win_any_more():
    laboratory = Pretend(bowl(1e-3))
    (own, _) = sweep_from(1e-3).run(laboratory)
    assert own.tried[2e-3] == own.tried[0.5e-3] == math.inf, "they would take 200 updates, against 100"
    caps = [options["tokens"] for options in laboratory.asked if options["batch_size"] == 4]
    assert caps == [10**6, 125 * 4 * 16, 125 * 4 * 16, 300 * 4 * 16]


def test_an_optimum_that_is_never_inside_is_told():
    (own, _) = sweep_from(1e-3).run(Pretend(bowl(1e-3 * 2**9)))
    assert own.at_edge
    assert len(own.tried) == 9, "as often as it is widened, and no more"


def test_a_batch_size_that_reaches_nothing_is_given_up():
    laboratory = Pretend(lambda _: run_with(updates_to_target=None))
    tuned = sweep_from(1e-3).run(laboratory)
    assert [(own.scores, own.reached, len(own.tried)) for own in tuned] == [((), [], 3)] * 2
    assert len(laboratory.asked) == 6


@pytest.mark.parametrize(("batch", "micro_batch"), [(1, 1), (2, 1), (5, 1), (8, 4), (80, 20), (100, 25), (512, 32)])
def test_a_batch_is_divided_into_micro_batches_that_make_it_up(batch: int, micro_batch: int):
    assert divided(batch) == {"micro_batch": micro_batch}


def test_several_sweeps_are_told_apart():
    first, second = run_all([sweep_from(1e-3, (3,)), sweep_from(4e-3, (4, 5))], Pretend(bowl(2e-3)))
    assert [len(own.scores) for own in (*first, *second)] == [0, 0, 1, 1]
    assert {own.rate for own in (*first, *second)} == {2e-3}


# Verdicts.


def tuned_of(batches: tuple[int, ...], updates: Callable[[int], float]) -> list[Tuned]:
    rng = np.random.default_rng(0)
    found = []
    for batch in batches:
        scores = tuple(float(updates(batch) * math.exp(0.02 * rng.standard_normal())) for _ in range(2))
        square = {"gradient_square": 2.0, "gradient_variance": 60.0}
        runs = tuple(run_with(updates_to_target=score, **square) for score in scores)
        found.append(Tuned(batch, 1e-3, {5e-4: math.inf, 1e-3: scores[0], 2e-3: math.inf}, scores, runs, ()))
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
    assert noise_scale.noise_at([run, run], 3.125) == 32 * 750 / 8
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
    own = Tuned(4, 2**-10, losses, (losses[2**-10],), (), ())
    assert learning_rate.refined(own) == pytest.approx(2**-9.7, rel=1e-9)
    assert learning_rate.refined(Tuned(4, 2**-10, {2**-10: 2.0, 2**-9: math.inf}, (2.0,), (), ())) == 2**-10


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


def test_a_text_of_too_few_documents_is_refused_before_anything_is_trained(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"This is paragraph {number} of some." for number in range(60)))
    laboratory = Pretend(lambda _: run_with())
    laboratory.base["text"] = text
    with pytest.raises(ConfigurationError, match="54 documents to train on, and a batch takes 64"):
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


# The commands.


def test_figures_lists_claims_sources_and_minutes(run: Command):
    outcome = run("bigbatch-exp", "figures")
    assert outcome.status == 0, outcome.err
    for name in CLAIMS.names():
        assert name in outcome.out
    for word in ("McCandlish", "Shallue", "Goyal", "minutes", "--quick"):
        assert word in outcome.out


def test_an_unknown_figure_is_answered_with_the_known_ones(run: Command):
    outcome = run("bigbatch-exp", "figure", "critical-bach")
    assert outcome.status == 2
    assert "did you mean 'critical-batch'" in outcome.err


@pytest.mark.timeout(1000)
def test_an_interrupted_figure_leaves_no_process_and_goes_on_with_what_is_missing(every_figure: EveryFigure):
    assert every_figure.interrupted.status == 130, every_figure.interrupted.err
    assert every_figure.left == {}
    assert every_figure.first
    assert every_figure.finished.status == 0, every_figure.finished.err
    assert every_figure.every.items() > every_figure.first.items(), "what was there is not made again"
    printed = " ".join(every_figure.finished.out.split())
    for name in CLAIMS.names():
        assert CLAIMS.load(name).claim in printed


@pytest.mark.timeout(1000)
def test_figures_are_drawn_again_without_training(run: Command, every_figure: EveryFigure):
    program, command, _, *options = every_figure.words
    names = ["critical-batch", "learning-rate"]
    outcome = run(program, command, *names, *options, "--json", deadline=100)
    assert outcome.status == 0, outcome.err
    assert [summary["figure"] for summary in json.loads(outcome.out)] == names
    assert stamps(every_figure.folder / "points") == every_figure.every


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", CLAIMS.names())
def test_a_figure_has_its_files_and_finite_numbers(name: str, every_figure: EveryFigure):
    own = every_figure.folder / f"{name}-quick"
    summary = json.loads((own / "summary.json").read_text())
    assert summary["verdict"] in {verdict.value for verdict in Verdict}
    assert summary["claim"]
    assert summary["source"]
    assert summary["criterion"]
    assert summary["rows"]
    shown = [row[column["key"]] for row in summary["rows"] for column in summary["columns"]]
    numbers = [value for value in shown if isinstance(value, int | float)]
    assert len(numbers) > len(summary["rows"])
    assert all(map(math.isfinite, numbers))
    assert "nan" not in summary["sentence"]
    assert all((Path(path) / "summary.json").is_file() for path in summary["runs"])
    pixels = imread(own / "figure.png")
    assert pixels.shape[1] > 800
    some = pixels[::7, ::7].reshape(-1, pixels.shape[2])
    assert len(np.unique(some, axis=0)) > 20, "it is not empty"


@pytest.mark.timeout(1000)
def test_the_critical_batch_that_was_measured_is_planned_with(run: Command, every_figure: EveryFigure, tmp_path: Path):
    words = ("--gpu", "core", "--workers", "2..4", "--micro-batch", "1,2", "--accumulate", "1", "--strategies", "ring")
    fit = every_figure.folder / "critical-batch-quick"
    outcome = run("bigbatch-exp", "plan", "--fit", fit, *words, "--out", tmp_path / "plan")
    assert outcome.status == 0, outcome.err
    measured = json.loads((fit / "summary.json").read_text())["fit"]["critical_batch"]
    planned = json.loads((tmp_path / "plan" / "summary.json").read_text())["updates"]["critical_batch"]
    assert planned == measured
