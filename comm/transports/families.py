"""The launchers that are known, and the variables by which each tells a process which of several it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from bigbatch.comm.errors import LaunchError
from bigbatch.comm.transports.nodelists import tasks_here


class Launcher(Enum):
    """The program that started the processes of a job, or none."""

    NONE = "no launcher"
    MPI = "mpirun"
    TORCHRUN = "torchrun"
    DEEPSPEED = "deepspeed"
    SLURM = "srun"
    FLUX = "flux run"

    @property
    def torchs(self) -> bool:
        """Whether it tells its processes where torch.distributed meets; those of the other launchers have MPI."""
        return self in (Launcher.TORCHRUN, Launcher.DEEPSPEED)


@dataclass(frozen=True)
class Place:
    """Which of the processes that a launcher has started one is.

    Attributes:
        launcher: who started it.
        rank: the number of this process.
        size: the number of processes that were started together.
        local_rank: its number among those on the same machine.
        local_size: how many of them are on the same machine.
        one_machine: whether all processes are known to be on one machine.
    """

    launcher: Launcher
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    one_machine: bool = field(default=False, kw_only=True)

    @property
    def alone(self) -> bool:
        """Whether this process was started by itself, so that it may start others as a shell may.

        A launcher of one process, such as an interactive shell in a Slurm job, changes nothing about that.
        """
        return self.size == 1


@dataclass(frozen=True)
class Family:
    """The variables by which one kind of launcher tells its processes who they are.

    Attributes:
        launcher: the launcher.
        names: rank and size, then the rank and the size on this machine.
        also: further variables that are looked at.
        machine: the variable with the number of this machine, where the size on this machine is a list for all.
        mark: a variable that tells this launcher from others that use the same names.
        agents: variables with the rank and the size among the launcher's own processes, of which each machine has one;
            another launcher may have started those.
    """

    launcher: Launcher
    names: tuple[str, str, str, str]
    also: tuple[str, ...] = ()
    machine: str = ""
    mark: str = ""
    agents: tuple[str, ...] = ()

    def present(self, environment: Mapping[str, str]) -> bool:
        """Whether the environment has this launcher's rank and size."""
        return self.names[0] in environment and self.names[1] in environment

    def started_by(self, other: "Family", environment: Mapping[str, str]) -> bool:
        """Whether another launcher has started this one's own processes, as the numbers of those tell."""
        numbers = [environment.get(name) for name in self.agents]
        return numbers == [environment.get(name) for name in other.names[:2]]

    def alike(self, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
        """Whether two environments have the same of this launcher's variables."""
        return all(one.get(name) == other.get(name) for name in (*self.names, *self.also))

    def read(self, environment: Mapping[str, str]) -> Place:
        """Reads rank and size.

        Raises:
            LaunchError: a variable holds no number, or one that cannot be.
        """
        rank_name, size_name, local_rank_name, local_size_name = self.names
        size = number(environment, size_name, self.launcher, least=1)
        rank = number(environment, rank_name, self.launcher, below=size, of=size_name)
        local_rank, local_size = rank, size
        known = local_size_name in environment
        if known:
            here = tasks_here(environment[local_size_name], environment.get(self.machine, ""))
            environment = {**environment, local_size_name: here}
            local_size = number(environment, local_size_name, self.launcher, least=1, below=size + 1)
        if local_rank_name in environment:
            local_rank = number(environment, local_rank_name, self.launcher, below=local_size, of=local_size_name)
        return Place(self.launcher, rank, size, local_rank, local_size, one_machine=known and local_size == size)

    def said(self, environment: Mapping[str, str]) -> str:
        """The rank and the size as an error message has them: "PMI_RANK=1 and PMI_SIZE=4"."""
        return " and ".join(f"{name}={environment[name]}" for name in self.names[:2])


TORCH = Family(
    Launcher.TORCHRUN,
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    (
        "MASTER_ADDR",
        "MASTER_PORT",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
    ),
    mark="TORCHELASTIC_RUN_ID",
    agents=("GROUP_RANK", "GROUP_WORLD_SIZE"),
)
"""torchrun, or whoever sets the same variables by hand; only torchrun sets the mark."""

DEEPSPEED = Family(
    Launcher.DEEPSPEED,
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    ("MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE"),
    mark="CROSS_SIZE",
    agents=("CROSS_RANK", "CROSS_SIZE"),
)
"""DeepSpeed's launcher, of which each machine has one, with torch's names and some of Horovod's."""

MPICH = Family(Launcher.MPI, ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
"""MPICH and its descendants; srun and flux set the first two, too, where they serve PMI (TACC/remora 47)."""

CRAY = Family(Launcher.MPI, ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"), mark="PMI_LOCAL_SIZE")
"""Cray's mpiexec (PALS), which has other names for the place on the machine."""

MVAPICH = Family(
    Launcher.MPI,
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
"""MVAPICH2's mpirun_rsh, which sets nothing of PMI's (ROCm/rocHPL 37)."""

MVAPICH_3 = Family(
    Launcher.MPI,
    ("MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_SIZE", "MVP_COMM_WORLD_LOCAL_RANK", "MVP_COMM_WORLD_LOCAL_SIZE"),
)

OPEN_MPI = Family(
    Launcher.MPI,
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
)

PLATFORM = Family(Launcher.MPI, ("MPI_RANKID", "MPI_NRANKS", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
"""IBM's Platform MPI (ROCm/rocm-systems 2791)."""

SPECTRUM = Family(
    Launcher.MPI,
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
)
"""jsrun, which sets Open MPI's variables, too, if it is asked for Spectrum MPI."""

FLUX = Family(Launcher.FLUX, ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", ""), ("FLUX_JOB_ID",))
"""flux run and its sisters, which do not say how many tasks a machine has (flux-framework/flux-core 669)."""

SLURM = Family(
    Launcher.SLURM,
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_RESTART_COUNT", "SLURM_NODEID"),
    machine="SLURM_NODEID",
)
"""srun. A batch script and the shell of salloc have SLURM_PROCID or none of these: they are in no step of srun."""

FAMILIES = (TORCH, DEEPSPEED, MPICH, CRAY, MVAPICH, MVAPICH_3, OPEN_MPI, PLATFORM, SPECTRUM, FLUX, SLURM)
"""All launchers, those that are usually inside others first. Where the same numbers come by several names, the last
counts: the one that serves the others' names."""

MANAGERS = (FLUX, SLURM)
"""Those that also share out machines, and so are outside any other launcher."""

UNCONNECTED = {
    **{family.names[0]: family.names[1] for family in FAMILIES if not family.launcher.torchs and family is not SLURM},
    "PMIX_RANK": "",
    "ALPS_APP_PE": "",
    "PALS_RANKID": "",
    "HOROVOD_RANK": "HOROVOD_SIZE",
    "MPIEXEC_RANK": "",
    "MPIRUN_RANK": "MPIRUN_NPROCS",
    "LSF_PM_TASKID": "LSB_DJOB_NUMPROC",
}
"""Maps variables that number a process, whose launcher gives nothing by which to find the others, to those that would
say how many there are: PRRTE's prun without Open MPI's personality (open-mpi/ompi 6875), aprun, horovodrun with gloo,
OSC's mpiexec, MVAPICH 1, and LSF's blaunch, which counts from 1.
"""


def launchers_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Finds the variables of all launchers that are looked at."""
    names = [name for family in FAMILIES for name in (*family.names, *family.also)]
    return {name: environment[name] for name in (*names, *UNCONNECTED) if name in environment}


def counts(family: Family, environment: Mapping[str, str]) -> bool:
    """Whether a launcher of this family has set its variables for this process or for one above it."""
    if family is SLURM:
        in_step = "SLURM_STEP_ID" in environment or "SLURM_STEP_NODELIST" in environment
        return "SLURM_PROCID" in environment and in_step
    if family is TORCH:
        return family.present(environment) and not counts(DEEPSPEED, environment)
    if family is DEEPSPEED and TORCH.mark in environment:
        return False
    return family.present(environment) and (not family.mark or family.mark in environment)


def refuse_unconnected(environment: Mapping[str, str]) -> None:
    """Refuses a process that is one of several, of which nobody tells where the others are; it would work alone."""
    for rank, size in UNCONNECTED.items():
        if rank in environment and environment.get(size) != "1":
            raise LaunchError(
                f"The variable {rank}={environment[rank]!r} says that a launcher started this process among others, "
                "but there is nothing by which to find them: start them with mpirun, srun, flux run or torchrun "
                f"(PRRTE's prun with --personality ompi), or unset {rank} if it is left over."
            )


def number(
    environment: Mapping[str, str],
    name: str,
    launcher: Launcher,
    *,
    least: int = 0,
    below: int = 2**32,
    of: str = "",
) -> int:
    """Reads a variable that holds a whole number of ordinary digits, at least `least` and below `below`."""
    value = environment.get(name)
    if value is None:
        raise LaunchError(f"{launcher.value} has not set {name}: start the processes with {launcher.value} itself.")
    if re.fullmatch(r"[0-9]{1,10}", value) and least <= int(value) < below:
        return int(value)
    most = f"below {of}={environment[of]}" if of else f"at most {below - 1}"
    raise LaunchError(
        f"The variable {name}={value!r}, which {launcher.value} sets, should be a whole number of at least {least} and "
        f"{most}: start the processes with {launcher.value}, or unset it."
    )
