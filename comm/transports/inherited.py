"""What a process has from those above it: their environments, and what launchers among them have set."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bigbatch.comm.wires.processes import Process


@dataclass(frozen=True)
class Above:
    """What can be seen of a process above another one, which tells who started that.

    Attributes:
        environment: the environment with which its program was started; empty if the system does not show it.
        launches: whether it is a launcher, by its name.
    """

    environment: Mapping[str, str]
    launches: bool = False


def processes_above(process: Process | None = None) -> Iterator[Above]:
    """Finds what can be seen of the processes above one, the nearest first.

    Args:
        process: the process; None for this one.
    """
    above = (process or Process(os.getpid())).parent()
    while above is not None and above.number > 1:
        yield Above(above.environment() or {}, above.launches())
        above = above.parent()


LAUNCHED = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_(RANK|SIZE|WORLD_SIZE)|(GROUP|CROSS)_(RANK|SIZE|WORLD_SIZE)|ROLE_.*|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_.*|PET_.*|HOROVOD_(RANK|SIZE|LOCAL_.*|CROSS_.*)"
    r"|PMI_.*|MPI_(LOCAL.*|RANKID|NRANKS)|PMIX_(?!MCA_|PREFIX).*|OMPI_(?!MCA_|ALLOW_).*|OMPI_MCA_(orte_|ess|pmix|initial_wdir|num_procs).*"
    r"|MV[2P]_COMM_.*|MPISPAWN_.*|JSM_NAMESPACE_.*|PALS_.*|ALPS_APP_.*"
    r"|MPIEXEC_RANK|MPIRUN_(RANK|NPROCS)|LSF_PM_.*|PRTE_LAUNCHED|SLURM_.*|SLURMD_.*|FLUX_(TASK|JOB)_.*)"
)
"""The variables by which launchers tell their processes who they are."""

MACHINES = re.compile(
    r"(PBS_(NODEFILE|ENVIRONMENT|JOBID)|COBALT_NODEFILE|PE_HOSTFILE|LSB_.*|LOADL_.*|(I_MPI_)?HYDRA_(HOST_FILE|RMK|BOOTSTRAP)"
    r"|OMPI_MCA_orte_default_hostfile|PRTE_MCA_prte_default_hostfile|(OMPI|PRTE)_MCA_(ras|plm)(_.*)?)"
)
"""The variables by which batch systems and users tell mpirun of other machines (pmodels/mpich 1793)."""


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Leaves out what launchers have set, for processes that this one starts itself, and what names other machines.

    mpirun would take them for its own; in a shell of srun it would start its processes by another srun, which waits
    for ever for what the shell holds (open-mpi/ompi 11946, Theano/libgpuarray 568). In a job of a batch system it would
    start them on the job's other machines, or fail where those let nobody in.
    """
    return {
        name: value
        for name, value in environment.items()
        if LAUNCHED.fullmatch(name) is None and MACHINES.fullmatch(name) is None
    }
