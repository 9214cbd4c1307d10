"""What a process does with what it knows about who started it: start others, refuse, speak up, explain."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner
from jobs import SMALL, TINY, Run

import bigbatch
from bigbatch.comm.errors import (
    BigBatchError,
    CommunicationError,
    ConfigurationError,
    DeadlineError,
    LaunchError,
    MismatchError,
)
from bigbatch.comm.transports import segments
from bigbatch.comm.transports.inherited import LAUNCHED
from bigbatch.experiments.commands import main as program
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.training import launcher

PTY = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n07",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "n07",
    "PMI_RANK": "0",
    "PMI_SIZE": "1",
    "SLURM_PTY_PORT": "34889",
}
BY_ITSELF = {
    "a plain shell": {},
    "srun --pty bash": PTY,  # Lightning 19762, TACC/remora 47
    "salloc": {**PTY, "SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4"},
    "mpirun -n 1": {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
    "Open MPI's": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_NAMESPACE": "prterun-vm-1@1"},
    "a container": {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    "torchrun of one": {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    },
}


class StartedError(Exception):
    """Instead of becoming another program."""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if LAUNCHED.fullmatch(name):
            monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that were to be started, with their environments; nothing starts."""
    commands: list[tuple[list[str], dict[str, str]]] = []

    def become(_: str, command: list[str], environment: dict[str, str]) -> NoReturn:
        commands.append((command, environment))
        raise StartedError

    monkeypatch.setattr(launcher.os, "execvpe", become)
    monkeypatch.setattr(launcher, "_tidy_after", lambda *_: None)
    return commands


@pytest.mark.parametrize("name", BY_ITSELF)
@pytest.mark.parametrize("words", [["ring", "-n", "4"], ["bench", "-n", "2"]], ids=" ".join)
def test_one_process_starts_others_which_inherit_nothing_that_misleads_them(monkeypatch, started, name, words):
    for variable, value in BY_ITSELF[name].items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", *words])
    with pytest.raises(StartedError):
        CliRunner().invoke(cli, words, catch_exceptions=False)
    [(command, environment)] = started
    assert Path(command[0]).name == "mpirun"
    assert command[1:3] == ["-n", words[-1]]
    assert not [variable for variable in environment if LAUNCHED.fullmatch(variable)]
    assert environment["GLOO_SOCKET_IFNAME"] == "eth0"
    assert environment[segments.MARK]
    assert not Path("runs").exists(), "the processes make the folder themselves"


def test_one_process_simulates_and_compares_as_in_a_plain_shell(monkeypatch):
    for variable, value in PTY.items():
        monkeypatch.setenv(variable, value)
    options = {**TINY, "batch_size": None, "micro_batch": None, "tokens": 300, "arms": ("small",), "quiet": True}
    [simulated] = bigbatch.compare("ring", simulate=2, **options)
    assert len(simulated.updates) == simulated.summary["arms"][0]["updates"] > 0


@pytest.mark.parametrize(
    "words", [["compare", "ring"], ["ring", "--simulate", "2"], ["validate"], ["targets"], ["figure", "scaling"]]
)
def test_one_of_several_processes_may_not(monkeypatch, words):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, LaunchError)
    assert "run it without mpirun or torchrun" in str(result.exception)


RANKS = {
    "rank 0": ({"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}, True, True, True),
    "another": ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, False, False, True),
    "the first of another machine": (
        {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"},
        *(False, True, True),
    ),
    "nobody's": ({}, True, True, True),
    "one of nonsense": ({"PMI_RANK": "x", "PMI_SIZE": "4"}, True, True, True),
}
KINDS: dict[str, tuple[Exception, int, int]] = {
    "what everyone knows": (MismatchError("They differ.", everywhere=True), 0, 1),
    "a file": (ConfigurationError("There is no file."), 1, 2),
    "a launcher": (LaunchError("There is no MPI."), 1, 2),
    "wires": (CommunicationError("Rank 1 could not meet the others."), 2, 1),
    "a deadline": (DeadlineError("Rank 1 waited."), 2, 1),
    "something else of ours": (BigBatchError("It broke."), 2, 1),
    "a fault": (ZeroDivisionError("division by zero"), 2, 1),
}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_told_in_one_sentence_by_who_knows_of_it(monkeypatch, capsys, rank, kind):
    environment, *speaks = RANKS[rank]
    error, column, status = KINDS[kind]

    def fail(**_: object) -> NoReturn:
        raise error

    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(program, "cli", fail)
    assert program.run_program() == status
    said = capsys.readouterr().err
    assert said.count(str(error)) == speaks[column], said
    assert len(said.splitlines()) == speaks[column]


@pytest.mark.parametrize("rank", [1, 2])
def test_another_rank_whose_rank_0_is_out_of_reach_says_so(monkeypatch, capfd, rank):
    """Nobody listens at port 1, which is not ours to open."""
    for variable, value in {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(sys, "argv", ["bigbatch-exp", "allreduce", "--deadline", "0.5"])
    assert program.run_program() == 1
    [sentence] = capfd.readouterr().err.splitlines()
    assert sentence.startswith(
        f"bigbatch-exp: Rank {rank} could not meet the other 2 ranks at 127.0.0.1:1 within 0.5 s"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        {**PTY, "SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "7", "PMIX_RANK": "0"},
    ],
)
def test_a_launcher_that_is_not_there_is_told_from_a_wrong_library(run: Run, environment):
    """Variables of a job that has ended; `srun -n 4 --pty bash`, whose shell is not four processes; Open MPI's mpirun
    with the library of MPICH, which would end the process at once where it sees PMIx."""
    outcome = run(sys.executable, "-m", "bigbatch.experiments", "bench", **environment)
    assert outcome.status == 2
    assert re.search(r"variables of a launcher tell of [24] processes, but .* sees 1\. .* unset them", outcome.err)
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.slow
def test_mpirun_works_in_a_shell_that_a_launcher_with_pmix_started(run: Run):
    """`srun --mpi=pmix --pty bash`, and then `mpirun`: MPICH 5 refuses to start beside these variables."""
    pmix = {"PMIX_NAMESPACE": "slurm.pmix.7.0", "PMIX_RANK": "0"}
    outcome = run("mpirun", "-n", "2", "bigbatch-exp", "ring", "--arms", "small", *SMALL, **pmix)
    assert outcome.status == 0, outcome.err


def examined(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *options: str) -> str:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    no_mpi: Callable[..., tuple[()]] = lambda *_: ()  # which would look for the launcher that there is not  # noqa: E731
    monkeypatch.setattr("bigbatch.experiments.measuring.doctor._mpi", no_mpi)
    result = CliRunner().invoke(cli, ["doctor", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.output.split())


def test_doctor_says_who_started_it_and_why(monkeypatch):
    mpirun = {"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "4"}
    said = examined(monkeypatch, {**PTY, **mpirun})
    assert "mpirun started this process as rank 0 of 4 (PMI_RANK=0 and PMI_SIZE=4)" in said
    assert "of mpirun and srun it is the only one with several processes" in said
    for pair in ("PMI_SIZE=4", "SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=1"):
        assert pair in said


def test_doctor_says_that_a_shell_of_srun_may_start_others(monkeypatch):
    said = examined(monkeypatch, {name: value for name, value in PTY.items() if not name.startswith("PMI")})
    assert "srun started this process as rank 0 of 1" in said
    assert "it may start others itself" in said


def test_doctor_explains_a_contradiction_instead_of_failing(monkeypatch):
    said = examined(monkeypatch, {"PMI_RANK": "1", "PMI_SIZE": "4", "RANK": "0", "WORLD_SIZE": "8"})
    assert "RANK=0 and WORLD_SIZE=8 contradict PMI_RANK=1 and PMI_SIZE=4" in said


def test_doctor_says_which_interface_joins_machines(monkeypatch):
    assert "GLOO_SOCKET_IFNAME can name another of " in examined(monkeypatch, {})
    assert "lo (GLOO_SOCKET_IFNAME), which is 127.0.0.1" in examined(monkeypatch, {"GLOO_SOCKET_IFNAME": "lo"})
    assert "eth77 names no network interface" in examined(monkeypatch, {"GLOO_SOCKET_IFNAME": "eth77"})


def test_doctor_cleans_what_jobs_have_left_in_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(segments, "SHARED", tmp_path)
    (tmp_path / "mpich_shm_1a_0").write_bytes(bytes(3 * 2**20))
    (tmp_path / "sem.mine").touch()
    assert "1 file (3.0 MB) left by MPI jobs that have ended -> remove them" in examined(monkeypatch, {})
    assert "Removed 1 file (3.0 MB)" in examined(monkeypatch, {}, "--clean")
    assert [path.name for path in tmp_path.iterdir()] == ["sem.mine"]
    assert "shared memory" not in examined(monkeypatch, {})
