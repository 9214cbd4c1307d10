"""Commands run as a user would, whose processes can all be found again, under a deadline."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

Found = TypeVar("Found")

MARK = "BIGBATCH_TEST_JOB"
PROGRAMS = Path(__file__).parent
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "RANK", "SLURM_PROCID")
SMALL = [
    *("--tokens", "2k", "--validation-tokens", "500", "--layers", "1", "--width", "16", "--heads", "2"),
    *("--context", "16", "--vocabulary", "300", "--deadline", "60"),
]
"""Options that make an experiment last a second."""


SAMPLE = 0.05
"""Seconds of processor time in which `slowdown` is measured."""


def slowdown() -> float:
    """How many times as long as by itself a computation takes now, beside whatever else keeps the processors busy."""
    began, spent = time.monotonic(), time.process_time()
    while (used := time.process_time() - spent) < SAMPLE:
        pass
    return max(1.0, (time.monotonic() - began) / used)


def until(what: Callable[[], Found], within: float = 40.0) -> Found:
    """The first true value of `what()`, which must come within so many seconds, or more on a busy machine."""
    end = time.monotonic() + within
    while not (found := what()):
        if time.monotonic() > end:
            assert time.monotonic() < end + within * (slowdown() - 1), f"not within {within} s"
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `seconds` are those it would have taken on a machine that does nothing else."""

    status: int
    out: str
    err: str
    seconds: float


class Job:
    """A command whose processes can all be found again, however far down they are."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.command = command
        self.folder = folder
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

    def out(self) -> str:
        return self._out.read_text()

    def err(self) -> str:
        return self._err.read_text()

    def wait(self, deadline: float) -> Outcome:
        """Wait for the end; past the deadline every process is killed, and the failure says which ranks hung where.

        Where the processors are kept busy, the deadline is as many times as late as computing takes longer.
        """
        try:
            status = self._status(deadline)
        except subprocess.TimeoutExpired:
            hung = self.alive()
            for process, rank in hung.items():
                if rank != "-":
                    os.kill(process, signal.SIGABRT)  # faulthandler then prints where it was
            time.sleep(1)
            self.kill()
            pytest.fail(f"ranks {sorted(hung.values())} hung for {deadline} s in {self.command}:\n{self.err()}")
        return Outcome(status, self._out.read_text(), self.err(), (time.monotonic() - self.started) / slowdown())

    def _status(self, deadline: float) -> int:
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            return self.process.wait(deadline * (slowdown() - 1))

    def kill(self) -> None:
        for process in self.alive():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)

    def gone(self, within: float = 10) -> bool:
        """Whether every process has ended, or does so in time."""
        try:
            until(lambda: not self.alive(), within)
        except AssertionError:
            return False
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
        until(lambda: stamps(points), 300)
        os.killpg(self.job.process.pid, signal.SIGINT)
        self.interrupted = self.job.wait(60)
        self.job.gone()
        self.left, self.first = self.job.alive(), stamps(points)
        self.job = Job(last, self.folder, self.environment)
        self.finished = self.job.wait(1500)
        self.every = stamps(points)


def quick(cases: Iterable[Any], which: Callable[[Any], bool]) -> list[Any]:
    """The cases of a test, of which all but some are left to the slow tests.

    Args:
        cases: all of them; tuples if the test takes several arguments.
        which: whether a case belongs to every test run.
    """
    return [
        case if which(case) else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]


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
