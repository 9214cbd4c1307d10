"""MPI, through mpi4py's upper-case calls, which send NumPy buffers where they lie."""

import os
import time
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from bigbatch.comm.errors import DeadlineError, LaunchError
from bigbatch.comm.transport import ANY, DEFAULT_DEADLINE, Buffer, Request, Transport

if TYPE_CHECKING:
    from mpi4py import MPI

YIELDS = 200
"""How often a wait gives way to other processes before it begins to sleep."""

SHORTEST_SLEEP, LONGEST_SLEEP = 20e-6, 1e-3
"""Seconds; a waiting rank that sleeps leaves its core to the ranks that compute."""


class MPIRequest(Request):
    """A message under way in MPI."""

    def __init__(self, transport: "MPITransport", pending: "MPI.Request", operation: str, peer: int) -> None:
        self._transport = transport
        self._pending = pending
        self._operation = operation
        self._peer = peer

    def wait(self) -> int:
        """Wait for the message: first spinning politely, then sleeping, at last giving up."""
        status = self._transport.status
        arrived = self._pending.Test
        for _ in range(YIELDS):
            if arrived(status):
                return self._finished(status)
            os.sched_yield()
        started, pause = time.monotonic(), SHORTEST_SLEEP
        while not arrived(status):
            if time.monotonic() - started > self._transport.deadline:
                self._give_up()
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_SLEEP)
        return self._finished(status)

    def _finished(self, status: "MPI.Status") -> int:
        return status.Get_source() if self._peer == ANY else self._peer

    def _give_up(self) -> NoReturn:
        peer = "any rank" if self._peer == ANY else f"rank {self._peer}"
        raise DeadlineError(
            f"Rank {self._transport.rank} waited {self._transport.deadline:g} s to {self._operation} {peer}. "
            "Either that rank is stuck, or it is slow: then allow more with --deadline."
        )


class MPITransport(Transport):
    """All ranks of an MPI job.

    Args:
        expected: how many ranks the launcher says it started, or None if it says nothing.
        deadline: seconds after which a wait gives up.

    Raises:
        LaunchError: there is no MPI library, or it does not belong to the launcher.
    """

    def __init__(self, expected: int | None = None, deadline: float = DEFAULT_DEADLINE) -> None:
        mpi = load_mpi()
        self._communicator = mpi.COMM_WORLD.Dup()
        self._any = mpi.ANY_SOURCE
        self.status = mpi.Status()
        super().__init__(self._communicator.Get_rank(), self._communicator.Get_size(), deadline)
        if expected is not None and expected != self.size:
            library = mpi.Get_library_version().splitlines()[0].strip()
            raise LaunchError(
                f"The launcher started {expected} processes, but the MPI library ({library}) sees {self.size}: they "
                "do not belong together. Use the mpirun that came with that library, or install one pair with: "
                "pip install 'bigbatch[mpich]'"
            )

    def _isend(self, buffer: Buffer, target: int, tag: int) -> Request:
        return MPIRequest(self, self._communicator.Isend(buffer, target, tag), "send to", target)

    def _irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        named = self._any if source == ANY else source
        return MPIRequest(self, self._communicator.Irecv(buffer, named, tag), "receive from", source)

    def share_address(self, address: str) -> str:
        """Rank 0's `address`, on every rank: how processes that mpirun started find each other by other means."""
        return str(self._communicator.bcast(address, root=0))

    def close(self) -> None:
        """Give the communicator back."""
        self._communicator.Free()

    def abort(self, code: int) -> NoReturn:
        """MPI_Abort: ends every process of the job."""
        self._communicator.Abort(code)
        raise SystemExit(code)


def load_mpi() -> ModuleType:
    """Import mpi4py's MPI, which loads and initialises the MPI library.

    Raises:
        LaunchError: there is none.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            "No MPI library could be loaded. Install one with: pip install 'bigbatch[mpich]' "
            f"(or load your cluster's MPI module). mpi4py said: {str(error).strip().splitlines()[0]}"
        ) from error
    module: ModuleType = MPI
    return module
