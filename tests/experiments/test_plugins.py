"""What somebody else adds by entry points, each in one file, is used like bigbatch's own."""

import json
import shutil
from pathlib import Path

import pytest
from jobs import PROGRAMS, Run

GROUPS = {
    "strategies": "theirs = plugin.strategy:Mine",
    "tasks": "theirs = plugin.task:Mine",
    "models": "theirs = plugin.model:Mine",
    "optimizers": "theirs = plugin.optimizer:mine",
    "figures": "theirs = plugin.figure:Figure",
    "commands": "mine = plugin.command:mine",
}
SMALL = ["--task", "theirs", "--model", "theirs", "--optimizer", "theirs", "--tokens", "2k", "--context", "8"]


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A package with entry points, on the path that is returned."""
    site = tmp_path / "site"
    shutil.copytree(PROGRAMS / "plugin", site / "plugin")
    about = site / "plugin-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0.1\n")
    points = "".join(f"[bigbatch.{group}]\n{entry}\n\n" for group, entry in GROUPS.items())
    (about / "entry_points.txt").write_text(points)
    return str(site)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_on_the_command_line(run: Run, installed, tmp_path):
    listed = run("bigbatch-exp", "--help", PYTHONPATH=path(installed))
    assert "A ring of somebody else's." in listed.out
    assert "Say that this is somebody else's command." in " ".join(listed.out.split())
    assert run("bigbatch-exp", "mine", PYTHONPATH=path(installed)).out == "somebody else's\n"
    options = ["theirs", "-n", "2", "--loud", "--arms", "large", "--out", "run", *SMALL]
    trained = run("bigbatch-exp", *options, PYTHONPATH=path(installed))
    assert trained.status == 0, trained.err
    (arm,) = summary(tmp_path / "run")["arms"]
    assert arm["servers"] == [{"loud": True, "staleness": {}, "gradients_dropped": 0}] * 2
    assert arm["metrics"]["right"] > 0.1
    assert arm["validation_loss"] < 2.3  # the logarithm of ten words, which it has begun to tell apart
    examined = run("bigbatch-exp", "figure", "theirs", "--out", "figures", PYTHONPATH=path(installed))
    assert examined.status == 0, examined.err
    assert summary(tmp_path / "figures" / "theirs")["verdict"] == "held"


def test_in_compare_simulate_and_python(run: Run, installed, tmp_path):
    program = """
import bigbatch

words = dict(task="theirs", model="theirs", optimizer="theirs", tokens="2k", context=8, arms=("small",), quiet=True)
run = bigbatch.run("theirs", workers=1, loud=True, out="alone", **words)
assert run.summary["arms"][0]["servers"][0]["loud"] is True
ring, theirs = bigbatch.compare("ring", "theirs", simulate=3, out="both", **words)
assert ring.summary["arms"][0]["validation_loss"] == theirs.summary["arms"][0]["validation_loss"]
mine, own = (row["step_seconds"] for row in bigbatch.simulate(["theirs", "ring"], workers=4))
assert abs(mine / own - 1) < 1e-9, (mine, own)
"""
    (tmp_path / "program.py").write_text(program)
    outcome = run("python", "program.py", PYTHONPATH=path(installed), deadline=90)
    assert outcome.status == 0, outcome.err


def path(installed: str) -> str:
    import os

    return os.pathsep.join(filter(None, [installed, os.environ.get("PYTHONPATH")]))
