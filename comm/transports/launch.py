"""How this process was started: alone, or as one of many, and by whom."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bigbatch.comm.errors import LaunchError
from bigbatch.comm.transports.families import (
    FAMILIES,
    MANAGERS,
    SLURM,
    TORCH,
    Family,
    Launcher,
    Place,
    counts,
    launchers_variables,
    number,
    refuse_unconnected,
)
from bigbatch.comm.transports.inherited import Above, processes_above
from bigbatch.comm.transports.nodelists import first_host
from bigbatch.comm.wires.processes import Process

if TYPE_CHECKING:  # a command line that only asks who started it must not wait for NumPy
    from bigbatch.comm.transports.mpi import MPITransport
    from bigbatch.comm.wires.transport import Transport


@dataclass(frozen=True)
class Launch(Place):
    """How a process was started: which one it is, and where it meets the others.

    Attributes:
        address: where rank 0 can be met: "host:port", under srun the host alone; empty if the launcher does not say.
        job: a name that no other job which runs at the same time has; empty if the launcher gives none.
    """

    address: str = ""
    job: str = ""

    @property
    def first_here(self) -> bool:
        """Whether this process speaks for its machine, about what all processes there find out alike."""
        return self.rank == 0 or self.local_rank == 0

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

    def _guarded_by(self, process: Process) -> bool:
        """Whether a process looks after those that it started, as a launcher does.

        A shell may leave them to themselves: one in which somebody set torch's variables by hand, or in which those of
        a job of one process were left over.
        """
        if self.launcher is Launcher.TORCHRUN:
            return TORCH.mark in os.environ
        return self.size > 1 or process.launches()

    def connect(self, deadline: float) -> "Transport":
        """Connects the processes by the transport that suits their launcher.

        That is torch.distributed under torchrun and deepspeed, and MPI under the others; a single process needs no
        wires.

        Args:
            deadline: seconds after which a wait gives up.

        Raises:
            LaunchError: there is no MPI library, or it does not belong to the launcher.
        """
        self.watch(deadline)
        if self.launcher.torchs:
            return self.connect_torch(deadline)
        if self.alone:
            from bigbatch.comm.transports.alone import Alone

            return Alone(deadline)
        return self._connect_mpi(deadline)

    def connect_torch(self, deadline: float, backend: str = "gloo") -> "Transport":
        """Connects the processes by torch.distributed, whichever launcher started them.

        mpirun and flux give their processes no address to meet at: MPI itself carries rank 0's to the others. Under
        srun they meet at one of a few ports, wherever rank 0 answers with the name of their job step.

        Args:
            deadline: seconds after which a wait gives up.
            backend: the backend of torch.distributed: "gloo", or "cpu:gloo,cuda:nccl".
        """
        from bigbatch.comm.transports.meeting import at_address, in_step, nobody, through_mpi
        from bigbatch.comm.transports.torch_distributed import TorchTransport

        self.watch(deadline)
        rank, size, mpi = self.rank, self.size, None
        if self.alone:
            meeting = nobody()
        elif self.launcher.torchs:
            meeting = at_address(self, deadline)
        elif self.launcher is Launcher.SLURM:
            meeting = in_step(self, deadline)
        else:
            mpi = self._connect_mpi(deadline)
            rank, size = mpi.rank, mpi.size
            meeting = through_mpi(mpi, deadline)
        return TorchTransport(rank, size, meeting, backend=backend, deadline=deadline, launcher=mpi)

    def _connect_mpi(self, deadline: float) -> "MPITransport":
        from bigbatch.comm.transports.mpi import MPITransport

        return MPITransport(self.size, deadline)


@dataclass(frozen=True)
class Decision:
    """Who started this process, and how that was found out.

    Attributes:
        launch: how the process was started.
        variables: the launchers' variables that were looked at, with their values.
        why: a sentence that says which launcher counts, and why.
    """

    launch: Launch
    variables: dict[str, str]
    why: str


HOST = re.compile(r"([\w-]{1,63}\.)*[\w-]{1,63}\.?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?")
"""What the name of a machine looks like (RFC 1035, and the underscores that some have), or an address."""

SPECIAL_STEPS = 0xFFFF_FFF0
"""Slurm's numbers for steps that are no srun, such as salloc's interactive shell (4294967290), begin here."""


def detect(process: Process | None = None) -> Launch:
    """Finds out how a process was started; see `decide`.

    Args:
        process: the process; None for this one.

    Raises:
        LaunchError: the launchers' variables contradict each other, are incomplete or hold no numbers.
    """
    environment = os.environ if process is None else process.environment() or {}
    return decide(environment, processes_above(process)).launch


def decide(environment: Mapping[str, str], above: Iterable[Above] = ()) -> Decision:
    """Decides who started a process.

    The innermost launcher counts. It is the one that set its variables last: a process above this one has those of the
    others, but not these. Names of programs would not do, since many start torchrun's part of torch by themselves
    (accelerate, composer). Where no such process can be seen, as on other systems than Linux, torchrun is taken to be
    inside mpirun and srun, and mpirun inside srun.
    Variables like torchrun's that somebody set by hand count unless they are for one process, and so left over.
    A process without variables whose launcher can be seen has lost them, and is refused.

    Args:
        environment: the environment variables of the process.
        above: the processes above it, the nearest first, as `processes_above` finds them.

    Raises:
        LaunchError: the variables contradict each other, are incomplete or hold no numbers.
    """
    variables = launchers_variables(environment)
    found = {family: family.read(environment) for family in FAMILIES if counts(family, environment)}
    by_hand = found.pop(TORCH, None) if TORCH.mark not in environment else None
    family, reason = _innermost(found, environment, above)
    if by_hand is not None and not by_hand.alone and _set_inside(by_hand, found, family, environment):
        launch = _torch(Launch(**vars(by_hand)), environment)
        inside = f", inside {family.launcher.value}" if family is not None else ""
        place = f"so this process is rank {launch.rank} of {launch.size}"
        return Decision(launch, variables, f"{TORCH.said(environment)} were set by hand{inside}, {place}.")
    if family is None:
        refuse_unconnected(environment)
        if by_hand is None:
            _refuse_lost(environment, above)
        left = " The variables of torch are for one process, and so left over." if by_hand is not None else ""
        why = f"No launcher started this process, so it is by itself.{left}"
        return Decision(Launch(Launcher.NONE), variables, why)
    launch = Launch(**vars(found[family]))
    if family.launcher.torchs:
        launch = _torch(launch, environment)
    elif family is SLURM:
        launch = _slurm(launch, environment)
    who = f"{launch.launcher.value} started this process as rank {launch.rank} of {launch.size}"
    free = ", which changes nothing: it may start others itself" if launch.alone else ""
    return Decision(launch, variables, f"{who} ({family.said(environment)}){free}{reason}.")


def _innermost(
    found: Mapping[Family, Place], environment: Mapping[str, str], above: Iterable[Above]
) -> tuple[Family | None, str]:
    """The launcher that counts, of those that set variables, and the reason if there are several."""
    if len(found) < 2:
        return next(iter(found), None), ""
    for inherited in above:
        new = [family for family in found if not family.alike(environment, inherited.environment)]
        if len(_different(new, found)) == 1:
            others = [family for family in found if family not in new]
            inside = f"; it is inside {_listed(others)}, whose variables the processes above this one have, too"
            return new[-1], inside if others else ""
        if new:
            break
    several = _different([family for family, launch in found.items() if not launch.alone], found)
    if len(several) < 2:
        reason = f"; of {_listed(found)} it is the only one with several processes" if several else ""
        return next(iter(several or found)), reason
    inner, *outer = several
    for family in outer:
        if family not in MANAGERS and not inner.started_by(family, environment):
            raise LaunchError(
                f"{inner.said(environment)} contradict {family.said(environment)}, and it cannot be seen which "
                "launcher is the inner one: unset the variables that do not belong to this job."
            )
    return inner, f"; of {_listed(several)} it is the one that the others start"


def _refuse_lost(environment: Mapping[str, str], above: Iterable[Above]) -> None:
    """Refuses a process below a launcher whose variables something has taken away, as env -i and sudo do.

    It would work alone, as would each of the others. Nothing tells for how many a launcher would have set them that is
    directly above; whoever says that there is one process, in between or here, is believed.
    """
    between = [environment]
    for process in above:
        if process.launches:
            break
        between.append(process.environment)
    else:
        return  # variables that nobody's launcher set may be unset
    told = [family.read(seen) for seen in between for family in FAMILIES if counts(family, seen)]
    if told[0].alone if told else any(map(launchers_variables, between)):
        return
    raise LaunchError(
        "A launcher started this process, but the variables with its rank are gone, as env -i and sudo remove them, so "
        "that it would work alone: keep them (sudo -E), or set RANK=0 and WORLD_SIZE=1 if it is meant to."
    )


def _different(families: Iterable[Family], found: Mapping[Family, Place]) -> list[Family]:
    """Leaves the last of several families that tell the same, since those are one launcher by several names."""
    told = {(found[family].launcher.torchs, found[family].rank, found[family].size): family for family in families}
    return list(told.values())


def _listed(found: Iterable[Family]) -> str:
    return " and ".join(dict.fromkeys(family.launcher.value for family in found))


def _set_inside(
    by_hand: Place, found: Mapping[Family, Place], family: Family | None, environment: Mapping[str, str]
) -> bool:
    """Whether torch's variables, for several processes, were set by hand for this very process.

    Raises:
        LaunchError: they contradict what a launcher of several processes says.
    """
    complete = "MASTER_ADDR" in environment and "MASTER_PORT" in environment
    if family is None or (launch := found[family]).alone:
        if not complete:
            missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
            raise LaunchError(
                f"{TORCH.said(environment)} make this process one of several, but without {' and '.join(missing)} they "
                "do not say where those meet: set both, use torchrun, or unset RANK and WORLD_SIZE."
            )
        return True
    if (by_hand.rank, by_hand.size) != (launch.rank, launch.size):
        raise LaunchError(
            f"{TORCH.said(environment)} contradict {family.said(environment)} of {launch.launcher.value}: unset those "
            "that do not belong to this job."
        )
    return complete


def _torch(launch: Launch, environment: Mapping[str, str]) -> Launch:
    """Adds where the processes meet, and what their job is called."""
    if launch.alone:
        return launch
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise LaunchError(
                f"{TORCH.said(environment)} are set, but {name} is not, so that the processes cannot meet: start them "
                "with torchrun."
            )
    host = environment["MASTER_ADDR"]
    if HOST.fullmatch(host) is None:
        raise LaunchError(
            f"The variable MASTER_ADDR={host!r} should be the name or the address of one machine, that of rank 0: set "
            "it on every rank, or use torchrun."
        )
    port = number(environment, "MASTER_PORT", launch.launcher, least=1, below=65_536)
    here = host == "localhost" or host.startswith("127.") or host == "::1"
    return replace(
        launch,
        address=f"{host}:{port}",
        one_machine=launch.one_machine or here,
        job=environment.get("TORCHELASTIC_RUN_ID", ""),
    )


def _slurm(launch: Launch, environment: Mapping[str, str]) -> Launch:
    """Adds the first host of the job step, and what the step is called."""
    step = number(environment, "SLURM_STEP_ID", launch.launcher) if "SLURM_STEP_ID" in environment else 0
    if launch.alone or step >= SPECIAL_STEPS:
        return Launch(launch.launcher)
    job = number(environment, "SLURM_JOB_ID", launch.launcher) if "SLURM_JOB_ID" in environment else 0
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    return replace(launch, address=first_host(nodes), job=f"{job}.{step}.{restarts}")
