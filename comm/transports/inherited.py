"""What a process has from those above it: their names, and the variables that launchers among them have set."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path


def ancestors() -> list[str]:
    """Finds the names of the processes above this one, the nearest first; empty where the system does not show them.

    A Python program is called by the module or script that it runs: "torchrun" also for
    `python -m torch.distributed.run`.
    """
    names: list[str] = []
    process = os.getppid()
    try:
        while process > 1:
            entry = Path(f"/proc/{process}")
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            names.append(program(name, (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")))
            process = int(rest.split()[1])
    except (OSError, ValueError, IndexError):  # not Linux, or not ours to look at
        pass
    return names


def program(name: str, command: Sequence[str]) -> str:
    """What a process runs.

    Args:
        name: what the system calls it.
        command: the words of its command line.
    """
    first, *words = command or [name]
    if first.startswith("slurmstepd"):  # "slurmstepd: [123.0]"
        return "slurmstepd"
    if not Path(first).name.startswith("python"):
        return name
    if any(module in words[:5] for module in ("torch.distributed.run", "torch.distributed.launch")):
        return "torchrun"
    return next((Path(word).name for word in words if word and not word.startswith("-")), name)


LAUNCHED = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_ADDR|MASTER_PORT"
    r"|TORCHELASTIC_.*|PET_.*"
    r"|PMI_.*|MPI_LOCAL.*|PMIX_(?!MCA_|PREFIX).*|OMPI_(?!MCA_|ALLOW_).*|OMPI_MCA_(orte_|ess|pmix|initial_wdir|num_procs).*"
    r"|PRTE_LAUNCHED|SLURM_.*|SLURMD_.*)"
)
"""The variables by which launchers tell their processes who they are."""


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Leaves out what launchers have set, for processes that this one starts itself.

    mpirun would take them for its own; in a shell of srun it would start its processes by another srun, which waits
    for ever for what the shell holds (open-mpi/ompi 11946, Theano/libgpuarray 568).
    """
    return {name: value for name, value in environment.items() if LAUNCHED.fullmatch(name) is None}
