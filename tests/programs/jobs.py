"""Commands run as a user would, whose processes can all be found again, under a deadline."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

MARK = "BIGBATCH_TEST_JOB"
PROGRAMS = Path(__file__).parent
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "RANK", "SLURM_PROCID")
SMALL = [
    *("--tokens", "2k", "--validation-tokens", "500", "--layers", "1", "--width", "16", "--heads", "2"),
    *("--context", "16", "--vocabulary", "300", "--deadline", "60"),
]
"""Options that make an experiment last a second."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    out: str
    err: str
    seconds: float


class Job:
    """A command whose processes can all be found again, however far down they are."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.command = command
        self.mark = uuid.uuid4().hex
        self._out, self._err = folder / f"{self.mark}.out", folder / f"{self.mark}.err"
        self.started = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**environment, MARK: self.mark, "PYTHONFAULTHANDLER": "1"},
                start_new_session=True,
            )

    def alive(self) -> dict[int, str]:
        """Process -> rank (or "-") of everything that belongs to the job and still runs."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                variables = dict(
                    pair.split("=", 1) for pair in (entry / "environ").read_text().split("\0") if "=" in pair
                )
                if variables.get(MARK) == self.mark and ") Z" not in (entry / "stat").read_text():
                    found[int(entry.name)] = next((variables[v] for v in RANK_VARIABLES if v in variables), "-")
            except (OSError, ValueError):
                continue
        return found

    def err(self) -> str:
        return self._err.read_text()

    def wait(self, deadline: float) -> Outcome:
        """Wait for the end; past the deadline every process is killed, and the failure says which ranks hung where."""
        try:
            status = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            hung = self.alive()
            for process, rank in hung.items():
                if rank != "-":
                    os.kill(process, signal.SIGABRT)  # faulthandler then prints where it was
            time.sleep(1)
            self.kill()
            pytest.fail(f"ranks {sorted(hung.values())} hung for {deadline} s in {self.command}:\n{self.err()}")
        return Outcome(status, self._out.read_text(), self.err(), time.monotonic() - self.started)

    def kill(self) -> None:
        for process in self.alive():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)

    def gone(self, within: float = 10) -> bool:
        """Whether every process has ended, or does so in time."""
        until = time.monotonic() + within
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True


Start = Callable[..., Job]
Run = Callable[..., Outcome]


def stamps(points: Path) -> dict[str, int]:
    """When each run in a folder of points was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in points.glob("*/summary.json")}


@dataclass
class EveryFigure:
    """Every figure in its smallest form, interrupted once and then made to the end.

    It takes minutes, so it is made beside the other tests, in what they leave of the processors, and looked at last.
    """

    folder: Path
    environment: dict[str, str]
    words: tuple[str, ...] = ()
    interrupted: Outcome | None = None
    left: dict[int, str] | None = None
    first: dict[str, int] | None = None
    finished: Outcome | None = None
    every: dict[str, int] | None = None

    def make(self) -> None:
        points = self.folder / "points"
        self.words = ("bigbatch-exp", "figure", "all", "--quick", "--out", str(self.folder), "--runs", str(points))
        last = ["nice", "-n", "19", *self.words]
        self.job = Job(last, self.folder, self.environment)
        until = time.monotonic() + 300
        while not stamps(points) and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(self.job.process.pid, signal.SIGINT)
        self.interrupted = self.job.wait(60)
        self.job.gone()
        self.left, self.first = self.job.alive(), stamps(points)
        self.job = Job(last, self.folder, self.environment)
        self.finished = self.job.wait(1500)
        self.every = stamps(points)


def launcher(name: str, ranks: int) -> list[str]:
    """The command line that starts a Python program on that many ranks."""
    if name == "mpirun":
        return ["mpirun", "-n", str(ranks), sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


TINY = {
    "tokens": 600,
    "validation_tokens": 200,
    "layers": 1,
    "width": 16,
    "heads": 2,
    "context": 16,
    "vocabulary": 300,
    "batch_size": 4,
    "micro_batch": 2,
}


def made(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/summary.json")}
