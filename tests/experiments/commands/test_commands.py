"""The commands as a user types them: real processes, real folders, and what bad input gets."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from jobs import SMALL, Run, Start, quick, until

from bigbatch.experiments.commands.main import cli, run_program

ARM_KEYS = [
    *("name", "global_batch", "micro_batch", "accumulation", "updates", "skipped_updates", "tokens"),
    *("tokens_per_second", "update_seconds", "compute_seconds", "communication_seconds", "waiting_seconds"),
    *("bytes_sent_per_update", "peak_memory_bytes", "training_loss", "validation_loss"),
]
MODULE = [sys.executable, "-m", "bigbatch.experiments"]
COMMANDS = {
    "mpirun ring": ["mpirun", "-n", "4", "bigbatch-exp", "ring"],
    "mpirun allreduce": ["mpirun", "-n", "4", "bigbatch-exp", "allreduce"],
    "torchrun allreduce": [
        *MODULE[:2],
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
        "-m",
        "bigbatch.experiments",
        "allreduce",
    ],
    "mpirun ps": ["mpirun", "-n", "5", "bigbatch-exp", "ps"],
    "ring -n 2": ["bigbatch-exp", "ring", "-n", "2"],
    "ring -n 1": ["bigbatch-exp", "ring", "-n", "1", "--batch-size", "64"],
}
QUICK = ("ring -n 2", "ring -n 1")
"""Those that every test run tries."""

LOSSES: dict[str, list[float]] = {}


def check_run(folder: Path, strategy: str, workers: int) -> list[float]:
    """A finished run's files, and the losses of its arms."""
    summary = json.loads((folder / "summary.json").read_text())
    assert {key: summary[key] for key in ("strategy", "workers", "task")} == {
        "strategy": strategy, "workers": workers, "task": "language-modelling"
    }  # fmt: skip
    assert len(summary["corpus_sha256"]) == 64
    assert summary["parameters"] > 5000
    assert [arm["name"] for arm in summary["arms"]] == ["large", "accumulated", "small"]
    for arm in summary["arms"]:
        assert set(ARM_KEYS) <= arm.keys()
        assert arm["global_batch"] == arm["micro_batch"] * arm["accumulation"] * workers
        parts = sum(arm[f"{part}_seconds"] for part in ("compute", "communication", "waiting"))
        assert parts == pytest.approx(arm["update_seconds"])
        assert arm["tokens_per_second"] == pytest.approx(arm["tokens"] / arm["updates"] / arm["update_seconds"])
        assert arm["validation_loss"] < 6
    assert len({arm["tokens"] for arm in summary["arms"]}) == 1
    large, accumulated, small = summary["arms"]
    assert large["updates"] == accumulated["updates"] == 2
    assert small["updates"] == 8
    assert abs(large["validation_loss"] - accumulated["validation_loss"]) < 1e-5
    least = 2 * (workers - 1) / workers if strategy != "ps" else 1
    for arm in summary["arms"]:
        gradients = 4 * summary["parameters"] * least
        assert gradients <= arm["bytes_sent_per_update"] <= gradients + 200
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "update" for record in metrics) == 2 + 2 + 8
    assert json.loads((folder / "config.json").read_text())["plan"]["workers"] == workers
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    return [arm["validation_loss"] for arm in summary["arms"]]


@pytest.mark.parametrize("name", quick(COMMANDS, lambda name: name in QUICK))
def test_every_wire_runs_the_same_arms(run: Run, tmp_path, name):
    outcome = run(*COMMANDS[name], *SMALL, "--out", "here")
    assert outcome.status == 0, outcome.err
    workers = int(name[-1]) if name[-1].isdigit() else 4
    LOSSES[name] = check_run(
        tmp_path / "here", name.removeprefix("mpirun ").removeprefix("torchrun ").split()[0], workers
    )
    assert outcome.err.count("small: update 8/8") == 1  # one rank speaks
    assert outcome.out.count("tokens/s") == 1
    models = "model-accumulated.pt, model-large.pt, model-small.pt"
    assert f"here/: comparison.png, config.json, metrics.jsonl, {models}, summary.json" in outcome.out
    # The same data in the same order: the losses differ by rounding alone, whatever moved the gradients.
    first = next(iter(LOSSES.values()))
    assert LOSSES[name] == pytest.approx(first, abs=1e-5)


@pytest.mark.slow
def test_compare_draws_one_figure_over_all(run: Run, tmp_path):
    outcome = run("bigbatch-exp", "compare", "ring", "allreduce", "ps", "-n", "2", "--arms", "large,small", *SMALL)
    assert outcome.status == 0, outcome.err
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert [run["strategy"] for run in summary["runs"]] == ["ring", "allreduce", "ps"]
    assert {run["workers"] for run in summary["runs"]} == {2}
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "ps" / "summary.json").is_file()
    assert "allreduce" in outcome.out.splitlines()[1]


OWN_STRATEGY = """
from bigbatch.comm.reducers.collective import Scheduled
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.strategies.all_reduce import AllReduce

class Mine(AllReduce):
    \"\"\"My own all-reduce.\"\"\"
    def collective(self, transport):
        return Scheduled(ring, transport)

class Raises(Mine):
    def step(self, weight, loss):
        if self.transport.rank == self.transport.size - 1:
            raise ValueError(f"rank {self.transport.rank} has a fault")
        return super().step(weight, loss)
"""


@pytest.mark.slow
def test_somebody_elses_strategy_is_a_command(run: Run, tmp_path):
    (tmp_path / "my_file.py").write_text(OWN_STRATEGY)
    outcome = run("bigbatch-exp", "my_file.py:Mine", "-n", "2", "--arms", "small", "--json", *SMALL)
    assert outcome.status == 0, outcome.err
    summary = json.loads(outcome.out)
    assert (summary["strategy"], summary["workers"]) == ("my_file.py:Mine", 2)
    helped = CliRunner().invoke(cli, [f"{tmp_path}/my_file.py:Mine", "--help"])
    assert "My own all-reduce." in helped.output


@pytest.mark.slow
def test_rounds_that_are_no_all_reduce_are_not_trained_with(run: Run, tmp_path):
    half = "from bigbatch.comm.collectives.ring import ring\ndef half(size): yield from list(ring(size))[: size - 1]\n"
    (tmp_path / "my_file.py").write_text(half)
    outcome = run("bigbatch-exp", "my_file.py:half", "-n", "2", *SMALL)
    assert outcome.status != 0
    assert outcome.err.count("half over 2 ranks is no all-reduce: refuted: rank 0 misses") == 1


def test_an_exception_on_one_rank_ends_the_job(run: Run, tmp_path):
    (tmp_path / "my_file.py").write_text(OWN_STRATEGY)
    outcome = run("mpirun", "-n", "3", "bigbatch-exp", "my_file.py:Raises", *SMALL, deadline=30)
    assert outcome.status != 0
    assert (
        outcome.err.count("bigbatch-exp: on rank 2: ValueError: rank 2 has a fault (my_file.py, line 14, in step)") == 1
    )
    assert "Traceback" not in outcome.err
    shown = run("bigbatch-exp", "my_file.py:Raises", "-n", "1", "--debug", *SMALL, deadline=30)
    assert shown.status != 0
    assert "Traceback" in shown.err


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("mpirun -n 2 bigbatch-exp ring", signal.SIGINT),
        pytest.param("bigbatch-exp ps -n 2", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("bigbatch-exp ps -n 2 --colocated", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("bigbatch-exp ps -n 1 --colocated", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("bigbatch-exp ring -n 1", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("bigbatch-exp allreduce -n 2", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("bigbatch-exp compare ring -n 2", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_valid_metrics_and_no_process(start: Start, tmp_path, command, number):
    job = start(*command.split(), *SMALL, "--tokens", "50M", "--out", "here")
    metrics = tmp_path / "here" / ("ring/metrics.jsonl" if "compare" in command else "metrics.jsonl")

    def begun():
        assert job.process.poll() is None, job.err()
        return metrics.exists() and len(metrics.read_text().splitlines()) >= 5

    until(begun)
    os.kill(job.process.pid, number)
    outcome = job.wait(20)
    assert outcome.status != 0
    assert job.gone()
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(records) >= 5
    assert "Traceback" not in outcome.err


NEVER_STARTED = {
    "does not divide": (["ring", "--batch-size", "63"], "nearest batch sizes that can are 56 and 64"),
    "no such file": (["none.py:X"], "none.py, which should hold the strategy, does not exist"),
    "does not agree": (["ring", "--batch-size", "64", "--micro-batch", "3", "--accumulate", "4"], "makes 24"),
    "unknown arm": (
        ["ring", "--arms", "huge"],
        "'--arms': 'huge' holds 'huge', which is not known; known: large, accumulated, small",
    ),
    "unknown task": (["ring", "--task", "chess"], "Unknown task 'chess'"),
    "optimizer that steps by itself": (
        ["ring", "--optimizer", "torch.optim:LBFGS"],
        "computes the loss several times in a step",
    ),
    "unknown optimizer": (["ring", "--optimizer", "adamv"], "Unknown optimizer 'adamv' (did you mean 'adam"),
    "unknown schedule": (["ring", "--schedule", "cosin"], "Unknown schedule 'cosin' (did you mean 'cosine'?)"),
    "unknown scaling rule": (["ring", "--scaling", "cubic"], "Unknown scaling rule 'cubic'. Known: none, linear, sqrt"),
    "too large to scale": (["ring", "--scaling", "sqrt", "--base-batch", "6"], "k = 64 / 6 = 10.6667 with β = 0.9"),
    "a base and no rule": (["ring", "--base-batch", "32"], "--base-batch 32 says from which batch to scale"),
    "unknown device": (["ring", "--device", "abacus"], "Unknown device 'abacus'"),
    "width and heads": (["ring", "--width", "30"], "nearest widths that can are 28 and 32"),
    "unknown option": (["ring", "--batchsize", "3"], "No such option"),
    "not a number": (["ring", "--tokens", "many"], "not a number of tokens"),
    "bad configuration": (["ring", "--config", "bad.toml"], "unknown option 'batch'"),
    "nobody but spares": (["ps:backup:1"], "--spares 1 leaves nobody of 1 workers to wait for"),
    "unknown consistency": (["ps", "--consistency", "lax"], "'lax' is not known; known: sync, async, ssp, backup"),
    "as many servers as workers": (["ps", "--colocated", "--servers", "2"], "so that --servers 2 cannot be chosen"),
    "somebody else's option": (["ring", "--servers", "2"], "No such option"),
    "bench of a server": (["bench", "--algorithms", "ring,ps"], "ps is not an all-reduce"),
    "bench of no size": (["bench", "--bytes", "4KB,5XB"], "'5XB', which is not a number of bytes"),
    "race of nobody": (["race", "nobody"], "Unknown strategy 'nobody'"),
    "other number of workers": (["ring", "-n", "3"], "-n asks for 3 workers, but the launcher started 2"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", NEVER_STARTED)
def test_what_cannot_start_is_refused_by_every_rank_and_reported_by_one(monkeypatch, capsys, tmp_path, name, rank):
    """What each process of a launcher finds out by itself, before it has talked to any other."""
    (tmp_path / "bad.toml").write_text("batch = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMI_RANK", str(rank))
    monkeypatch.setenv("PMI_SIZE", "2")
    arguments, sentence = NEVER_STARTED[name]
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", *arguments])
    assert run_program() == 2
    said = capsys.readouterr()
    assert " ".join(said.err.split()).count(sentence) == (rank == 0), said.err
    assert (said.out, rank == 1 and said.err) == ("", rank == 1 and "")


BAD = {
    "unknown strategy": (
        ["ringg"],
        "Unknown strategy or command 'ringg' (did you mean 'ring'?). Known: ring, recursive-doubling",
    ),
    "no text": (["ring", "--text", "none.txt"], "none.txt cannot be read"),
    "empty text": (["ring", "--text", "empty.txt"], "is empty"),
    "not text": (["ring", "--text", "binary"], "is not in UTF-8"),
    "text too small": (["ring", "--text", "short.txt"], "too few for a context of 64"),
    "no GPU": (["ring", "--device", "cuda:7"], "'cuda:7' was asked for"),
    "unwritable": (["ring", "--out", "empty.txt/run"], "cannot be written"),
    "vocabulary": (["ring", "--vocabulary", "100"], "at least 257"),
}


@pytest.mark.parametrize("name", quick(BAD, lambda name: name in ("no text", "vocabulary")))
def test_bad_input_gets_one_sentence_from_one_rank(run: Run, tmp_path, name):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a few words only")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    arguments, sentence = BAD[name]
    outcome = run("mpirun", "-n", "2", "bigbatch-exp", *arguments, deadline=30)
    assert outcome.status != 0
    assert " ".join(outcome.err.split()).count(sentence) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert outcome.seconds < 10


@pytest.mark.parametrize(
    ("command", "environment", "sentence"),
    quick([
        (["mpirun", "-n", "2", "bigbatch-exp", "ps", "--servers", "2"], {}, "needs at least 3 ranks"),
        (["mpirun", "-n", "2", "bigbatch-exp", "ps", "--colocated"], {"MPI4PY_RC_THREAD_LEVEL": "serialized"},
         "one that gives MPI_THREAD_MULTIPLE"),
        (["mpirun", "-n", "2", "bigbatch-exp", "compare", "ring"], {}, "run it without mpirun"),
        (["mpirun", "-n", "2", "bigbatch-exp", "targets"], {}, "run it without mpirun"),
        (["bigbatch-exp", "ring", "-n", "2"], {"PMI_RANK": "0", "PMI_SIZE": "2"}, "the MPI library"),
        (["bigbatch-exp", "ring", "-n", "2"], {"MPI4PY_LIBMPI": "/nowhere/libmpi.so", "PMI_RANK": "0", "PMI_SIZE": "2"},
         "pip install 'bigbatch[mpich]'"),
    ], lambda case: case[2] in ("needs at least 3 ranks", "the MPI library")),
)  # fmt: skip
def test_what_was_started_wrongly_is_told_how_to_start(run: Run, command, environment, sentence):
    outcome = run(*command, **environment)
    assert outcome.status != 0
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.seconds < 10


def test_without_mpirun_the_pip_line_is_named(run: Run, tmp_path):
    # The same environment seen from a Python that has no mpirun beside it, and none on its path.
    lonely = tmp_path / "bin"
    lonely.mkdir()
    program = (
        "import sysconfig, sys; sysconfig.get_path = lambda name, *a, **k: '/nowhere'; "
        "sys.argv = ['bigbatch-exp', 'ring', '-n', '2']; from bigbatch.experiments.commands.main import main; main()"
    )
    outcome = run(sys.executable, "-c", program, PATH=str(lonely))
    assert outcome.status == 2
    assert "there is no mpirun to start them. Install an MPI with: pip install 'bigbatch[mpich]'" in outcome.err


@pytest.mark.slow
def test_srun_starts_allreduce(start: Start):
    common = {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip
    jobs = [
        start(
            "bigbatch-exp",
            "allreduce",
            "--out",
            "here",
            "--json",
            *SMALL,
            **common,
            SLURM_PROCID=rank,
            SLURM_LOCALID=rank,
        )
        for rank in ("0", "1")
    ]
    outcomes = [job.wait(60) for job in jobs]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    assert json.loads(outcomes[0].out)["workers"] == 2
    assert outcomes[1].out == ""


def test_a_configuration_file_gives_defaults_and_the_command_line_goes_first(run: Run, tmp_path):
    (tmp_path / "experiment.toml").write_text(
        'tokens = "1k"\nlearning-rate = 0.5\nwidth = 16\nheads = 2\njson = false\n'
    )
    outcome = run("bigbatch-exp", "ring", "-n", "1", *SMALL[2:], "--arms", "small", "--config", "experiment.toml",
                  "--learning-rate", "0.25", "--out", "here", "--quiet")  # fmt: skip
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    config = json.loads((tmp_path / "here" / "config.json").read_text())
    assert (config["tokens"], config["learning_rate"], config["width"]) == (1000, 0.25, 16)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ring", "shared"])
def test_gradients_that_are_not_finite_are_skipped_and_counted_without_a_warning(run: Run, strategy):
    outcome = run("bigbatch-exp", strategy, "-n", "2", "--optimizer", "sgd", "--learning-rate", "1e6", "--json",
                  "--arms", "small", *SMALL)  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "Warning" not in outcome.err
    (arm,) = json.loads(outcome.out)["arms"]
    assert 0 < arm["skipped_updates"] < arm["updates"]
    assert arm["validation_loss"] is None or arm["validation_loss"] > 100


def test_own_text_is_trained_on(run: Run, tmp_path):
    (tmp_path / "own.txt").write_text("To be, or not to be, that is the question.\n" * 200)
    outcome = run("bigbatch-exp", "ring", "-n", "1", "--text", "own.txt", "--json", *SMALL, "--tokens", "10k",
                  "--learning-rate", "1e-2")  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["arms"][2]["validation_loss"] < 3


def test_doctor_and_help_name_what_there_is(run: Run):
    doctor = run("bigbatch-exp", "doctor")
    assert doctor.status == 0, doctor.err
    assert all(word in doctor.out for word in ("MPICH", "gloo", "cores", "GPUs", "torch", "threads"))
    helped = CliRunner().invoke(cli, ["--help"])
    assert all(f"  {name} " in helped.output for name in ("ring", "shared", "allreduce", "ps", "compare", "doctor"))
