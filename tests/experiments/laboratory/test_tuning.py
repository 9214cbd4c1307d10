"""Points and sweeps: how points are told apart, trained and kept, and how rates are tuned."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from jobs import TINY, made
from laboratories import Pretend, run_with

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.laboratory.laboratory import Laboratory, identity
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.sweep import Sweep, divided, run_all, updates_to_target
from bigbatch.experiments.runs.run import Run


def test_a_point_is_a_command_line():
    point = Point({"batch_size": 8, "learning_rate": 0.0015, "noise_scale": True, "text": None})
    words = "--workers 1 --batch-size 8 --arms accumulated --learning-rate 0.0015 --device cpu --noise-scale"
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


def bowl(best: float) -> Callable[[Mapping[str, Any]], Run]:
    """Updates to the target: least at a rate, and never within the tokens if they do not suffice."""

    def answer(options: Mapping[str, Any]) -> Run:
        needed = 100 * (1 + math.log2(options["learning_rate"] / best) ** 2)
        enough = options["tokens"] >= needed * options["batch_size"] * 16
        return run_with(updates_to_target=needed if enough else None)

    return answer


def sweep_from(rate: float, seeds: tuple[int, ...] = (0, 1)) -> Sweep:
    return Sweep(
        {"context": 16, "width": 32}, 16, (4, 8), lambda _: rate, lambda _: 10**6, updates_to_target, seeds, races=True
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
