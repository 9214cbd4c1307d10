"""How this process was started: alone, or as one of many, and by whom."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from bigbatch.comm.errors import LaunchError

if TYPE_CHECKING:  # a command line that only asks who started it must not wait for NumPy
    from bigbatch.comm.wires.processes import Process
    from bigbatch.comm.wires.transport import Transport


class Launcher(Enum):
    """The program that started the processes of a job, or none."""

    NONE = "no launcher"
    MPI = "mpirun"
    TORCHRUN = "torchrun"
    SLURM = "srun"


@dataclass(frozen=True)
class Launch:
    """What the environment says about how this process was started.

    Attributes:
        launcher: who started it.
        rank: the number of this process.
        size: the number of processes that were started together.
        local_rank: its number among those on the same machine.
        local_size: how many of them are on the same machine.
        address: where rank 0 can be met, "host:port", if the launcher gives one; else empty.
    """

    launcher: Launcher
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = ""

    def watch(self, deadline: float | None = None) -> None:
        """Has this process watch over the ranks beside it, if a launcher started it; see `watchdog`.

        Args:
            deadline: seconds without a sign of life from a rank after which the job ends; None if not known yet.
        """
        from bigbatch.comm.transports.watchdog import watch, watchdog

        if self.launcher is Launcher.NONE:
            return
        watch(detect, self._guarded_by)
        if deadline is not None and (watching := watchdog()) is not None:
            watching.allow(deadline)

    def _guarded_by(self, process: "Process") -> bool:
        """Whether a process looks after those that it started, as a launcher does.

        A shell may leave them to themselves: one in which somebody set torch's variables by hand, or in which those of
        a job of one process were left over.
        """
        if self.launcher is Launcher.TORCHRUN:
            return "TORCHELASTIC_RUN_ID" in os.environ
        return self.size > 1 or process.launches()

    def connect(self, deadline: float) -> "Transport":
        """Connects the processes by the transport that suits their launcher.

        That is MPI under mpirun and srun, and torch.distributed under torchrun; a single process needs no wires.

        Args:
            deadline: seconds after which a wait gives up.

        Raises:
            LaunchError: there is no MPI library, or it does not belong to the launcher.
        """
        self.watch(deadline)
        if self.launcher is Launcher.TORCHRUN:
            return self.connect_torch(deadline)
        if self.launcher is Launcher.NONE:
            from bigbatch.comm.transports.alone import Alone

            return Alone(deadline)
        from bigbatch.comm.transports.mpi import MPITransport

        return MPITransport(self.size, deadline)

    def connect_torch(self, deadline: float, backend: str = "gloo") -> "Transport":
        """Connects the processes by torch.distributed, whichever launcher started them.

        mpirun gives its processes no address to meet at: MPI itself carries rank 0's to the others.

        Args:
            deadline: seconds after which a wait gives up.
            backend: the backend of torch.distributed: "gloo", or "cpu:gloo,cuda:nccl".
        """
        from bigbatch.comm.transports.torch_distributed import TorchTransport, free_address

        self.watch(deadline)
        rank, size, address, mpi = self.rank, self.size, self.address, None
        if self.launcher is Launcher.MPI:
            from bigbatch.comm.transports.mpi import MPITransport

            mpi = MPITransport(self.size, deadline)
            rank, size = mpi.rank, mpi.size
            address = mpi.share_address(free_address() if rank == 0 else "")
        return TorchTransport(rank, size, address, backend=backend, deadline=deadline, launcher=mpi)


# Rank, size, local rank, local size, as each kind of MPI launcher names them.
_MPI_VARIABLES = (
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and its descendants
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),  # Open MPI
)


def detect(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read from the environment how this process was started.

    The innermost launcher counts: torchrun inside a job of srun is torchrun.

    Raises:
        LaunchError: the launcher's variables are incomplete or hold no numbers.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return _launch(Launcher.TORCHRUN, environment, names, address)
    for names in _MPI_VARIABLES:
        if names[0] in environment and names[1] in environment:
            return _launch(Launcher.MPI, environment, names)
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        job = environment.get("SLURM_JOB_ID", "0")
        if not job.isdecimal():
            raise LaunchError(f"Slurm has set SLURM_JOB_ID to {job!r}, which is no number: start the job with srun.")
        port = 20_000 + int(job) % 40_000
        address = f"{first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        return _launch(Launcher.SLURM, environment, names, address)
    return Launch(Launcher.NONE)


def _launch(
    launcher: Launcher, environment: Mapping[str, str], names: tuple[str, str, str, str], address: str = ""
) -> Launch:
    try:
        rank, size = int(environment[names[0]]), int(environment[names[1]])
        local_rank = int(environment.get(names[2], rank))
        # srun lists the tasks of every node, as in "4(x2),3"; the first node's serve.
        local_size = int(re.split(r"[(,]", environment.get(names[3], str(size)))[0])
    except (KeyError, ValueError) as error:
        raise LaunchError(
            f"This process seems to have been started by {launcher.value}, but its variables {', '.join(names)} do not "
            f"all hold numbers ({error}). Start it by mpirun, torchrun or srun, or unset them."
        ) from error
    return Launch(launcher, rank, size, local_rank, local_size, address)


def first_host(nodelist: str) -> str:
    """The first host of a list as Slurm writes it: "node[03-05,9],gpu1" is node03."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodelist)
    if match is None:
        raise LaunchError(f"Slurm's list of nodes, {nodelist!r}, names no host.")
    return match[1] + (match[2] or "")
