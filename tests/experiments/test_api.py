"""What the command line can do, as calls."""

import json
import math
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import bigbatch
from bigbatch.comm.errors import BigBatchError, ConfigurationError, LaunchError
from bigbatch.experiments.training.settings import Request, Settings

TINY = {
    "tokens": "2k",
    "validation_tokens": 500,
    "layers": 1,
    "width": 16,
    "heads": 2,
    "context": 16,
    "vocabulary": 300,
    "deadline": 60,
    "quiet": True,
}

CELLS = (
    """
import bigbatch

run = bigbatch.run("ring", workers=2, batch_size=16, arms=("large", "small"), {tiny})
loss = run.summary["arms"][0]["validation_loss"]
assert 4 < loss < 7
assert [arm["name"] for arm in run.summary["arms"]] == ["large", "small"]
figure = run.figure("comparison")
""",
    """
simulated = bigbatch.run("ps:async", simulate=3, network="ethernet-10g", {tiny})
assert simulated.updates[-1]["total_seconds"] > 0
assert simulated.validations.to_pandas().loss.iloc[0] > simulated.validations.to_pandas().loss.iloc[-1]
assert simulated.figure("staleness")
""",
    """
runs = bigbatch.compare("ring", "ps:async", workers=2, arms=("small",), {tiny})
assert [run.summary["strategy"] for run in runs] == ["ring", "ps:async"]
""",
    """
rows = bigbatch.simulate(["ring", "ps"], workers=[8, 64], model="gpt2-small", gpu="a100", network="infiniband-hdr")
assert [(row["strategy"], row["workers"]) for row in rows] == [("ring", 8), ("ring", 64), ("ps", 8), ("ps", 64)]
assert all(0 < row["efficiency"] <= 1 for row in rows)
""",
    """
import torch

def work(transport):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(model.weight)
    session = bigbatch.attach(model, torch.optim.AdamW, lr=1e-3, strategy="ring")
    for step, batch in enumerate(session.shard(torch.arange(24.0).reshape(8, 1, 3))):
        loss, tokens = (model(batch) ** 2).sum(), len(batch)
        session.backward(loss, tokens, last=(step + 1) % 2 == 0)
    return model.weight.sum().item()

sums = bigbatch.Cluster(4).run(work)
assert len(set(sums)) == 1 and sums[0] < 6
""",
)


@pytest.mark.slow
def test_a_notebook_runs_the_calls(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny = ", ".join(f"{name}={value!r}" for name, value in TINY.items())
    cells = [nbformat.v4.new_code_cell(cell.replace("{tiny}", tiny)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in notebook.cells)
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_run_has_what_the_command_line_leaves(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    run = bigbatch.run("ring", workers=1, arms="small", out=tmp_path / "run", **TINY)
    assert isinstance(run, bigbatch.Run)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["tokens"], kept["arms"], kept["strategy"], kept["workers"]) == (2000, "small", "ring", 1)
    assert Settings.of({name: kept[name] for name in Settings().flat()}) == Settings.of(
        {"workers": 1, "arms": "small", **{name: value for name, value in TINY.items() if name != "quiet"}}
    )
    assert {entry.name for entry in run.folder.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "comparison.png",
    }
    assert [update["number"] for update in run.updates] == list(range(1, len(run.updates) + 1))
    assert run.summary["arms"][0]["metrics"].keys() == {"accuracy", "bits per byte"}
    assert math.isfinite(run.validations[-1]["loss"])
    with pytest.raises(ConfigurationError, match="Unknown drawing 'losess'"):
        run.figure("losess")
    with pytest.raises(ConfigurationError, match="No gradient was stale"):
        run.figure("staleness")


@pytest.mark.parametrize(
    ("strategy", "choices", "said"),
    [
        ("rnig", {}, "did you mean 'ring'"),
        ("ring", {"token": 3}, "has no option 'token'"),
        ("ring", {"servers": 2}, "An experiment over ring has no option 'servers'"),
        ("ps", {"consistency": "lax"}, "--consistency cannot be 'lax'"),
        ("ring", {"learning_rate": math.nan}, "no finite number"),
        ("ring", {"network": "ethernet-1g"}, "add --simulate WORKERS"),
        ("ring", {"workers": 2, "simulate": 3}, "Leave -n out"),
        ("ring", {"simulate": 2, "device": "cuda"}, "leave --device out"),
        ("ring", {"network": "ethernet-10g"}, "add --simulate WORKERS"),  # also what would be taken anyway
        ("ring", {"width": 10}, "The nearest widths that can are 8 and 12"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_started(strategy, choices, said):
    with pytest.raises((ConfigurationError, LaunchError), match=said):
        bigbatch.run(strategy, **choices)


def test_a_path_and_a_text_of_numpy_are_names_too():
    for name in (Path("ring"), np.str_("ring")):
        assert Request.of(name, {}) == Request("ring")
    assert [row["strategy"] for row in bigbatch.simulate(np.str_("ring"), workers=2, bytes=1000)] == ["ring"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (partial(bigbatch.compare, "ring", "ps", batchsize=64), "no option 'batchsize'.*did you mean 'batch_size'"),
        (partial(bigbatch.compare, "ps", "ring", servers=2), "An experiment over ring has no option 'servers'"),
        (partial(bigbatch.compare, ["ring", "ps"]), r"The strategies cannot be .* holds .*, which is no text"),
        (partial(bigbatch.compare, "ring", simulate=2, network="bogus", out="out"), "Unknown network 'bogus'"),
        (partial(bigbatch.compare), "The strategies cannot be .*: that names nothing"),
        (partial(bigbatch.compare, "ring", quiet="no"), "quiet cannot be 'no': that is neither true nor false"),
        (partial(bigbatch.simulate, np.array(["ring", "ps"])), "The strategies cannot be array.*: that is no list"),
        (partial(bigbatch.simulate, []), "The strategies cannot be .*: that names nothing"),
        (partial(bigbatch.simulate, "ring", bytes="1MB", model="gpt2-small"), "--model is about updates"),
        (partial(bigbatch.simulate, "ring", bytes="1MB", straggler="slow:0:9"), "--straggler is about updates"),
    ],
)
def test_what_cannot_be_compared_or_simulated_is_refused_before_anything_is_written(
    ask, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=said):
        ask()
    assert not list(tmp_path.iterdir())


def test_an_option_with_the_name_of_a_setting_is_refused(tmp_path: Path):
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n"
        "from bigbatch.comm.kinds import Number\n"
        "from bigbatch.comm.options import Options, option\n"
        "from bigbatch.comm.strategies.no_exchange import NoExchange\n"
        "@dataclass(frozen=True)\n"
        "class Own(Options):\n"
        "    clip: float = option(5.0, Number(), 'Something else.')\n"
        "class Clipping(NoExchange):\n"
        "    options = Own()\n"
    )
    with pytest.raises(ConfigurationError, match="has an option 'clip', as every experiment has"):
        bigbatch.run(f"{own}:Clipping", clip=0.5, own=1)


def test_a_failure_of_started_processes_is_an_error(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    (tmp_path / "file").write_text("")
    with pytest.raises(BigBatchError, match="ended with exit status"):
        bigbatch.run("ring", workers=2, out=tmp_path / "file" / "run", **TINY)


def test_a_request_is_its_words_and_its_record():
    request = Request.of("ps:ssp:2", {"workers": 3, "arms": ["small"], "clip": 1, "servers": 2, "overlap": False})
    assert request.command() == "bigbatch-exp ps:ssp:2 --workers 3 --arms small --clip 1.0 --no-overlap --servers 2"
    written = request.written()
    assert Request.of(written.pop("strategy"), written).words() == request.words()
