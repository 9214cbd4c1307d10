"""What a process has from those above it: their environments, and what launchers among them have set."""

import os
import re
from collections.abc import Iterator, Mapping

from bigbatch.comm.wires.processes import Process


def environments_above(process: Process | None = None) -> Iterator[Mapping[str, str]]:
    """Finds the environments with which the processes above one were started, the nearest first.

    One that the system does not show, such as another user's, counts as empty.

    Args:
        process: the process; None for this one.
    """
    above = (process or Process(os.getpid())).parent()
    while above is not None and above.number > 1:
        yield above.environment() or {}
        above = above.parent()


LAUNCHED = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_(RANK|SIZE|WORLD_SIZE)|(GROUP|CROSS)_(RANK|SIZE|WORLD_SIZE)|ROLE_.*|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_.*|PET_.*|HOROVOD_(RANK|SIZE|LOCAL_.*|CROSS_.*)"
    r"|PMI_.*|MPI_(LOCAL.*|RANKID|NRANKS)|PMIX_(?!MCA_|PREFIX).*|OMPI_(?!MCA_|ALLOW_).*|OMPI_MCA_(orte_|ess|pmix|initial_wdir|num_procs).*"
    r"|MV[2P]_COMM_.*|MPISPAWN_.*|JSM_NAMESPACE_.*|PALS_.*|ALPS_APP_.*"
    r"|PRTE_LAUNCHED|SLURM_.*|SLURMD_.*|FLUX_(TASK|JOB)_.*)"
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
