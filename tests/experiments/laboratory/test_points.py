"""Trainings until a loss is reached, and points: single trainings that are run once and kept."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from jobs import SMALL, Run

from bigbatch.experiments.runs.run import first_reaching
from bigbatch.experiments.training.arm import validation_points


def test_a_loss_is_reached_between_two_places_on_a_line_over_their_logarithm():
    places, losses = [0, 1, 10, 100, 1000], [5.0, 4.0, 3.0, 1.0, 0.5]
    assert first_reaching(places, losses, 3.0) == 10
    assert first_reaching(places, losses, 2.0) == pytest.approx(10**1.5, rel=1e-12)
    assert first_reaching(places, losses, 0.625) == pytest.approx(10**2.75, rel=1e-12)
    assert first_reaching(places, losses, 5.0) == 0
    assert first_reaching(places, losses, 4.5) == 1, "zero has no logarithm"
    assert first_reaching(places, losses, 0.4) is None
    assert first_reaching(places, [5.0, 4.0, None, math.nan, 0.5], 1.0) == pytest.approx(1000 ** (3 / 3.5), rel=1e-12)


def test_a_loss_that_was_reached_once_counts_even_if_it_rises_again():
    assert first_reaching([1, 2, 4], [3.0, 1.0, 2.0], 1.0) == 2


@pytest.mark.parametrize("updates", [1, 2, 7, 1000])
def test_validation_on_the_way_to_a_target_grows_by_a_tenth_and_ends_with_the_last_update(updates):
    points = validation_points(updates, to_target=True)
    assert points[0] == 1
    assert points[-1] == updates
    assert all(a < b <= math.ceil(1.1 * a) for a, b in pairwise(points))


def test_an_arm_ends_with_its_target(run: Run, tmp_path: Path):
    folder = tmp_path / "run"
    words = [*SMALL, "--tokens", "20k", "--arms", "large,small", "--optimizer", "adam", "--learning-rate", "0.01"]
    outcome = run("bigbatch-exp", "ring", "--simulate", 2, *words, "--target", 5.0, "--out", folder)
    assert outcome.status == 0, outcome.err
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "reached a validation loss of 5" in outcome.out
    for arm in summary["arms"]:
        measured = [line for line in lines if line["arm"] == arm["name"] and line["kind"] == "validation"]
        made = [line for line in lines if line["arm"] == arm["name"] and line["kind"] == "update"]
        assert measured[-1]["loss"] <= 5.0 < min(line["loss"] for line in measured[:-1])
        assert arm["updates"] == len(made) == measured[-1]["update"]
        assert measured[-2]["update"] <= arm["updates_to_target"] <= measured[-1]["update"]
        assert measured[-2]["tokens"] <= arm["tokens_to_target"] <= measured[-1]["tokens"] < 20_000
        assert measured[-2]["seconds"] <= arm["seconds_to_target"] <= measured[-1]["seconds"]


@pytest.mark.slow
def test_a_target_that_was_reached_before_the_start_is_told(run: Run, tmp_path: Path):
    folder = tmp_path / "run"
    words = [*SMALL, "--arms", "large,small", "--target", 100, "--out", folder]
    outcome = run("bigbatch-exp", "ring", "--simulate", 2, *words)
    assert outcome.status == 0, outcome.err
    for arm in json.loads((folder / "summary.json").read_text())["arms"]:
        assert [arm[f"{what}_to_target"] for what in ("updates", "tokens", "seconds")] == [0, 0, 0]
        assert arm["updates"] == 1
    rows = {line[:27].strip(): line[27:].split() for line in outcome.out.splitlines() if "until the target" in line}
    assert list(rows.values()) == [["0", "0"], ["0", "0"], ["0.0", "0.0"]]
    said = "nats per token? large had before its first update; small had before its first update."
    assert said in " ".join(outcome.out.split())


@pytest.mark.slow
def test_a_target_that_is_not_reached_is_told(run: Run, tmp_path: Path):
    folder = tmp_path / "run"
    outcome = run("bigbatch-exp", "ring", "-n", 1, *SMALL, "--arms", "large", "--target", 0.1, "--out", folder)
    assert outcome.status == 0, outcome.err
    assert json.loads((folder / "summary.json").read_text())["arms"][0]["updates_to_target"] is None
    assert "did not within" in outcome.out
