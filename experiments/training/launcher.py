"""Starting the processes of a job, with a launcher that the strategy can use and the machine has."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bigbatch.comm.errors import BigBatchError, LaunchError
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports import segments
from bigbatch.comm.transports.inherited import without_launchers
from bigbatch.comm.transports.watchdog import STARTED_BY, started_by

SECONDS_TO_END = 10
"""Seconds that interrupted processes may take to end by themselves."""

STANDARD_ERROR = 2
"""The file descriptor of a process's standard error."""

MPI_HINT = "pip install 'bigbatch[mpich]' (or load your cluster's MPI module)"


def usable_cores() -> int:
    """Counts the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch_command(strategy: type[Strategy], workers: int, arguments: list[str]) -> list[str]:
    """Makes the command that starts `bigbatch-exp ARGUMENTS` with this many workers.

    Raises:
        LaunchError: no suitable launcher is installed.
    """
    ranks = str(strategy.ranks_for(workers))
    module = ["-m", "bigbatch.experiments", *arguments]
    for program in strategy.launchers:
        if program == "mpirun" and (mpirun := find_mpirun()):
            return [mpirun, "-n", ranks, sys.executable, *module]
        if program == "torchrun":
            standalone = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
            return [sys.executable, *standalone, *module]
    raise LaunchError(
        f"{strategy.__name__} with {workers} workers needs {ranks} processes, and there is no mpirun to start them. "
        f"Install an MPI with: {MPI_HINT}"
    )


def find_mpirun() -> str | None:
    """Finds the mpirun that is installed beside this Python, else the one on the PATH; None if there is none."""
    beside = Path(sysconfig.get_path("scripts")) / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def launch_environment(command: list[str]) -> dict[str, str]:
    """Makes the environment variables for a launch command.

    The variables of a launcher that started this process alone are left out. OpenMP gets one thread per process unless
    the user says otherwise, since ranks share the cores. The ranks are told who started their launcher, so that they
    end when nobody waits for them any more. Open MPI is told to allow root and more ranks than cores, which it refuses
    by default.
    """
    own = {segments.MARK: uuid.uuid4().hex, STARTED_BY: started_by()}
    environment = {"OMP_NUM_THREADS": "1", **without_launchers(os.environ), **own}
    if Path(command[0]).name == "mpirun" and "Open MPI" in version(command[0]):
        environment.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        environment.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")
        if os.geteuid() == 0:
            environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
            environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return environment


def version(mpirun: str) -> str:
    """Asks a launcher for its version, in one line."""
    try:
        result = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not answer: {error}"
    lines = [" ".join(line.split()) for line in result.stdout.splitlines() if "ersion" in line or "Open MPI" in line]
    return lines[0] if lines else "unknown"


def start(command: list[str]) -> None:
    """Start a job's processes and wait for them to end; their standard output is discarded.

    Where sys.stderr is not the process's own standard error, as in a notebook, theirs is copied to it line by line.

    Raises:
        BigBatchError: the processes failed; the message has their last line, unless the user has seen it already.
    """
    said, environment = "", launch_environment(command)
    with (
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=None if _own_standard_error() else subprocess.PIPE,
            text=True,
        ) as process,
        tidied(process.pid, environment),
    ):
        try:
            for line in process.stderr or ():
                said = line.strip() or said
                sys.stderr.write(line)
            status = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if status:
        raise BigBatchError(f"The processes ended with exit status {status}: {said or 'see their message above'}.")


def _own_standard_error() -> bool:
    """Whether what is written to sys.stderr goes where started processes write by themselves."""
    try:
        return sys.stderr.fileno() == STANDARD_ERROR
    except (OSError, ValueError, AttributeError):  # something else that lines are written to
        return False


def become(command: list[str]) -> None:
    """Replace this process by a launch command, so that signals and the exit status are the launcher's own."""
    environment = launch_environment(command)
    _tidy_after(os.getpid(), environment)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a new program would go on ignoring it
    os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is what we want


@contextmanager
def tidied(launcher: int, environment: Mapping[str, str]) -> Iterator[None]:
    """Removes what a job leaves in shared memory, when its launcher has ended and this context ends.

    Args:
        launcher: the number of the launcher's process.
        environment: its environment variables.
    """
    tidying = _tidy_after(launcher, environment)
    try:
        yield
    finally:
        with suppress(subprocess.TimeoutExpired):  # a rank still runs; what it leaves is removed when it ends
            tidying.wait(SECONDS_TO_END)


def _tidy_after(launcher: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a process that outlives the job, whatever ends that, and then removes what it has left."""
    return subprocess.Popen(
        [sys.executable, "-I", segments.__file__, str(launcher), environment[segments.MARK]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
