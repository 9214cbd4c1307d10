"""The identity of a run: which points are told apart."""

import subprocess
from pathlib import Path

import pytest
from jobs import TINY

from bigbatch.experiments.laboratory.laboratory import identity
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.training import identity as identities

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_command_can_be_pasted_into_a_shell(tmp_path: Path):
    words = Point({"text": tmp_path / "my text.txt", "optimizer": "it's.py:Mine"}).command()
    listed = subprocess.run(
        ["sh", "-c", f'for word in {words}; do echo "$word"; done'], capture_output=True, text=True, check=True
    )
    told = ["bigbatch-exp", "ring", "--text", f"{tmp_path}/my text.txt", "--workers", "1", "--arms", "accumulated"]
    assert listed.stdout.splitlines() == [*told, "--optimizer", "it's.py:Mine", "--device", "cpu"]


def test_points_are_trained_on_the_cpu_unless_they_say_otherwise():
    assert identity(Point(TINY)) == identity(Point({**TINY, "device": "cpu"}))
    assert identity(Point(TINY)) != identity(Point({**TINY, "device": "cuda:1"}))
    assert "--device" not in Point({"device": None}).request().words()


@pytest.mark.parametrize("option", ["optimizer", "task", "schedule", "scaling", "network", "text"])
def test_a_name_changes_with_the_content_of_the_files_that_options_name(option: str, tmp_path: Path):
    file = tmp_path / {"network": "wires.toml", "text": "text.txt"}.get(option, "mine.py")
    value = f"{file}:Mine" if file.suffix == ".py" else file
    point = Point({**TINY, "simulate": 2, option: value})
    absent = identity(point)
    file.write_text("first = 1")
    first = identity(point)
    file.write_text("first = 2")
    second = identity(point)
    assert len({absent, first, second}) == 3
    file.write_text("first = 1")
    assert identity(point) == first


def test_a_name_changes_with_the_content_of_a_strategy_in_a_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    names = []
    for remark in ("a", "b", "a"):
        head = "from bigbatch.comm.strategies import STRATEGIES"
        file.write_text(f"{head}\n\n\nclass Mine(STRATEGIES.load('ring')):\n    '{remark}'\n")
        names.append(identity(Point(TINY, f"{file}:Mine")))
    assert names[0] != names[1]
    assert names[0] == names[2]


def test_a_name_changes_with_a_new_calibration_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path))
    point = Point({**TINY, "simulate": 2, "network": "this-machine"})
    names = {identity(point)}
    for latency in (1, 2):
        (tmp_path / "this-machine.toml").write_text(f"latency = {latency}")
        names.add(identity(point))
    assert len(names) == 3


def test_a_name_changes_with_the_source_of_what_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = identities.source_files()
    root = Path(identities.bigbatch.__file__).parent
    covered = {str(file.resolve().relative_to(root.parent.resolve())) for file in files}
    trainer = {
        f"bigbatch/{name}.py" for name in ("training/trainer", "optimizers/layerwise", "tasks/task", "models/decoder")
    }
    wires = {"comm/collectives/ring.py", "comm/strategies/parameter_server.py", "comm/parameters.py"}
    assert trainer | wires | {"experiments/training/experiment.py", "experiments/training/simulated.py"} <= covered
    assert not any("claims" in name or "sweep" in name for name in covered), "a figure's own code trains nothing"

    own = tmp_path / "trainer.py"
    own.write_bytes(files[0].read_bytes())
    names = [identity(Point(TINY))]
    monkeypatch.setattr(identities, "source_files", lambda: [own, *files[1:]])
    for addition in ("", "# changed\n"):
        own.write_text(own.read_text() + addition)
        identities.source.cache_clear()
        names.append(identity(Point(TINY)))
    identities.source.cache_clear()
    assert names[0] == names[1]
    assert names[1] != names[2]
