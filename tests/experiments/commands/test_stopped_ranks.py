"""Experiments of which a rank is stopped, in every phase, and experiments whose launcher is killed: nobody is left."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from jobs import PROGRAMS, SMALL, Job, Run, Start, quick, slowdown, until

from bigbatch.comm.wires.processes import Process

DEADLINE = 3
COMMAND = [sys.executable, "-m", "bigbatch.experiments"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
LAUNCHERS = {"mpirun": ["mpirun", "-n"], "torchrun": TORCHRUN}
STOPS = [*("--task", f"{PROGRAMS / 'stops.py'}:Stops"), *SMALL, *("--arms", "small", "--deadline", str(DEADLINE))]
DOES = {
    "starting": "loading bigbatch",
    "importing": "starting",
    "connecting": "connecting the ranks",
    "preparing": "preparing the text",
    "warmup": "computing the first micro-batch of the arm small",
    "training": "training the arm small",
    "validation": "validating the arm small",
    "writing": "writing the run's folder",
    "drawing": "drawing comparison.png",
    "closing": "closing the wires",
}
"""What is said that a rank did which was stopped in a phase."""


def command(launcher: str, strategy: str, ranks: int, phase: str, rank: int) -> list[str]:
    experiment = [strategy, *STOPS]
    if phase == "connecting":
        experiment[0] = f"{PROGRAMS / 'stops.py'}:Connecting"
    if phase == "starting":  # stopped by a shell, in which Python is never started
        number = {"mpirun": "$PMI_RANK", "torchrun": "$RANK"}[launcher]
        own = "$$$$" if launcher == "torchrun" else "$$"  # torchrun reads a dollar sign as the start of a variable
        shell = ["sh", "-c", f'test {number} = {rank} && kill -STOP {own}; exec "$@"', "sh", *COMMAND]
        without = ["--no-python"] if launcher == "torchrun" else []
        return [*LAUNCHERS[launcher], str(ranks), *without, *shell, *experiment]
    started = COMMAND if launcher == "mpirun" else COMMAND[1:]
    return [*LAUNCHERS[launcher], str(ranks), *started, *experiment]


def stopped_ranks(job: Job) -> dict[int, str]:
    return {
        number: rank
        for number, rank in job.alive().items()
        if (process := Process.numbered(number)) is not None and process.stopped()
    }


EVERY_PHASE = [("mpirun", "ring", 2, phase, int(phase not in ("writing", "drawing"))) for phase in DOES]
OTHERS = [
    ("mpirun", "ring", 3, "preparing", 0),
    ("mpirun", "ring", 2, "closing", 0),
    ("mpirun", "allreduce", 2, "training", 0),
    ("mpirun", "shared", 3, "training", 1),
    ("mpirun", "ps", 3, "training", 1),
    ("mpirun", "ps", 3, "writing", 0),
    ("torchrun", "ring", 2, "starting", 0),
    ("torchrun", "ring", 2, "importing", 1),
    ("torchrun", "ring", 2, "connecting", 1),
    ("torchrun", "allreduce", 2, "preparing", 0),
    ("torchrun", "allreduce", 2, "training", 1),
    ("torchrun", "ps", 3, "validation", 0),
    ("torchrun", "ring", 2, "writing", 0),
    ("torchrun", "ring", 2, "drawing", 0),
    ("torchrun", "ring", 2, "closing", 1),
]
QUICK = (("mpirun", "ring", 2, "importing", 1),)


@pytest.mark.parametrize(
    ("launcher", "strategy", "ranks", "phase", "rank"), quick([*EVERY_PHASE, *OTHERS], lambda case: case in QUICK)
)
def test_a_stopped_rank_ends_the_experiment_at_the_deadline(start: Start, launcher, strategy, ranks, phase, rank):
    job = start(*command(launcher, strategy, ranks, phase, rank), BIGBATCH_TEST_STOP=f"{phase} {rank}")
    until(lambda: job.process.poll() is not None or stopped_ranks(job))
    assert job.process.poll() is None, job.err()
    stopped = time.monotonic()
    outcome = job.wait(30)
    assert outcome.status != 0
    assert job.gone(5)
    assert time.monotonic() - stopped < (DEADLINE + 5) * slowdown()
    said = [line for line in outcome.err.splitlines() if line.startswith(("bigbatch: ", "bigbatch-exp: "))]
    assert len(said) == 1, outcome.err
    assert f"Rank {rank} has given no sign of life for {DEADLINE} s: it was stopped while" in said[0]
    assert f"it was {DOES[phase]} (process" in said[0]


@pytest.mark.parametrize(
    ("launcher", "strategy", "rank"),
    [("mpirun", "ring", 0), ("mpirun", "ring", 1), ("torchrun", "allreduce", 0), ("torchrun", "ring", 1)],
)
@pytest.mark.slow
def test_a_rank_may_prepare_for_longer_than_the_deadline(run: Run, launcher, strategy, rank):
    """It takes more than twice as long."""
    outcome = run(*command(launcher, strategy, 2, "slow", rank), BIGBATCH_TEST_STOP=f"slow {rank}")
    assert outcome.status == 0, outcome.err


@pytest.mark.slow
def test_servers_that_are_stopped(start: Start):
    """Of four ranks, two serve, the last of them rank 3."""
    experiment = ["ps", "--servers", "2", *STOPS, "--tokens", "50M"]
    job = start(*LAUNCHERS["mpirun"], "4", *COMMAND, *experiment, BIGBATCH_TEST_STOP="none 9")
    until(lambda: "update" in job.err())
    server = next(number for number, rank in job.alive().items() if rank == "3" and is_python(number))
    os.kill(server, signal.SIGSTOP)
    outcome = job.wait(30)
    assert outcome.status != 0
    assert job.gone(5)
    assert outcome.err.count("Rank 3 has given no sign of life") == 1


def is_python(number: int) -> bool:
    return "python" in (Path("/proc") / str(number) / "comm").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "killed", "how"),
    [
        ("mpirun -n 2 bigbatch-exp ring", "hydra_pmi_proxy", signal.SIGKILL),
        ("mpirun -n 2 bigbatch-exp ring", "mpirun", signal.SIGKILL),
        ("torchrun", "", signal.SIGKILL),
        ("bigbatch-exp ring -n 2", "", signal.SIGHUP),
        ("bigbatch-exp allreduce -n 2", "", signal.SIGHUP),
        ("bigbatch-exp compare ring -n 2", "", signal.SIGKILL),
    ],
)
def test_ranks_end_with_their_launcher(start: Start, command, killed, how):
    words = [*TORCHRUN, "2", *COMMAND[1:], "ring"] if command == "torchrun" else command.split()
    job = start(*words, *SMALL, "--tokens", "50M", "--deadline", "300", "--out", "here")
    metrics = Path(job.folder) / "here" / ("ring/metrics.jsonl" if "compare" in command else "metrics.jsonl")
    until(lambda: job.process.poll() is not None or metrics.exists())
    assert job.process.poll() is None, job.err()
    names = {number: (Path("/proc") / str(number) / "comm").read_text() for number in job.alive()}
    number = next((number for number, name in names.items() if killed and killed in name), job.process.pid)
    os.kill(number, how)
    assert job.gone(8), f"{job.alive()} are left; {job.err()}"
    assert len(re.findall("^bigbatch(-exp)?: ", job.err(), re.MULTILINE)) <= 1, job.err()
