"""Finding out what this machine has, and what to install for what is missing."""

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator

from bigbatch.comm.errors import LaunchError
from bigbatch.experiments.training.launcher import MPI_HINT, find_mpirun, usable_cores, version


def examine() -> Iterator[tuple[str, str, str]]:
    """Yields (what, what was found, what to do, if anything) for everything that a run may need."""
    yield "Python", f"{platform.python_version()} at {sys.executable}", ""
    cores = usable_cores()
    yield "cores", f"{cores} for this process", "" if cores > 1 else "several workers will share one core"
    yield "threads", f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}; a run sets --threads itself", ""
    yield from _torch()
    yield from _mpi()
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


def _mpi() -> Iterator[tuple[str, str, str]]:
    mpirun = find_mpirun()
    launcher = version(mpirun) if mpirun else ""
    yield "MPI launcher", f"{mpirun}: {launcher}" if mpirun else "no mpirun", "" if mpirun else MPI_HINT
    from bigbatch.comm.transports.mpi import load_mpi

    try:
        library = " ".join(load_mpi().Get_library_version().split("\n")[0].strip(" \0").split())
    except LaunchError:
        yield "MPI library", "none that mpi4py can load", MPI_HINT
        return
    mismatch = mpirun is not None and ("Open MPI" in launcher) != ("Open MPI" in library)
    yield "MPI library", library, "it does not belong to the launcher: use one MPI for both" if mismatch else ""
