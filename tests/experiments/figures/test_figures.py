"""Figures about claims, by their commands: what is listed, made, drawn again and planned with."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from jobs import EveryFigure, stamps
from jobs import Run as Command
from matplotlib.image import imread

from bigbatch.experiments.claims import CLAIMS
from bigbatch.experiments.laboratory.claim import Verdict


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


@pytest.mark.timeout(1900)
def test_an_interrupted_figure_leaves_no_process_and_goes_on_with_what_is_missing(every_figure: EveryFigure):
    assert every_figure.interrupted.status == 130, every_figure.interrupted.err
    assert every_figure.left == {}
    assert every_figure.first
    assert every_figure.finished.status == 0, every_figure.finished.err
    assert every_figure.every.items() > every_figure.first.items(), "what was there is not made again"
    printed = " ".join(every_figure.finished.out.split())
    for name in CLAIMS.names():
        assert CLAIMS.load(name).claim in printed


@pytest.mark.timeout(1900)
def test_figures_are_drawn_again_without_training(run: Command, every_figure: EveryFigure):
    program, command, _, *options = every_figure.words
    names = ["critical-batch", "learning-rate"]
    outcome = run(program, command, *names, *options, "--json", deadline=100)
    assert outcome.status == 0, outcome.err
    assert [summary["figure"] for summary in json.loads(outcome.out)] == names
    assert stamps(every_figure.folder / "points") == every_figure.every


@pytest.mark.timeout(1900)
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


@pytest.mark.timeout(1900)
def test_the_critical_batch_that_was_measured_is_planned_with(run: Command, every_figure: EveryFigure, tmp_path: Path):
    words = ("--gpu", "core", "--workers", "2..4", "--micro-batch", "1,2", "--accumulate", "1", "--strategies", "ring")
    fit = every_figure.folder / "critical-batch-quick"
    outcome = run("bigbatch-exp", "plan", "--fit", fit, *words, "--out", tmp_path / "plan")
    assert outcome.status == 0, outcome.err
    measured = json.loads((fit / "summary.json").read_text())["fit"]["critical_batch"]
    planned = json.loads((tmp_path / "plan" / "summary.json").read_text())["updates"]["critical_batch"]
    assert planned == measured
