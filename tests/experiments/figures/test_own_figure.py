"""Figures in files of one's own, and options that they refuse."""

import os
from pathlib import Path

import pytest
from jobs import PROGRAMS, made
from jobs import Run as Command
from laboratories import quiet
from own_claim import Own

from bigbatch.experiments.commands.figure import claims_named
from bigbatch.experiments.laboratory.claim import summary_of

pytestmark = pytest.mark.usefixtures("own_cache")

OWN = """
from own_claim import Own as Figure


class Trains(Figure):
    trains = True


class Full(Figure):
    def draw(self, finding, path):
        raise OSError(28, "No space left on device")
"""


def test_details_replace_nothing():
    own = Own(quiet(Path("nowhere")), quick=True)
    summary = summary_of("own", own, own.examine())
    assert summary["rows"] == [{"a": 1}]
    assert summary["columns"] == [{"key": "a", "label": "a", "decimals": 0}]
    assert summary["verdict"] == "held"
    assert summary["fit"] == 3


def test_all_stands_for_every_figure_wherever_it_is(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    every = list(claims_named(["all"]))
    assert "critical-batch" in every
    assert sorted(claims_named(["all", "critical-batch"])) == sorted(every)
    assert sorted(claims_named(["critical-batch", "all"])) == sorted(every)
    own = f"{tmp_path / 'own.py'}:Figure"
    assert list(claims_named([own, "all"])) == [own, *every]


def test_a_figure_in_a_file(run: Command, tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    path = f"{PROGRAMS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    outcome = run("bigbatch-exp", "figure", "own.py:Figure", "--quick", "--out", "out", PYTHONPATH=path)
    assert outcome.status == 0, outcome.err
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["own.py-Figure-quick"]
    assert made(tmp_path / "out") == {"own.py-Figure-quick"}
    outcome = run("bigbatch-exp", "figure", "own.py:Full", "--out", "out", PYTHONPATH=path)
    assert outcome.status == 3  # what was found is in the summary and in the table
    assert outcome.err.splitlines()[-1].endswith("Make room there, or name another folder with --out.")
    assert made(tmp_path / "out") == {"own.py-Figure-quick", "own.py-Full"}
    assert "Traceback" not in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["scaling", "--text", "nonsense.txt"], "--text would change nothing"),
        (["crossover", "scaling", "--processes", "3"], "--processes would change nothing"),
        (["scaling", "--text", "a", "--processes", "3"], "to draw scaling: leave them out"),
        (["crossover", "--task", "translation"], "--task would change nothing, for nothing is trained"),
        (["critical-batch", "--task", "documents"], "known: language-modelling, translation, summarisation"),
        (["accumulation", "--source", "en"], "language-modelling does not take --source"),
    ],
)
def test_options_about_training_are_refused_where_they_change_nothing(run: Command, words: list[str], told: str):
    outcome = run("bigbatch-exp", "figure", *words)
    assert outcome.status == 2
    assert told in outcome.err
