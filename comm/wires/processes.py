"""Processes of this machine: whether one still runs, whether it was stopped, who started it, and how to end it.

Linux tells all of this below /proc. Elsewhere a process is only known to run or not to.
"""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")

LAUNCHERS = frozenset(
    {
        *("mpirun", "mpirun.openmpi", "mpirun.mpich", "mpiexec", "mpiexec.openmpi", "mpiexec.mpich", "mpiexec.hydra"),
        *("hydra_pmi_proxy", "hydra_bstrap_pr"),
        *("orterun", "orted", "prterun", "prte", "prted", "srun", "slurmstepd", "torchrun", "pt_elastic", "deepspeed"),
        *("mpirun_rsh", "mpispawn", "flux-shell"),
    }
)
"""Names of programs that start the processes of a job, as Linux has them: cut off after 15 bytes."""

ADOPTERS = frozenset({"systemd", "init", "tini", "dumb-init", "catatonit", "containerd-shim"})
"""Names of programs that take over the processes that others have left behind (PR_SET_CHILD_SUBREAPER of prctl(2))."""


@dataclass(frozen=True)
class Process:
    """A process, which is never mistaken for a later one with the same number.

    Attributes:
        number: its process number.
        started: when it was started, in clock ticks since the machine was; 0 where that is not known.
    """

    number: int
    started: int = 0

    @classmethod
    def numbered(cls, number: int) -> Self | None:
        """Finds the process that has a number now; None if there is none, or if it has ended."""
        if not PROC.is_dir():
            return cls(number) if _exists(number) else None
        status = _status(number)
        return None if status is None or status[0] in "ZX" else cls(number, int(status[19]))

    def alive(self) -> bool:
        """Whether it still runs, be it stopped or not."""
        return Process.numbered(self.number) == self

    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it, as SIGSTOP and Ctrl-Z do."""
        status = self._status()
        return status is not None and status[0] in "Tt"

    def processor_ticks(self) -> int:
        """How long it has kept a processor busy, in clock ticks; 0 where that is not known."""
        status = self._status()
        return 0 if status is None else int(status[11]) + int(status[12])

    def parent(self) -> "Process | None":
        """The process that it is a child of; None if that cannot be seen from here."""
        if self.number == os.getpid():
            return Process.numbered(os.getppid())
        status = self._status()
        return None if status is None else Process.numbered(int(status[1]))

    def environment(self) -> dict[str, str] | None:
        """The environment that its program was started with, whatever has changed since; None if that is not told."""
        try:
            content = (PROC / str(self.number) / "environ").read_bytes().decode(errors="replace")
        except OSError:
            return None
        return dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)

    def launches(self) -> bool:
        """Whether its name is a launcher's, such as mpirun; a script called run_mpirun.sh is none."""
        return self._name() in LAUNCHERS

    def adopts(self) -> bool:
        """Whether it takes over the processes that others have left behind, as the first process of a machine does."""
        return (self.number == 1 or self._name() in ADOPTERS) and not self.launches()

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Sends it a signal; SIGKILL ends a stopped process, too. A later process of the same number is spared."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended meanwhile, or is another user's
                os.kill(self.number, how)

    def _name(self) -> str:
        """The name of its program, cut off after 15 bytes; empty if it cannot be seen."""
        try:
            return (PROC / str(self.number) / "comm").read_text(errors="replace").rstrip("\n")
        except OSError:
            return ""

    def _status(self) -> list[str] | None:
        status = _status(self.number)
        return status if status is not None and int(status[19]) == self.started else None


def namespace() -> str:
    """Names the processes among which a process number means the same: those of this container, or of this machine."""
    try:
        return str((PROC / "self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return "0"


def below(ancestor: Process) -> list[Process]:
    """Lists the processes that an ancestor has started, directly or not; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in PROC.iterdir():
            if entry.name.isdecimal() and (status := _status(int(entry.name))) is not None:
                parents.setdefault(int(status[1]), []).append(int(entry.name))
    numbers = [ancestor.number]
    for number in numbers:  # which grows meanwhile
        numbers += parents.get(number, [])
    return [found for number in numbers[1:] if (found := Process.numbered(number)) is not None]


def _status(number: int) -> list[str] | None:
    """The fields of /proc/NUMBER/stat that follow the name, from the state on (proc_pid_stat(5))."""
    try:
        return (PROC / str(number) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
