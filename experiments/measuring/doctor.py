"""Finding out what this machine has, and what to install for what is missing."""

import importlib.util
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bigbatch.comm.errors import BigBatchError, LaunchError
from bigbatch.comm.transports.families import Launcher, launchers_variables
from bigbatch.comm.transports.inherited import processes_above
from bigbatch.comm.transports.launch import Launch, decide
from bigbatch.comm.transports.segments import orphans, remove
from bigbatch.experiments.training.launcher import MPI_HINT, find_mpirun, usable_cores, version


def examine() -> Iterator[tuple[str, str, str]]:
    """Yields (what, what was found, what to do, if anything) for everything that a run may need."""
    yield "Python", f"{platform.python_version()} at {sys.executable}", ""
    cores = usable_cores()
    yield "cores", f"{cores} for this process", "" if cores > 1 else "several workers will share one core"
    yield "threads", f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}; a run sets --threads itself", ""
    launch = None
    try:
        decision = decide(os.environ, processes_above())
        launch = decision.launch
        yield "launcher", decision.why, ""
    except LaunchError as error:
        yield "launcher", "the variables below contradict each other or hold no numbers", str(error)
    seen = (f"{name}={value}" for name, value in launchers_variables(os.environ).items())
    yield "its variables", " ".join(seen) or "none", ""
    yield from _torch()
    yield from _network()
    yield from _mpi(launch)
    yield from _left()
    for name, extra in (("hypothesis", "test"), ("ruff", "check")):
        if importlib.util.find_spec(name) is None:
            yield f"extra {extra}", "not installed", f"only for developers: pip install -e '.[{extra}]'"


def _torch() -> Iterator[tuple[str, str, str]]:
    import torch
    import torch.distributed as dist

    backends = [name for name in ("gloo", "nccl", "mpi") if getattr(dist, f"is_{name}_available")()]
    advice = "" if "gloo" in backends else "allreduce needs a torch with gloo: pip install torch"
    yield "torch", f"{torch.__version__}, torch.distributed with {', '.join(backends) or 'no backend'}", advice
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
    yield "GPUs", names or "none that torch can use", "" if count else "none needed; a run computes on the CPU then"


def _network() -> Iterator[tuple[str, str, str]]:
    """By which network interface torch.distributed connects several machines; one machine needs none."""
    from bigbatch.comm.transports.meeting import INTERFACE, interface_address

    known = ", ".join(name for _, name in socket.if_nameindex())
    interface = os.environ.get(INTERFACE)
    try:
        if interface is None:
            host = socket.gethostname()
            found = f"the one of {host}, which is {socket.gethostbyname(host)}; {INTERFACE} can name another of {known}"
        else:
            found = f"{interface} ({INTERFACE}), which is {interface_address(interface)}"
        yield "network", f"between machines, torch.distributed takes {found}", ""
    except OSError as error:
        advice = f"several machines need {INTERFACE}, one of {known}"
        yield "network", f"the name {socket.gethostname()} has no address ({error.strerror})", advice
    except BigBatchError as error:
        yield "network", f"{INTERFACE}={interface}", str(error)


def clean() -> str:
    """Removes what aborted jobs of this user have left in shared memory; returns a sentence about it."""
    files = orphans()
    counted = _counted(files)
    remove(files)
    return f"Removed {counted} that MPI jobs had left in shared memory."


def _left() -> Iterator[tuple[str, str, str]]:
    if files := orphans():
        yield (
            "shared memory",
            f"{_counted(files)} left by MPI jobs that have ended",
            "remove them: bigbatch-exp doctor --clean",
        )


def _counted(files: list[Path]) -> str:
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return f"{len(files)} {'file' if len(files) == 1 else 'files'} ({total / 2**20:.1f} MB)"


def _mpi(launch: Launch | None) -> Iterator[tuple[str, str, str]]:
    mpirun = find_mpirun()
    launcher = version(mpirun) if mpirun else ""
    yield "MPI launcher", f"{mpirun}: {launcher}" if mpirun else "no mpirun", "" if mpirun else MPI_HINT
    from bigbatch.comm.transports.mpi_library import library_version, load_mpi

    try:
        mpi = load_mpi()
        library = library_version()
    except LaunchError:
        yield "MPI library", "none that mpi4py can load", MPI_HINT
        return
    mismatch = mpirun is not None and ("Open MPI" in launcher) != ("Open MPI" in library)
    if launch is not None and launch.launcher is not Launcher.NONE and not launch.launcher.torchs:
        size = mpi.COMM_WORLD.Get_size()
        library, mismatch = f"{library}, which sees {size} processes", size != launch.size  # another mpirun started it
    yield "MPI library", library, "it does not belong to the launcher: use one MPI for both" if mismatch else ""
